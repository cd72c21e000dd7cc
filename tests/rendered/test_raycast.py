"""Ray-cone intersection against a brute-force march through the union of many interpolated spheres."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.rendered.raycast import MAX_CONES, Cones, Grid, cast

STEP = 0.008  # meters between points of the march


def _random_cones(rng, count):
    """Overlapping stretched round cones in front of the grid, one cut, one lying along the rays."""
    a = rng.uniform((-0.25, -0.45, -0.2), (0.25, 0.45, 0.2), (count, 3))
    b = a + rng.uniform(-0.3, 0.3, (count, 3))
    b[0] = a[0] + (0.01, 0.0, 0.3)
    radius = rng.uniform(0.04, 0.14, (count, 2))
    scale = rng.uniform(0.6, 1.4, (count, 3))
    turn = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    stretch = np.einsum("pij,pj,pkj->pik", turn, 1.0 / scale, turn)
    clip = np.full((count, 2), (-np.inf, np.inf))
    clip[1] = (0.0, 0.7)
    reach = np.repeat(radius.max(1) * scale.max(1), 2).reshape(-1, 2)
    return Cones(a, b, radius[:, 0], radius[:, 1], stretch, clip, reach)


def _inside(cones, p, points):
    """Whether points (N, 3) are within any of 150 spheres between the ends of cone p; where on its axis."""
    M = cones.stretch[p]
    a, b, q = M @ cones.a[p], M @ cones.b[p], points @ M.T
    along = np.linspace(0, 1, 150)
    radius = cones.radius_a[p] + along * (cones.radius_b[p] - cones.radius_a[p])
    gap = np.full(len(q), np.inf)
    for s, r in zip(along, radius, strict=True):
        gap = np.minimum(gap, np.linalg.norm(q - (a + s * (b - a)), axis=1) - r)
    return gap < 0, (q - a) @ (b - a) / ((b - a) @ (b - a))


def _march(cones, grid):
    """Nearest entry of every ray into every cone (P, rows, columns); none where the entry is cut off."""
    row, column = np.mgrid[: grid.rows, : grid.columns]
    x, y = (column - grid.x0) / grid.sx, (grid.y0 - row) / grid.sy
    depth = np.arange(-0.7, 0.7, STEP)
    points = np.stack(np.broadcast_arrays(x[..., None], y[..., None], -depth), -1)
    found = np.full((len(cones.a), grid.rows, grid.columns), np.inf)
    for p in range(len(cones.a)):
        inside, axial = (v.reshape(points.shape[:3]) for v in _inside(cones, p, points.reshape(-1, 3)))
        first = inside.argmax(-1)
        at = np.take_along_axis(axial, first[..., None], -1)[..., 0]
        hit = inside.any(-1) & (at >= cones.clip[p, 0]) & (at <= cones.clip[p, 1])
        found[p][hit] = depth[first][hit]
    return found


def _unpack(hits, grid):
    primitive = np.full((grid.rows // 8 * (grid.columns // 8), 64), -1)
    depth = np.full(primitive.shape, np.inf)
    primitive[hits.cells], depth[hits.cells] = hits.primitive, hits.depth

    def picture(values):
        tiles = values.reshape(grid.rows // 8, grid.columns // 8, 8, 8).swapaxes(1, 2)
        return tiles.reshape(grid.rows, grid.columns)

    return picture(primitive), picture(depth)


@pytest.mark.parametrize("seed", [0, 1])
def test_nearest_surface_agrees_with_a_march(seed):
    cones = _random_cones(np.random.default_rng(seed), 5)
    grid = Grid(rows=16, columns=8, sx=15.0, sy=16.0, x0=3.3, y0=7.8)
    primitive, depth = _unpack(cast(cones, grid), grid)
    entry = _march(cones, grid)
    nearest = entry.min(0)
    # The march misses what is thinner than a step.
    agree = np.isfinite(depth) == np.isfinite(nearest)
    assert agree.mean() > 0.98
    both = np.isfinite(depth) & np.isfinite(nearest)
    assert both.sum() > 25
    close = np.abs(depth[both] - nearest[both]) < 2 * STEP
    assert close.mean() > 0.95
    # Where one cone is clearly in front, it must be the one that is named.
    second = np.sort(entry, 0)[1]
    clear = both & (second > nearest + 4 * STEP)
    clear[both] &= close
    assert clear.sum() > 20
    assert (primitive[clear] == entry.argmin(0)[clear]).all()


def test_a_sphere_is_where_the_formula_puts_it():
    """x^2 + y^2 + z^2 = r^2 around (0.1, 0.05, 0.2), also twice as deep along the rays."""
    center, radius = np.array([[0.1, 0.05, 0.2]]), 0.3
    for deep in (1.0, 2.0):
        stretch = np.diag((1.0, 1.0, 1.0 / deep))[None]
        cones = Cones(
            center,
            center + np.array((0.0, 1e-9, 0.0)),
            np.array([radius]),
            np.array([radius]),
            stretch,
            np.array([[-np.inf, np.inf]]),
            np.full((1, 2), radius),
        )
        grid = Grid(16, 16, 20.0, 20.0, 8.0, 8.0)
        primitive, depth = _unpack(cast(cones, grid), grid)
        row, column = np.mgrid[:16, :16]
        beside = ((column - 8) / 20 - 0.1) ** 2 + ((8 - row) / 20 - 0.05) ** 2
        inside = beside < radius**2
        sure = np.abs(beside - radius**2) > 1e-6  # a ray that only touches may go either way
        assert (primitive == np.where(inside, 0, -1))[sure].all()
        expected = -0.2 - deep * np.sqrt(np.maximum(radius**2 - beside, 0))
        assert np.allclose(depth[inside & sure], expected[inside & sure], atol=5e-4)


def test_nothing_in_view_and_too_many_cones():
    rng = np.random.default_rng(0)
    cones = _random_cones(rng, 3)
    assert len(cast(cones, Grid(16, 16, 20.0, 20.0, 500.0, 8.0)).cells) == 0
    with pytest.raises(ValueError, match=str(MAX_CONES)):
        cast(_random_cones(rng, MAX_CONES + 1), Grid(16, 16, 20.0, 20.0, 8.0, 8.0))
