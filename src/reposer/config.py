"""Configurations: frozen pydantic models, JSON on disk, typed overrides, errors naming the nearest valid key.

A configuration class stands beside the code that reads it and derives from :class:`Config`. Imports no torch.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import pydantic
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic_core import InitErrorDetails
from yaml import YAMLError  # type: ignore[import-untyped]

from reposer.errors import LARGEST, LARGEST_SEED, UserError, unknown
from reposer.storage.bounded import parse_json
from reposer.storage.files import sha256_bytes, write_atomic
from reposer.storage.paths import RefusedFileError, printable, read_regular


def _parts(value: Any) -> Iterator[float | str]:
    """Every number, text and path in a value of a configuration, at any depth; truth values are none."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            yield from _parts(part)
    elif isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


_NOWHERE = re.compile("[\0\ud800-\udfff]")  # in a text: names nothing on a disk, and cannot be saved


class Config(pydantic.BaseModel):
    """Base of every configuration: frozen, an unknown key is an error, no NaN, defaults are checked too."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    # Fields that were added once files of the class lay on disks.
    later: typing.ClassVar[frozenset[str]] = frozenset()

    @pydantic.model_serializer(mode="wrap")
    def _as_before(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A later field at its default is left out, so that earlier files and hashes stay as they are."""
        data: dict[str, Any] = dump(self)
        for name in self.later & data.keys():
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                del data[name]
        return data

    @pydantic.field_validator("*")
    @classmethod
    def _in_range(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Bounds for every number, whatever a field's own are: nothing overflows or counts without end.

        And no text holds what no path can hold: many become paths.
        """
        seed = "seed" in (info.field_name or "")
        for number in _parts(value):
            if isinstance(number, str):
                if (bad := _NOWHERE.search(number)) is not None:
                    shown = printable(number[max(0, bad.start() - 60) : bad.start() + 20])
                    raise ValueError(f"{shown} holds a NUL or an undecodable character: correct the text")
                continue
            if seed and not 0 <= number <= LARGEST_SEED:
                raise ValueError(f"{number} is no seed: 0 to {LARGEST_SEED} is wanted")
            if not seed and not abs(number) <= LARGEST:  # NaN too
                raise ValueError(f"{number} is out of range: at most {LARGEST:,} is wanted")
        return value

    @classmethod
    def further_keys(cls) -> Collection[str]:
        """Keys without a field of their own, of a class with ``extra="allow"``; any other is unknown."""
        return ()

    @pydantic.model_validator(mode="after")
    def _further_keys_are_known(self) -> Self:
        unknown = [name for name in self.model_extra or () if name not in self.further_keys()]
        if unknown:  # what pydantic says itself where extra="forbid"
            problems: list[InitErrorDetails] = [
                {"type": "extra_forbidden", "loc": (name,), "input": (self.model_extra or {})[name]}
                for name in unknown
            ]
            raise pydantic.ValidationError.from_exception_data(type(self).__name__, problems)
        return self

    def changed(self, **values: Any) -> Self:
        """A checked copy with some fields replaced (pydantic's own ``model_copy`` checks nothing)."""
        now = {name: getattr(self, name) for name in type(self).model_fields} | (self.model_extra or {})
        return type(self)(**{**now, **values})


_C = TypeVar("_C", bound=Config)
_MAX_JSON_BYTES = 512 * 2**20  # the plan of ten million images


def one_of(kind: str, names: Collection[str]) -> pydantic.AfterValidator:
    """For a field that is a name of a registry: another one is refused where the configuration is made.

    Args:
        kind: what the names are of, for the message.
    """

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(unknown(kind, value, names))
        return value

    return pydantic.AfterValidator(check)


def check_each_once(**values: Sequence[Any]) -> None:
    """For validators of configurations whose fields list what is compared.

    Raises:
        ValueError: names the first field that is empty or holds something twice.
    """
    for field, listed in values.items():
        if not listed or len(set(listed)) < len(listed):
            raise ValueError(f"{field}: one or more, each once, are needed")


def apply_overrides(config: _C, overrides: Sequence[str], option: str = "--set") -> _C:
    """A copy of ``config`` with ``"optimizer.lr=1e-4"``-like overrides applied in order.

    Values are read as YAML the way OmegaConf does (1e-4 is a number, ``[128, 64]`` a list, ``null`` None);
    where the field refuses that reading, the plain text is tried (``name=007`` stays a text for a text
    field). The value replaces what stands at the key: lists and dictionaries are not merged.

    Args:
        option: of the command line that they came by, for messages.

    Raises:
        UserError: an override without "=", an unknown key (names the nearest valid one) or a value of the
            wrong type.
    """
    data = config.model_dump(mode="json")
    for override in overrides:
        _apply(type(config), data, override, f"{option} {override}")
    return validated(type(config), data, option)


def _apply(cls: type[_C], data: dict[str, Any], override: str, origin: str) -> None:
    """Put one override into ``data``, which is of no use when this raises."""
    key, separator, text = override.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names):
        raise UserError(f"{origin}: is not of the form key=value", "write for example optimizer.lr=1e-4")
    try:
        # The key is replaced: OmegaConf would read brackets and escapes in it in its own way.
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        value = json.loads(json.dumps(cast(dict[str, Any], parsed)["value"], allow_nan=False))
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{origin}: the value cannot be read: {reason}", "quote the value") from error
    _refuse_unknown(cls, names, origin)
    first: list[Any] = []  # what is wrong with the YAML reading
    for candidate in (value, text):
        _assign(data, names, candidate, origin)
        # What concerns other keys, or several at once, is judged when all overrides are in.
        problems = [
            p for p in _problems(cls, data) if [str(part) for part in p["loc"][: len(names)]] == names
        ]
        if not problems:
            return
        first = first or problems
    raise UserError(_lines(cls, first, origin))


def _assign(data: dict[str, Any], names: list[str], value: Any, origin: str) -> None:
    for depth, name in enumerate(names[:-1]):
        if data.get(name) is None:
            data[name] = {}
        data = data[name]
        if not isinstance(data, dict):
            parent = ".".join(names[: depth + 1])
            raise UserError(f"{origin}: {parent} holds no keys of its own", f"write {parent}=VALUE")
    data[names[-1]] = value


def save_config(config: Config, path: str | os.PathLike[str]) -> None:
    """Write the resolved configuration as readable JSON, atomically."""
    write_atomic(path, config_bytes(config))


def config_bytes(config: Config) -> bytes:
    """The resolved configuration as readable JSON."""
    text = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def load_config(cls: type[_C], path: str | os.PathLike[str], *, named: bool = False) -> _C:
    """Read a configuration of class ``cls`` from JSON.

    Args:
        named: as for :func:`read_json`.

    Raises:
        UserError: the file is missing, is no JSON, or does not fit ``cls``; one line for each field.
    """
    return validated(cls, read_json(path, named=named), str(path))


def read_json(
    path: str | os.PathLike[str], *, root: Path | None = None, named: bool = False
) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        root: the folder that was named and that the file must lie in, links followed; default: its own.
        named: the user named this very file, so it may be a link to anywhere.

    Raises:
        UserError: the file is missing, unreadable, no regular file, outside ``root``, no JSON, or no object.
    """
    data = read_json_value(path, root=root, named=named)
    if not isinstance(data, dict):
        raise UserError(f"{printable(path)}: holds no JSON object", "restore or delete this file")
    return data


def read_json_value(path: str | os.PathLike[str], *, root: Path | None = None, named: bool = False) -> Any:
    """As :func:`read_json`, of any JSON value."""
    place = Path(path)
    inside = None if named else root or place.parent
    try:
        return parse_json(read_regular(place, max_bytes=_MAX_JSON_BYTES, root=inside).decode("utf-8"))
    except RefusedFileError as error:
        cause = error.__cause__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or error.reason
        raise UserError(f"{printable(path)}: cannot be read: {reason}", "check the path") from error
    except ValueError as error:
        problem = f"{printable(path)}: is not valid JSON: {error}"
        raise UserError(problem, "restore or delete this file") from error


# what values of another type, or size, lead to; NotImplementedError: in a computation of Arrow's
_FOREIGN = (
    *(TypeError, ValueError, AttributeError, IndexError),
    *(OverflowError, RecursionError, NotImplementedError),
)


@contextmanager
def foreign_values(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around the use of values of a file that anybody may have written: a wrong one is the file's fault.

    Raises:
        UserError: in place of what a missing value, or one of another type or size, leads to.
    """
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{printable(path)}: {error} is missing", "restore this file") from error
    except _FOREIGN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{printable(path)}: holds a value of the wrong kind ({reason})", "restore this file"
        ) from error


