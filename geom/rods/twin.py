"""A rollout of a rod in torch: the readable twin of `geom.kernels.rods`, and its oracle.

Arrays run over the E edges of the rod, in the order of their second vertices, and over its bends, pairs (i, j) of
edges. Both solves iterate without derivatives, then take one Newton step that carries them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from geom.rods.contact import Contacts, contact_forces
from geom.rods.energy import bend_moduli, bend_strains
from geom.rods.kinematics import transport
from geom.rods.rod import Rod

__all__ = ["relax_rolls", "rollout_twin"]

Fields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


class _Frame(NamedTuple):
    """A rod's shape: length (*b, E, 1) and tangent, directors m and n = tangent x m (*b, E, 3) of the edges; tangents
    of both edges of each bend, their sum, 1 + cosine, half the curvature binormal; strain (*b, bends, 3)."""

    length: Tensor
    tangent: Tensor
    m: Tensor
    n: Tensor
    te: Tensor
    tf: Tensor
    both: Tensor
    chi: Tensor
    half: Tensor
    strain: Tensor


class _Setting:
    """What stays the same over a rollout of one rod."""

    def __init__(self, rod: Rod, clamped: Tensor, held: Tensor, dt: float, grad: bool) -> None:
        second = (rod.parent >= 0).nonzero()[:, 0]
        place = torch.full_like(rod.parent, -1)
        place[second] = torch.arange(len(second), device=place.device)
        bends = rod.tree.bends
        self.second, self.bends, self.count = second, bends, len(second)
        self.i, self.j = place[rod.parent[bends]], place[bends]
        self.ends = torch.stack([self.i, self.j], -1).flatten()
        self.incidence = rod.mass.new_zeros(len(second), len(rod.parent))
        rows = torch.arange(len(second), device=place.device)
        self.incidence[rows, second], self.incidence[rows, rod.parent[second]] = 1, -1
        self.grad = grad
        self.length = rod.length[..., second, None]
        self.soft = self.length / (rod.stretch_stiffness[..., second, None] * dt**2)
        self.mass = rod.mass[..., None]
        self.weight = torch.ones_like(self.mass).index_fill(-2, clamped, 0.0) / self.mass
        self.mesh = self.incidence @ (self.weight * self.incidence.mT)
        self.moves = (self.mesh.diagonal(dim1=-2, dim2=-1) > 0).to(rod.mass)[..., None]
        self.pinned = torch.diag_embed((self.soft * self.moves + 1 - self.moves)[..., 0].detach())
        self.moduli, self.natural = bend_moduli(rod), bend_strains(rod)
        self.rolls = 1 - held[second].to(rod.mass)
        self.loose, self.fast = self.rolls[:, None] * self.rolls, torch.diag(1 - self.rolls)
        self.holds = bool(held.any())
        self.floor = (1e-9 if rod.mass.dtype == torch.float64 else 1e-4) * torch.eye(self.count).to(rod.mass)
        self.hessian = torch.cat(
            [self.ends * (self.count + 1), self.i * self.count + self.j, self.j * self.count + self.i]
        )
        drag, quadratic, internal, viscosity = rod.damping().unbind(-1)
        self.drag, self.quadratic = drag[..., None, None], quadratic[..., None, None]
        self.shared = (0.5 * internal[..., None] * (self.incidence.abs() @ self.mass)[..., 0])[..., None]
        self.viscous = (viscosity / dt)[..., None, None]
        self.step, self.turn = rod.mass.new_tensor([dt, 2 * torch.pi]).unbind()  # faster factors than plain numbers
        # the last Newton step squares what is left of a solution; of a derivative it is first order
        self.close = 1e-5 if rod.mass.dtype == torch.float32 else 2e-14 if grad else 1e-11


def rollout_twin(
    rod: Rod,
    state: Fields,
    targets: Tensor,
    clamped: Tensor,
    held: Tensor,
    steps: int,
    dt: float,
    gravity: Tensor,
    forces: Tensor | None,
    contacts: Contacts | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Positions (*b, steps, n, 3), velocity, director, strain at the end, and the strain before it."""
    x, v, director, strain, old = state
    inputs = pytree.tree_leaves((rod, state, targets, gravity, forces, contacts))
    grad = any(isinstance(y, Tensor) and y.requires_grad for y in inputs) or forward_ad._current_level >= 0
    c = _Setting(rod, clamped, held, dt, grad and torch.is_grad_enabled())
    down = c.incidence.mT
    viscous = 0 * c.viscous if old is None else c.viscous
    before = strain[..., c.bends, :] if old is None else old[..., c.bends, :]
    frame = _relax(c, c.incidence @ x, director[..., c.second, :], strain[..., c.bends, :], before, viscous)
    rows = []
    for t in range(steps):
        # 1. forces
        force = _forces(c, frame, before, viscous) - down @ (c.shared * (c.incidence @ v))
        if forces is not None:
            force = force + forces[..., t, :, :]
        # 2. semi-implicit Euler, with contacts
        slow = c.drag + c.quadratic * torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        drift = v + c.step * (force / c.mass + gravity - slow * v)
        y = x + c.step * drift
        if contacts is not None:
            drift = torch.where(c.weight > 0, drift, v)
            y = (
                y
                + dt**2
                * contact_forces(contacts, rod.parent, x, v, drift, c.weight[..., 0].expand(x.shape[:-1]), dt)
                / c.mass
            )
        y = y.index_copy(-2, clamped, targets[..., t, :, :])
        # 3. lengths
        z = _project(c, frame.tangent, y)
        v = (z - x) / c.step
        # 4. directors
        edge = c.incidence @ z
        tangent = edge / torch.linalg.vector_norm(edge, dim=-1, keepdim=True)
        carried = transport(frame.m, frame.tangent, tangent)
        x, before, viscous = z, frame.strain, c.viscous
        frame = _relax(c, edge, carried, before, before, viscous)
        rows.append(x)
    none = torch.zeros_like(x)
    ends = ((c.second, frame.m), (c.bends, frame.strain), (c.bends, before))
    m, strain, before = (none.index_copy(-2, where, y) for where, y in ends)
    return torch.stack(rows, -3), v, m, strain, before


