"""The registration kernels against their torch twin and against automatic differentiation."""

import pytest
import torch

from geom.lie import Rigid, se3
from geom.points import Points
from geom.registration import twin
from geom.registration.alignment import METHODS, Alignment
from geom.registration.cloud import prepare

from . import scenes

BOTH = [torch.float32, torch.float64]


def make(method: str, dtype: torch.dtype, robust: str | None = None, backend: str = "auto") -> tuple[Alignment, Rigid]:
    generator = torch.Generator().manual_seed(1)
    start = scenes.small_pose(generator, 0.1, 0.05)
    source, target = scenes.pair(scenes.room, generator, 1200, 0.01, Rigid.identity(dtype=torch.float64))
    a = prepare(Points(source.to(dtype)), 0.1, normals=True, name="source")
    b = prepare(Points(target.to(dtype)), 0.1, normals=True, name="target")
    return Alignment(a, b, method, 0.5, robust, backend=backend), start


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(
    ("method", "robust"),
    [(m, None) for m in METHODS] + [("plane", "huber"), ("gicp", "cauchy"), ("vgicp", "gm")],
)
def test_kernel_and_twin_agree(method, dtype, robust):
    warp, start = make(method, dtype, robust)
    torch_, _ = make(method, dtype, robust, "torch")
    tight = 1e-10 if dtype == torch.float64 else 2e-4
    a, b = warp.linearize(start), torch_.linearize(start)
    assert torch.equal(warp.found, torch_.found)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tight, atol=tight * float(y.abs().max()))
    torch.testing.assert_close(warp.cost(start), torch_.cost(start), rtol=tight, atol=0)
    x, y = (p.sums(p.pose(start), scores=True).scores for p in (warp, torch_))
    torch.testing.assert_close(x, y, rtol=tight, atol=tight * float(y.abs().max()))
    step = torch.full((6,), 0.01, dtype=torch.float64)
    for x, y in zip(warp.curvature(start, step), torch_.curvature(start, step), strict=True):
        torch.testing.assert_close(x, y, rtol=100 * tight, atol=100 * tight * float(y.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_that_of_the_cost(method):
    """With matches and weights held, the gradient is the derivative of sum e^T M e / 2 along T exp(delta)."""
    problem, start = make(method, torch.float64)
    quadratic = problem.linearize(start)
    there = problem.found >= 0
    place = problem.found[there].long()
    points, matched = problem.source.points[there], problem.matched[place]
    rotation = start.to_matrix()[:3, :3]
    turned = problem.normals[there] @ rotation.T
    m = twin.weights(problem.method, turned, problem.shape[place])

    def cost(delta: torch.Tensor) -> torch.Tensor:
        e = matched - start.retract(delta).apply(points)
        return 0.5 * torch.einsum("ni,nij,nj->", e, m, e)

    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(quadratic.cost, cost(zero))
    torch.testing.assert_close(quadratic.gradient, torch.func.jacrev(cost)(zero))

    def residual(delta: torch.Tensor) -> torch.Tensor:
        return matched - start.retract(delta).apply(points)

    j = torch.func.jacfwd(residual)(zero)
    torch.testing.assert_close(quadratic.hessian, torch.einsum("nik,nij,njl->kl", j, m, j))


@pytest.mark.parametrize("method", METHODS)
def test_remembered_matches_equal_fresh_ones(method):
    """Skipping a search that provably changes nothing changes nothing, along a path that comes to rest and leaves."""
    problem, _ = make(method, torch.float32)
    generator = torch.Generator().manual_seed(3)
    scale = 0.3
    for step in range(12):
        scale = scale / 2.5 if step < 8 else 0.2
        xi = scale * torch.randn(6, generator=generator, dtype=torch.float64)
        pose = problem.pose(Rigid(*se3.exp(xi)))
        problem.find(pose)
        remembered = problem.found.clone()
        fresh, _ = make(method, torch.float32)
        fresh.find(pose)
        assert torch.equal(remembered, fresh.found)