def canonical_json(data: Any) -> bytes:
    """One byte string for equal data: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: a float is not finite.
    """
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def config_hash(config: Config) -> str:
    """Hexadecimal sha256 of the resolved configuration."""
    return sha256_bytes(canonical_json(config.model_dump(mode="json")))


def stored_hash(path: str | os.PathLike[str]) -> str:
    """:func:`config_hash` of a configuration as it lies on the disk, whatever its class.

    Raises:
        UserError: as :func:`read_json`, or a number in the file is not finite.
    """
    try:
        return sha256_bytes(canonical_json(read_json(path)))
    except ValueError as error:
        raise UserError(f"{path}: {error}", "restore this file") from error


def differences(a: Config | Mapping[str, Any], b: Config | Mapping[str, Any]) -> list[str]:
    """Lines ``key: value in a -> value in b`` of every leaf that differs, sorted by key; empty when equal.

    Long values are cut. Of lists whose items have names, the items that differ are named one by one.
    """
    left, right = (dict(_leaves(x.model_dump(mode="json") if isinstance(x, Config) else x)) for x in (a, b))
    lines = []
    for key in sorted(left.keys() | right.keys()):
        here, there = (json.dumps(side[key]) if key in side else "(absent)" for side in (left, right))
        if here != there:
            lines.append(f"{key}: {_cut(here)} -> {_cut(there)}")
    return lines


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value and all("name" in _fields(item) for item in value):
            for item in value:
                yield f"{prefix}{key}[{item['name']}]", item
        else:
            yield f"{prefix}{key}", value


