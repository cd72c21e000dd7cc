"""checkpoint: what is saved comes back bit for bit; damage, mixtures and non-finite states are never used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from reposer.errors import NonFiniteError, UserError
from reposer.storage import checkpoint
from reposer.storage.checkpoint import (
    DamagedCheckpointError,
    entries,
    latest,
    load,
    prune,
    save,
    steps,
    verify,
)
from reposer.storage.files import DiskError, replaced_name, sha256_bytes

META = {"config_hash": "c" * 64, "note": "größe", "numbers": [1, 0.1, 1e-300, -5], "none": None}


def make_groups(seed: int) -> dict[str, dict[str, Tensor]]:
    """Random tensors of many kinds; no zero bytes in a row, so that zeroed blocks are damage."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "generator": {
            "conv.weight": torch.randn(8, 3, 3, 3, generator=draw),
            "step": torch.tensor(float(seed)),
        },
        "ema": {"conv.weight": torch.randn(8, 3, 3, 3, generator=draw).bfloat16()},
        "rng": {"torch": torch.randint(1, 256, (600,), generator=draw, dtype=torch.uint8)},
    }


def assert_equal(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for group, tensors in expected.items():
        assert found[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            other = found[group][name]
            assert other.dtype == tensor.dtype
            assert other.shape == tensor.shape
            assert torch.equal(other.contiguous().flatten().view(torch.uint8), _bytes(tensor))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    groups: dict[str, dict[str, Tensor]] = {
        "kinds": {
            "half": base.half(),
            "double": base.double(),
            "complex": torch.complex(base, base),
            "int": torch.tensor([2**62, -1]),
            "bool": base > 0,
            "negative_zero": torch.tensor(-0.0),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(7, dtype=torch.uint8),
            "ü.key with spaces": torch.ones(1),
        },
        "layouts": {
            "transposed": base.t(),
            "expanded": torch.tensor([3.0]).expand(5),
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "shared": base,
            "again": base,
            "slice": base[1:3, ::2],
            "leaf": torch.nn.Parameter(base.clone()),
        },
        "nothing": {},
    }
    path = save(tmp_path / "run" / "checkpoints", 123, groups, META)
    assert path == tmp_path / "run" / "checkpoints" / "step_00000123"
    found = load(path)
    assert_equal(found.groups, groups)
    assert found.step == 123
    assert found.meta == {**META, "torch": torch.__version__, "threads": torch.get_num_threads()}
    assert found.path == path
    assert all(
        t.is_contiguous() and not t.requires_grad for group in found.groups.values() for t in group.values()
    )


def test_the_files_are_readable_without_our_code(tmp_path: Path) -> None:
    groups = make_groups(1)
    path = save(tmp_path, 1, groups, META)
    assert {entry.name for entry in path.iterdir()} == {
        "generator.safetensors",
        "ema.safetensors",
        "rng.safetensors",
        "meta.json",
        "meta.sha256",
    }
    assert_equal({"ema": safetensors.torch.load_file(path / "ema.safetensors")}, {"ema": groups["ema"]})
    document = json.loads((path / "meta.json").read_text())
    assert document["schema"] == 1
    assert document["files"]["ema.safetensors"]["sha256"] == sha256_bytes(
        (path / "ema.safetensors").read_bytes()
    )
    assert (
        path / "meta.sha256"
    ).read_text() == f"{sha256_bytes((path / 'meta.json').read_bytes())}  meta.json\n"


def test_a_checkpoint_of_the_first_schema_written_by_hand_opens(tmp_path: Path) -> None:
    """Its form stands here in full: whatever saves later, this one must stay readable."""
    path = tmp_path / "step_00000007"
    path.mkdir()
    values = np.arange(6, dtype=np.float32)
    text = b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    data = len(text).to_bytes(8, "little") + text + values.tobytes()
    (path / "ema.safetensors").write_bytes(data)
    meta = {"config_hash": "c" * 64, "loss": 0.5, "torch": "2.4.0", "threads": 2}
    files = {"ema.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    document = json.dumps({"schema": 1, "step": 7, "meta": meta, "files": files}).encode()
    (path / "meta.json").write_bytes(document)
    (path / "meta.sha256").write_text(f"{hashlib.sha256(document).hexdigest()}  meta.json\n")
    found = latest(tmp_path)
    assert found is not None
    assert (found.step, found.meta["loss"]) == (7, 0.5)
    assert found.groups["ema"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_new_root_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    path = save(tmp_path / "checkpoints", 1, make_groups(1), META)
    assert {str(tmp_path), str(path.parent)} <= set(synced)


def _flip(path: Path, random_: random.Random) -> None:
    file = random_.choice(sorted(path.iterdir()))
    data = bytearray(file.read_bytes())
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    file.write_bytes(data)


def _truncate(path: Path, random_: random.Random) -> None:
    file = random_.choice(sorted(path.iterdir()))
    data = file.read_bytes()
    file.write_bytes(data[: random_.randrange(len(data))])


def _zero_block(path: Path, random_: random.Random) -> None:
    file = random_.choice(sorted(path.glob("*.safetensors")))
    data = bytearray(file.read_bytes())
    start = random_.randrange(len(data) - 16)
    length = random_.randrange(16, 400)
    data[start : start + length] = bytes(len(data[start : start + length]))
    file.write_bytes(data)


def _append(path: Path, random_: random.Random) -> None:
    file = random_.choice(sorted(path.iterdir()))
    file.write_bytes(file.read_bytes() + random_.choice([b"\0", b"\n", b" ", b"}"]))


def _remove(path: Path, random_: random.Random) -> None:
    random_.choice(sorted(path.iterdir())).unlink()


def _swap(path: Path, random_: random.Random) -> None:
    one, two = random_.sample(sorted(path.glob("*.safetensors")), 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _mix_steps(path: Path, random_: random.Random) -> None:
    file = random_.choice(sorted(path.iterdir()))
    shutil.copy(path.with_name("step_00000001") / file.name, file)


def _wrong_step(path: Path, random_: random.Random) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step_00000001"), path)


def _folder_for_file(path: Path, random_: random.Random) -> None:
    file = random_.choice(sorted(path.iterdir()))
    file.unlink()
    file.mkdir()


DAMAGES = [
    (_flip, 120),
    (_truncate, 60),
    (_zero_block, 30),
    (_append, 12),
    (_remove, 8),
    (_swap, 6),
    (_mix_steps, 8),
]
DAMAGES += [(_wrong_step, 1), (_folder_for_file, 5)]


@pytest.mark.parametrize(("damage", "times"), DAMAGES)
def test_damage_is_detected_and_the_previous_checkpoint_used(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, random.Random], None],
    times: int,
) -> None:
    for step in (1, 2):
        save(tmp_path, step, make_groups(step), META)
    path = tmp_path / "step_00000002"
    pristine = {file.name: file.read_bytes() for file in path.iterdir()}
    random_ = random.Random(20)
    for _ in range(times):
        damage(path, random_)
        caplog.clear()
        found = latest(tmp_path)
        assert found is not None
        assert found.step == 1
        assert_equal(found.groups, make_groups(1))
        assert len(found.skipped) == 1
        assert str(path) in found.skipped[0]
        assert "\n" not in found.skipped[0]
        assert str(path) in caplog.text
        with pytest.raises(DamagedCheckpointError):
            verify(path)
        shutil.rmtree(path)
        path.mkdir()
        for name, data in pristine.items():
            (path / name).write_bytes(data)
    restored = latest(tmp_path)
    assert restored is not None
    assert (restored.step, restored.skipped) == (2, ())


def test_no_tensor_is_built_before_every_file_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1, make_groups(1), META)
    last = path / "rng.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"\x07")
    built: list[bytes] = []
    monkeypatch.setattr(safetensors.torch, "load", built.append)
    with pytest.raises(DamagedCheckpointError, match=r"rng\.safetensors: differs from its sha256"):
        load(path)
    assert built == []


def test_only_damaged_checkpoints_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent") is None
    assert latest(tmp_path) is None
    for step in (1, 2):
        (save(tmp_path, step, make_groups(step), META) / "meta.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"step_00000002.*step_00000001.*start a new run"):
        latest(tmp_path)


def _forge(path: Path, name: str, data: bytes) -> None:
    """Put a file into a checkpoint and make every hash fit it."""
    (path / name).write_bytes(data)
    document = json.loads((path / "meta.json").read_text())
    document["files"][name] = {"sha256": sha256_bytes(data), "size": len(data)}
    text = json.dumps(document).encode()
    (path / "meta.json").write_bytes(text)
    (path / "meta.sha256").write_text(f"{sha256_bytes(text)}  meta.json\n")


def _header(text: str, tail: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text.encode() + tail


def _entry(dtype: str = "F32", shape: str = "[1]", offsets: str = "[0,4]") -> str:
    return f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}'


MALFORMED = {
    "empty": b"",
    "header cut": struct.pack("<Q", 50) + b"{}",
    "header of 2**63": _header("{}", size=2**63),
    "header of 200 MB": _header("{}", size=200 << 20),
    "no JSON": _header("[[[["),
    "no object": _header("[]"),
    "unknown dtype": _header(_entry(dtype="F31"), b"1234"),
    "4 TB from 4 bytes": _header(_entry(shape="[1000000,1000000]"), b"1234"),
    "4 TB announced": _header(_entry(shape="[1000000,1000000]", offsets="[0,4000000000000]"), b"1234"),
    "overflowing shape": _header(_entry(shape="[4294967296,4294967296,16]", offsets="[0,0]")),
    "negative shape": _header(_entry(shape="[-1]"), b"1234"),
    "offsets beyond the end": _header(_entry(offsets="[4,8]"), b"1234"),
    "offsets backwards": _header(_entry(offsets="[4,0]"), b"1234"),
    "hole": _header(_entry(), b"12345678"),
    "overlap": _header(
        '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b"1234",
    ),
    "nested to death": _header("[" * 100_000),
    "pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "not finite": _header(_entry(), struct.pack("<f", float("nan"))),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_tensor_files_are_refused_even_with_right_hashes(tmp_path: Path, data: bytes) -> None:
    save(tmp_path, 1, make_groups(1), META)
    path = save(tmp_path, 2, make_groups(2), META)
    _forge(path, "ema.safetensors", data)
    with pytest.raises(DamagedCheckpointError, match=r"ema\.safetensors"):
        load(path)
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/etc/passwd", "..", "a/b.safetensors", ""])
def test_file_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "checkpoints", 1, make_groups(1), META)
    outside = safetensors.torch.save({"a": torch.ones(1)})
    (tmp_path / "outside.safetensors").write_bytes(outside)
    document = json.loads((path / "meta.json").read_text())
    document["files"][name] = {"sha256": sha256_bytes(outside), "size": len(outside)}
    (path / "meta.json").write_text(json.dumps(document))
    digest = sha256_bytes((path / "meta.json").read_bytes())
    (path / "meta.sha256").write_text(f"{digest}  meta.json\n")
    with pytest.raises(DamagedCheckpointError, match="names a file that is no group"):
        load(path)


@pytest.mark.parametrize(
    "document", [b"[]", b"{}", b"null", b'{"schema": "1"}', b'{"schema": 1, "step": 1}', b"{"]
)
def test_senseless_metadata_is_damage(tmp_path: Path, document: bytes) -> None:
    path = save(tmp_path, 1, make_groups(1), META)
    (path / "meta.json").write_bytes(document)
    (path / "meta.sha256").write_text(f"{sha256_bytes(document)}  meta.json\n")
    with pytest.raises(DamagedCheckpointError, match=r"meta\.json"):
        load(path)


@pytest.mark.parametrize("name", ["step", "meta", "files"])
@pytest.mark.parametrize("value", [True, 1.0, "x", [], None])
def test_parts_of_the_metadata_of_another_kind_are_damage(tmp_path: Path, name: str, value: Any) -> None:
    path = save(tmp_path, 1, make_groups(1), META)
    document = json.dumps({**json.loads((path / "meta.json").read_text()), name: value}).encode()
    (path / "meta.json").write_bytes(document)
    (path / "meta.sha256").write_text(f"{sha256_bytes(document)}  meta.json\n")
    for read in (load, verify, entries):
        with pytest.raises(DamagedCheckpointError, match=rf"meta\.json: {name} is of another kind"):
            read(path)


def test_a_newer_schema_is_named_and_not_skipped(tmp_path: Path) -> None:
    save(tmp_path, 1, make_groups(1), META)
    path = save(tmp_path, 2, make_groups(2), META)
    document = {**json.loads((path / "meta.json").read_text()), "schema": 2}
    (path / "meta.json").write_text(json.dumps(document))
    (path / "meta.sha256").write_text(f"{sha256_bytes((path / 'meta.json').read_bytes())}  meta.json\n")
    with pytest.raises(UserError, match="newer reposer") as caught:
        latest(tmp_path)
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64]
)
@pytest.mark.parametrize("group", ["generator", "ema", "rng"])
def test_non_finite_states_are_never_saved(
    tmp_path: Path, group: str, dtype: torch.dtype, value: float
) -> None:
    save(tmp_path, 1, make_groups(1), META)
    groups = make_groups(2)
    groups[group]["moment"] = torch.ones(3, 5, dtype=dtype)
    groups[group]["moment"][2, 4] = value
    with pytest.raises(NonFiniteError, match=f"{group}: moment holds NaN or infinity"):
        save(tmp_path, 2, groups, META)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize(
    "meta", [{"config_hash": "", "loss": float("nan")}, {"config_hash": "", "x": {1, 2}}, {}]
)
def test_unusable_metadata_is_refused_before_anything_is_written(
    tmp_path: Path, meta: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        save(tmp_path / "checkpoints", 1, make_groups(1), meta)
    with pytest.raises(ValueError, match="group names"):
        save(tmp_path / "checkpoints", 1, {"../outside": {}}, META)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, make_groups(1), META)
    monkeypatch.setattr("reposer.storage.files.free_bytes", lambda path: 1000)
    with pytest.raises(DiskError, match=r"bytes are needed and 1,000 are free"):
        save(tmp_path, 2, make_groups(2), META)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, make_groups(1), META)
    for seed in (2, 3):
        save(tmp_path, 2, make_groups(seed), META)
    found = latest(tmp_path)
    assert found is not None
    assert_equal(found.groups, make_groups(3))
    assert {entry.name for entry in tmp_path.iterdir()} == {"step_00000001", "step_00000002"}


