"""File names of Market-1501, ``PPPP_cCsS_FFFFFF_BB.jpg``, and of pictures generated from its images.

The suffix ``_gNN`` of generated pictures is allowed. Imports no
torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError

_SUFFIXES = r"((?:\.(?:jpe?g|png|webp|bmp))+)"
_NAME = re.compile(
    r"(-1|[0-9]{4,6})_c([1-9][0-9]?)s([1-9][0-9]?)_([0-9]{1,8})_([0-9]{1,3})(?:_g[0-9]{2,3})?" + _SUFFIXES,
    re.ASCII | re.IGNORECASE,
)


class MarketName(NamedTuple):
    """What a file name says."""

    pid: int  # -1 junk, 0 distractor
    camid: int  # from 1
    sequence: int
    frame: int
    box: int


def parse_name(file_name: str) -> MarketName:
    """The labels in ``PPPP_cCsS_FFFFFF_BB.jpg``; a folder in front of the name is not looked at.

    Raises:
        RefusedFileError: rule ``bad-name``: the name has another form.
    """
    match = _NAME.fullmatch(file_name.rpartition("/")[2])
    if match is None:
        advice = "rename it like 0002_c1s1_000451_03.jpg (person, camera, sequence, frame, box)"
        raise RefusedFileError(file_name, "bad-name", "not a Market-1501 image name", advice)
    pid, camid, sequence, frame, box = (int(match[i]) for i in range(1, 6))
    return MarketName(pid, camid, sequence, frame, box)


def stem(file_name: str) -> str:
    """The name without its image extensions, of which 24 official names have two."""
    return re.sub(_SUFFIXES + r"\Z", "", file_name, flags=re.ASCII | re.IGNORECASE)


# ---- Names of generated pictures: ``<stem of the source>_gNN.jpg``, NN the number of the copy, from 01.
#
# So a name keeps person and camera of its source for every program that reads them from names: the
# Market-1501 grammar above and the pattern ``([-\d]+)_c(\d)`` of
# torchreid, fast-reid and others. Siarohin et al. (CVPR 2018) name theirs likewise, without the underscore.

MAX_COPY = 999
MAX_NAME_BYTES = 100  # so that a path still fits everywhere (tar's name field, Windows' 260 characters)

_GENERATED = re.compile(r"(.+)_g([0-9]{2,3})\.(jpg|png)", re.ASCII)
_PORTABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


class GeneratedName(NamedTuple):
    """What the name of a generated picture says."""

    stem: str  # of the source's name
    copy: int  # from 1
    file_format: str  # "jpg" or "png"


def generated_name(source: str, copy: int, file_format: str) -> str:
    """Name of copy number ``copy`` (from 1) of the image ``source``."""
    return f"{stem(source)}_g{copy:02d}.{file_format}"


def parse_generated(name: str) -> GeneratedName | None:
    """The parts of a generated picture's name; None for a name that is none."""
    match = _GENERATED.fullmatch(name)
    return GeneratedName(match[1], int(match[2]), match[3]) if match else None


def is_generated(name: str) -> bool:
    """Whether a file name, whatever its extensions, bears the suffix of a generated picture."""
    return parse_generated(f"{stem(name)}.jpg") is not None


def check_names(names: Sequence[str]) -> None:
    """Refuse names of which two are one file somewhere, or that some system cannot hold.

    Raises:
        UserError: two names are equal under Unicode NFC and case folding, a name is longer than 100 bytes or
            holds other characters than A-Z a-z 0-9 . _ -; names the first.
    """
    bad = next((name for name in names if not _PORTABLE.fullmatch(name)), None)
    long = next((name for name in names if len(name.encode()) > MAX_NAME_BYTES), None)
    if bad is not None or long is not None:
        problem = "holds other characters than A-Z a-z 0-9 . _ -" if bad is not None else "is too long"
        raise UserError(f"{bad or long}: the name {problem}", "rename the image, then prepare again")
    same = collisions(names)
    if same:
        raise UserError(
            f"{same[0]}: two files would have this name", "rename one of them, then prepare again"
        )


def collisions(names: Iterable[str]) -> list[str]:
    """Names, folded, that occur more than once on a disk that ignores case or Unicode form."""
    times = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    return [name for name, count in times.items() if count > 1]
