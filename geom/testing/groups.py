"""`assert_group_axioms`: what every class of maps owes, tried on a batch of its elements."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from geom.errors import ShapeError

__all__ = ["assert_group_axioms"]


def assert_group_axioms(
    elements: Any, *, tolerance: float, identity: Any | None = None, points: Tensor | None = None
) -> None:
    """Assert that a class of maps is a group, and that whatever else it offers agrees with its product.

    With a, b, c running over the elements, and only for the methods that the class has:

    | axiom | says |
    |---|---|
    | associativity | (a b) c = a (b c) |
    | identity | a 1 = a = 1 a |
    | inverse | a a^-1 = 1 = a^-1 a |
    | broadcasting | the table of all products holds each product |
    | `apply` | (a b) x = a (b x), 1 x = x |
    | `to_matrix` | (a b) has the product of the matrices, which moves points as `apply` does |
    | `from_matrix` | undoes `to_matrix` |
    | `exp`, `log` | exp(log a) = a; log exp xi = xi for half of each logarithm |
    | `retract` | a.retract(xi) = a exp(xi) |
    | `interpolate` | a at 0, b at 1 |

    An error counts relative to the product of the sizes of what was multiplied, the size of an element being its
    greatest entry (of its matrix, where it has one) and at least 1. That is the error of arithmetic without faults.

    Args:
        elements: a value of batch shape (N,), N >= 3, with `compose(other)`, `inverse()`; such as `Rigid`.
        tolerance: the greatest relative error; about 10 roundings for a class in good order.
        identity: the neutral element, without a batch; `type(elements).identity(dtype=..., device=...)` if not given.
        points: (M, D) for `apply`; 7 fixed ones in 3 dimensions if not given.

    Raises:
        AssertionError: naming the axiom, the error, the tolerance and the element.
        ShapeError: for fewer than 3 elements.

    >>> import torch
    >>> from geom.lie import Rigid
    >>> steps = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> assert_group_axioms(Rigid.identity(8, dtype=torch.float64).retract(steps), tolerance=4e-15)

    Guarantees: not differentiable; deterministic
    """
    sample = next(x for x in pytree.tree_leaves(elements) if x.is_floating_point())
    count, name = len(_coordinates(elements)), type(elements).__name__
    if count < 3:
        raise ShapeError(f"elements: expected a batch of at least 3, got {count}")
    if identity is None:
        identity = type(elements).identity(dtype=sample.dtype, device=sample.device)
    one = pytree.tree_map(lambda x: x[None].expand(count, *x.shape), identity)
    if points is None:
        points = torch.linspace(-1, 1, 21, dtype=sample.dtype, device=sample.device).sin().reshape(7, 3)
    points = points.to(sample)

    def check(axiom: str, got: Any, want: Any, *factors: Any) -> None:
        a, b = (x if isinstance(x, Tensor) else _coordinates(x) for x in (got, want))
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(
                f"{name}: {axiom}: expected {b.dtype} of shape {tuple(b.shape)}, got {a.dtype} {tuple(a.shape)}"
            )
        size = math.prod(_size(x) for x in factors)
        error = (a - b).detach().double().abs().flatten(1).amax(1) / size
        worst = int(error.nan_to_num(nan=float("inf")).argmax())
        if not bool((error <= tolerance).all()):  # not >: NaN is an error too
            raise AssertionError(
                f"{name}: {axiom}: relative error {float(error[worst]):.3g} above the tolerance {tolerance:.3g} "
                f"at element {worst}: {_show(elements, worst)}"
            )

    a, b, c = elements, _roll(elements, 1), _roll(elements, 2)
    ab, back = a.compose(b), a.inverse()
    check("associativity, (a b) c = a (b c)", ab.compose(c), a.compose(b.compose(c)), a, b, c)
    check("identity on the right, a 1 = a", a.compose(one), a, a)
    check("identity on the left, 1 a = a", one.compose(a), a, a)
    check("inverse on the right, a a^-1 = 1", a.compose(back), one, a, back)
    check("inverse on the left, a^-1 a = 1", back.compose(a), one, a, back)
    table = pytree.tree_map(lambda x: x[:, None], a).compose(pytree.tree_map(lambda x: x[None], b))
    if any(leaf.shape[:2] != (count, count) for leaf in pytree.tree_leaves(table)):
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(table)]
        raise AssertionError(f"{name}: broadcasting of compose: expected fields ({count}, {count}, ...), got {shapes}")
    row = torch.arange(count, device=sample.device)
    check("broadcasting of compose", pytree.tree_map(lambda x: x[row, row], table), ab, a, b)

    if hasattr(a, "apply"):
        moved = a.apply(b.apply(points))
        check("action, (a b) x = a (b x)", ab.apply(points), moved, a, b, points[None])
        check("action of the identity, 1 x = x", one.apply(points), points.expand_as(moved), points[None])
    if hasattr(a, "to_matrix"):
        matrix = a.to_matrix()
        check("to_matrix of a product", ab.to_matrix(), matrix @ b.to_matrix(), a, b)
        if hasattr(a, "apply") and matrix.shape[-1] == points.shape[-1] + 1:
            by_matrix = points @ matrix[:, :-1, :-1].mT + matrix[:, None, :-1, -1]
            check("to_matrix moves points as apply does", by_matrix, a.apply(points), a, points[None])
        if hasattr(a, "from_matrix"):
            check("from_matrix undoes to_matrix", type(elements).from_matrix(matrix), a, a)
    if hasattr(a, "log") and hasattr(a, "exp"):
        twist = a.log()
        check("exp(log a) = a", type(elements).exp(twist), a, a, back)
        half = type(elements).exp(twist / 2)
        check("log exp xi = xi", half.log(), twist / 2, half, half.inverse(), twist)
        if hasattr(a, "retract"):
            step = twist.roll(1, 0)
            check("retract, a.retract(xi) = a exp(xi)", a.retract(step), a.compose(type(elements).exp(step)), a, b)
    if hasattr(a, "interpolate"):
        check("interpolate at 0 is a", a.interpolate(b, 0.0), a, a, a, back, b)
        check("interpolate at 1 is b", a.interpolate(b, 1.0), b, a, a, back, b)


def _coordinates(x: Any) -> Tensor:
    """Entries (N, ...) of each element: of its matrix, where it has one (q and -q are one rotation), or its fields."""
    if hasattr(type(x), "to_matrix"):
        return x.to_matrix()
    return torch.cat([leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None] for leaf in pytree.tree_leaves(x)], 1)


def _size(x: Any) -> Tensor:
    """The greatest entry of each element, at least 1."""
    entries = x if isinstance(x, Tensor) else _coordinates(x)
    return entries.detach().double().abs().flatten(1).amax(1).clamp_min(1)


def _roll(x: Any, by: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf.roll(by, 0), x)


def _show(x: Any, index: int) -> str:
    fields = [leaf[index].detach().tolist() for leaf in pytree.tree_leaves(x)]
    return f"{type(x).__name__}({', '.join(map(str, fields))})"