def test_steps_are_ordered_as_numbers_and_nothing_else_is_taken(tmp_path: Path) -> None:
    for step in (5, 100_000_000, 99_999_999):
        save(tmp_path, step, {}, META)
    (tmp_path / "step_7").mkdir()
    (tmp_path / ".step_00000008.tmp-0123abcd").mkdir()
    (tmp_path / "notes").mkdir()
    assert [step for step, _ in steps(tmp_path)] == [100_000_000, 99_999_999, 5]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, make_groups(step), META)
    assert [path.name for path in prune(tmp_path, 2)] == ["step_00000003", "step_00000002", "step_00000001"]
    assert [step for step, _ in steps(tmp_path)] == [5, 4]
    assert prune(tmp_path, 2) == []
    for keep in (1, 0, -1):
        with pytest.raises(ValueError, match="at least 2"):
            prune(tmp_path, keep)


def test_prune_counts_only_good_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 5):
        save(tmp_path, step, make_groups(step), META)
    with (
        monkeypatch.context() as patch
    ):  # the guard of save switched off: a non-finite checkpoint with right hashes
        patch.setattr(checkpoint, "_refuse_non_finite", lambda groups: None)
        save(tmp_path, 5, {"ema": {"a": torch.tensor(float("nan"))}}, META)
    (tmp_path / "step_00000004" / "ema.safetensors").write_bytes(b"")
    (tmp_path / "step_00000002" / "meta.sha256").unlink()
    assert prune(tmp_path, 3) == []  # good: 3 and 1
    assert [path.name for path in prune(tmp_path, 2)] == []
    save(tmp_path, 6, make_groups(6), META)
    assert [path.name for path in prune(tmp_path, 2)] == ["step_00000002", "step_00000001"]
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 6


def test_prune_survives_a_failed_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 4):
        save(tmp_path, step, make_groups(step), META)

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", fail)
        assert prune(tmp_path, 2) == []
    assert len(prune(tmp_path, 2)) == 1


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 2, make_groups(2), META)
    path.rename(replaced_name(path))  # what such a kill leaves
    found = latest(tmp_path)
    assert found is not None
    assert_equal(found.groups, make_groups(2))
    save(tmp_path, 2, make_groups(3), META)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("step", [1, 2])
def test_prune_clears_what_a_kill_left_beside_a_replaced_checkpoint(tmp_path: Path, step: int) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number, make_groups(number), META)
    path = tmp_path / f"step_{step:08d}"
    shutil.copytree(path, replaced_name(path))
    assert [number for number, _ in steps(tmp_path)] == [3, 2, 1]
    prune(tmp_path, 2)
    assert {entry.name for entry in tmp_path.iterdir()} == {"step_00000002", "step_00000003"}
