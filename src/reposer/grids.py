"""Picture grids: rows of equally large RGB pictures under column titles, as one uint8 array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP = 4  # pixels between the pictures, before scaling
TITLE_HEIGHT = 24  # pixels, after scaling
TITLE_SIZE, SMALLEST_TITLE = 16, 7  # pixels, of the font
PAPER, INK = (255, 255, 255), (40, 40, 40)


def draw_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    titles: Sequence[str] = (),
    *,
    scale: int = 1,
    groups: int = 1,
) -> NDArray[np.uint8]:
    """Lay pictures out as a table.

    Args:
        rows: each row a sequence of (H, W, 3) uint8 RGB pictures, all of one size.
        titles: one title a column, printed above it (above every group's columns when ``groups`` > 1).
        scale: whole-number enlargement, nearest neighbor, so that a pixel stays a pixel.
        groups: lay the rows out side by side in this many groups of columns.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: no picture, or pictures of different sizes.
    """
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    height, width = pictures[0].shape[:2]
    if any(picture.shape != (height, width, 3) for picture in pictures):
        raise ValueError(f"the pictures of a grid must all be ({height}, {width}, 3)")
    columns = max(len(row) for row in rows)
    cell_h, cell_w = height * scale + GAP, width * scale + GAP
    lines = -(-len(rows) // groups)
    top = TITLE_HEIGHT if titles else 0
    group_w = columns * cell_w + (4 * GAP if groups > 1 else 0)
    canvas = Image.new("RGB", (groups * group_w + GAP, top + lines * cell_h + GAP), PAPER)
    for r, row in enumerate(rows):
        group, line = divmod(r, lines)
        for c, picture in enumerate(row):
            enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            position = (GAP + group * group_w + c * cell_w, top + GAP + line * cell_h)
            canvas.paste(Image.fromarray(enlarged), position)
    if titles:
        _print_titles(canvas, titles, groups, group_w, cell_w)
    return np.asarray(canvas)


def _print_titles(canvas: Image.Image, titles: Sequence[str], groups: int, group_w: int, cell_w: int) -> None:
    """Print each title centered over its column, as large as the longest one allows."""
    draw = ImageDraw.Draw(canvas)
    size = TITLE_SIZE
    while (
        size > SMALLEST_TITLE
        and max(draw.textlength(t, font=ImageFont.load_default(size)) for t in titles) > cell_w - 2
    ):
        size -= 1
    font = ImageFont.load_default(size)
    for group in range(groups):
        for c, title in enumerate(titles):
            x = GAP + group * group_w + c * cell_w + (cell_w - GAP) / 2
            draw.text((x, TITLE_HEIGHT / 2 + 1), title, fill=INK, font=font, anchor="mm")
