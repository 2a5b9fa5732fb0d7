"""Decimation keeps the shape with fewer faces."""

import sys

import pytest
import torch

from geom.errors import MissingDependencyError, ShapeError
from geom.meshes import Mesh, closest_points, decimate, mass_properties

from .shapes import box, bumpy, sphere, to_trimesh


def test_fewer_faces_same_shape(dtype: torch.dtype) -> None:
    pytest.importorskip("fast_simplification")
    ball = sphere(4, dtype)
    small = decimate(ball, 500)
    assert small.vertices.dtype == dtype and small.faces.dtype == torch.int64
    assert len(small.faces) <= 502 and to_trimesh(small).is_watertight
    volume = float(mass_properties(small.vertices, small.faces).volume)
    assert volume == pytest.approx(float(mass_properties(ball.vertices, ball.faces).volume), rel=0.02)
    assert closest_points(ball.vertices, small).distance.max() < 0.03
    again = decimate(ball, 500)
    assert torch.equal(small.vertices, again.vertices) and torch.equal(small.faces, again.faces)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_scale_does_not_matter(scale: float) -> None:
    pytest.importorskip("fast_simplification")
    ball = sphere(3)
    moved = decimate(Mesh(scale * ball.vertices, ball.faces), 300)
    assert len(moved.faces) == len(decimate(ball, 300).faces)


def test_colours_and_small_meshes() -> None:
    pytest.importorskip("fast_simplification")
    ball = sphere(3)
    colors = ((ball.vertices + 1) / 2).float()
    small = decimate(Mesh(ball.vertices, ball.faces, colors=colors), 200)
    assert small.colors is not None and (small.colors - (small.vertices + 1) / 2).abs().max() < 0.05
    cube = box()
    assert torch.equal(decimate(cube, 12).faces, cube.faces) and torch.equal(decimate(cube, 99).vertices, cube.vertices)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 2.5, True):
        with pytest.raises(ShapeError, match="count: expected an integer of at least 1"):
            decimate(bumpy(), count)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(MissingDependencyError, match=r"geom-toolkit\[mesh\]"):
        decimate(bumpy(), 10)
