"""Checkpoints: folders of safetensors + JSON, atomic, hashed, finite; damaged ones are never used.

``root/step_00000123/`` holds one ``<group>.safetensors`` for each group of tensors, ``meta.json`` (schema,
step, torch version, thread count, configuration hash, sha256 and size of every group's file, the caller's own
entries) and ``meta.sha256`` (that of meta.json, as sha256sum writes it). A folder has this name only when it
is complete and fsynced (:func:`reposer.storage.files.atomic_folder`). torch.load notices 3 % of single
flipped bits and safetensors none of those in the data, so the hashes are ours. No pickle anywhere;
:mod:`reposer.training.state` turns modules, optimizers and random generators into tensors + JSON.

One writer for each root, which :class:`reposer.storage.runs.RunFolder` sees to with its lock; readers need
none.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from reposer.config import read_json, stored_hash
from reposer.errors import NonFiniteError, UserError
from reposer.storage.bounded import parse_json
from reposer.storage.files import (
    atomic_folder,
    disk_faults,
    refuse_foreign,
    remove_temporaries,
    remove_tree,
    replaced_name,
    require_space,
    sha256_bytes,
    sha256_file,
    sync_folder,
    write_new,
)
from reposer.storage.paths import (
    CHECKPOINTS,
    RefusedFileError,
    contained,
    leads_to,
    made_folder,
    read_regular,
    require_inside,
)

SCHEMA = 1  # raise it when the layout changes, and keep reading every older one
_FOLDER = re.compile(r"^(?:step_(\d{8,})|\.step_(\d{8,})\.replaced)$")
_GROUP = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
META, _META_HASH = "meta.json", "meta.sha256"
_MAX_META_BYTES = 2**30
INPUTS, PREPARED = "inputs", "prepared"  # entry: sha256 of what a training read, by name; one of the names
_log = logging.getLogger(__name__)

TensorGroups = Mapping[str, Mapping[str, Tensor]]


class DamagedCheckpointError(UserError):
    """A checkpoint is not what was saved: a file is missing, cut, changed or swapped, a tensor malformed."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    step: int
    groups: dict[str, dict[str, Tensor]]  # group -> name -> CPU tensor
    meta: dict[str, Any]  # the caller's entries with "config_hash", "torch" and "threads"
    path: Path
    skipped: tuple[str, ...] = ()  # what `latest` found wrong with newer ones, a line each


