"""The embedding that a Re-ID run has trained."""

from __future__ import annotations

from pathlib import Path

from reposer import checkpoint
from reposer.config import foreign_values, read_json
from reposer.errors import UserError
from reposer.models.embedding import Embedding
from reposer.models.pretrained import EmbeddingInfo


def embedding_from_run(run_dir: str | Path) -> tuple[Embedding, EmbeddingInfo]:
    """The embedding of the newest good checkpoint of a Re-ID run, in eval mode.

    Raises:
        UserError: no run, no checkpoint, every checkpoint damaged, or a run of something else.
    """
    run_dir = Path(run_dir)
    settings = read_json(run_dir / "config.json")
    found = checkpoint.of_run(run_dir)
    if found is None:
        raise UserError(f"{run_dir}: has no checkpoint yet", "train longer, or choose another run")
    if "embedding" not in settings or "network" not in found.groups:
        raise UserError(f"{run_dir}: is no run of an embedding", "choose the folder of a Re-ID training")
    prefix = "embedding."
    values = {n.removeprefix(prefix): t for n, t in found.groups["network"].items() if n.startswith(prefix)}
    with foreign_values(run_dir / "config.json"):
        info = EmbeddingInfo(
            embedding=settings["embedding"],
            trained_on=Path(settings["data"]["folder"]).name,
            identity_hash=found.meta["identity_hash"],
            images_hash=found.meta.get("images_hash", ""),
            splits=tuple(settings["data"]["splits"]),
            step=found.step,
        )
    return Embedding.with_weights(info, values, str(found.path)), info
