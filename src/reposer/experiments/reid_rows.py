"""Which images of a prepared folder are queries, gallery and training images of a Re-ID evaluation."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.checkpoint import refuse_other_data
from reposer.data.layouts.folder_scan import nfc
from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.models.pretrained import EmbeddingInfo
from reposer.paths import printable

Rows = NDArray[np.int64]  # positions in a prepared folder
QUERY, GALLERY, TRAIN, CROPS = "query", "gallery", "train", "multi_query"  # names of feature sets


def check_data(people: PackedPeople, *models: str | Path | None) -> None:
    """Refuse a run that was trained on this prepared folder when something else lay there.

    Args:
        models: as a user names them; what is no run, or None, passes.

    Raises:
        UserError: the folder was prepared anew since.
    """
    for model in models:
        if model is not None:
            refuse_other_data(model, people.folder.parent, people.content_hash)


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

    A line is a name, or a path (with / or \\) whose last part is one. UTF-8 with or without a byte order
    mark, or UTF-16 with one; names are compared in Unicode's composed form.

    Raises:
        UserError: unreadable, empty, a name twice, or a name that the prepared folder does not have.
    """
    try:
        data = path.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = data.decode("utf-16" if utf16 else "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a readable list of names ({error})", "give a text file, a name a line"
        ) from error
    known = {nfc(name): row for name, row in people.name_index().items()}
    rows = dict[int, int]()
    for number, line in enumerate(lines, 1):
        name = nfc(line.strip())
        if not name:
            continue
        if name not in known:  # a path, as a list from another tool or system has it
            name = name.replace("\\", "/").rpartition("/")[2]
        if name not in known:
            raise UserError(
                f"{path}:{number}: {printable(line.strip())}: the prepared folder has no such image",
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
        UserError: it was trained on this folder, on images or people that are tested here.
    """
    trained_on = f"the data set {info.trained_on}" if info.trained_on else "people who are not recorded"
    if info.identity_hash not in [people.identity_hash(split) for split in info.splits]:
        return f"The network was trained on {trained_on}: whether test people were among them is not known."
    if info.images_hash not in ("", people.images_hash(*info.splits)):
        return (
            f"The network was trained on {trained_on}, on other images of people of the same numbers as here:"
            " whether test people were among them is not known."
        )
    tested = np.concatenate([rows[QUERY], rows[GALLERY]])
    trained = np.isin(people.splits, info.splits)
    learned = people.pids[trained & (people.pids > 0)]
    seen = trained[tested] | np.isin(people.pids[tested], learned)
    if seen.any():
        images, persons = int(seen.sum()), len(np.unique(people.pids[tested[seen]]))
        raise UserError(
            f"{images} test images ({persons} people), such as {people.names[tested[seen][0]]}, show people"
            " whom the network was trained on",
            "test on other people: `reposer prepare` lists who is in two splits (person-train-test)",
        )
    return f"The network was trained on {trained_on}, split {', '.join(info.splits)}; nobody of it is tested."
