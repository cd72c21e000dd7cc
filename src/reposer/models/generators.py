"""The generators and the predictors of target maps by name: two plain dicts.

A generator is an nn.Module with ``forward(PairBatch) -> (B, 3, H, W)`` float in [-1, 1]; it picks its fields,
and ``needs`` names them. One that can be trained with terms on more than its image has a class attribute
``extra_terms``, loss term -> the constructor's option that must be true for it, and
``forward(batch, parts=True)`` returns what the terms look at as a second result.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from reposer.errors import UserError, find
from reposer.models.layers import check_arguments
from reposer.models.parsing_networks import ParsingPredictor
from reposer.models.patn import PATN
from reposer.models.rsa_gan import RSAGAN
from reposer.models.san import SAN
from reposer.models.transport_unet import TransportUNet
from reposer.storage.paths import printable

GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "san": SAN,
    "rsa_gan": RSAGAN,
    "patn": PATN,
    "transport_unet": TransportUNet,
}


PREDICTORS: dict[str, Callable[..., nn.Module]] = {"parsing_predictor": ParsingPredictor}


def build_generator(name: str, **args: Any) -> nn.Module:
    """The generator of that name, its constructor called with ``args``.

    Raises:
        UserError: no such generator, no such argument (the nearest one is named), or an impossible value.
    """
    return _build("generator", GENERATORS, name, args)


def build_predictor(name: str, **args: Any) -> nn.Module:
    """The same for predictors."""
    return _build("predictor", PREDICTORS, name, args)


def extra_terms(name: str) -> Mapping[str, str]:
    """The loss terms that the generator offers beyond its image; none for an unknown one."""
    terms: Mapping[str, str] = getattr(GENERATORS.get(name), "extra_terms", {})
    return terms


def option_is_on(name: str, option: str, args: Mapping[str, Any]) -> bool:
    """Whether an option of the generator is true, by ``args`` or by its default."""
    default = inspect.signature(GENERATORS[name]).parameters[option].default
    return bool(args.get(option, default))


def _build(
    kind: str, known: dict[str, Callable[..., nn.Module]], name: str, args: dict[str, Any]
) -> nn.Module:
    made = find(kind, name, known)
    options = inspect.signature(made, eval_str=True).parameters
    for arg, value in args.items():
        if arg not in options:
            near = difflib.get_close_matches(arg, options, n=1)
            advice = f"did you mean {near[0]}" if near else f"use one of {', '.join(options)}"
            raise UserError(f"the {kind} {name} has no argument {printable(arg[:60])}", advice)
        if not _is_of(options[arg].annotation, value):
            shown = printable(repr(value)[:60])
            raise UserError(f"the {kind} {name}: {arg} cannot be {shown}", _advice(options[arg]))
    check_arguments(args)
    try:
        return made(**args)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # values that are wrong together
        reason = printable(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__
        raise UserError(f"no such {kind} {name} can be built: {reason}", "change its arguments") from error


def _is_of(annotation: Any, value: object) -> bool:
    """Whether the value is of the type that a constructor names; any is, where it names none."""
    if annotation is inspect.Parameter.empty:
        return True
    try:
        TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _advice(option: inspect.Parameter) -> str:
    return f"its default is {option.default!r}" if option.default is not option.empty else ""
