"""Who a rendered person is: body, skin, hair, clothes, shoes and what they carry, drawn from (seed, pid)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from reposer.rendered.body import BodyShape

Color = tuple[float, float, float]  # sRGB in [0, 1]

SKIN = {
    "pale": (0.92, 0.76, 0.67),
    "fair": (0.87, 0.69, 0.57),
    "light": (0.83, 0.64, 0.50),
    "tan": (0.74, 0.54, 0.40),
    "olive": (0.66, 0.48, 0.35),
    "brown": (0.52, 0.35, 0.25),
    "dark": (0.38, 0.25, 0.18),
    "deep": (0.27, 0.18, 0.14),
}
HAIR = {
    "black": (0.09, 0.08, 0.08),
    "dark brown": (0.19, 0.12, 0.08),
    "brown": (0.33, 0.21, 0.12),
    "auburn": (0.42, 0.17, 0.09),
    "blond": (0.72, 0.55, 0.30),
    "ginger": (0.66, 0.31, 0.11),
    "gray": (0.55, 0.54, 0.53),
}
FABRIC = {
    "black": (0.10, 0.10, 0.11),
    "white": (0.90, 0.90, 0.88),
    "gray": (0.48, 0.49, 0.50),
    "charcoal": (0.24, 0.25, 0.27),
    "navy": (0.12, 0.16, 0.33),
    "blue": (0.16, 0.34, 0.70),
    "sky": (0.52, 0.71, 0.88),
    "red": (0.75, 0.13, 0.14),
    "burgundy": (0.42, 0.09, 0.16),
    "pink": (0.90, 0.55, 0.66),
    "orange": (0.90, 0.45, 0.12),
    "yellow": (0.92, 0.79, 0.24),
    "green": (0.15, 0.50, 0.26),
    "olive": (0.38, 0.38, 0.20),
    "teal": (0.10, 0.48, 0.50),
    "purple": (0.42, 0.20, 0.55),
    "beige": (0.78, 0.70, 0.55),
    "brown": (0.38, 0.25, 0.16),
    "denim": (0.24, 0.34, 0.50),
    "light denim": (0.47, 0.58, 0.71),
}
SOLES = ("white", "black", "gray", "brown", "red", "blue", "beige", "navy")
LOWER_COLORS = (
    "black",
    "charcoal",
    "navy",
    "denim",
    "denim",
    "light denim",
    "beige",
    "gray",
    "olive",
    "brown",
    "white",
    "burgundy",
)


@dataclass(frozen=True, slots=True)
class Fabric:
    """Color and pattern of one garment, in body-fixed coordinates."""

    color: str  # key of FABRIC
    pattern: str = "plain"  # or "stripes" (level), "pinstripes" (upright), "checks", "block" (two halves)
    second: str = "white"  # the pattern's second color
    period: float = 0.09  # meters
    front: str | None = None  # "logo", "band", "buttons", "picture" on the chest
    back: str | None = None  # "logo", "band", "number" on the back
    mark: str = "white"  # color of front and back


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that stays the same in all images of one person."""

    pid: int
    shape: BodyShape
    skin: str  # key of SKIN
    hair: str  # key of HAIR
    hair_style: str  # "short", "crop", "bald", "bob", "long", "ponytail", "bun", "curly"
    beard: bool
    hat: str  # "none", "cap", "beanie", "brim"
    hat_color: str
    glasses: bool
    upper: str  # "t-shirt", "shirt" (long sleeves), "sweater", "tank top"
    upper_fabric: Fabric
    coat: str  # "none", "jacket" (to the hip), "coat" (to the thigh), "long coat" (to the knee)
    coat_fabric: Fabric
    coat_open: bool
    lower: str  # "trousers", "wide trousers", "shorts", "jumpsuit", or a key of clothing.SKIRT_LENGTHS
    lower_fabric: Fabric
    shoes: str  # "sneakers", "shoes", "boots"
    shoe_color: str
    socks: str  # color of the socks that shorts and skirts show, or "none"
    bag: str  # "none", "backpack", "shoulder bag", "handbag"
    bag_color: str
    bag_side: int  # 1 on the person's left, -1 on the right
    scarf: str  # color or "none"
    gloves: str  # color or "none"

    def attributes(self) -> dict[str, Any]:
        """Plain values for people.json."""
        return asdict(self)


