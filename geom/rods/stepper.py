"""`Stepper`: a rod stepped by hand, in a loop with a robot or a mouse, with all arrays bound once."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_positive, describe
from geom.errors import ShapeError
from geom.kernels import bridge
from geom.kernels import rods as kernels
from geom.rods.contact import Contacts, check_contacts
from geom.rods.dynamics import GRAVITY, State, clamps, spans
from geom.rods.launch import Scene, arguments, flat, tables
from geom.rods.rod import Rod

__all__ = ["Stepper"]


class Stepper:
    """`geom.rods.step` again and again, in some tens of microseconds each on the CPU.

    The rod's parameters are read once, here; nothing is differentiable, and all runs on one thread: for many rods or
    gradients use `rollout`. The states are those of `rollout`, to the bit.

    Args: as of `rollout`; the batch is that of `state`.
    Raises: ShapeError as `rollout`.

    >>> from geom.rods import make_rod, start
    >>> line = torch.linspace(0, 1, 11).double()
    >>> x = torch.stack([line, 0 * line, 0 * line], -1)
    >>> rod = make_rod(x, EI=1e-3, GJ=1e-3)
    >>> stepper = Stepper(rod, start(rod, x, clamped=[0]), clamped=[0])
    >>> for _ in range(5):
    ...     position = stepper.step(x[:1])
    >>> round(float(position[-1, 2]), 4)
    -0.0147
    """

    def __init__(
        self,
        rod: Rod,
        state: State,
        *,
        clamped: Sequence[int] | Int64[Tensor, "k"] = (),
        held: Sequence[int] | Int64[Tensor, "h"] = (),
        dt: float = 0.01,
        gravity: Sequence[float] | Float[Tensor, "3"] = GRAVITY,
        contacts: Contacts | None = None,
    ) -> None:
        check_positive(dt, "dt")
        x = state.position.detach()
        self._batch, self._n = x.shape[:-2], x.shape[-2]
        if self._n != len(rod.parent) or x.dtype != rod.mass.dtype:
            raise ShapeError(f"state: expected {len(rod.parent)} vertices of {rod.mass.dtype}, got {describe(x)}")
        if contacts is not None:
            check_contacts(contacts, rod, self._batch)
        fixed = clamps(rod, clamped, held)
        before = state.strain if state.strain_before is None else state.strain_before
        self._frames = torch.stack([flat(y.detach(), 2) for y in (x, state.director, state.strain)])
        self._frames = self._frames[:, :, None].expand(-1, -1, 2, -1, -1).contiguous()
        self._velocity, self._before = (flat(y.detach(), 2).clone() for y in (state.velocity, before))
        self._goal = self._frames[0, :, 0, fixed.vertices].contiguous()
        self._spans = [  # places of two clamped vertices, and how far apart they may be in each entry
            (a, b, (rod.length[..., path].sum(-1) * (1 + 1e-5)).expand(self._batch).reshape(-1).tolist())
            for a, b, path in spans(rod, fixed.vertices)
        ]
        tree, count = rod.tree, self._frames.shape[1]
        items = count * (len(tree.offsets) - 1)
        args = (
            *arguments(tree, fixed, *tables(rod, gravity), count, dt, items),
            *Scene.of(rod, contacts).arguments(),
            *(1, 1, 0),
            *(self._velocity, self._before, self._goal, x.new_empty(0), *self._frames),
        )
        self._run = bridge.record(kernels.rollout[x.dtype], items, *args, device=x.device)
        self._new, self._old = self._frames[:, :, 1], self._frames[:, :, 0]

    def step(self, targets: Tensor | None = None) -> Tensor:
        """Positions (*b, n, 3) a step later, a tensor of their own, with clamped vertices at `targets` (*b, K, 3), or
        where they were.

        Raises: ShapeError: another shape or dtype, NaN, clamped vertices farther apart than the rod between them; the
            state is then as it was.
        """
        if targets is not None:
            if targets.shape != (*self._batch, *self._goal.shape[1:]) or targets.dtype != self._goal.dtype:
                raise ShapeError(
                    f"targets: expected {(*self._batch, *self._goal.shape[1:])} of {self._goal.dtype}, "
                    f"got {describe(targets)}"
                )
            if not math.isfinite(targets.sum().item()):
                raise ShapeError("targets: expected finite numbers, got some that are not")
            goal = targets.reshape(self._goal.shape)
            rows = goal.tolist() if self._spans else []  # plain numbers: small tensor operations would cost more
            for a, b, reach in self._spans:
                for row, most in zip(rows, reach, strict=True):
                    if math.dist(row[a], row[b]) > most:
                        raise ShapeError(
                            f"targets: expected clamped vertices no farther apart than the rod between them is long, "
                            f"{most:.4g} m, got {math.dist(row[a], row[b]):.4g} m"
                        )
            self._goal.copy_(goal)
        self._run()
        self._old.copy_(self._new)
        return self._new[0].reshape(*self._batch, self._n, 3).clone()

    @property
    def state(self) -> State:
        """The state now, in tensors of its own."""
        parts = (self._new[0], self._velocity, self._new[1], self._new[2], self._before)
        return State(*(y.reshape(*self._batch, self._n, 3).clone() for y in parts))
