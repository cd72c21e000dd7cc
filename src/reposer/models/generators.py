"""The generators by name: one plain dict.

A generator is an nn.Module with ``forward(PairBatch) -> (B, 3, H, W)`` float in [-1, 1]; it picks its fields,
and ``needs`` names them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from reposer.errors import UserError
from reposer.models.layers import check_choice
from reposer.models.patn import PATN
from reposer.models.rsa_gan import RSAGAN
from reposer.models.san import SAN

GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "san": SAN,
    "rsa_gan": RSAGAN,
    "patn": PATN,
}


def build_generator(name: str, **args: Any) -> nn.Module:
    """The generator of that name, its constructor called with ``args``.

    Raises:
        UserError: no such generator, no such argument (the nearest one is named), or an impossible value.
    """
    check_choice("generator", name, GENERATORS)
    known = list(inspect.signature(GENERATORS[name]).parameters)
    for arg in args:
        if arg not in known:
            near = difflib.get_close_matches(arg, known, n=1)
            advice = f"did you mean {near[0]}" if near else f"use one of {', '.join(known)}"
            raise UserError(f"the generator {name} has no argument {arg}", advice)
    return GENERATORS[name](**args)