def _pick(rng: np.random.Generator, **shares: float) -> str:
    """One of the names, with the given relative shares; an underscore in a name stands for a space."""
    names = [name.replace("_", " ") for name in shares]
    weights = np.array(list(shares.values()))
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _one(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _sample_fabric(
    rng: np.random.Generator, colors: tuple[str, ...], patterned: float, marked: float
) -> Fabric:
    color = _one(rng, colors)
    others = tuple(name for name in FABRIC if _contrast(name, color) > 0.30)
    fabric = Fabric(
        color, second=_one(rng, others), mark=_one(rng, others), period=float(rng.uniform(0.07, 0.16))
    )
    pattern = _pick(rng, stripes=4, pinstripes=2, checks=3, block=2)
    if rng.random() < patterned:
        fabric = replace(fabric, pattern=pattern)
    front, back = _pick(rng, logo=3, band=2, picture=3), _pick(rng, logo=2, band=1, number=2)
    if rng.random() < marked:
        fabric = replace(fabric, front=front)
    if rng.random() < marked * 0.7:
        fabric = replace(fabric, back=back)
    return fabric


def _contrast(one: str, other: str) -> float:
    return float(np.abs(np.subtract(FABRIC[one], FABRIC[other])).max())


def _sample_shape(rng: np.random.Generator, female: bool) -> BodyShape:
    mean, spread = (1.64, 0.065) if female else (1.76, 0.07)
    return BodyShape(
        height=float(np.clip(rng.normal(mean, spread), 1.45, 1.98)),
        female=float(np.clip(rng.normal(0.9 if female else 0.08, 0.08), 0.0, 1.0)),
        build=float(np.clip(rng.gamma(30.0, 1.0 / 30.0), 0.82, 1.32)),
        legs=float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05)),
        shoulders=float(np.clip(rng.normal(1.0, 0.03), 0.92, 1.08)),
    )


@lru_cache(maxsize=4096)
def sample_identity(seed: int, pid: int) -> Identity:
    """The person ``pid`` of data set ``seed``: a pure function of both, whatever else is drawn."""
    rng = np.random.default_rng([seed, pid, 0])
    female = bool(rng.random() < 0.5)
    shape = _sample_shape(rng, female)
    garments = tuple(FABRIC)
    if female:
        hair_style = _pick(rng, long=5, ponytail=3, bun=2, bob=3, short=1, curly=1)
        lower = _pick(
            rng,
            trousers=9,
            wide_trousers=2,
            shorts=3,
            skirt=3,
            long_skirt=1,
            dress=3,
            **{"long-sleeved dress": 2},
            jumpsuit=1,
        )
    else:
        hair_style = _pick(rng, short=6, crop=4, bald=1, curly=1.5, long=0.5, bob=0.5)
        lower = _pick(rng, trousers=11, wide_trousers=3, shorts=5, jumpsuit=0.6)
    coat = _pick(rng, none=11, jacket=5, coat=2, long_coat=2)
    warm = coat != "none"
    return Identity(
        pid=pid,
        shape=shape,
        skin=_one(rng, tuple(SKIN)),
        hair=_one(rng, tuple(HAIR)) if rng.random() < 0.5 else _pick(rng, black=2, dark_brown=2, brown=1),
        hair_style=hair_style,
        beard=not female and bool(rng.random() < 0.25),
        hat=_pick(rng, none=15, cap=2.5, beanie=2.0, brim=1.0),
        hat_color=_one(rng, garments),
        glasses=bool(rng.random() < 0.16),
        upper=_pick(
            rng,
            shirt=3,
            sweater=4 + 2 * warm,
            **{"t-shirt": 7 - 3 * warm},
            tank_top=(1.0 if female else 0.4) * (not warm),
        ),
        upper_fabric=_sample_fabric(rng, garments, patterned=0.40, marked=0.45),
        coat=coat,
        coat_fabric=_sample_fabric(rng, garments, patterned=0.18, marked=0.12),
        coat_open=bool(rng.random() < 0.45),
        lower=lower,
        lower_fabric=_sample_fabric(
            rng,
            garments if "dress" in lower or "skirt" in lower else LOWER_COLORS,
            patterned=0.35 if "dress" in lower or "skirt" in lower else 0.05,
            marked=0.0,
        ),
        shoes=_pick(rng, sneakers=5, shoes=3, boots=2),
        shoe_color=_one(rng, SOLES),
        socks=_pick(rng, none=3, white=2, black=2, gray=1),
        bag=_pick(rng, none=10, backpack=5, shoulder_bag=3, handbag=3 if female else 1),
        bag_color=_one(rng, garments),
        bag_side=1 if rng.random() < 0.5 else -1,
        scarf=_one(rng, garments) if rng.random() < (0.30 if warm else 0.03) else "none",
        gloves=_one(rng, garments) if rng.random() < (0.12 if warm else 0.0) else "none",
    )