def save(root: Path, step: int, groups: TensorGroups, meta: Mapping[str, Any]) -> Path:
    """Write ``root/step_<step>`` complete or not at all; an older folder of that step is replaced.

    Args:
        root: the run's checkpoint folder, made if missing.
        step: optimizer updates done so far.
        groups: tensors strided, of any device, dtype and memory format; saved contiguous, bit for bit.
        meta: JSON values; must hold "config_hash". "torch" and "threads" are added.

    Raises:
        NonFiniteError: a float tensor holds NaN or infinity; nothing is written.
        DiskError: no room, no permission or a faulty disk; what was there before is still there.
    """
    _refuse_non_finite(groups)
    if "config_hash" not in meta or not all(map(_GROUP.match, groups)):
        raise ValueError("meta needs 'config_hash', and group names are letters, digits, '_' and '-'")
    entries = {**meta, "torch": str(torch.__version__), "threads": torch.get_num_threads()}
    document: dict[str, Any] = {"schema": SCHEMA, "step": step, "meta": entries, "files": {}}
    json.dumps(document, allow_nan=False)  # what JSON cannot hold fails here, before anything is written
    with disk_faults(root):
        made_folder(root.parent, root.name)
        sync_folder(root.parent)  # the root itself must survive a power cut
        remove_temporaries(root)
    require_space(
        root, sum(t.numel() * t.element_size() + 256 for group in groups.values() for t in group.values())
    )
    path = root / f"step_{step:08d}"
    with atomic_folder(path, _refuse_foreign) as folder:
        for name, tensors in groups.items():
            # copies, because safetensors refuses tensors that share memory (tied weights)
            dense = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}
            data = safetensors.torch.save(dense)
            document["files"][f"{name}.safetensors"] = {"sha256": sha256_bytes(data), "size": len(data)}
            write_new(folder / f"{name}.safetensors", data)
        data = (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
        write_new(folder / META, data)
        write_new(folder / _META_HASH, _hash_line(data))
    return path


def _refuse_foreign(path: Path) -> None:
    """A checkpoint of this step, damaged or older than a rewind, is replaced; anything else is the user's."""
    own = {META, _META_HASH}
    refuse_foreign(path, lambda name: name in own or name.endswith(".safetensors"), "a checkpoint")


def load(path: Path) -> Checkpoint:
    """Read one checkpoint; every hash is verified before any tensor is built, and again on the bytes used.

    Raises:
        DamagedCheckpointError: anything differs from what was saved, or a tensor is not finite.
        UserError: the checkpoint was written by a newer version.
    """
    document = _read_document(path)
    files = document["files"].items()
    for name, entry in files:
        with damage(path / name):
            if sha256_file(_file(path, name)) != entry["sha256"]:
                raise ValueError("differs from its sha256")
    groups = {
        name.removesuffix(".safetensors"): _read_group(_file(path, name), entry) for name, entry in files
    }
    return Checkpoint(document["step"], groups, document["meta"], path)


def verify(path: Path) -> None:
    """Re-read a whole checkpoint from the disk, one group in memory at a time; raises as :func:`load`."""
    for name, entry in _read_document(path)["files"].items():
        _read_group(_file(path, name), entry)


def steps(root: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint below ``root``, newest first, damaged ones included."""
    found: dict[int, Path] = {}
    require_inside(root, root.parent)
    for entry in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:  # step_* sorts after .step_*
        match = _FOLDER.match(entry.name)
        if match:
            found.setdefault(int(match[1] or match[2]), entry)
    return sorted(found.items(), reverse=True)


def latest(root: Path) -> Checkpoint | None:
    """The newest good checkpoint, None where there is none at all; damaged newer ones are logged and listed.

    Raises:
        DamagedCheckpointError: there are checkpoints but every one is damaged; starting afresh is the user's
            decision.
    """
    skipped: list[str] = []
    for _, path in steps(root):
        try:
            good = load(path)
        except DamagedCheckpointError as error:
            skipped.append(str(error))
            _log.warning("damaged checkpoint skipped: %s", error)
            continue
        return Checkpoint(good.step, good.groups, good.meta, good.path, tuple(skipped))
    if skipped:
        raise DamagedCheckpointError("; ".join(skipped), "no good checkpoint is left: start a new run")
    return None


def of_run(run: Path) -> Checkpoint | None:
    """:func:`latest` of a run folder, held against the run's own configuration and pins.

    Raises:
        DamagedCheckpointError: as :func:`latest`.
        UserError: no config.json; or the checkpoint is of another run or of another configuration.
    """
    found = latest(run / CHECKPOINTS)
    if found is not None and (fault := foreign(run, found.meta)):
        raise UserError(f"{found.path}: {fault}", "put back the run's own files, or use another run")
    return found


def foreign(run: Path, meta: Mapping[str, Any]) -> str:
    """Why a checkpoint with these entries cannot be of this run; empty where it can.

    Its configuration's hash must be that of config.json, and its inputs those of environment.json. A run of
    before the inputs were pinned has none of the latter.
    """
    if meta.get("config_hash") != stored_hash(run / "config.json"):
        return "is of another run or configuration: its config_hash is not that of config.json"
    if not (run / "environment.json").is_file():
        return ""
    pinned, inputs = read_json(run / "environment.json").get(INPUTS), meta.get(INPUTS)
    if isinstance(pinned, dict) and isinstance(inputs, dict) and pinned != inputs:
        names = sorted(k for k in pinned | inputs if pinned.get(k) != inputs.get(k))
        return f"is of another run: its inputs ({', '.join(names)}) are not those of environment.json"
    return ""


def entries(path: Path) -> dict[str, Any]:
    """The caller's entries of a checkpoint, without reading a tensor; raises as :func:`load`."""
    return dict(_read_document(path)["meta"])


def refuse_other_data(run: str | Path, folder: Path, content_hash: str) -> None:
    """Refuse to use a run with the prepared folder that it was trained on, where that was made again since.

    Who was held out may be others now, so that what the run says of its training people would be wrong.
    Another folder is another data set, about which the hash says nothing. What is no run passes.

    Args:
        run: what a user named as a model.
        folder: the prepared folder that it is used with.
        content_hash: of what lies there now.

    Raises:
        UserError: the folder is the one in the run's configuration, and its content is not the pinned one.
    """
    run = Path(run)
    found = steps(run / CHECKPOINTS)
    if not found:
        return
    settings = read_json(run / "config.json").get("data")
    trained_on = settings.get("folder") if isinstance(settings, dict) else None
    if not isinstance(trained_on, str) or leads_to(trained_on) != os.path.realpath(folder):
        return
    inputs = entries(found[0][1]).get(INPUTS)
    pinned = inputs.get(PREPARED) if isinstance(inputs, dict) else None
    if pinned is None:
        _log.warning("%s: was trained before runs noted the content of their data; it is not compared", run)
    elif pinned != content_hash:
        raise UserError(
            f"{folder}: was prepared anew since {run} was trained on it: content {content_hash[:12]}, not"
            f" {str(pinned)[:12]}, and others may be held out now",
            "put back the folder that it was trained on, or train again",
        )


def prune(root: Path, keep: int) -> list[Path]:
    """Delete what is older than the newest ``keep`` good checkpoints, which are re-read and verified first.

    With fewer good ones nothing is deleted. ``keep`` is at least 2: one may turn bad. Returns what was
    removed.
    """
    if keep < 2:
        raise ValueError("keep at least 2 checkpoints")
    good, removed = 0, []
    for _, path in steps(root):
        if good < keep:
            try:
                verify(path)
            except DamagedCheckpointError as error:
                _log.warning("damaged checkpoint does not count as kept: %s", error)
                continue
            good += 1
            _delete(replaced_name(path))  # left by a kill after path had taken its place
        elif _delete(replaced_name(path)) and _delete(path):
            removed.append(path)
    return removed


def _delete(path: Path) -> bool:
    """Remove an unneeded folder; a training must not die because that fails."""
    try:
        remove_tree(path)
    except OSError as error:
        _log.warning("%s: cannot be removed: %s", path, error.strerror)
        return False
    return True


def _refuse_non_finite(groups: TensorGroups) -> None:
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"{group}: {name} holds NaN or infinity",
                    "training has diverged: resume with a lower learning rate",
                )


def _file(path: Path, name: str) -> Path:
    """A file that meta.json lists, inside the root of the checkpoints."""
    require_inside(path / META, path.parent)
    return contained(path, name)


def _read_document(path: Path) -> dict[str, Any]:
    """meta.json, checked against its sha256, its schema and the folder's name."""
    with damage(path / META):
        require_inside(path / META, path.parent)
        require_inside(path / _META_HASH, path.parent)
        data = read_regular(path / META, max_bytes=_MAX_META_BYTES)
        if read_regular(path / _META_HASH, max_bytes=_MAX_META_BYTES) != _hash_line(data):
            raise ValueError(f"differs from its sha256 in {_META_HASH}")
        document = parse_json(data)
        if document["schema"] > SCHEMA:
            raise UserError(
                f"{path}: was written by a newer reposer ({document['schema']=})", "update reposer"
            )
        for name, kind in (("step", int), ("meta", dict), ("files", dict)):
            if type(document[name]) is not kind:
                raise ValueError(f"{name} is of another kind")
        match = _FOLDER.match(path.name)
        if match and int(match[1] or match[2]) != document["step"]:
            raise ValueError(f"belongs to step {document['step']}")
        if not all(_GROUP.match(name.removesuffix(".safetensors")) for name in document["files"]):
            raise ValueError("names a file that is no group")
    return dict(document)


def _hash_line(data: bytes) -> bytes:
    """What ``sha256sum meta.json`` prints."""
    return f"{sha256_bytes(data)}  {META}\n".encode()


def _read_group(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of one file, built only from bytes whose hash is right."""
    with damage(path):
        data = read_regular(path, max_bytes=int(entry["size"]))
        if len(data) != entry["size"] or sha256_bytes(data) != entry["sha256"]:
            raise ValueError("differs from its size or sha256")
        tensors = safetensors.torch.load(data)
        _refuse_non_finite({path.stem: tensors})
    return tensors


@contextmanager
def damage(path: Path, advice: str = "this checkpoint is not used") -> Iterator[None]:
    """Whatever goes wrong while reading ``path``, or using its values, means that it is not what was saved.

    Raises:
        DamagedCheckpointError: in its place; a UserError stays as it is.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, AssertionError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DamagedCheckpointError(f"{path}: {reason}", advice) from error
    except LookupError as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DamagedCheckpointError(f"{path}: {reason}", advice) from error
    except RefusedFileError as error:
        raise DamagedCheckpointError(f"{path}: {error.reason}", advice) from error
    except (RecursionError, RuntimeError, SafetensorError, NonFiniteError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedCheckpointError(f"{path}: {reason}", advice) from error
