"""A long list of like cases: some of it in the fast suite, all of it in the slow one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def one_in(
    every: int,
    cases: Iterable[Any],
    start: int = 0,
    slow: Callable[[Any], bool] = lambda case: False,
    **how: Any,
) -> list[Any]:
    """The cases as parameters; each ``every``-th is quick from ``start`` on, the others are marked slow.

    Args:
        every: 1 for all.
        cases: one argument each, or tuples of several.
        start: number of the first quick one, below ``every``.
        slow: cases that are slow wherever they stand.
        how: ``id``, a function of the case.
    """
    return [
        pytest.param(
            *(case if type(case) is tuple else (case,)),
            marks=pytest.mark.slow if number % every != start or slow(case) else (),
            **{name: make(case) for name, make in how.items()},
        )
        for number, case in enumerate(cases)
    ]
