"""The generators, the predictors of target maps and the controls by name: plain dicts.

A generator is an nn.Module with ``forward(PairBatch) -> (B, 3, H, W)`` float in [-1, 1]; it picks its fields,
and ``needs`` names them. One that can be trained with terms on more than its image has a class attribute
``extra_terms``, loss term -> the constructor's option that must be true for it, ``stage_terms``, term -> the
only stage that has it, and
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

from torch import Tensor, nn

from reposer.errors import with_plugins
from reposer.images import to_float
from reposer.models.def_gan import DefGAN
from reposer.models.dpig import DPIG
from reposer.models.dptn import DPTN
from reposer.models.gfla import GFLA
from reposer.models.intro_flow import IntroFlow
from reposer.models.layers import build
from reposer.models.parsing_networks import ParsingPredictor
from reposer.models.patn import PATN, XingGAN
from reposer.models.pg2 import PG2
from reposer.models.rsa_gan import RSAGAN
from reposer.models.san import SAN
from reposer.models.texture_transport import NEEDS, carried_to
from reposer.models.transport_unet import TransportUNet
from reposer.models.vunet import VUNet
from reposer.structures import PairBatch

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
    "xinggan": XingGAN,
    "dptn": DPTN,
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


def stage_of(name: str, term: str) -> str:
    """The stage that alone has this term of a generator's own; empty: all of them."""
    only: Mapping[str, str] = getattr(GENERATORS.get(name), "stage_terms", {})
    return only.get(term, "")


def about(name: str) -> str:
    """What the generator of that name deviates in from its paper; empty where it does not say."""
    return str(getattr(GENERATORS.get(name), "about", ""))


def option_is_on(name: str, option: str, args: Mapping[str, Any]) -> bool:
    """Whether an option of the generator is true, by ``args`` or by its default."""
    default = inspect.signature(GENERATORS[name]).parameters[option].default
    return bool(args.get(option, default))


# ---- Controls learn nothing: what a trained generator has to beat, under the same writer, metrics and study.
#
# A control's ``provenance`` says how its pictures come about.


class Transport(nn.Module):
    """The carried texture alone: pixels of the source in the target's pose, group colors where they lack."""

    needs = NEEDS
    provenance = "no network: pixels of the source are carried to the target's pose"

    def forward(self, batch: PairBatch) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        return carried_to(batch).image


class Colors(nn.Module):
    """The target's label map in the source's colors: one for each garment and part, none of its texture."""

    needs = NEEDS
    provenance = "no network: each part of the target's label map has one color of the source's"

    def forward(self, batch: PairBatch) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        return carried_to(batch).colors


class Paste(nn.Module):
    """The source image as it is, whatever the pose: its person over another background is all that is new."""

    needs = ("source_image", "source_mask")
    person = "source"  # whose mask cuts the generated person out
    provenance = "no network: each picture shows its source as it is; nothing of the target's pose is read"

    def forward(self, batch: PairBatch) -> Tensor:
        """(B, 3, H, W) in [-1, 1]; back in uint8 it is the source to the last bit."""
        return to_float(batch.source_image)


CONTROLS: dict[str, type[nn.Module]] = {"transport": Transport, "colors": Colors, "paste": Paste}
