"""Every numeric option of every command, and every numeric field of every configuration, at its worst values.

The command tree and the configurations are walked, so that a new option without a range fails here.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from reposer.cli.main import app
from reposer.cli.options import parse_numbers, parse_size
from reposer.config import Config, apply_overrides
from reposer.errors import UserError
from reposer.runtime import setup
from reposer.studies.ablations import AblationConfig
from reposer.studies.study import find_study
from reposer.workflows.gan_presets import PRESETS
from reposer.workflows.train import PARSING_PRESETS, REID_PRESETS

WORST = ("-1", "0", "nan", "inf", "-inf", "1e18", str(10**9), str(10**18), str(-(10**18)), str(10**30))


def commands(group: typer.Typer, parsed: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path, function and parsed command of every command."""
    for info in group.registered_commands:
        name = info.name or info.callback.__name__.replace("_", "-")
        yield (*path, name), info.callback, parsed.commands[name]
    for info in group.registered_groups:
        if not isinstance(info.name, str):  # its commands stand in the group above
            yield from commands(info.typer_instance, parsed, path)
        else:
            yield from commands(info.typer_instance, parsed.commands[info.name], (*path, info.name))


def numeric_options() -> list[tuple[str, Any, Any, bool]]:
    """Path and name, what the code says of it, the parsed option, whether it is whole."""
    found = []
    for path, function, command in commands(app, typer.main.get_command(app)):
        options = {option.name: option for option in command.params}
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            kind, info = parameter.annotation.__origin__, parameter.annotation.__metadata__[0]
            kinds = set(get_args(kind)) or {kind}
            if kinds & {int, float}:
                found.append((f"{' '.join(path)} {name}", info, (command, options[name]), int in kinds))
    return found


OPTIONS = numeric_options()


def test_the_walk_finds_the_options():
    names = {name for name, *_ in OPTIONS}
    assert {"generate batch_size", "evaluate limit", "reid evaluate weight", "forget pid"} <= names
    assert {"prepare viper split", "study workers", "train max_minutes", "render images"} <= names
    assert len(OPTIONS) > 40


@pytest.mark.parametrize(
    ("info", "parsed", "whole"), [rest for _, *rest in OPTIONS], ids=[name for name, *_ in OPTIONS]
)
def test_a_value_is_in_the_documented_range_or_refused_as_wrong_usage(info, parsed, whole):
    """Parsing alone refuses, before any work, with the exit code of wrong usage and the option's name."""
    command, option = parsed
    assert info.min is not None, "say the least value"
    assert info.max is not None, "say the largest value"
    context = typer.Context(command)
    for text in WORST:
        number = float(text)
        readable = not whole or re.fullmatch(r"-?\d+", text)
        if readable and info.min <= number <= info.max:
            assert option.process_value(context, text) == number
            continue
        with pytest.raises(Exception, match=r"[a-z]") as refused:
            option.process_value(context, text)
        assert refused.value.exit_code == 2, text
        assert option.opts[0] in refused.value.format_message()


def test_help_tells_the_range(run):
    code, out, _ = run("generate", "--help")
    assert code == 0
    assert "65536" in out


def test_a_refusal_is_one_line_and_nothing_is_written(run, tmp_path):
    out = tmp_path / "out"
    for text in ("-1", "0", "nan", "1e18"):
        code, said, error = run("generate", "shipped", "--out", out, "--batch-size", text)
        assert (code, said) == (2, "")
        assert "--batch-size" in error
    code, _, error = run("augment", "shipped", "--data", tmp_path, "--out", out, "--budget", "nan")
    assert code == 2
    assert "--budget" in error
    assert not out.exists()


# ---- numbers within texts

NO_NUMBERS = ("", "-1", "nan", "1e3", "0x10", "\u00b2", "\u0665", "1_0", "9" * 5000)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_number_in_a_text_is_one_or_the_line_names_the_option(text):
    """A superscript two is a digit to Python and no number; five thousand nines are too many for it."""
    for size in (f"{text}x5", f"5x{text}", text, f"0{text}x0", f"5000x{text or 1}"):
        with pytest.raises(UserError, match=r"--size .*write HEIGHTxWIDTH") as told:
            parse_size(size)
        assert len(str(told.value)) < 200
    for numbers in (text, f"1,{text or 'x'}", f"{text or '-'},4"):
        with pytest.raises(UserError, match=r"--sources .*write 1,4") as told:
            parse_numbers("--sources", numbers)
        assert len(str(told.value)) < 200
    for device in (f"cuda:{text}", f"cpu:{text}", f"gpu{text}"):
        with pytest.raises(UserError, match="device") as told:
            setup(device)
        assert len(str(told.value)) < 400


def test_numbers_in_texts_are_read():
    assert parse_size("128X64") == (128, 64)
    assert parse_size("4096x1") == (4096, 1)
    assert parse_numbers("--sources", " 1, 4") == [1, 4]


# ---- settings


def numeric_fields(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and class of every number of a configuration, whatever it holds now."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from numeric_fields(value, f"{prefix}{name}.")
        elif re.search(r"\b(int|float)\b", str(field.annotation)):
            yield f"{prefix}{name}", value


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, dict):
        yield from numbers_in(list(value.values()))
    elif isinstance(value, int | float):
        yield value


def texts(value: Any) -> Iterator[str]:
    """Every worst value; of a tuple, in its first place, and in its last."""
    if not isinstance(value, tuple) or not list(numbers_in(value)):
        yield from WORST
        return
    for text in WORST:
        for place in {0, len(value) - 1}:
            parts = [json.dumps(part) for part in value]
            parts[place] = text if not isinstance(value[place], tuple) else f"[{text}, {text}]"
            yield f"[{', '.join(parts)}]"


def configurations() -> dict[str, Config]:
    one_of_each = {}
    for presets in (PRESETS, REID_PRESETS, PARSING_PRESETS):
        for make in presets.values():
            made = make() if callable(make) else make
            one_of_each.setdefault(type(made).__name__, made)
    study = find_study("augmentation")
    return one_of_each | {"study": study, "arm": study.arms[0], "ablations": AblationConfig(data=Path("d"))}


def overridden(config: Config, override: str) -> tuple[Config | None, str]:
    try:
        return apply_overrides(config, [override]), ""
    except UserError as error:
        return None, str(error)


@pytest.mark.parametrize("name", list(configurations()))
def test_a_setting_is_taken_or_refused_in_lines_that_name_it(name):
    config = configurations()[name]
    keys = dict(numeric_fields(config))
    assert keys
    for key in keys:
        for text in texts(keys[key]):
            changed, told = overridden(config, f"{key}={text}")
            if changed is None:
                # over several fields at once
                rule = told.startswith(
                    (f"--set: {type(config).__name__}: ", f"--set: {key.rpartition('.')[0]}: ")
                )
                assert rule or key.split(".")[-1] in told, (key, text)
                assert len(told) < 1000
                continue
            value: Any = changed
            for part in key.split("."):
                value = getattr(value, part)
            for number in numbers_in(value):
                assert math.isfinite(number)
                if "seed" in key:
                    assert 0 <= number < 2**63
                else:
                    assert abs(number) < 2**31
            if key.split(".")[-1] == "threads":
                assert 1 <= value <= 1024
            if key.split(".")[-1] == "batch_size":
                assert 1 <= value <= 65_536
            json.dumps(changed.model_dump(mode="json"), allow_nan=False)
