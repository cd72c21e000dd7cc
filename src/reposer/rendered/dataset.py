"""Data sets of rendered people as files in Market-1501's layout and names, with exact annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from reposer.config import read_json
from reposer.data.keypoints import write_keypoints_csv
from reposer.data.parsing import PALETTE
from reposer.errors import UserError
from reposer.images import encode_jpeg, encode_png
from reposer.rendered.renderer import RenderedPeople, Shot, iterate_rendered
from reposer.storage.files import atomic_folder, refuse_foreign, write_new
from reposer.storage.paths import made_folder

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"  # Market-1501's folders
_FOLDERS = (TRAIN, QUERY, GALLERY, "parsing", "mask")
_RECORD, _KEYPOINTS = "people.json", "keypoints.csv"
SCHEMA = "reposer-rendered-people-1"
_DISK_THREADS, _MAX_PENDING = 8, 1024  # flushing a file takes milliseconds in which others can render
MAX_PEOPLE, MAX_IMAGES = 9999, 999_999  # what four and six digits of a Market-1501 name can count


@dataclass(frozen=True, slots=True)
class RenderedSummary:
    """What was written."""

    root: Path
    train_images: int
    train_people: int
    query_images: int
    gallery_images: int
    test_people: int

    def __str__(self) -> str:
        return (
            f"{self.root}: {self.train_images} training images of {self.train_people} rendered people; "
            f"{self.query_images} query and {self.gallery_images} gallery images of {self.test_people} others"
        )


def write_rendered_dataset(
    root: str | Path,
    *,
    identities: int = 64,
    images_per_identity: int = 16,
    size: tuple[int, int] = (128, 64),
    seed: int = 0,
    test_identities: int = 16,
    samples: int = 2,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> RenderedSummary:
    """Write a data set of rendered people; it appears at ``root`` complete or not at all.

    ``bounding_box_train/`` holds people 1 to ``identities``; the test people follow: the first image of
    each in each camera is a query, the others are the gallery (``bounding_box_test/``). Beside them:
    ``parsing/`` (LIP-20 palette PNG), ``mask/`` (1-bit PNG), ``keypoints.csv`` (whole pixels) and
    ``people.json`` (attributes of every person, angles of every image).

    Args:
        root: folder to make; an earlier rendered data set there is replaced, anything else refused.
        size: height and width in pixels.
        samples: samples a pixel along each axis.
        workers: rendering processes; does not change a byte.
        progress: called with (images done, images in all) now and then.

    Raises:
        UserError: ``root`` holds something else, or a count is out of range.
    """
    root = Path(root)
    total_people = identities + test_identities
    _check_counts(identities, test_identities, images_per_identity, size, seed)
    _check_root(root)
    made_folder(root.parent)
    pids = range(1, total_people + 1)
    total = total_people * images_per_identity
    with atomic_folder(root, _check_root) as folder, _Writer(folder, identities) as writer:
        for shots, batch in iterate_rendered(
            pids, images_per_identity, size, seed=seed, samples=samples, workers=workers
        ):
            for n, shot in enumerate(shots):
                writer.add(shot, batch, n)
            if progress is not None:
                progress(len(writer.images), total)
        writer.finish({"seed": seed, "size": list(size), "samples": samples})
    return RenderedSummary(
        root=root,
        train_images=writer.counts[TRAIN],
        train_people=identities,
        query_images=writer.counts[QUERY],
        gallery_images=writer.counts[GALLERY],
        test_people=test_identities,
    )


class _Writer:
    """Sorts images into Market-1501's folders and collects what goes into the two lists."""

    def __init__(self, folder: Path, identities: int) -> None:
        self.folder = folder
        self.identities = identities  # the first pids, which train
        self.counts = dict.fromkeys((TRAIN, QUERY, GALLERY), 0)
        self.images: dict[str, dict[str, Any]] = {}
        self.people: dict[str, dict[str, Any]] = {}
        self.keypoints: dict[str, NDArray[np.float32]] = {}
        self._queried: set[tuple[int, int]] = set()
        self._disk = ThreadPoolExecutor(_DISK_THREADS)
        self._pending: list[Future[None]] = []
        for name in _FOLDERS:
            (folder / name).mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.shutdown(cancel_futures=True)

    def add(self, shot: Shot, batch: RenderedPeople, n: int) -> None:
        """Write image ``n`` of a batch."""
        pid, camid, name = shot.identity.pid, shot.camera.camid, f"{shot.stem}.jpg"
        part = TRAIN if pid <= self.identities else GALLERY if (pid, camid) in self._queried else QUERY
        self._queried.add((pid, camid))
        self.counts[part] += 1
        files = {
            self.folder / part / name: encode_jpeg(batch.images[n], quality=95),
            self.folder / "parsing" / f"{shot.stem}.png": encode_png(batch.parsing[n], PALETTE),
            self.folder / "mask" / f"{shot.stem}.png": encode_png(batch.masks[n]),
        }
        self._pending += [self._disk.submit(write_new, path, data) for path, data in files.items()]
        if len(self._pending) > _MAX_PENDING:
            self._settle()
        self.keypoints[name] = np.rint(batch.keypoints[n])
        self.people.setdefault(str(pid), shot.identity.attributes())
        self.images[name] = {
            "pid": pid,
            "camid": camid,
            "action": shot.pose.action,
            "yaw": round(shot.pose.yaw, 3),
            "angles": shot.pose.named_angles(),
        }

    def finish(self, settings: dict[str, Any]) -> None:
        """Write the lists."""
        self._settle()
        write_keypoints_csv(self.folder / _KEYPOINTS, dict(sorted(self.keypoints.items())))
        record = {"schema": SCHEMA, **settings, "people": self.people, "images": self.images}
        (self.folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _settle(self) -> None:
        """Wait for the disk; its errors come up here."""
        for future in self._pending:
            future.result()
        self._pending.clear()


def _check_counts(identities: int, test: int, images: int, size: tuple[int, int], seed: int) -> None:
    if min(identities, test) < 0 or not 0 < identities + test <= MAX_PEOPLE:
        raise UserError(
            f"{identities} + {test} people", f"ask for 1 to {MAX_PEOPLE}, what the names can count"
        )
    if not 0 < images <= MAX_IMAGES:
        raise UserError(f"{images} images a person", f"ask for 1 to {MAX_IMAGES}, what the names can count")
    if min(size) < 16 or max(size) > 1024:
        raise UserError(f"size {size[0]}x{size[1]}", "ask for 16 to 1024 pixels a side")
    if seed < 0:
        raise UserError(f"seed {seed}", "seeds are 0 or more")


def _check_root(root: Path) -> None:
    """Only an absent or empty folder, or an earlier rendered data set, may be replaced."""
    if not root.exists():
        return
    if root.is_dir():
        if not any(root.iterdir()):
            return
        try:
            record = read_json(root / _RECORD)
            names = list(record["images"])
        except (UserError, KeyError, TypeError):
            record, names = {}, []
        if record.get("schema") == SCHEMA:
            own = {*_FOLDERS, _RECORD, _KEYPOINTS}
            own |= {f"{folder}/{name}" for name in names for folder in (TRAIN, QUERY, GALLERY)}
            own |= {f"{kind}/{Path(name).stem}.png" for name in names for kind in ("parsing", "mask")}
            refuse_foreign(root, own.__contains__, "this rendered data set")
            return
    raise UserError(f"{root}: exists and is not a rendered data set", "name a new folder")
