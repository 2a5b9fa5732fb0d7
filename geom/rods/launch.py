"""The kernels of `geom.kernels.rods` on torch tensors: their arguments, and a rollout with its adjoint."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels import rods as kernels
from geom.rods.contact import Contacts, meeting_edges
from geom.rods.rod import Rod, Tree

__all__ = ["Clamps", "Rollout", "Scene", "arguments", "flat", "settle", "tables"]


def flat(x: Tensor, own: int) -> Tensor:
    """All batch dimensions, those before the last `own`, as one; contiguous."""
    return (x.flatten(0, -own - 1) if x.ndim > own else x[None]).contiguous()


class Clamps(NamedTuple):
    """Kernel arrays: slot (n,) int32, the place of a vertex among the clamped, or -1; held (n,) int32, 1 for edges that
    keep their roll; vertices (K,) int64, the clamped vertices."""

    slot: Tensor
    held: Tensor
    vertices: Tensor


def settle(rod: Rod, position: Tensor, director: Tensor, strain: Tensor, fixed: Clamps) -> tuple[Tensor, Tensor]:
    """Directors rolled to least energy, and strains; no derivative."""
    tree = rod.tree
    shape = position.shape
    x = position.reshape(-1, *shape[-2:]).contiguous()
    m, s = (y.expand(shape).reshape(-1, *shape[-2:]).clone() for y in (director, strain))
    table, rates = tables(rod, (0.0, 0.0, 0.0))
    items = x.shape[0] * (len(tree.offsets) - 1)
    left = x.new_empty(items)
    args = arguments(tree, fixed, table, rates, x.shape[0], 1.0, items)
    bridge.launch(kernels.settle[x.dtype], items, *args, 200, x, m, s, left, device=x.device, grain=16)
    return m.reshape(shape), s.reshape(shape)


class Scene(NamedTuple):
    """Contacts as kernel arrays: bodies (1 or B, O, 8), law (1 or B, 6), pairs (P, 2) and each tree's first."""

    bodies: Tensor
    law: Tensor
    pairs: Tensor
    first_pair: Tensor

    @staticmethod
    def of(rod: Rod, contacts: Contacts | None) -> "Scene":
        """Of a rod's contacts."""
        if contacts is None:
            return Scene.empty(rod.tree, rod.mass)
        if contacts.self_contact:
            pairs, first = meeting_edges(tuple(rod.parent.tolist()), rod.parent.device)
        else:
            _, _, pairs, first = Scene.empty(rod.tree, rod.mass)
        return Scene(flat(contacts.bodies(), 2), flat(contacts.law(), 1), pairs, first)

    @staticmethod
    def empty(tree: Tree, like: Tensor) -> "Scene":
        """Of no contacts, in the dtype of `like`."""
        pairs, first = torch.zeros_like(tree.near[:0]), torch.zeros_like(tree.offsets, dtype=torch.int32)
        return Scene(like.new_zeros(1, 0, 8), like.new_zeros(1, 6), pairs, first)

    def arguments(self) -> tuple[object, ...]:
        """In the order of `geom.kernels.rod_contact.TOUCH`."""
        arrays = (self.bodies.detach(), self.law.detach(), self.pairs, self.first_pair)
        return (*arrays, max(self.bodies.shape[0], self.law.shape[0]), self.bodies.shape[1])


