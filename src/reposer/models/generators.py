"""The generators and the predictors of target maps by name: two plain dicts.

A generator is an nn.Module with ``forward(PairBatch) -> (B, 3, H, W)`` float in [-1, 1]; it picks its fields,
and ``needs`` names them. One that can be trained with terms on more than its image has a class attribute
``extra_terms``, loss term -> the constructor's option that must be true for it, and
``forward(batch, parts=True)`` returns what the terms look at as a second result. A term that
``losses.image_gan.TERMS`` does not know is the generator's own: the second result has it, computed, in its
mapping ``terms``, name -> scalar.

One that is trained in stages has a class attribute ``stages``, stage -> the sub-networks that learn in it
(names of submodules). The training sets its attribute ``stage``, "" in use, to the stage's name, so that
``forward`` may leave out what a stage has no use for.

One whose start follows from data has a method ``begin(batch)``, called once with 64 training pairs before the
first step. One that re-builds a paper's names it in the class attribute ``about``, a sentence or two of what
it deviates in, which model cards repeat.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from reposer.errors import with_plugins
from reposer.models.def_gan import DefGAN
from reposer.models.dpig import DPIG
from reposer.models.gfla import GFLA
from reposer.models.intro_flow import IntroFlow
from reposer.models.layers import build
from reposer.models.parsing_networks import ParsingPredictor
from reposer.models.patn import PATN
from reposer.models.pg2 import PG2
from reposer.models.rsa_gan import RSAGAN
from reposer.models.san import SAN
from reposer.models.transport_unet import TransportUNet
from reposer.models.vunet import VUNet

GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "san": SAN,
    "rsa_gan": RSAGAN,
    "patn": PATN,
    "transport_unet": TransportUNet,
    "vunet": VUNet,
    "pg2": PG2,
    "dpig": DPIG,
    "def_gan": DefGAN,
    "gfla": GFLA,
    "intro_flow_keypoints": IntroFlow,
}
GENERATORS.update(with_plugins("reposer.generators", GENERATORS))


PREDICTORS: dict[str, Callable[..., nn.Module]] = {"parsing_predictor": ParsingPredictor}


def build_generator(name: str, **args: Any) -> nn.Module:
    """The generator of that name, its constructor called with ``args``.

    Raises:
        UserError: no such generator, no such argument (the nearest one is named), or an impossible value.
    """
    return build("generator", GENERATORS, name, args)


def build_predictor(name: str, **args: Any) -> nn.Module:
    """The same for predictors."""
    return build("predictor", PREDICTORS, name, args)


def extra_terms(name: str) -> Mapping[str, str]:
    """The loss terms that the generator offers beyond its image; none for an unknown one."""
    terms: Mapping[str, str] = getattr(GENERATORS.get(name), "extra_terms", {})
    return terms


def stages_of(name: str) -> Mapping[str, Sequence[str]]:
    """The stages of the generator, each with the sub-networks that learn; none for an unknown one."""
    stages: Mapping[str, Sequence[str]] = getattr(GENERATORS.get(name), "stages", {})
    return stages


def about(name: str) -> str:
    """What the generator of that name deviates in from its paper; empty where it does not say."""
    return str(getattr(GENERATORS.get(name), "about", ""))


def option_is_on(name: str, option: str, args: Mapping[str, Any]) -> bool:
    """Whether an option of the generator is true, by ``args`` or by its default."""
    default = inspect.signature(GENERATORS[name]).parameters[option].default
    return bool(args.get(option, default))
