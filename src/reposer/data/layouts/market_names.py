"""File names of Market-1501, ``PPPP_cCsS_FFFFFF_BB.jpg``, and of pictures generated from its images.

The suffix ``_gNN`` of generated pictures is allowed (:mod:`reposer.data.generated.names`). Imports no torch.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from reposer.paths import RefusedFileError

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
