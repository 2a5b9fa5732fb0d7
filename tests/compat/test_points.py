"""pytorch3d's point operations beyond its goldens: other norms and dimensions, defaults, empty clouds, gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from geom.compat.pytorch3d import loss, ops
from geom.errors import ShapeError
from geom.testing import assert_gradients


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Pointclouds:
    """The part of pytorch3d's that is asked."""

    def __init__(self, points: Tensor, lengths: Tensor, normals: Tensor | None = None) -> None:
        self.points, self.lengths, self.normals = points, lengths, normals

    def points_padded(self) -> Tensor:
        return self.points

    def num_points_per_cloud(self) -> Tensor:
        return self.lengths

    def normals_padded(self) -> Tensor | None:
        return self.normals


LENGTHS = torch.tensor([9, 0, 4]), torch.tensor([7, 5, 2])


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("dimension", [2, 3, 5])
def test_knn_is_sorted_distances(norm: int, dimension: int, dtype: torch.dtype) -> None:
    p1, p2 = random(3, 9, dimension, dtype=dtype), random(3, 7, dimension, dtype=dtype, seed=1)
    found = ops.knn_points(p1, p2, *LENGTHS, norm=norm, K=3, return_nn=True)
    assert found.dists.dtype == dtype and found.idx.dtype == torch.int64
    for cloud, (size1, size2) in enumerate(zip(*(x.tolist() for x in LENGTHS), strict=True)):
        gap = p1[cloud, :size1, None] - p2[cloud, :size2]
        size, order = (gap.abs() if norm == 1 else gap.square()).sum(-1).sort(dim=-1)
        have = min(3, size2)
        assert torch.allclose(found.dists[cloud, :size1, :have], size[:, :have], rtol=1e-6)
        assert torch.equal(found.idx[cloud, :size1, :have], order[:, :have])
        assert torch.equal(found.knn[cloud, :size1, :have], p2[cloud][order[:, :have]])
        for x in found:
            assert not x[cloud, size1:].any() or x is found.knn
            assert not x[cloud, :, have:].any()


def test_knn_gather_with_features() -> None:
    idx, features = torch.tensor([[[0, 2], [1, 1]], [[2, 0], [0, 1]]]), random(2, 3, 4)
    found = ops.knn_gather(features, idx)
    assert torch.equal(found[1, 0, 0], features[1, 2]) and found.shape == (2, 2, 2, 4)
    cut = ops.knn_gather(features, idx, torch.tensor([3, 1]))
    assert torch.equal(cut[0], found[0]) and torch.equal(cut[1, :, 0], found[1, :, 0]) and not cut[1, :, 1].any()


def test_ball_query_gives_the_points_by_default(dtype: torch.dtype) -> None:
    p1, p2 = random(3, 9, 3, dtype=dtype), random(3, 7, 3, dtype=dtype, seed=1)
    found = ops.ball_query(p1, p2, *LENGTHS, K=4, radius=0.5)
    near = (p1[:, :, None] - p2[:, None]).square().sum(-1)
    for cloud, (size1, size2) in enumerate(zip(*(x.tolist() for x in LENGTHS), strict=True)):
        for i in range(9):
            want = [j for j in range(size2) if near[cloud, i, j] < 0.25][:4] if i < size1 else []
            assert found.idx[cloud, i].tolist() == want + [-1] * (4 - len(want))
            assert torch.equal(found.knn[cloud, i, : len(want)], p2[cloud, want])
            assert torch.allclose(found.dists[cloud, i, : len(want)], near[cloud, i, want], rtol=1e-6)
            assert not found.dists[cloud, i, len(want) :].any() and not found.knn[cloud, i, len(want) :].any()
    assert ops.ball_query(p1, p2).idx.shape == (3, 9, 500)


