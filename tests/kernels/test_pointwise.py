"""Fused functions: the kernel against its twin, in value and gradient, however the operands lie and broadcast."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from geom.errors import ShapeError
from geom.kernels.rotations import FORMULAS
from geom.lie import quaternion, se3, so3
from geom.lie._polar import decompose

ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 0.5, 0.78, 0.79, 1.0, 1.57, 2.0, 2.36, 3.0, math.pi - 1e-3, 4.0, 6.5, 30.0, 1e4]
EPS = {torch.float32: 6e-7, torch.float64: 1e-15}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotvecs() -> Tensor:
    axes = torch.nn.functional.normalize(draw(12, 3), dim=-1)
    return (torch.tensor(ANGLES, dtype=torch.float64)[:, None, None] * axes).flatten(0, 1)


def operands(name: str) -> tuple[Tensor, ...]:
    v = rotvecs()
    q = quaternion.exp(v)
    n = len(v)
    other, t, x = quaternion.exp(draw(n, 3, seed=1)), draw(n, 3, seed=2), draw(n, 3, seed=3)
    return {
        "exp": (v,),
        "log": (q,),
        "multiply": (q, other),
        "rotate": (q, x),
        "_slerp": (q, other, torch.linspace(-0.5, 1.5, n, dtype=torch.float64)[:, None]),
        "to_matrix": (q,),
        "from_matrix": (so3.exp(v),),
        "geodesic_distance": (q, other),
        "so3.exp": (v,),
        "so3.log": (so3.exp(v),),
        "from_6d": (draw(n, 6),),
        "se3.exp": (torch.cat([t, v.clamp(-6, 6)], -1),),
        "se3.log": (q, t),
        "compose": (q, t, other, x),
        "inverse": (q, t),
        "_move": (q, t, x),
    }[name]


NAMES = ["exp", "log", "multiply", "rotate", "_slerp", "to_matrix", "from_matrix", "geodesic_distance"]
NAMES += ["so3.exp", "so3.log", "from_6d", "se3.exp", "se3.log", "compose", "inverse", "_move"]


def function(name: str) -> Callable[..., Any]:
    room, _, bare = name.rpartition(".")
    rooms = [getattr(__import__("geom.lie", fromlist=[room]), room)] if room else [quaternion, so3, se3]
    return next(f for r in rooms for key, f in vars(r).items() if key == bare and hasattr(f, "__wrapped__"))


def many(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def by_twin(f: Callable[..., Any], *args: Tensor) -> tuple[Tensor, ...]:
    """What the torch formula alone gives: under `vmap` it is the twin all the way down."""
    return many(torch.func.vmap(f)(*args))


def test_every_formula_is_tried() -> None:
    forward = {key for key in FORMULAS if not key.endswith("_adjoint")}
    assert len(forward - {"polar", "to_euler"}) == len(NAMES)


@pytest.mark.parametrize("convention", ["XYZ", "zyx", "ZXZ", "yzy"])
def test_euler_equals_twin(convention: str, dtype: torch.dtype) -> None:
    matrix = so3.exp(2 * draw(500, 3)).to(dtype)
    got, want = so3.to_euler(matrix, convention), torch.func.vmap(lambda m: so3.to_euler(m, convention))(matrix)
    error = (got - want).abs()
    error = torch.minimum(error, (error - 2 * math.pi).abs())
    near = (want[:, 1] if convention.lower() in ("zxz", "yzy") else want[:, 1] + math.pi / 2).sin()  # to a lock
    assert (error * near[:, None]).max() < 8 * EPS[dtype]


@pytest.mark.parametrize("kind", ["any", "mirror", "flat", "line", "zero", "rotation"])
def test_polar_equals_twin(kind: str, dtype: torch.dtype) -> None:
    any_, turn = draw(60, 3, 3), so3.exp(draw(60, 3))
    matrix = {
        "any": any_,
        "mirror": -turn @ torch.diag(torch.tensor([3.0, 2, 1]).double()),
        "flat": any_ * torch.tensor([1.0, 1, 0]),
        "line": any_[:, :, :1] * any_[:, :1],
        "zero": 0 * any_,
        "rotation": 1e20 * turn,
    }[kind].to(dtype)
    got, want = decompose(matrix), by_twin(decompose, matrix)
    scale = 4 * EPS[dtype] * matrix.abs().amax().clamp(min=1)
    rotation, gap, _, stiffness = ((a - b).abs() for a, b in zip(got, want, strict=True))
    assert gap.max() <= 8 * EPS[dtype] and stiffness.max() <= 8 * scale
    if kind != "line":  # there rounding chooses the direction that the least turn leaves
        assert (rotation * want[1][:, None, None]).max() <= 8 * EPS[dtype]
    assert (got[0] @ got[0].mT - torch.eye(3, dtype=dtype)).abs().max() <= 2 * EPS[dtype]


@pytest.mark.parametrize("name", NAMES)
def test_kernel_equals_twin(name: str, dtype: torch.dtype) -> None:
    f, args = function(name), [x.to(dtype) for x in operands(name)]
    for got, want in zip(many(f(*args)), by_twin(f, *args), strict=True):
        # the twin's rounding grows with the angle: sin and cos of a rounded theta/2
        scale = 1 + want.abs().flatten(1).amax(-1) if want.ndim > 1 else 1 + want.abs()
        scale = scale * (1 + torch.linalg.vector_norm(rotvecs(), dim=-1)).to(dtype) if "exp" in name else 4 * scale
        error = (got - want).abs().flatten(1).amax(-1) if want.ndim > 1 else (got - want).abs()
        assert (error <= 2 * EPS[dtype] * scale).all()


@pytest.mark.parametrize("name", NAMES)
def test_adjoint_equals_twin(name: str, dtype: torch.dtype) -> None:
    f, args = function(name), [x.to(dtype) for x in operands(name)]
    keep = torch.linalg.vector_norm(rotvecs(), dim=-1) < 7
    args = [x[keep].requires_grad_() for x in args]
    weights = [draw(*y.shape, seed=7 + k).to(dtype) for k, y in enumerate(many(f(*args)))]
    got = torch.autograd.grad(many(f(*args)), args, weights)
    want = torch.autograd.grad(by_twin(f, *args), args, weights)
    for g, w in zip(got, want, strict=True):
        assert (g - w).abs().max() <= 40 * EPS[dtype] * (1 + w.abs().max())


SHAPES = [
    [(), ()],
    [(5,), (5,)],
    [(5,), ()],
    [(), (5,)],
    [(4, 1), (4, 6)],
    [(4, 1), (6,)],
    [(1, 6), (4, 1)],
    [(4, 6), (6,)],
    [(2, 1, 3), (5, 1)],
    [(3, 1, 1), (3, 4, 5)],
    [(0,), (0,)],
    [(0, 3), (3,)],
    [(1,), (7, 1)],
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_batches_broadcast(shapes: list[tuple[int, ...]]) -> None:
    a, p = (torch.nn.functional.normalize(draw(*shapes[0], 4), dim=-1), draw(*shapes[1], 3))
    t = draw(*shapes[0], 3, seed=1)
    for f, args in (
        (quaternion.rotate, (a, p)),
        (quaternion.multiply, (a, torch.cat([p, p[..., :1]], -1))),
        (se3._move, (a, t, p)),
        (se3.compose, (a, t, a, p)),
    ):
        batch = torch.broadcast_shapes(*shapes)
        whole = [x.expand(*batch, x.shape[-1]).clone() for x in args]
        for got, want in zip(many(f(*args)), many(f(*whole)), strict=True):
            assert torch.equal(got, want)
        leaves = [x.clone().requires_grad_() for x in args]
        grown = [x.expand(*batch, x.shape[-1]).clone() for x in leaves]
        got = torch.autograd.grad(sum(y.square().sum() for y in many(f(*leaves))), leaves)
        want = torch.autograd.grad(sum(y.square().sum() for y in many(f(*grown))), leaves)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-13, atol=1e-13)


def test_memory_may_lie_anyhow() -> None:
    v = draw(3, 40).T
    assert not v.is_contiguous()
    assert torch.equal(quaternion.exp(v), quaternion.exp(v.contiguous()))
    mirrored = torch.complex(v, v).conj().imag  # a view with its sign yet to be turned
    assert mirrored.is_neg() and torch.allclose(quaternion.exp(mirrored), quaternion.exp(-v), atol=1e-15)


def test_halves_are_computed_in_float32() -> None:
    v = draw(20, 3)
    for dtype in (torch.float16, torch.bfloat16):
        got = quaternion.exp(v.to(dtype))
        assert got.dtype == dtype and torch.equal(got, quaternion.exp(v.to(dtype).float()).to(dtype))
    quat, translation = se3.exp(draw(4, 6).half())
    assert quat.dtype == translation.dtype == torch.float16


@pytest.mark.parametrize("count", [5, 40_001])
def test_threads_give_the_same_bits(count: int, threads: Callable[[int], None]) -> None:
    a, b = (torch.nn.functional.normalize(draw(count, 4, seed=k), dim=-1) for k in (0, 1))
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append(torch.cat([quaternion.multiply(a, b), quaternion.slerp(a, b, 0.3)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("count", [1, 3, 4, 15, 16, 17, 33, 100])
def test_an_element_has_the_same_bits_in_any_batch(count: int, dtype: torch.dtype) -> None:
    """Alone, in a vector, in a block of wide elements, and among what is left over."""
    v = draw(count, 3).to(dtype)
    matrix = so3.exp(v)
    for f, x in ((so3.exp, v), (so3.log, matrix), (quaternion.from_matrix, matrix), (decompose, matrix)):
        for k, together in enumerate(zip(*many(f(x)), strict=True)):
            assert all(torch.equal(a, b) for a, b in zip(together, many(f(x[k])), strict=True))


def test_inputs_stay_as_they_are() -> None:
    q = torch.nn.functional.normalize(draw(5, 4), dim=-1)
    before = q.clone()
    quaternion.multiply(q, q)
    assert torch.equal(q, before)


def test_one_tensor_in_two_places() -> None:
    q = torch.nn.functional.normalize(draw(3, 4), dim=-1).requires_grad_()
    torch.autograd.gradcheck(lambda q: quaternion.multiply(q, q), q)
    torch.autograd.gradgradcheck(lambda q: quaternion.multiply(q, q), q)


@pytest.mark.parametrize("vectorize", [False, True])
def test_batched_gradients(vectorize: bool) -> None:
    v = draw(3)
    jacobian = torch.autograd.functional.jacobian(quaternion.exp, v, vectorize=vectorize)
    assert (jacobian - torch.func.jacrev(quaternion.exp)(v)).abs().max() < 1e-15


def test_only_what_needs_a_gradient_gets_one() -> None:
    a, b = quaternion.exp(draw(4, 3)), quaternion.exp(draw(4, 3)).requires_grad_()
    quaternion.multiply(a, b).sum().backward()
    assert b.grad is not None and a.grad is None
    with torch.no_grad():
        assert not quaternion.multiply(a, b).requires_grad


def runs_the_kernel(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> bool:
    ran = []
    formula = type(FORMULAS["exp"])
    run = formula.run
    monkeypatch.setattr(formula, "run", lambda self, *args: ran.append(self.name) or run(self, *args))
    work()
    return bool(ran)


def test_forward_mode_takes_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    v, tangent = draw(3), draw(3, seed=1)

    def work() -> None:
        with forward_ad.dual_level():
            moved = forward_ad.unpack_dual(quaternion.exp(forward_ad.make_dual(v, tangent))).tangent
            assert (moved - torch.func.jacrev(quaternion.exp)(v) @ tangent).abs().max() < 1e-15

    assert not runs_the_kernel(monkeypatch, work)


def test_what_watches_operations_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    v = draw(4, 3)

    def trace() -> None:
        graph = make_fx(quaternion.exp)(v)
        assert torch.allclose(graph(2 * v), quaternion.exp.__wrapped__(2 * v), atol=1e-15)

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += 1
            return op(*args, **(kwargs or {}))

    def watch() -> None:
        with Count() as count:
            quaternion.exp(v)
        assert count.seen > 3

    assert not runs_the_kernel(monkeypatch, watch)
    trace()
    assert quaternion.exp(torch.empty(4, 3, device="meta")).shape == (4, 4)
    assert runs_the_kernel(monkeypatch, lambda: quaternion.exp(v))
    assert runs_the_kernel(monkeypatch, lambda: quaternion.exp(torch.nn.Parameter(v)))


def test_operands_by_name() -> None:
    q, x = quaternion.exp(draw(4, 3)), draw(4, 3)
    assert torch.equal(quaternion.rotate(vector=x, quat_wxyz=q), quaternion.rotate(q, x))
    with pytest.raises(TypeError, match="vector"):
        quaternion.rotate(q)
    with pytest.raises(TypeError):
        quaternion.rotate(q, x, x)


@pytest.mark.usefixtures("unchecked")
def test_wrong_operands_are_named() -> None:
    q = quaternion.exp(draw(4, 3))
    with pytest.raises(ShapeError, match=r"vector: expected a tensor \(\.\.\., 3\), got a float64"):
        quaternion.rotate(q, q)
    with pytest.raises(ShapeError, match=r"matrix: expected a tensor \(\.\.\., 3, 3\), got a fl"):
        quaternion.from_matrix(draw(3))
    with pytest.raises(ShapeError, match="rotvec: expected a tensor"):
        quaternion.exp([1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match=r"quat_wxyz, vector: expected one dtype, got torch.float32, torch.float64"):
        quaternion.rotate(q.float(), q[:, 1:])
    with pytest.raises(ShapeError, match=r"batches that broadcast, got \(4,\) and \(3,\)"):
        quaternion.multiply(q, q[:3])


def test_a_formula_without_an_adjoint_kernel_differentiates_its_twin() -> None:
    assert "se3_exp_adjoint" not in FORMULAS
    torch.autograd.gradcheck(se3.exp, draw(2, 6).requires_grad_())
