"""Arguments of networks from strangers' configurations: refused in one line, before anything is made."""

from __future__ import annotations

import inspect
import json
import math
import time

import pytest
import torch

from reposer.errors import UserError
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.models.generators import GENERATORS, PREDICTORS, build_generator, build_predictor
from reposer.trained.networks import GeneratorConfig, save_generator

BUILDERS = {
    **dict.fromkeys(GENERATORS, build_generator),
    **dict.fromkeys(PREDICTORS, build_predictor),
}
OPTIONS = [
    (name, option)
    for name, made in (GENERATORS | PREDICTORS).items()
    for option in inspect.signature(made).parameters
]
NEVER = [
    10**9,
    2**63,
    -1,
    -0.5,
    math.nan,
    math.inf,
    1e308,
    None,
    {"a": 1},
    [[1, 2], [3]],
    [10**9] * 3,
    [-1] * 3,
]
NEVER += [[math.nan] * 3, ["8"] * 3, [None], [2] * 10**5, "x" * 10**6, "", "full\nfull"]
ODD = [0, [], "1", 0.5]  # right for some


def tried(name: str, option: str, value: object) -> str:
    """Build on no memory; what refused it, in a line that fits a screen."""
    said = ""
    try:
        with torch.device("meta"):
            BUILDERS[name](name, **{option: value})
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 400
    return said


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_no_option_takes_what_no_network_can_mean(name, option):
    began = time.monotonic()
    taken = [value for value in NEVER if not tried(name, option, value)]
    assert taken == []
    assert option in tried(name, option, None)
    for value in ODD:
        tried(name, option, value)  # built, or one line
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", BUILDERS)
def test_an_unknown_option_is_named(name):
    for option in ("nfg", "", "a\nb", "x" * 10**5, "__class__", "self"):
        assert f"{name}: argument " in tried(name, option, 1)


@pytest.mark.parametrize(
    ("name", "args", "open_it"),
    [
        ("san", {"ngf": 4, "blocks": 1, "deep_channels": [8]}, PoseTransfer.from_pretrained),
        ("parsing_predictor", {"width": 4, "halvings": 1}, MapPredictor.from_pretrained),
    ],
)
def test_a_folder_with_such_arguments_is_refused_with_its_name(name, args, open_it, tmp_path):
    config = GeneratorConfig(generator=name, generator_args=args, size=(32, 16))
    save_generator(tmp_path, BUILDERS[name](name, **args), config)
    written = json.loads((tmp_path / "config.json").read_text())
    first = next(iter(args))
    for wrong in (
        {first: 10**9},
        {first: -1},
        {first: [[4]]},
        {first: "4"},
        {"unknown": 1},
        {"norm": ["batch"]},
    ):
        (tmp_path / "config.json").write_text(json.dumps(written | {"generator_args": args | wrong}))
        with pytest.raises(UserError) as caught:
            open_it(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