def tables(rod: Rod, gravity: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """`Rod.table` and rates (1 or B, ...), flat: damping and gravity."""
    table, damping = rod.table(), rod.damping()
    g = torch.as_tensor(gravity, dtype=table.dtype, device=table.device)
    rates = torch.cat([damping, g.expand(*damping.shape[:-1], 3)], -1)
    if table.ndim > 2:
        table, rates = table.reshape(-1, *table.shape[-2:]), rates.reshape(-1, rates.shape[-1])
    else:
        table, rates = table[None], rates[None]
    return table.contiguous(), rates.contiguous()


def arguments(
    tree: Tree, fixed: Clamps, table: Tensor, rates: Tensor, batch: int, dt: float, items: int, space: int | None = None
) -> tuple[object, ...]:
    """In the order of `geom.kernels.rod_mechanics.TREE`; space, numbers of scratch an item, else as forward steps."""
    space = kernels.space(tree.largest) if space is None else space
    scratch = table.new_empty(items * space)
    lists = (tree.offsets, tree.parent, tree.starts, tree.near, fixed.slot, fixed.held)
    return (*lists, table.detach(), rates.detach(), table.shape[0], batch, len(fixed.vertices), dt, space, scratch)


class Rollout(torch.autograd.Function):
    """The kernel and its adjoint; inputs flat: position, velocity, director, strain, before (B, n, 3), table, rates,
    goal (B, T, K, 3), extra (B, T, n, 3) or empty, topology, clamps,
    (steps, whether there was a strain before, seconds a step), and the fields of a `Scene` where there are contacts."""

    @staticmethod
    def forward(
        ctx: Any,
        position: Tensor,
        velocity: Tensor,
        director: Tensor,
        strain: Tensor,
        before: Tensor,
        table: Tensor,
        rates: Tensor,
        goal: Tensor,
        extra: Tensor,
        tree: Tree,
        fixed: Clamps,
        plan: tuple[int, int, float],
        *contacts: Tensor,
    ) -> tuple[Tensor, ...]:
        steps, history, dt = plan
        scene = Scene(*contacts) if contacts else Scene.empty(tree, position)
        batch, n = position.shape[:2]
        x, m, s = (position.new_empty(batch, steps + 1, n, 3) for _ in range(3))
        x[:, 0], m[:, 0], s[:, 0] = position, director, strain
        v, old = velocity.clone(), before.clone()
        items = batch * (len(tree.offsets) - 1)
        args = (*arguments(tree, fixed, table, rates, batch, dt, items), *scene.arguments())
        pushed = int(extra.numel() > 0)
        bridge.launch(
            kernels.rollout[x.dtype],
            items,
            *args,
            steps,
            history,
            pushed,
            v,
            old,
            goal,
            extra,
            x,
            m,
            s,
            device=x.device,
            grain=max(1, 64 // steps),
        )
        ctx.save_for_backward(velocity, before, table, rates, goal, extra, x, m, s, *scene)
        ctx.rest = tree, fixed, plan
        ctx.mark_non_differentiable(last := s[:, -1].clone())
        return x, v, m[:, -1].clone(), last, old

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gx, gv, gm, _, gold = grads
        velocity, before, table, rates, goal, extra, x, m, s, *arrays = ctx.saved_tensors
        scene = Scene(*arrays)
        tree, fixed, (steps, history, dt) = ctx.rest
        batch, n = x.shape[0], x.shape[2]
        items = batch * (len(tree.offsets) - 1)
        ax, av, am, abefore = (x.new_zeros(batch, n, 3) for _ in range(4))
        agoal, aextra = torch.zeros_like(goal), torch.zeros_like(extra)
        trees = len(tree.offsets) - 1
        atable, arates, alaw = (x.new_empty(batch, *own) for own in ((n, 9), (trees, 7), (trees, 6)))
        abodies = x.new_empty(batch, trees, *scene.bodies.shape[1:])
        args = (*arguments(tree, fixed, table, rates, batch, dt, items), *scene.arguments())
        given = [velocity, before, goal, extra, x, m, s, gx, gv, gm, gold]
        bridge.launch(
            kernels.rollout_adjoint[x.dtype],
            items,
            *args,
            steps,
            history,
            int(extra.numel() > 0),
            *[y.contiguous() for y in given],
            ax,
            av,
            am,
            abefore,
            agoal,
            aextra,
            atable,
            arates,
            abodies,
            alaw,
            device=x.device,
            grain=max(1, 16 // steps),
        )
        arates, abodies, alaw = (y.sum(1) for y in (arates, abodies, alaw))
        if table.shape[0] == 1:
            atable, arates = atable.sum(0, keepdim=True), arates.sum(0, keepdim=True)
        abodies, alaw = abodies.sum_to_size(scene.bodies.shape), alaw.sum_to_size(scene.law.shape)
        grads = (ax, av, am, None, abefore, atable, arates, agoal, aextra, None, None, None, abodies, alaw, None, None)
        return grads[: len(ctx.needs_input_grad)]