@pytest.mark.parametrize("dimension", [2, 3])
def test_farthest_points_in_any_dimension(dimension: int, dtype: torch.dtype) -> None:
    points, lengths = random(3, 9, dimension, dtype=dtype), LENGTHS[0]
    selected, idx = ops.sample_farthest_points(points, lengths, [4, 2, 6])
    assert idx.shape == (3, 6) and selected.shape == (3, 6, dimension)
    assert (idx >= 0).sum(1).tolist() == [4, 0, 4] and idx[::2, 0].tolist() == [0, 0]
    assert sorted(idx[2, :4].tolist()) == [0, 1, 2, 3] and not selected[1].any() and not selected[2, 4:].any()
    assert torch.equal(selected[0, :4], points[0, idx[0, :4]])
    second = int((points[0] - points[0, 0]).square().sum(-1).argmax())
    assert int(idx[0, 1]) == second
    assert torch.equal(ops.sample_farthest_points(points, lengths, torch.tensor([4, 2, 6]))[1], idx)
    assert ops.sample_farthest_points(points)[1].shape == (3, 50)
    starts = {int(ops.sample_farthest_points(points, K=2, random_start_point=True)[1][0, 0]) for _ in range(40)}
    assert len(starts) > 4 and starts <= set(range(9))


def test_normals_of_a_plane_and_of_padding(dtype: torch.dtype) -> None:
    flat = torch.cat([random(2, 60, 2, dtype=dtype), torch.zeros(2, 60, 1, dtype=dtype)], -1)
    lengths = torch.tensor([60, 40])
    curvatures, frames = ops.estimate_pointcloud_local_coord_frames(Pointclouds(flat, lengths), 12)
    for cloud, size in enumerate(lengths.tolist()):
        inside = frames[cloud, :size]
        assert torch.allclose(inside[..., 0].abs(), torch.tensor([0.0, 0, 1], dtype=dtype), atol=1e-4)
        one = torch.eye(3, dtype=dtype).expand(size, 3, 3)
        assert torch.allclose(inside.mT @ inside, one, atol=1e-5) and bool((torch.linalg.det(inside) < 0).all())
        assert bool((curvatures[cloud, :size].diff(dim=-1) >= 0).all()) and bool(
            (curvatures[cloud, :size, 1] > 0).all()
        )
        assert not frames[cloud, size:].any() and not curvatures[cloud, size:].any()
    assert torch.equal(ops.estimate_pointcloud_normals(flat[:1], 12), ops.estimate_pointcloud_normals(flat, 12)[:1])


def test_normals_point_to_where_most_neighbours_are() -> None:
    """A bowl: the neighbours lie above the tangent plane at its bottom."""
    x = random(1, 300, 3) - 0.5
    x[..., 2] = x[..., :2].square().sum(-1)
    x[0, 0] = 0
    normals = ops.estimate_pointcloud_normals(x, 20)
    assert float(normals[0, 0, 2]) > 0.9
    assert float(ops.estimate_pointcloud_normals(-x, 20)[0, 0, 2]) < -0.9
    free = ops.estimate_pointcloud_normals(x, 20, disambiguate_directions=False)
    assert torch.allclose((free * normals).sum(-1).abs(), torch.ones(1, 300, dtype=x.dtype), atol=1e-12)
    gap = x[0] - x[0, 150]
    near = gap.square().sum(-1).argsort()[:20]
    assert int((gap[near] @ normals[0, 150] > 0).sum()) >= 10


