"""An embedding as a folder to share: model.safetensors, config.json and a model card; and as a run left it.

The layout is that of the Hugging Face hub. Loading is strict: sha256, every key, shape and value are checked
before a weight is used, and no code ever comes out of a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from reposer import checkpoint
from reposer.config import Config, load_config, read_json, save_config
from reposer.errors import UserError
from reposer.files import sha256_bytes, write_atomic
from reposer.models.embedding import Embedding

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MAX_WEIGHTS_BYTES = 4_000_000_000


class EmbeddingInfo(Config):
    """What an embedding is and where it comes from."""

    embedding: dict[str, Any] = Field(default_factory=dict)  # keywords of models.embedding.Embedding
    trained_on: str = ""  # the training data in words
    identity_hash: str = ""  # PackedPeople.identity_hash of the training people; empty: not recorded
    step: int = 0  # optimizer steps
    weights_sha256: str = ""  # of model.safetensors; empty only while nothing is saved


def embedding_from_run(run_dir: str | Path) -> tuple[Embedding, EmbeddingInfo]:
    """The embedding of the newest good checkpoint of a Re-ID run, in eval mode.

    Raises:
        UserError: no run, no checkpoint, every checkpoint damaged, or a run of something else.
    """
    run_dir = Path(run_dir)
    settings = read_json(run_dir / "config.json")
    found = checkpoint.latest(run_dir / "checkpoints")
    if found is None:
        raise UserError(f"{run_dir}: has no checkpoint yet", "train longer, or choose another run")
    if "embedding" not in settings or "network" not in found.groups:
        raise UserError(f"{run_dir}: is no run of an embedding", "choose the folder of a Re-ID training")
    prefix = "embedding."
    values = {n.removeprefix(prefix): t for n, t in found.groups["network"].items() if n.startswith(prefix)}
    info = EmbeddingInfo(
        embedding=settings["embedding"],
        trained_on=Path(settings["data"]["folder"]).name,
        identity_hash=found.meta["identity_hash"],
        step=found.step,
    )
    return _build(info.embedding, values, str(found.path)), info


def save_embedding(folder: str | Path, embedding: Embedding, info: EmbeddingInfo) -> None:
    """Write the folder; config.json last, since it holds the hash of the weights.

    Raises:
        UserError: a weight is not finite, or the disk refuses.
    """
    folder = Path(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in embedding.state_dict().items()}
    _refuse_non_finite(tensors, str(folder / WEIGHTS))
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    info = info.changed(weights_sha256=sha256_bytes(data))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, data)
    write_atomic(folder / CARD, _model_card(info, embedding).encode())
    save_config(info, folder / CONFIG)


def load_embedding(folder: str | Path) -> tuple[Embedding, EmbeddingInfo]:
    """The embedding of a folder written by :func:`save_embedding`, in eval mode.

    Raises:
        UserError: a file is missing or damaged, or the weights do not belong to the configuration.
    """
    folder = Path(folder)
    info = load_config(EmbeddingInfo, folder / CONFIG)
    path = folder / WEIGHTS
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise UserError(f"{path}: larger than {MAX_WEIGHTS_BYTES:,} bytes", "get the right file")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "get the folder again") from error
    if sha256_bytes(data) != info.weights_sha256:
        raise UserError(f"{path}: differs from the sha256 in {CONFIG}", "get the folder again")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise UserError(f"{path}: is no safetensors file: {error}", "get the folder again") from error
    _refuse_non_finite(tensors, str(path))
    return _build(info.embedding, tensors, str(path)), info


def _build(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str) -> Embedding:
    """An embedding with these weights; nothing is allocated before names and shapes agree."""
    try:
        with torch.device("meta"):  # sizes from a foreign config.json cost no memory here
            shell = Embedding(**arguments)
    except (TypeError, RuntimeError) as error:  # an unknown keyword; sizes that overflow
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{origin}: no such embedding can be built: {reason}", "get the folder again"
        ) from error
    expected = {k: tuple(t.shape) for k, t in shell.state_dict().items()}
    found = {k: tuple(t.shape) for k, t in tensors.items()}
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        have, want = found.get(wrong[0], "missing"), expected.get(wrong[0], "unknown")
        raise UserError(
            f"{origin}: {len(wrong)} tensors do not belong to it: {wrong[0]} is {have}, not {want}",
            "use the configuration that the weights were trained with",
        )
    embedding = Embedding(**arguments)
    embedding.load_state_dict(dict(tensors), strict=True)
    return embedding.eval()


def _refuse_non_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{origin}: {name} holds NaN or infinity", "use weights of a sound training")


def _model_card(info: EmbeddingInfo, embedding: Embedding) -> str:
    height, width = embedding.size
    return f"""\
---
library_name: reposer
license: apache-2.0
pipeline_tag: image-feature-extraction
tags: [person-re-identification]
---

# {info.embedding.get("backbone", "small")}: person images to {embedding.dimension} numbers

{info.step:,} optimizer steps; input {height}x{width} RGB. Trained on: {info.trained_on or "not recorded"}.
Training people (hash of their ids): `{info.identity_hash or "not recorded"}`.

    from reposer.models.embedding_files import load_embedding
    from reposer.reid.features import embed_images
    embedding, info = load_embedding("this folder")
    features = embed_images(embedding, images)  # (N, H, W, 3) uint8 -> (N, {embedding.dimension})

Meant for research on person re-identification, and for checking whether a generated picture keeps a person's
looks. Not meant for surveillance or for decisions about people.
"""
