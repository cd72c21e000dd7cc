"""Pair lists: who is re-posed into whose pose, by the field's official rules and from published files.

The rule (Siarohin's and PATN's create_pairs_dataset.py): keep an image that shows both shoulders and both
hips and whose person, the part of the name before the first '_', is neither -1 (junk) nor 0000 (distractor;
00000 where names have more digits); take all ordered pairs of one person; persons in the order of their first
image, images in the order of the annotation file. On Market-1501 this gives the 263,632 training pairs of the
literature; the test list is a sample of 12,000.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.data.keypoints import Pose, has_torso
from reposer.data.records import AnnotationError, AnnotationProblem, text_lines
from reposer.errors import UserError
from reposer.storage.files import write_atomic
from reposer.storage.paths import printable

HEADER = "from,to"
OFFICIAL_TEST_PAIRS = 12_000
DEV_PAIRS = 2_000
_NOBODY = re.compile("-1|0000+")  # a name's person

Pairs = NDArray[np.int64]  # (P, 2) indices of source and target


def official_train_pairs(names: Sequence[str], keypoints: Pose) -> Pairs:
    """All ordered pairs by the rule above, as indices into ``names``; the order of ``names`` decides theirs.

    Args:
        names: (N,) file names.
        keypoints: (N, J, 2) of the same images.
    """
    persons = [name.split("_", 1)[0] for name in names]
    usable = has_torso(keypoints) & np.array([not _NOBODY.fullmatch(person) for person in persons], np.bool_)
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(usable).tolist():
        members.setdefault(persons[index], []).append(index)
    return ordered_pairs(members.values())


def official_test_pairs(names: Sequence[str], keypoints: Pose, count: int = OFFICIAL_TEST_PAIRS) -> Pairs:
    """A sample of what ``official_train_pairs`` gives, in sampled order (pandas' sample, random_state 0).

    Market-1501's market-pairs-test.csv line by line, when names come in the order of
    market-annotation-test.csv.
    """
    pairs = official_train_pairs(names, keypoints)
    if len(pairs) <= count:
        return pairs
    # the official list was drawn with this legacy generator
    return pairs[np.random.RandomState(0).choice(len(pairs), count, replace=False)]


def development_pairs(names: Sequence[str], keypoints: Pose, count: int = DEV_PAIRS) -> Pairs:
    """The fixed validation list: names sorted, all ordered pairs, ``count`` of a seeded permutation.

    Indices into ``names`` as given; with the images of the 100 highest Market-1501 training pids this is the
    list on which results of this project are measured.
    """
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    pairs = official_train_pairs([names[i] for i in order], keypoints[order])
    chosen = np.random.RandomState(0).permutation(len(pairs))[:count]
    return order[pairs[chosen]]


def ordered_pairs(groups: Iterable[Sequence[int]]) -> Pairs:
    """All (a, b) with a != b inside each group, group by group, a-major: itertools.permutations(group, 2)."""
    parts = [np.empty((0, 2), np.int64)]
    for group in groups:
        members = np.asarray(group, np.int64)
        first, second = np.nonzero(~np.eye(len(members), dtype=np.bool_))  # row-major: a-major order
        parts.append(np.stack([members[first], members[second]], axis=1))
    return np.concatenate(parts)


def read_pairs_csv(
    path: str | Path, known: Container[str] | None = None
) -> tuple[list[tuple[str, str]], list[AnnotationProblem]]:
    """Read a published ``from,to`` list; bad rows are listed, good ones kept in order (repeated pairs too).

    Args:
        known: names of the data set; a row with another name is a problem. None accepts any name.

    Raises:
        RefusedFileError: the file cannot be read.
        AnnotationError: its header is not ``from,to``.
    """
    rows, problems = numbered_pairs(path)
    pairs: list[tuple[str, str]] = []
    for row, pair in rows.items():
        if unknown := _unknown_name(str(path), row, pair, known):
            problems.append(unknown)
        else:
            pairs.append(pair)
    return pairs, sorted(problems, key=lambda problem: problem.row)


def numbered_pairs(path: str | Path) -> tuple[dict[int, tuple[str, str]], list[AnnotationProblem]]:
    """Line of the file (its header is line 1) -> pair, and the bad rows; raises as :func:`read_pairs_csv`."""
    lines = text_lines(Path(path))
    header = lines[0].decode("utf-8", "replace").strip()
    if header != HEADER:
        # what a link in somebody else's folder leads to is shown to nobody
        problem = "is that of another file" if Path(path).is_symlink() else f"is {header[:60]!r}"
        raise AnnotationError(path, "header", problem, f"the first line must be {HEADER}", row=1)
    pairs: dict[int, tuple[str, str]] = {}
    problems: list[AnnotationProblem] = []
    for row, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        pair = tuple(field.strip() for field in line.decode("utf-8", "replace").split(","))
        if len(pair) != 2 or not all(pair) or "\N{REPLACEMENT CHARACTER}" in pair[0] + pair[1]:
            problems.append(AnnotationProblem(str(path), row, "row", "expected two names: from,to"))
        else:
            pairs[row] = pair
    return pairs, problems


def load_pairs(path: str | Path, index: Mapping[str, int]) -> Pairs:
    """(P, 2) positions of a pairs CSV all of whose rows must be usable.

    Args:
        index: position of each image by name.

    Raises:
        UserError: the first row that cannot be read, or names an image that is not in ``index``.
    """
    named, problems = read_pairs_csv(path, index)
    for problem in problems:
        raise UserError(str(problem), "correct the list or prepare the folder again")
    return np.array([(index[source], index[target]) for source, target in named], np.int64).reshape(-1, 2)


def write_pairs_csv(path: str | Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Write named pairs in the field's format.

    Raises:
        UserError: a name holds a comma or a line end.
    """
    lines = [HEADER]
    for pair in pairs:
        for name in pair:
            if not name or name != name.strip() or any(c in name for c in ',"\r\n'):
                raise UserError(f"{path}, name {name!r}: does not fit a comma list", "rename the image")
        lines.append(",".join(pair))
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def _unknown_name(
    path: str, row: int, pair: tuple[str, str], known: Container[str] | None
) -> AnnotationProblem | None:
    for field, name in zip(("from", "to"), pair, strict=True):
        if known is not None and name not in known:
            return AnnotationProblem(path, row, field, f"{printable(name)[:100]} is not in the data set")
    return None