def _fields(item: object) -> Mapping[str, Any]:
    return item if isinstance(item, Mapping) else {}


def _cut(text: str, length: int = 100) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _problems(cls: type[_C], data: dict[str, Any]) -> list[Any]:
    try:
        _parsed(cls, data)
    except pydantic.ValidationError as error:
        return error.errors(include_url=False, include_context=False)
    return []


def _parsed(cls: type[_C], data: dict[str, Any]) -> _C:
    # Strict JSON mode: 1 is a float, True no number, "1" no integer; a list becomes a tuple, a text a Path.
    return cls.model_validate_json(json.dumps(data), strict=True)


def validated(cls: type[_C], data: dict[str, Any], origin: str) -> _C:
    """The configuration that ``data`` gives.

    Args:
        origin: where it comes from, for messages.

    Raises:
        UserError: it does not fit ``cls``; one line for each field.
    """
    try:
        return _parsed(cls, data)
    except pydantic.ValidationError as error:
        raise UserError(
            _lines(cls, error.errors(include_url=False, include_context=False), origin)
        ) from error


def refusal(error: Exception) -> str:
    """What validators of ours say of a configuration that a command made; "" of other errors."""
    if not isinstance(error, pydantic.ValidationError):
        return ""
    problems = error.errors(include_url=False, include_context=False)
    if any(problem["type"] != "value_error" for problem in problems):
        return ""
    said = [[*map(str, p["loc"]), p["msg"].removeprefix("Value error, ")] for p in problems]
    return "\n".join(": ".join(parts) for parts in said)


def _lines(cls: type[Config], problems: list[Any], origin: str) -> str:
    """One line for each pydantic error."""
    lines = []
    for problem in problems:
        names = [printable(str(part)[:80]) for part in problem["loc"]]  # a stranger's keys too
        key = ".".join(names) or cls.__name__
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown(cls, names, origin))
        elif problem["type"] == "missing":
            lines.append(f"{origin}: {key} is missing")
        elif problem["type"] == "json_invalid":  # what Python's JSON lets through, and no other
            reason = problem["msg"].removeprefix("Invalid JSON: ")
            lines.append(f"{origin}: holds what cannot be saved as JSON ({reason}): correct the file")
        elif problem["type"] == "value_error":  # of a validator of ours, which says it all
            lines.append(f"{origin}: {key}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
            lines.append(f"{origin}: {key}: {message}, not {_short(problem['input'])}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse_unknown(cls: type[Config], names: list[str], origin: str) -> None:
    model: type[Config] | None = cls
    for depth, name in enumerate(names):
        if model is None:
            return  # below a dictionary or a plain value: pydantic or _assign judges
        field = model.model_fields.get(name)
        if field is None and name not in model.further_keys():
            raise UserError(_unknown(cls, names[: depth + 1], origin))
        model = None if field is None else _model_of(field.annotation)


def _unknown(cls: type[Config], names: list[str], origin: str) -> str:
    key = ".".join(names)
    valid = list(_keys(cls))
    same_name = [k for k in valid if k.split(".")[-1] == names[-1]]
    siblings = [k for k in valid if k.split(".")[:-1] == names[:-1]]
    nearest = (
        same_name
        or difflib.get_close_matches(key, siblings, 1, 0.5)
        or difflib.get_close_matches(key, valid, 1, 0.5)
    )
    hint = f"did you mean {nearest[0]}?" if nearest else f"valid keys are {', '.join(siblings or valid)}"
    return f"{origin}: unknown key {key}: {hint}"


def _keys(cls: type[Config], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration class, groups included."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        model = _model_of(field.annotation)
        if model is not None:
            yield from _keys(model, f"{prefix}{name}.")
    yield from (prefix + name for name in cls.further_keys())


def _model_of(annotation: Any) -> type[Config] | None:
    """The configuration class of a field, also inside ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        models = [m for m in map(_model_of, typing.get_args(annotation)) if m is not None]
        return models[0] if len(models) == 1 else None
    return None
