"""`assert_gradients`: are a function's derivatives right, finite, and the same under every transform of torch?"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from geom.checks import check_choice
from geom.errors import ShapeError

__all__ = ["assert_gradients"]

_Function = Callable[..., tuple[Tensor, ...]]


def assert_gradients(
    function: Callable[..., Any],
    *inputs: Any,
    order: int = 2,
    forward: bool = True,
    vmap: bool = True,
    compile: bool = False,
    tolerance: float = 1e-10,
    difference_tolerance: float = 1e-6,
) -> None:
    """Assert that a function's derivatives at a point are right. The function is called in float64, and in float32.

    1. The value, its gradient and the gradient's gradient hold no NaN or inf, in float32 and in float64.
    2. `torch.autograd.gradcheck` in float64, and `gradgradcheck`: finite differences agree.
    3. `torch.func.jacfwd` gives what `torch.func.jacrev` gives.
    4. `torch.func.vmap` of the function and of its `jacrev` gives what single calls give.
    5. `torch.compile(fullgraph=True, backend="aot_eager")` gives the same value and gradient (after clearing what
       torch has compiled so far, because it stops compiling a function it has seen too often).

    Args:
        function: of the inputs, giving float tensors, values or tuples of them.
        inputs: tensors, values such as `Rigid`, or anything else; derivatives are taken in every float tensor, values'
            included. They must be points where the function is smooth in a neighbourhood of 1e-6, for 2.
        order: 2 compares first and second derivatives with finite differences, 1 the first, 0 none: for points
            on a branch cut (a logarithm at angle pi), where only finiteness can be asked.
        forward, vmap, compile: whether to make 3, 4 and 5.
        tolerance: the greatest error for 3 to 5, relative to the greatest entry and at least 1.
        difference_tolerance: the greatest error for 2, absolute and relative. Central differences over 1e-6 are good to
            about 1e-9 of the function's value.

    Raises:
        AssertionError: naming what failed, where and by how much.
        ShapeError: for another order, or inputs or outputs without a float tensor.

    >>> import torch
    >>> from geom.lie import se3
    >>> assert_gradients(se3.exp, torch.zeros(6, dtype=torch.float64))
    >>> assert_gradients(lambda v: v.norm(), torch.zeros(3, dtype=torch.float64))
    Traceback (most recent call last):
    AssertionError: <lambda>: the second derivative in torch.float32: expected finite numbers, got NaN or inf in 3 ...

    Guarantees: not differentiable; deterministic
    """
    check_choice(order, (0, 1, 2), "order")
    leaves, tree = pytree.tree_flatten(inputs)
    chosen = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
    if not chosen:
        raise ShapeError("inputs: expected a float tensor among them, got none")
    name = getattr(function, "__qualname__", type(function).__name__)

    def flat(*points: Tensor) -> tuple[Tensor, ...]:
        every = list(leaves)
        for i, x in zip(chosen, points, strict=True):
            every[i] = x
        results = pytree.tree_leaves(function(*pytree.tree_unflatten(every, tree)))
        return tuple(y for y in results if isinstance(y, Tensor) and y.is_floating_point())

    points = [leaves[i].detach().double() for i in chosen]
    if not flat(*points):
        raise ShapeError(f"{name}: expected a float tensor among its outputs, got none")
    for dtype in (torch.float32, torch.float64):
        _assert_finite(flat, [leaves[i].detach().to(dtype) for i in chosen], f"{name}: %s in {dtype}")
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck)[:order]:
        try:
            check(
                flat,
                [x.clone().requires_grad_() for x in points],
                atol=difference_tolerance,
                rtol=difference_tolerance,
            )
        except (RuntimeError, ValueError) as error:  # GradcheckError is the first, no gradient at all the second
            raise AssertionError(f"{name}: {check.__name__}: {error}") from error

    every = tuple(range(len(points)))
    reverse = torch.func.jacrev(flat, argnums=every)
    if forward:
        other = torch.func.jacfwd(flat, argnums=every)
        _assert_same(name, "jacfwd against jacrev", lambda: other(*points), lambda: reverse(*points), tolerance)
    if vmap:
        twice = [torch.stack([x, x]) for x in points]
        for what, inner in (("vmap", flat), ("vmap of jacrev", reverse)):
            _assert_same(
                name,
                f"{what} against single calls",
                lambda inner=inner: torch.func.vmap(inner)(*twice),
                lambda inner=inner: pytree.tree_map(lambda y: torch.stack([y, y]), inner(*points)),
                tolerance,
            )
    if compile:
        torch.compiler.reset()
        compiled = torch.compile(flat, fullgraph=True, backend="aot_eager")
        _assert_same(
            name,
            "torch.compile against eager",
            lambda: _value_and_gradient(compiled, points),
            lambda: _value_and_gradient(flat, points),
            tolerance,
        )


def _weighted(outputs: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """One number that every output acts on, each by another factor, so that no two derivatives cancel."""
    factors = (torch.arange(1, y.numel() + 1, dtype=y.dtype, device=y.device).cos() for y in outputs)
    return sum(((y.flatten() * w).sum() for y, w in zip(outputs, factors, strict=True)), start=outputs[0].new_zeros(()))


def _gradient(outputs: tuple[Tensor, ...] | list[Tensor], points: list[Tensor], create_graph: bool) -> list[Tensor]:
    """Of `_weighted` in each point; zero in one that nothing depends on."""
    total = _weighted(outputs)
    if not total.requires_grad:
        return [torch.zeros_like(x) for x in points]
    return list(torch.autograd.grad(total, points, create_graph=create_graph, materialize_grads=True))


def _value_and_gradient(function: _Function, points: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [x.clone().requires_grad_() for x in points]
    outputs = function(*inputs)
    return [y.detach() for y in outputs], _gradient(outputs, inputs, False)


def _assert_finite(function: _Function, points: list[Tensor], message: str) -> None:
    inputs = [x.clone().requires_grad_() for x in points]
    outputs = function(*inputs)
    first = _gradient(outputs, inputs, True)
    second = _gradient(first, inputs, False)
    for what, found in (("the value", outputs), ("the gradient", first), ("the second derivative", second)):
        bad = sum(int((~y.isfinite()).sum()) for y in found)
        if bad:
            raise AssertionError(
                f"{message % what}: expected finite numbers, got NaN or inf in {bad} of "
                f"{sum(y.numel() for y in found)} at {[x.tolist() for x in points]}"
            )


def _assert_same(name: str, what: str, got: Callable[[], Any], want: Callable[[], Any], tolerance: float) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, about its own parts
            a = pytree.tree_leaves(got())
    except Exception as error:  # whatever torch's transforms raise, the claim is that they work
        raise AssertionError(f"{name}: {what}: {type(error).__name__}: {error}") from error
    for x, y in zip(a, pytree.tree_leaves(want()), strict=True):
        error = float((x - y).abs().max() / y.abs().max().clamp_min(1)) if y.numel() else 0.0
        if not error <= tolerance:  # not >: NaN is an error too
            raise AssertionError(f"{name}: {what}: relative error {error:.3g} above the tolerance {tolerance:.3g}")
