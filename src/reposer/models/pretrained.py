"""An embedding as a folder to share: model.safetensors, config.json and a model card.

The layout is that of the Hugging Face hub. Loading is strict: sha256, every key, shape and value are checked
before a weight is used, and no code ever comes out of a folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from reposer.config import Config, load_config, save_config
from reposer.errors import UserError
from reposer.storage.files import sha256_bytes, write_atomic
from reposer.storage.paths import RefusedFileError, made_folder, printable, read_regular
from reposer.storage.seals import write_seal
from reposer.weights.downloads import fetch_folder

WEIGHTS, CONFIG, CARD = FILES = "model.safetensors", "config.json", "README.md"
MAX_WEIGHTS_BYTES = 4_000_000_000
_CARD_START = b"---\nlibrary_name: reposer\n"  # every card of an export starts with it


class EmbeddingInfo(Config):
    """What an embedding is and where it comes from."""

    embedding: dict[str, Any] = Field(default_factory=dict)  # keywords of models.embedding.Embedding
    trained_on: str = ""  # the training data in words
    identity_hash: str = ""  # PackedPeople.identity_hash of the training people; empty: not recorded
    images_hash: str = ""  # PackedPeople.images_hash of the same; empty: not recorded
    splits: tuple[str, ...] = ("train",)  # of the prepared folder, that it was trained on
    step: int = 0  # optimizer steps
    weights_sha256: str = ""  # of model.safetensors; empty only while nothing is saved


class Pretrained(nn.Module):
    """A module that is saved and loaded under the hub's usual names; ``info`` says what it is.

    A subclass sets these in its constructor; ``info.embedding`` holds the keywords that build it again.
    """

    info: EmbeddingInfo
    size: tuple[int, int]  # (H, W) of the input
    dimension: int  # of the features

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder; config.json last, since it holds the hash of the weights.

        Raises:
            UserError: a weight is not finite, or the disk refuses.
        """
        folder = Path(folder)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        _refuse_non_finite(tensors, str(folder / WEIGHTS))
        data = safetensors.torch.save(tensors, metadata={"format": "pt"})
        info = self.info.changed(weights_sha256=sha256_bytes(data))
        made_folder(folder)
        refuse_other_export(EmbeddingInfo, folder)
        write_atomic(folder / WEIGHTS, data)
        write_atomic(folder / CARD, _model_card(info, self.size, self.dimension).encode())
        save_config(info, folder / CONFIG)
        write_seal(folder, FILES)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """From a folder written by :meth:`save_pretrained`, or a hub id (owner/name); in eval mode.

        Raises:
            UserError: a file is missing or damaged, the weights do not belong to the configuration, or the
                hub cannot be reached.
        """
        folder = fetch_folder(name, FILES)
        info = load_config(EmbeddingInfo, folder / CONFIG)
        path = folder / WEIGHTS
        tensors = _read_weights(path, info.weights_sha256)
        return cls.with_weights(info, tensors, str(path))

    @classmethod
    def with_weights(cls, info: EmbeddingInfo, tensors: Mapping[str, Tensor], origin: str) -> Self:
        """Built from ``info`` with these weights, in eval mode; nothing is allocated before they agree.

        Raises:
            UserError: a tensor is missing, unexpected or of another shape; ``origin`` names the file.
        """
        try:
            with torch.device("meta"):  # sizes from a foreign config.json cost no memory here
                shell = cls(**info.embedding)
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
        module = cls(**info.embedding)
        module.load_state_dict(dict(tensors), strict=True)
        module.info = info
        return module.eval()


def refuse_other_export(config: type[Config], folder: Path) -> None:
    """Refuse a folder whose config.json, README.md or weights an export did not write: a run, a repository.

    Args:
        config: of the same kind of export; it holds ``weights_sha256``.

    Raises:
        UserError: names the file that would be lost.
    """
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if not there:
        return
    problem = f"{printable(folder)}: {there[0]} is there already, and was not written by this command"
    try:
        own = bool(getattr(load_config(config, folder / CONFIG), "weights_sha256", ""))
        card = folder / CARD
        if os.path.lexists(card):
            own &= read_regular(card, max_bytes=2**20, root=folder).startswith(_CARD_START)
    except UserError as error:
        raise UserError(problem, "choose another folder") from error
    if not own:
        raise UserError(problem, "choose another folder")


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        data = read_regular(path, max_bytes=MAX_WEIGHTS_BYTES, root=path.parent)
    except RefusedFileError as error:
        raise UserError(f"{path}: cannot be read: {error.reason}", "get the folder again") from error
    if sha256_bytes(data) != sha256:
        raise UserError(f"{path}: differs from the sha256 in {CONFIG}", "get the folder again")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise UserError(f"{path}: is no safetensors file: {error}", "get the folder again") from error
    _refuse_non_finite(tensors, str(path))
    return tensors


def _refuse_non_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{origin}: {name} holds NaN or infinity", "use weights of a sound training")


def _model_card(info: EmbeddingInfo, size: tuple[int, int], dimension: int) -> str:
    height, width = size
    return f"""\
---
library_name: reposer
license: apache-2.0
pipeline_tag: image-feature-extraction
tags: [person-re-identification]
---

# {info.embedding.get("backbone", "small")}: person images to {dimension} numbers

{info.step:,} optimizer steps; input {height}x{width} RGB. Trained on: {info.trained_on or "not recorded"}.
Training people (hash of their ids): `{info.identity_hash or "not recorded"}`.

    from reposer.models.embedding import Embedding
    from reposer.reid.features import embed_images
    embedding = Embedding.from_pretrained("this folder")
    features = embed_images(embedding, images)  # (N, H, W, 3) uint8 -> (N, {dimension}), of length 1

Meant for research on person re-identification, and for checking whether a generated picture keeps a person's
looks. Not meant for surveillance or for decisions about people.
"""