def relax_rolls(
    rod: Rod,
    positions: Float[Tensor, "*b n 3"],
    director: Float[Tensor, "*b n 3"],
    strain: Float[Tensor, "*b n 3"],
    *,
    held: Tensor,
) -> tuple[Tensor, Tensor]:
    """Directors rolled about their edges until the energy is least, and their strains (*b, n, 3) each.

    Args: positions, whose edges have some length; director, made perpendicular to the edges; strain, the last known,
        whose twist says on which turn the twist is; held (n,) bool, edges that keep their roll.

    Guarantees: differentiable; deterministic; gradient in the rolls below 1e-13 of the stiffness f64, 1e-6 f32
    """
    inputs = pytree.tree_leaves((rod, positions, director, strain))
    grad = torch.is_grad_enabled() and any(isinstance(y, Tensor) and y.requires_grad for y in inputs)
    c = _Setting(rod, rod.parent[:0], held, 1.0, grad)
    last = strain[..., c.bends, :]
    frame = _relax(c, c.incidence @ positions, director[..., c.second, :], last, last, 0 * c.viscous)
    none = torch.zeros_like(positions)
    return none.index_copy(-2, c.second, frame.m), none.index_copy(-2, c.bends, frame.strain)


def _forces(c: _Setting, f: _Frame, before: Tensor, viscous: Tensor) -> Tensor:
    """Forces of bending and twist, with directors carried along (Bergou 2010, Eqs. (9)-(11)), and of viscosity."""
    w = c.moduli * (f.strain - c.natural + viscous * (f.strain - before))
    m, n = (d.index_select(-2, c.i) + d.index_select(-2, c.j) for d in (f.m, f.n))
    across = (w[..., :1] * n - w[..., 1:2] * m) / f.chi
    level = (w * f.strain)[..., :2].sum(-1, keepdim=True) / f.chi
    shared = w[..., 2:] * f.half - level * f.both
    ge, gf = shared + torch.linalg.cross(f.tf, across), shared - torch.linalg.cross(f.te, across)
    pull = torch.zeros_like(f.m).index_add(-2, c.i, ge).index_add(-2, c.j, gf)
    return -c.incidence.mT @ (pull / f.length)


