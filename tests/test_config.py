"""config: typed overrides, one clear line for each mistake, exact round trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.config import (
    Config,
    apply_overrides,
    config_hash,
    differences,
    load_config,
    read_json,
    read_json_value,
    save_config,
)
from reposer.errors import LARGEST, UserError
from reposer.training.gan.config import DataConfig
from reposer.training.reid.config import ReidConfig


class Optimizer(Config):
    lr: float = pydantic.Field(2e-4, gt=0)
    betas: tuple[float, float] = (0.5, 0.999)
    name: Literal["adam", "sgd"] = "adam"


class Teacher(Config):
    weight: float = 1.0


class Training(Config):
    generator: str = "san"
    generator_args: dict[str, Any] = pydantic.Field({})
    steps: int = 1000
    size: tuple[int, int] = (128, 64)
    flip: bool = True
    weights: Path | None = None
    lambdas: list[float] = pydantic.Field([1.0, 10.0])
    optimizer: Optimizer = Optimizer()
    teacher: Teacher | None = None


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),  # PyYAML alone reads a text here
        ("optimizer.lr=1E-4", "optimizer.lr", 1e-4),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("optimizer.betas=[0.9, 0.99]", "optimizer.betas", (0.9, 0.99)),
        ("optimizer.name=sgd", "optimizer.name", "sgd"),
        ("steps=20", "steps", 20),
        ("size=[256,176]", "size", (256, 176)),
        ("flip=false", "flip", False),
        ("flip=no", "flip", False),
        ("lambdas=[1,2,3]", "lambdas", [1.0, 2.0, 3.0]),
        ("lambdas=[]", "lambdas", []),
        ("weights=/a/b=c.pth", "weights", Path("/a/b=c.pth")),
        ("weights=null", "weights", None),
        ("weights=12", "weights", Path("12")),
        ("generator=007", "generator", "007"),
        ("generator=no", "generator", "no"),
        ("generator=1e-4", "generator", "1e-4"),
        ("generator=${steps}", "generator", "${steps}"),  # no interpolation
        ("generator=???", "generator", "???"),
        ("generator=", "generator", ""),
        ("generator='a b'", "generator", "a b"),
        ("generator=größe", "generator", "größe"),
        ("generator_args.blocks=4", "generator_args", {"blocks": 4}),
        ("generator_args.a.b=[x, 1]", "generator_args", {"a": {"b": ["x", 1]}}),
        ("generator_args={widths: [1, 2], mask: null}", "generator_args", {"widths": [1, 2], "mask": None}),
        ("teacher={}", "teacher", Teacher()),
        ("teacher.weight=2", "teacher.weight", 2.0),
        (" steps =20", "steps", 20),
    ],
)
def test_overrides_are_read_by_the_type_of_the_field(override: str, key: str, value: object) -> None:
    found: Any = apply_overrides(Training(), [override])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_overrides_apply_in_order_replace_and_leave_the_original_alone() -> None:
    before = Training(generator_args={"old": 1})
    after = apply_overrides(before, ["steps=1", "steps=2", "generator_args={new: 1}", "generator_args.b=2"])
    assert after.steps == 2
    assert after.generator_args == {"new": 1, "b": 2}
    assert before == Training(generator_args={"old": 1})
    assert apply_overrides(before, []) == before


class Parts(Config):
    batch: int = 4
    accumulate: int = 2

    @pydantic.model_validator(mode="after")
    def _divides(self) -> Parts:
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch={self.batch}")
        return self


class Outer(Config):
    parts: Parts = Parts()


def test_rules_about_several_keys_are_judged_when_all_are_set() -> None:
    found = apply_overrides(Outer(), ["parts.batch=9", "parts.accumulate=3"])
    assert (found.parts.batch, found.parts.accumulate) == (9, 3)
    with pytest.raises(UserError) as caught:
        apply_overrides(Outer(), ["parts.batch=9"])
    assert str(caught.value) == "--set: parts: accumulate=2 does not divide batch=9"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("step=5", "unknown key step: did you mean steps?"),
        ("optimizer.l=5", "unknown key optimizer.l: did you mean optimizer.lr?"),
        ("optimizer.beta=5", "unknown key optimizer.beta: did you mean optimizer.betas?"),
        ("optimiser.lr=5", "unknown key optimiser: did you mean optimizer?"),
        ("lr=5", "unknown key lr: did you mean optimizer.lr?"),
        ("optimizer.weight=5", "unknown key optimizer.weight: did you mean teacher.weight?"),
        ("teacher.wieght=5", "unknown key teacher.wieght: did you mean teacher.weight?"),
        ("qqqq=5", "unknown key qqqq: valid keys are generator, generator_args, steps"),
        ("optimizer.lr.x=5", "optimizer.lr holds no keys of its own"),
        ("steps=1.5", "steps: input should be a valid integer, not 1.5"),
        ("steps=many", "steps: input should be a valid integer, not 'many'"),
        ("steps=true", "steps: input should be a valid integer, not True"),
        ("optimizer.lr=true", "optimizer.lr: input should be a valid number, not True"),
        ("optimizer.lr=0", "optimizer.lr: input should be greater than 0, not 0"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("optimizer.lr=.inf", "optimizer.lr"),
        ("optimizer.lr=nan", "optimizer.lr"),
        ("optimizer.name=adm", "optimizer.name: input should be 'adam' or 'sgd', not 'adm'"),
        ("size=[1]", "size.1 is missing"),
        ("size=[1,2,3]", "size: tuple should have at most 2 items"),
        ("size=5", "size: input should be a valid array, not 5"),
        ("optimizer=5", "optimizer: input should be an object, not 5"),
        ("flip=maybe", "flip: input should be a valid boolean, not 'maybe'"),
        ("generator_args={a: .nan}", "the value cannot be read"),
        ("size=[1", "the value cannot be read"),
        ("steps", "is not of the form key=value"),
        ("=5", "is not of the form key=value"),
        ("optimizer..lr=5", "is not of the form key=value"),
        ("size[0]=5", "unknown key size[0]: did you mean size?"),
    ],
)
def test_every_mistake_is_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides(Training(), [override])
    text = str(caught.value)
    assert text.startswith(f"--set {override}")
    assert message in text
    assert "\n" not in text


@settings(deadline=None)
@given(
    st.text(max_size=30),
    st.sampled_from(["steps", "optimizer.lr", "size", "generator", "generator_args.a", "flip"]),
)
def test_any_text_is_a_value_or_a_user_error(text: str, key: str) -> None:
    try:
        config = apply_overrides(Training(), [f"{key}={text}"])
    except UserError:
        assert key != "generator" or not text.isidentifier()
    else:
        assert Training.model_validate_json(config.model_dump_json()) == config


def test_a_text_field_takes_identifiers_as_they_are() -> None:
    for word in ("no", "on", "null_", "nan", "inf", "e5", "true"):
        assert apply_overrides(Training(), [f"generator={word}"]).generator == word


def test_configs_are_frozen_strict_and_checked() -> None:
    config = Training()
    with pytest.raises(pydantic.ValidationError):
        config.steps = 5  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        Training(stesp=5)  # type: ignore[call-arg]
    with pytest.raises(pydantic.ValidationError):
        Optimizer(lr=float("nan"))
    assert config.changed(steps=7) == Training(steps=7)
    with pytest.raises(pydantic.ValidationError):
        config.changed(steps="x")


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))  # any other is refused
WHOLE, NUMBERS = st.integers(-LARGEST, LARGEST), st.floats(-LARGEST, LARGEST)


def test_a_number_at_any_depth_that_nothing_could_count_to_is_refused() -> None:
    for wrong in (2**31, -(2**31), 1e300):
        for field in ({"lambdas": (1, wrong)}, {"generator_args": {"blocks": wrong}}, {"steps": wrong}):
            with pytest.raises(pydantic.ValidationError):
                Training(**field)
    for field in ({"generator_args": {"a": {"b": [float("nan")]}}}, {"lambdas": (float("nan"),)}):
        with pytest.raises(pydantic.ValidationError):
            Training(**field)
    assert Training(generator_args={"a": LARGEST, "b": True}).generator_args["a"] == LARGEST


@settings(deadline=None)
@given(
    st.builds(
        Training,
        generator=TEXT,
        generator_args=st.dictionaries(
            TEXT,
            st.none() | st.booleans() | WHOLE | TEXT | NUMBERS,
        ),
        steps=WHOLE,
        size=st.tuples(WHOLE, WHOLE),
        lambdas=st.lists(NUMBERS),
        weights=st.none() | st.just(Path("a/ü b.pth")),
        teacher=st.none() | st.builds(Teacher, weight=NUMBERS),
    )
)
def test_json_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, config: Training) -> None:
    path = tmp_path_factory.getbasetemp() / "config.json"
    save_config(config, path)
    again = load_config(Training, path)
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert differences(config, again) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds no JSON object"),
        (b'{"stesp": 5}', "unknown key stesp: did you mean steps?"),
        (b'{"optimizer": {"lr": "fast"}}', "optimizer.lr: input should be a valid number, not 'fast'"),
        (b'{"optimizer": {"momentum": 1}}', "unknown key optimizer.momentum: did you mean optimizer.name?"),
        (b'{"steps": NaN}', "steps"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(Training, tmp_path / "config.json")
    assert str(tmp_path / "config.json") in str(caught.value)
    assert message in str(caught.value)


def test_more_values_than_anything_needs_are_refused_before_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reposer.storage.bounded.MAX_JSON_VALUES", 1000)
    place = tmp_path / "many.json"
    place.write_text("[" + ",".join("0" * 999) + "]")
    assert read_json_value(place) == [0] * 999
    place.write_text("[" + ",".join("0" * 1001) + "]")
    with pytest.raises(UserError, match=r"many\.json: is not valid JSON: holds more than 1,000 values"):
        read_json_value(place)


def test_all_mistakes_of_a_file_are_listed_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(
        json.dumps({"steps": "x", "flop": 1, "optimizer": {"lr": -1}, "size": [1]})
    )
    with pytest.raises(UserError) as caught:
        load_config(Training, tmp_path / "c.json")
    assert len(str(caught.value).splitlines()) == 4


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.json: cannot be read: No such file"):
        read_json(tmp_path / "absent.json")


def test_hash_depends_on_values_and_not_on_key_order(tmp_path: Path) -> None:
    one, two = Training(generator_args={"a": 1, "b": 2}), Training(generator_args={"b": 2, "a": 1})
    assert config_hash(one) == config_hash(two)
    hashes = {config_hash(c) for c in (Training(), Training(steps=2), Training(optimizer=Optimizer(lr=1.0)))}
    assert len(hashes) == 3
    assert all(len(h) == 64 for h in hashes)


def test_differences_name_every_leaf() -> None:
    a = Training(generator_args={"blocks": 4}, teacher=Teacher())
    b = Training(steps=5, optimizer=Optimizer(betas=(0.5, 0.9)))
    assert differences(a, b) == [
        "generator_args: (absent) -> {}",
        "generator_args.blocks: 4 -> (absent)",
        "optimizer.betas: [0.5, 0.999] -> [0.5, 0.9]",
        "steps: 1000 -> 5",
        "teacher: (absent) -> null",
        "teacher.weight: 1.0 -> (absent)",
    ]
    assert differences({"a": 1}, {"a": 1.0}) == ["a: 1 -> 1.0"]


def test_differences_of_lists_with_names_are_told_item_by_item():
    old = {"arms": [{"name": "real", "factor": 1}, {"name": "any", "factor": 2}]}
    new = {"arms": [{"name": "real", "factor": 1}, {"name": "any", "factor": 4}, {"name": "long" * 50}]}
    lines = differences(old, new)
    assert lines[0] == 'arms[any]: {"name": "any", "factor": 2} -> {"name": "any", "factor": 4}'
    assert len(lines) == 2
    assert lines[1].startswith("arms[longlong")
    assert "(absent) -> " in lines[1]
    assert lines[1].endswith("...")
    assert differences(old, old) == []


@pytest.mark.parametrize("text", ["a\0b", "\0", "a\ud800", "\udcff/b"])
def test_a_text_that_is_no_path_is_refused_in_every_field(text: str, tmp_path: Path) -> None:
    """Many texts of a configuration become paths, and a strange file may hold anything."""
    data, training = {"folder": text}, {"generator_args": {"deep": [{"path": text}]}}
    for cls, values in ((DataConfig, data), (ReidConfig, {"data": data}), (Training, training)):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"config\.json: .*(NUL|JSON)") as refusal:
            load_config(cls, tmp_path / "config.json")
        assert str(refusal.value).isprintable()
    for make in (lambda: DataConfig(folder=Path(text)), lambda: Training(generator_args={text: 1})):
        with pytest.raises(ValueError, match=r"a NUL or an undecodable character"):
            make()
