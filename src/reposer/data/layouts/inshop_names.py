"""DeepFashion In-shop file names in both spellings, and what the official split has on both of its sides.

WOMEN/Dresses/id_00000002/02_1_front.jpg         the download's, below img/ or img_highres/
fashionWOMENDressesid0000000202_1front.jpg       the pose-transfer literature's
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from reposer.paths import RefusedFileError

_ORIGINAL = re.compile(
    r"(?:.*/)?(WOMEN|MEN)/([A-Za-z]+(?:_[A-Za-z]+)*)/id_(0[0-9]{7})/([0-9]{2})_([0-9])_([a-z]+)\.jpg",
    re.ASCII,
)
_FLAT = re.compile(
    r"(?:.*/)?fashion(WOMEN|MEN)([A-Za-z]+(?:_[A-Za-z]+)*?)id(0[0-9]{7})([0-9]{2})_([0-9])([a-z]+)\.jpg",
    re.ASCII,
)


class InshopName(NamedTuple):
    """What a name says; folders before it say nothing."""

    gender: str  # "WOMEN" or "MEN"
    category: str  # "Dresses", "Blouses_Shirts", ...
    item: int  # a garment model of the shop
    variant: int  # a color of it, photographed on one person
    view: int
    view_name: str  # "front", "side", "back", "full", "flat" (nobody wears it) or "additional"

    @property
    def product(self) -> str:
        """Category and item, as the flat names begin."""
        return f"fashion{self.gender}{self.category}id{self.item:08d}"

    @property
    def garment(self) -> str:
        """The product's variant: what the split keeps apart, and whose images make pairs."""
        return f"{self.product}{self.variant:02d}"

    @property
    def flat(self) -> str:
        """The literature's name."""
        return f"{self.garment}_{self.view}{self.view_name}.jpg"

    @property
    def original(self) -> str:
        """The download's path below img/."""
        folder = f"{self.gender}/{self.category}/id_{self.item:08d}"
        return f"{folder}/{self.variant:02d}_{self.view}_{self.view_name}.jpg"

    @property
    def pid(self) -> int:
        """Item and variant as one number: 202 for variant 02 of item 00000002."""
        return 100 * self.item + self.variant


def parse_inshop_name(text: str) -> InshopName:
    """A name in either spelling.

    Raises:
        RefusedFileError: rule ``bad-name``: it has another form.
    """
    match = _ORIGINAL.fullmatch(text) or _FLAT.fullmatch(text)
    if match is None:
        advice = (
            "names are like WOMEN/Dresses/id_00000002/02_1_front.jpg or"
            " fashionWOMENDressesid0000000202_1front.jpg"
        )
        raise RefusedFileError(text[:100], "bad-name", "not a name of DeepFashion In-shop", advice)
    gender, category, item, variant, view, view_name = match.groups()
    return InshopName(gender, category, int(item), int(variant), int(view), view_name)


@dataclass(frozen=True, slots=True)
class SplitOverlap:
    """What training and test list have in common; an image counts once."""

    products: tuple[str, ...]  # category and item in both lists, sorted
    product_images: int  # test images of these
    items: int  # item numbers in both, whatever the category
    item_images: int  # test images of these
    garments: int  # category, item and variant in both
    test_products: int
    test_images: int

    def __str__(self) -> str:
        return (
            f"{len(self.products):,} of {self.test_products:,} test items ({self.product_images:,} of"
            f" {self.test_images:,} test images) are trained on as other variants; {self.garments:,} garments"
            f" (item and variant) are in both lists. By item number alone, whatever the category:"
            f" {self.items:,} items, {self.item_images:,} test images"
        )


def split_overlap(train: Iterable[InshopName], test: Iterable[InshopName]) -> SplitOverlap:
    """Count what the two lists share."""
    trained, tested = set(train), set(test)
    products = {name.product for name in trained} & {name.product for name in tested}
    items = {name.item for name in trained} & {name.item for name in tested}
    return SplitOverlap(
        products=tuple(sorted(products)),
        product_images=sum(name.product in products for name in tested),
        items=len(items),
        item_images=sum(name.item in items for name in tested),
        garments=len({name.garment for name in trained} & {name.garment for name in tested}),
        test_products=len({name.product for name in tested}),
        test_images=len(tested),
    )
