"""`assert_equivariant`: does a function of points, vectors and poses move with its input, f(g x) = g f(x)?"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from geom.errors import ShapeError
from geom.lie import Rigid

__all__ = ["assert_equivariant"]

Action = str | Callable[[Any, Any], Any]
_NAMED: dict[str, Callable[[Any, Any], Any]] = {
    "point": lambda g, x: _linear(g, x) + g.to_matrix()[:-1, -1].to(x),
    "vector": lambda g, x: _linear(g, x),
    "invariant": lambda g, x: x,
    "pose": lambda g, x: g.compose(x),
}


def assert_equivariant(
    function: Callable[..., Any],
    *inputs: Any,
    act_in: Action | Sequence[Action],
    act_out: Action | Sequence[Action],
    tolerance: float,
    elements: Iterable[Any] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Assert f(g x) = g f(x) for every group element g given; with `act_out="invariant"`, f(g x) = f(x).

    An action is a function (g, x) -> g x, or one of these names, for an element g with `to_matrix()`:

    | name | x | g x |
    |---|---|---|
    | "point" | (..., D) | R x + t |
    | "vector" | (..., D) | R x, with the scale where g has one |
    | "invariant" | anything | x |
    | "pose" | a value of g's class | g composed with x |

    The error of an output is its greatest difference relative to the greatest entry of g f(x) over all elements.

    Args:
        function: of the inputs, giving a tensor, a value or a tuple of them; it must be deterministic.
        inputs: tensors or values of float32 or float64.
        act_in: one action for each input, or one for all.
        act_out: one action for each output, or one for all.
        tolerance: the greatest relative error; 1e-12 is ample in float64, 1e-4 for a deep network in float32.
        elements: a batched value such as `Rigid`, or any iterable where the actions are functions (permutations, ...);
            8 random rigid motions, translated by about the inputs' size, if not given.
        generator: draws those.

    Raises:
        AssertionError: naming the element, the output, the error and the tolerance.
        ShapeError: for an unknown action, or another number of actions than of inputs or outputs.

    >>> import torch
    >>> cloud = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> assert_equivariant(lambda x: x.mean(0), cloud, act_in="point", act_out="point", tolerance=1e-14)
    >>> assert_equivariant(torch.cdist, cloud, cloud, act_in="point", act_out="invariant", tolerance=1e-6)
    >>> orders = [torch.arange(20).flip(0), torch.arange(20).roll(1)]
    >>> assert_equivariant(lambda x: x.mean(0), cloud, elements=orders, act_in=lambda order, x: x[order],
    ...     act_out="invariant", tolerance=1e-14)

    Guarantees: not differentiable; deterministic
    """
    enter = _actions(act_in, len(inputs), "act_in", "inputs")
    reference = _outputs(function(*inputs))
    leave = _actions(act_out, len(reference), "act_out", "outputs")
    group = list(elements) if elements is not None else _random_rigid(inputs, generator)
    if not group:
        raise ShapeError("elements: expected at least one, got none")

    name = getattr(function, "__qualname__", type(function).__name__)
    errors = torch.zeros(len(group), len(reference), dtype=torch.float64)
    sizes = torch.zeros(len(reference), dtype=torch.float64)
    for i, g in enumerate(group):
        moved = _outputs(function(*(act(g, x) for act, x in zip(enter, inputs, strict=True))))
        if len(moved) != len(reference):
            raise AssertionError(f"{name}: expected {len(reference)} outputs at element {i}, got {len(moved)}")
        for j, (act, y, got) in enumerate(zip(leave, reference, moved, strict=True)):
            want, got = _entries(act(g, y)), _entries(got)
            if want.shape != got.shape:
                raise AssertionError(
                    f"{name}: output {j} at element {i}: expected {want.numel()} numbers, got {got.numel()}"
                )
            if want.numel():
                errors[i, j] = (got - want).abs().max()
                sizes[j] = torch.maximum(sizes[j], want.abs().max().nan_to_num(nan=0, posinf=0))
    relative = errors / torch.where(sizes == 0, torch.ones_like(sizes), sizes)
    if not bool((relative <= tolerance).all()):  # not >: NaN is an error too
        worst = int(relative.nan_to_num(nan=float("inf")).argmax())
        i, j = divmod(worst, len(reference))
        raise AssertionError(
            f"{name} is not equivariant: output {j}: relative error {float(relative[i, j]):.3g} above the tolerance "
            f"{tolerance:.3g} at element {i}: {_show(group[i])}"
        )


def _linear(g: Any, x: Tensor) -> Tensor:
    return x @ g.to_matrix()[:-1, :-1].to(x).mT


def _actions(given: Action | Sequence[Action], count: int, name: str, of: str) -> list[Callable[[Any, Any], Any]]:
    every = [given] * count if isinstance(given, str) or callable(given) else list(given)
    if len(every) != count:
        raise ShapeError(f"{name}: expected one action for each of {count} {of}, got {len(every)}")
    for action in every:
        if not callable(action) and action not in _NAMED:
            raise ShapeError(f"{name}: expected a function or one of {', '.join(map(repr, _NAMED))}, got {action!r}")
    return [action if callable(action) else _NAMED[action] for action in every]


def _outputs(y: Any) -> tuple[Any, ...]:
    return tuple(y) if isinstance(y, (tuple, list)) else (y,)


def _entries(x: Any) -> Tensor:
    """All numbers of a tensor or a value, float64 on the CPU; of a pose those of its matrix, as q and -q are one."""
    leaves = [x.to_matrix()] if hasattr(type(x), "to_matrix") else pytree.tree_leaves(x)
    return torch.cat([torch.as_tensor(leaf).detach().flatten().to("cpu", torch.float64) for leaf in leaves])


def _random_rigid(inputs: tuple[Any, ...], generator: torch.Generator | None) -> list[Rigid]:
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    if not leaves:
        raise ShapeError("inputs: expected a float tensor or value among them to draw motions for; or give `elements`")
    reach = max([1.0, *(float(x.detach().abs().max()) for x in leaves if x.numel())])
    where = generator.device if generator is not None else None
    draw = torch.randn(8, 7, generator=generator, dtype=torch.float64, device=where).to(leaves[0])
    quat = draw[:, :4] / torch.linalg.vector_norm(draw[:, :4], dim=-1, keepdim=True)
    return [Rigid(q, t) for q, t in zip(quat, reach * draw[:, 4:], strict=True)]


def _show(g: Any) -> str:
    leaves = [leaf.detach().tolist() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(g)]
    return f"{type(g).__name__}({', '.join(map(str, leaves))})"
