"""Steps along orders, against loops; which orders step least; clouds apart."""

import math

import pytest
import torch

from geom.errors import ShapeError
from geom.points import Points, knn, serialize
from geom.points.serialization import grid_size_of
from geom.sequence.order_locality import CURVES, locality


def sphere(count: int = 1024, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


@pytest.mark.parametrize("lengths", [[1024], [0, 5, 0, 300, 1, 17], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("grid_size", [None, 0.1])
def test_steps_of_a_loop(lengths: list[int], grid_size: float | None, dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    points = sphere(int(offsets[-1]), dtype=dtype)
    report = locality(points, grid_size=grid_size, offsets=offsets)
    assert report.orders == CURVES and report.mean.dtype == torch.float64
    for k, name in enumerate(report.orders):
        steps, near = [], []
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            row = serialize(points, order=name, grid_size=report.grid_size, offsets=offsets).order[start:stop]
            cells = (
                ((points[start:stop] - points[start:stop].amin(0)) / report.grid_size).floor() if stop > start else 0
            )
            for a, b in zip(row[:-1].tolist(), row[1:].tolist(), strict=True):
                steps.append(math.dist(points[a].tolist(), points[b].tolist()))
                near.append(float((cells[a - start] - cells[b - start]).abs().max()) <= 1)
        if not steps:
            assert [float(x[k]) for x in (report.mean, report.median, report.greatest, report.near)] == [0, 0, 0, 1]
            continue
        assert float(report.mean[k]) == pytest.approx(sum(steps) / len(steps), rel=1e-12)
        assert float(report.median[k]) == pytest.approx(sorted(steps)[(len(steps) - 1) // 2], rel=1e-12)
        assert float(report.greatest[k]) == pytest.approx(max(steps), rel=1e-12)
        assert float(report.near[k]) == pytest.approx(sum(near) / len(near), rel=1e-12)


def test_the_orders_of_a_sphere() -> None:
    """On the fine grid that was published, and on one of the points' spacing: what each order makes of it."""
    points = sphere()
    names = ("hilbert", "morton", "xyz", "xyz-official")
    fine = locality(points, orders=names, grid_size=0.02).mean.tolist()
    assert fine == sorted(fine) and fine[3] > 5 * fine[0]
    coarse = locality(points, orders=names)
    assert float(coarse.mean[2]) < 0.5 * fine[2]
    assert float(coarse.near[0]) > 0.9 > 0.2 > float(coarse.near[3])


def test_a_full_grid_is_walked_step_by_step() -> None:
    points = torch.cartesian_prod(*[torch.arange(8.0)] * 3)
    report = locality(points, orders=("hilbert", *CURVES[4:]), grid_size=1)
    for x in (report.mean, report.median, report.greatest, report.near):
        assert x.tolist() == [1.0] * 7


def test_the_grid_follows_the_spacing(dtype: torch.dtype) -> None:
    points = sphere(dtype=dtype)
    nearest = float(knn(points, points, 2).distance[:, 1].double().mean())
    assert grid_size_of(points) == locality(points).grid_size == pytest.approx(3 * nearest, rel=1e-6)
    assert grid_size_of(4 * points) == pytest.approx(4 * grid_size_of(points), rel=1e-6)
    for bits in (None, 3):
        size = grid_size_of(points, bits=bits)
        a, b = (serialize(points, order="xyz", bits=bits, grid_size=s) for s in (None, size))
        assert torch.equal(a.code, b.code)
    assert grid_size_of(points, bits=3) > grid_size_of(points)
    assert grid_size_of(points[:1]) > 0 and grid_size_of(points[:0]) > 0


def test_a_table() -> None:
    lines = str(locality(Points(sphere(50)), orders=("zyx", "morton-transposed"))).splitlines()
    assert lines[0].split() == ["order", "mean", "median", "greatest", "near"]
    assert [line.split()[0] for line in lines[1:3]] == ["zyx", "morton-transposed"]
    assert lines[3].startswith("steps over cells of ")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "call",
    [
        lambda: locality(torch.rand(4, 2)),
        lambda: locality(torch.rand(4, 3), orders=()),
        lambda: locality(torch.rand(4, 3), orders=("peano",)),
        lambda: locality(torch.rand(4, 3), grid_size=0.0),
        lambda: grid_size_of(torch.rand(4, 3), bits=22),
    ],
)
def test_wrong_input_is_a_shape_error(call) -> None:
    with pytest.raises(ShapeError, match="expected"):
        call()
