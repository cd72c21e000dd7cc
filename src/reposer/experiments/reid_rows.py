"""Which images of a prepared folder are queries, gallery and training images of a Re-ID evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.models.pretrained import EmbeddingInfo

Rows = NDArray[np.int64]  # positions in a prepared folder
QUERY, GALLERY, TRAIN, CROPS = "query", "gallery", "train", "multi_query"  # names of feature sets


def tested_rows(people: PackedPeople) -> tuple[Rows, Rows]:
    """Query and gallery: the splits of these names, or the held-out people (val), of whom the first image in
    each camera, by name, is a query and every other one is in the gallery.

    Raises:
        UserError: there is neither.
    """
    query = np.flatnonzero(people.splits == QUERY)
    if len(query):
        return query, np.flatnonzero(people.splits == GALLERY)
    held_out = np.flatnonzero(people.splits == "val")
    if not len(held_out):
        raise UserError("there is nobody to test on", "prepare with query and gallery, or with --holdout N")
    order = held_out[np.argsort(np.array(people.names)[held_out], kind="stable")]
    keys = np.stack([people.pids[order], people.camids[order]], axis=1)
    first = np.unique(keys, axis=0, return_index=True)[1]
    return np.sort(order[first]), np.sort(np.delete(order, first))


def listed_rows(people: PackedPeople, path: Path) -> Rows:
    """The images that a text file names, one a line, in its order.

    Raises:
        UserError: unreadable, empty, a name twice, or a name that the prepared folder does not have.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a readable list of names ({error})", "give a text file, a name a line"
        ) from error
    known, rows = people.name_index(), dict[int, int]()
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if name not in known:
            raise UserError(
                f"{path}:{number}: {name}: the prepared folder has no such image",
                "list images of the data set that was prepared, by file name",
            )
        row = known[name]
        if row in rows:
            raise UserError(f"{path}:{number}: {name} stands in line {rows[row]} already", "name it once")
        rows[row] = number
    if not rows:
        raise UserError(f"{path}: names no image", "list one file name a line")
    return np.array(list(rows), np.int64)


def chosen_rows(
    people: PackedPeople, query_list: Path | None = None, gallery_list: Path | None = None
) -> dict[str, Rows]:
    """Rows by set: query, gallery and, where the folder has training people, train.

    Raises:
        UserError: as :func:`tested_rows` and :func:`listed_rows`, or one list without the other.
    """
    if (query_list is None) != (gallery_list is None):
        raise UserError("one name list alone decides nothing", "give --query-list and --gallery-list")
    if query_list is not None and gallery_list is not None:
        query, gallery = listed_rows(people, query_list), listed_rows(people, gallery_list)
    else:
        query, gallery = tested_rows(people)
    train = np.flatnonzero(people.splits == TRAIN)
    return {QUERY: query, GALLERY: gallery} | ({TRAIN: train} if len(train) else {})


def training_note(info: EmbeddingInfo, people: PackedPeople, rows: dict[str, Rows]) -> str:
    """What is known about the people that a network has learned from, for the notes of a report.

    Raises:
        UserError: it was trained on this folder, on splits that are tested here.
    """
    trained_on = f"the data set {info.trained_on}" if info.trained_on else "people who are not recorded"
    if info.identity_hash not in [people.identity_hash(split) for split in info.splits]:
        return f"The network was trained on {trained_on}: whether test people were among them is not known."
    tested = np.concatenate([rows[QUERY], rows[GALLERY]])
    seen = np.isin(people.splits[tested], info.splits)
    if seen.any():
        name = people.names[tested[seen][0]]
        raise UserError(
            f"{int(seen.sum())} test images, such as {name}, are among those that the network was trained on",
            "test on other people",
        )
    return f"The network was trained on {trained_on}, split {', '.join(info.splits)}; nobody of it is tested."
