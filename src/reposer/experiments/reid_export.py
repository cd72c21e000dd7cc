"""A trained Re-ID network as a folder for others, and as an ONNX file that is checked before it is kept."""

from __future__ import annotations

from pathlib import Path

from reposer.experiments.reid_features import open_embedding
from reposer.files import claim_outputs, holds_keys, is_older
from reposer.models.embedding_onnx import export_onnx
from reposer.models.pretrained import CONFIG, FILES
from reposer.seals import write_seal

ONNX = "embedding.onnx"


def export_embedding(model: str, out: Path, *, onnx: bool = False) -> str:
    """Write the folder; returns what was written, in words.

    Args:
        model: run folder, exported folder or hub id.
        out: made if missing.
        onnx: also write embedding.onnx.

    Raises:
        UserError: no such model, a package is missing, or the ONNX file computes something else.
    """
    if onnx:
        older = is_older(out / CONFIG, holds_keys("embedding", "weights_sha256"))
        claim_outputs(out, [ONNX], older=older and b"pytorch" in _head(out / ONNX))
    embedding = open_embedding(model)
    embedding.save_pretrained(out)
    written = f"{out}: {', '.join(FILES)}"
    if not onnx:
        return written
    difference = export_onnx(embedding, out / ONNX)
    write_seal(out, (*FILES, ONNX))
    return f"{written}, {ONNX} (differs from PyTorch by {difference:.1e} at most)"


def _head(path: Path) -> bytes:
    """The start of a file, where ONNX names its producer; empty where there is none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(256)