def test_chamfer_of_pointclouds_with_normals(dtype: torch.dtype) -> None:
    x, y = random(2, 12, 3, dtype=dtype), random(2, 10, 3, dtype=dtype, seed=1)
    normals = [random(2, n, 3, dtype=dtype, seed=n) - 0.5 for n in (12, 10)]
    lengths = torch.tensor([12, 5]), torch.tensor([10, 10])
    clouds = [Pointclouds(p, n, v) for p, n, v in zip((x, y), lengths, normals, strict=True)]
    options = {"x_lengths": lengths[0], "y_lengths": lengths[1], "x_normals": normals[0], "y_normals": normals[1]}
    for abs_cosine in (True, False):
        found = loss.chamfer_distance(*clouds, abs_cosine=abs_cosine)
        assert torch.equal(
            torch.stack(found), torch.stack(loss.chamfer_distance(x, y, **options, abs_cosine=abs_cosine))
        )
    signed = loss.chamfer_distance(*clouds, abs_cosine=False)[1]
    assert float(signed) > float(loss.chamfer_distance(*clouds)[1]) > 0
    each, apart = loss.chamfer_distance(*clouds, batch_reduction=None, point_reduction=None)
    assert [v.shape for v in (*each, *apart)] == [(2, 12), (2, 10)] * 2
    assert not each[0][1, 5:].any() and not apart[0][1, 5:].any()
    zero = loss.chamfer_distance(x, y, weights=torch.zeros(2, dtype=dtype))
    assert float(zero[0]) == 0 and zero[1] is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", [1, 2])
def test_gradients(norm: int) -> None:
    x, y = random(2, 5, 3), random(2, 4, 3, seed=1)
    assert_gradients(lambda a, b: loss.chamfer_distance(a, b, norm=norm)[0], x, y, forward=False, vmap=False)
    same = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss.chamfer_distance(same, x, norm=norm)[0], same)
    assert not grad.any()


X = torch.rand(2, 6, 3)
WRONG: list[tuple[Any, str]] = [
    (lambda: ops.knn_points(X[0], X), r"p1: expected a float32 or float64 tensor \(N, P, D\)"),
    (lambda: ops.knn_points(X, X[:1]), "p1 and p2: expected one batch size, dimension, dtype and device"),
    (lambda: ops.knn_points(X, X.double()), "p1 and p2: expected one batch size, dimension, dtype"),
    (lambda: ops.knn_points(X, X, norm=3), "norm: expected one of 1, 2, got int 3"),
    (lambda: ops.knn_points(X, X, K=0), "K: expected an integer of at least 1, got 0"),
    (lambda: ops.knn_points(X, X, torch.tensor([6, 7])), "p1: expected lengths of 0 to 6"),
    (lambda: ops.knn_points(X, X, torch.tensor([6])), r"p1: expected lengths \(2,\) of int64"),
    (lambda: ops.knn_gather(X, X[0].long()), "x and idx: expected tensors"),
    (lambda: ops.ball_query(X[..., :2], X[..., :2]), "p1 and p2: expected points in three dimensions"),
    (lambda: ops.sample_farthest_points(X, K=[1]), "K: expected an integer or 2 of them"),
    (lambda: ops.sample_farthest_points(X, K=-1), "K: expected at least 0"),
    (lambda: ops.estimate_pointcloud_normals(X, 6), "neighborhood_size: expected fewer than the 6 points"),
    (lambda: ops.estimate_pointcloud_normals(X[..., :2], 2), "pointclouds: expected points in three dimensions"),
    (lambda: loss.chamfer_distance(X, X, batch_reduction="max"), "batch_reduction: expected one of"),
    (lambda: loss.chamfer_distance(X, X, point_reduction="min"), "point_reduction: expected one of"),
    (lambda: loss.chamfer_distance(X, X, point_reduction=None), "batch_reduction: expected None"),
    (lambda: loss.chamfer_distance(X, X, norm=0), "norm: expected one of"),
    (lambda: loss.chamfer_distance(X, X, weights=torch.ones(3)), r"weights: expected a tensor \(2,\)"),
    (lambda: loss.chamfer_distance(X, X, weights=-torch.ones(2)), "weights: expected numbers of at least 0"),
    (lambda: loss.chamfer_distance(X, X, x_normals=X[:, :5]), r"x: expected normals \(2, 6, 3\)"),
    (lambda: loss.chamfer_distance(X, X, x_normals=X, point_reduction="max"), "normals: expected None"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", range(len(WRONG)))
def test_wrong_input_is_a_shape_error(case: int) -> None:
    call, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        call()