def _project(c: _Setting, along: Tensor, y: Tensor) -> Tensor:
    """z = y - W J^T lambda, J along the old edges, with |z_k - z_parent| - L_k = lambda_k L_k / (EA_k dt^2)."""
    begun = c.incidence @ y

    def residual(lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        edge = begun - c.mesh @ (lam * along)
        size = torch.linalg.vector_norm(edge, dim=-1, keepdim=True)
        return edge, size, (size - c.length - c.soft * lam) * c.moves

    def factor(edge: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.lu_factor_ex(c.mesh * ((edge / size) @ along.mT) + c.pinned)[:2]

    with torch.no_grad():
        lam = torch.zeros_like(begun[..., :1])
        reach = c.close * y.abs().max().item()
        edge, size, r = residual(lam)
        lu = factor(edge, size)
        for _ in range(16):
            lam = lam + torch.linalg.lu_solve(*lu, r)
            edge, size, r = residual(lam)
            done = r.abs().max().item() <= reach
            if c.grad or not done:
                lu = factor(edge, size)
            if done:
                break
    if c.grad:
        _, _, r = residual(lam)
    lam = lam + torch.linalg.lu_solve(*lu, r)
    return y - c.weight * (c.incidence.mT @ (lam * along))


def _relax(c: _Setting, edge: Tensor, m: Tensor, strain: Tensor, before: Tensor, viscous: Tensor) -> _Frame:
    """Directors, from m, rolled about their edges until the energy is least; the twist stays within half a turn of
    `strain`. Rolls by angles theta turn kb . m + i kb . n by -theta, and add their difference to the twist."""
    length = torch.linalg.vector_norm(edge, dim=-1, keepdim=True)
    t = edge / length
    m = m - (m * t).sum(-1, keepdim=True) * t
    m = m / torch.linalg.vector_norm(m, dim=-1, keepdim=True)
    n = torch.linalg.cross(t, m)
    te, tf = t.index_select(-2, c.i), t.index_select(-2, c.j)
    both = te + tf
    chi = (te * both).sum(-1, keepdim=True).clamp(min=1e-6)
    half = torch.linalg.cross(te, tf) / chi
    pair = torch.stack([m, n], -2)
    sides = pair.index_select(-3, c.ends).unflatten(-3, (-1, 2))  # (*b, bends, 2 edges, (m, n), 3)
    along, across = (sides * half[..., None, None, :]).sum(-1).unbind(-1)
    first = sides[..., 0, 0, :]
    carried = first - (tf * first).sum(-1, keepdim=True) / chi * both
    x, y = (sides[..., 1, :, :] * carried[..., None, :]).sum(-1).unbind(-1)
    twist = torch.atan2(-y, x)
    twist = twist + c.turn * ((strain[..., 2] - twist) / c.turn).round().detach()
    stiff = c.moduli + c.moduli * viscous
    offset = c.natural + viscous * before
    b1, b2, b3 = stiff.detach().unbind(-1)
    s1, s2 = b1[..., None], b2[..., None]

    def rolled(angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Half kb . m and kb . n of both edges of each bend, and its strain."""
        theta = angle.index_select(-1, c.ends).view(along.shape)
        cosine, sine = theta.cos(), theta.sin()
        p, q = cosine * along + sine * across, cosine * across - sine * along
        back, front = theta.unbind(-1)
        return p, q, torch.stack([q.sum(-1), -p.sum(-1), twist + front - back], -1)

    def slope(p: Tensor, q: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The energy's gradient in the rolls, and stresses."""
        w = stiff * s - c.moduli * offset
        w1, w2, w3 = w[..., None].unbind(-2)
        ends = torch.cat([-w3, w3], -1) - w1 * p - w2 * q
        flat = ends.new_zeros(*ends.shape[:-2], c.count)
        return flat.index_add(-1, c.ends, ends.flatten(-2)) * c.rolls, w

    def curve(p: Tensor, q: Tensor, w: Tensor) -> Tensor:
        """The energy's Hessian in the rolls (*b, E, E), 1 for those held; at w = 0 nothing in it is negative."""
        sp, sq = s1 * p, s2 * q
        own = sp * p + sq * q + b3[..., None] + w[..., 1:2] * p - w[..., :1] * q
        couple = sp[..., 0] * p[..., 1] + sq[..., 0] * q[..., 1] - b3
        entries = torch.cat([own.flatten(-2), couple, couple], -1)
        h = entries.new_zeros(*entries.shape[:-1], c.count**2).index_add(-1, c.hessian, entries)
        h = h.view(*h.shape[:-1], c.count, c.count)
        return h * c.loose + c.fast if c.holds else h

    def invert(h: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """h, or where that is not positive its part that is, and its inverse with a floor for rolls nothing resists."""
        root, failed = torch.linalg.cholesky_ex(h + floor)
        if bool(failed.any()):
            h = torch.where(failed[..., None, None] > 0, curve(p, q, 0 * stiff), h)
            root = torch.linalg.cholesky(h + floor)
        return h, torch.cholesky_inverse(root)

    with torch.no_grad():
        angle = torch.zeros_like(m[..., 0])
        scale = stiff.max().item()
        floor = c.floor * scale
        p, q, s = rolled(angle)
        g, w = slope(p, q, s)
        h, inverse = invert(curve(p, q, w), p, q)
        for _ in range(20):
            angle = angle - (inverse @ g[..., None])[..., 0].clamp(-0.5, 0.5)
            p, q, s = rolled(angle)
            g, w = slope(p, q, s)
            done = g.abs().max().item() <= c.close * scale
            if c.grad or not done:
                h, inverse = invert(curve(p, q, w), p, q)
            if done:
                break
    if c.grad:
        g, _ = slope(*rolled(angle))
    roll = inverse @ g[..., None]
    angle = angle - (roll + inverse @ (g[..., None] - h @ roll))[..., 0]  # the floor taken out again
    turned = angle.cos()[..., None] * m + angle.sin()[..., None] * n
    return _Frame(length, t, turned, torch.linalg.cross(t, turned), te, tf, both, chi, half, rolled(angle)[2])
