"""`Contacts`: what a rod touches (planes, spheres, capsules, itself), how hard, and with how much friction.

A contact of depth D pushes its two sides apart along the line between their nearest points with

    N = k D^2 / (2 w) for 0 < D < w,   k (D - w / 2) beyond,   D = overlap + damping * speed of approach

and friction holds back the velocity u that the vertices would have after the step without contact (gravity, bending
and drag included), sideways to that line:

    F = -friction N u / max(|u|, J + slip),   J = dt friction N / m,   m the mass that the contact moves

so friction never turns a velocity round, and what Coulomb friction would hold creeps at no more than `slip`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_positive, describe
from geom.errors import ShapeError
from geom.rods.rod import Rod
from geom.values import Value, value

__all__ = ["Contacts", "check_contacts", "contact_forces", "make_contacts", "meeting_edges"]

_LAZY = 1e-3  # pull of a contact between edges towards their middles, so that parallel ones have one nearest point


@value
class Contacts(Value):
    """What a rod touches. Planes and shapes stand still; a batch *b is that of the states, or there is none.

    Fields: planes, a point and a normal out of the solid half, of any length; spheres, centre and radius; capsules, two
        ends and a radius: vertices of the rod keep out of these, balls of radius `radius`.
        self_contact: edges keep 2 `radius` apart from the edges of their own tree more than two edges away.
        radius, metres; stiffness k, N/m; damping, seconds that depth is looked ahead; friction, Coulomb's coefficient;
        slip, m/s, below which friction fades; smoothing w, metres over which contact sets in.
    """

    planes: Float[Tensor, "*b p 6"]
    spheres: Float[Tensor, "*b s 4"]
    capsules: Float[Tensor, "*b c 7"]
    radius: Float[Tensor, "*b"]
    stiffness: Float[Tensor, "*b"]
    damping: Float[Tensor, "*b"]
    friction: Float[Tensor, "*b"]
    slip: Float[Tensor, "*b"]
    smoothing: Float[Tensor, "*b"]
    self_contact: bool

    def bodies(self) -> Tensor:
        """Rows (*b, p + s + c, 8) of the kernel: point, unit normal, 0, 0; or two ends, radius, 1."""
        normal = self.planes[..., 3:]
        length = normal.norm(dim=-1, keepdim=True)
        flat = torch.cat([self.planes[..., :3], normal / length, 0 * length, 0 * length], -1)
        balls = torch.cat([self.spheres[..., :3], self.spheres, torch.ones_like(self.spheres[..., :1])], -1)
        rods = torch.cat([self.capsules, torch.ones_like(self.capsules[..., :1])], -1)
        return torch.cat([flat, balls, rods], -2)

    def law(self) -> Tensor:
        """Numbers (*b, 6), in the order of `geom.kernels.rods.LAW`."""
        law = (self.radius, self.stiffness, self.damping, self.friction, self.slip, self.smoothing)
        return torch.stack(law, -1)


def make_contacts(
    *,
    radius: float,
    stiffness: float,
    planes: Tensor | Sequence[Sequence[float]] = (),
    spheres: Tensor | Sequence[Sequence[float]] = (),
    capsules: Tensor | Sequence[Sequence[float]] = (),
    self_contact: bool = False,
    friction: float = 0.0,
    damping: float = 0.01,
    slip: float = 1e-3,
    smoothing: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Contacts:
    """Contacts of a rod of some radius with obstacles and itself.

    A vertex of weight F rests F / k + smoothing / 2 deep (sqrt(2 F smoothing / k) if that is less than smoothing).
    Steps of dt are stable while k dt^2 / m <= 4 / (1 + 2 damping / dt) for the lightest vertex, m its mass (the end of
    a rod has half that of the others), and several contacts at once add their k. With damping = dt the bound is 4/3,
    each step leaves 1 - k dt^2 / m of a bounce, and k = m / dt^2 stops it in one step. What moves by more than the
    radius in a step can pass through.

    Args:
        radius: of the rod, m. stiffness: k, N/m. damping: s. friction: Coulomb's coefficient, at least 0. slip: m/s.
        planes: rows (p, 6), a point and the normal on the free side. spheres: rows (s, 4), centre and radius.
        capsules: rows (c, 7), two ends and radius. self_contact: whether the rod touches itself.
        smoothing: m, a tenth of the radius if None.
    Raises: ShapeError: rows of other lengths, numbers that are not finite, radii, stiffness, slip or smoothing not
        positive, friction or damping negative, a normal without length.

    >>> floor = make_contacts(planes=[[0, 0, 0, 0, 0, 1]], radius=0.01, stiffness=100.0, friction=0.3)
    >>> floor.bodies().tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]

    Guarantees: differentiable (in the fields of the value); deterministic; 1e-16 f64, 1e-7 f32
    """
    width = 0.1 * radius if smoothing is None else smoothing
    positive = {"radius": radius, "stiffness": stiffness, "slip": slip, "smoothing": width}
    for name, x in positive.items():
        check_positive(x, name)
    for name, x in (("friction", friction), ("damping", damping)):
        if not 0 <= x < math.inf:
            raise ShapeError(f"{name}: expected a finite number of at least 0, got {x}")

    def rows(given: Tensor | Sequence[Sequence[float]], name: str, columns: int) -> Tensor:
        table = torch.as_tensor(given, dtype=dtype, device=device)
        table = table.reshape(0, columns) if table.numel() == 0 else table
        if table.ndim != 2 or table.shape[-1] != columns or not bool(table.isfinite().all()):
            raise ShapeError(f"{name}: expected rows of {columns} finite numbers, got {describe(table)}")
        return table

    flat, balls, rods = rows(planes, "planes", 6), rows(spheres, "spheres", 4), rows(capsules, "capsules", 7)
    if bool((flat[:, 3:] == 0).all(-1).any()):
        raise ShapeError("planes: expected normals of some length, got 0")
    for name, radii in (("spheres", balls[:, -1]), ("capsules", rods[:, -1])):
        if bool((radii <= 0).any()):
            raise ShapeError(f"{name}: expected positive radii, got {float(radii.min())}")
    numbers = [radius, stiffness, damping, friction, slip, width]
    law = torch.tensor(numbers, dtype=dtype, device=device).unbind()
    return Contacts(flat, balls, rods, *law, self_contact=self_contact)


def check_contacts(contacts: Contacts, rod: Rod, batch: torch.Size) -> None:
    """Raises: ShapeError: another dtype or batch; a rod so thick that edges two apart would always touch."""
    own = contacts.radius.shape
    if contacts.radius.dtype != rod.mass.dtype or own not in ((), batch):
        raise ShapeError(
            f"contacts: expected {rod.mass.dtype} and the batch {tuple(batch)} or none, got "
            f"{contacts.radius.dtype} and {tuple(own)}"
        )
    shortest = rod.length[..., rod.parent >= 0].min()
    if contacts.self_contact and bool((contacts.radius >= shortest).any()):
        raise ShapeError(
            f"contacts: expected a radius below the shortest edge, {float(shortest):.4g} m, where a rod "
            f"touches itself, got {float(contacts.radius.max()):.4g} m"
        )


@lru_cache(64)
def meeting_edges(parents: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Edges (P, 2) int32, by their second vertices, of one tree that have at least two edges between them, tree after
    tree, and where each tree's begin (T + 1,) int32."""
    roots = [k for k, p in enumerate(parents) if p < 0]
    pairs: list[tuple[int, int]] = []
    starts = [0]
    for begin, end in pairwise([*roots, len(parents)]):
        joined: dict[int, list[int]] = {k: [] for k in range(begin, end)}
        for k in range(begin + 1, end):
            joined[k].append(parents[k])
            joined[parents[k]].append(k)
        close = {k: {k, *joined[k]} for k in joined}  # vertices at most one edge away
        for k in range(begin + 1, end):
            near = close[k] | close[parents[k]]
            pairs += [(j, k) for j in range(begin + 1, k) if j not in near and parents[j] not in near]
        starts.append(len(pairs))
    table = torch.tensor(pairs, dtype=torch.int32, device=device).reshape(-1, 2)
    return table, torch.tensor(starts, dtype=torch.int32, device=device)


def contact_forces(
    contacts: Contacts,
    parent: Int64[Tensor, "n"],
    position: Float[Tensor, "*b n 3"],
    velocity: Float[Tensor, "*b n 3"],
    drift: Float[Tensor, "*b n 3"],
    inverse_mass: Float[Tensor, "*b n"],
    dt: float,
) -> Float[Tensor, "*b n 3"]:
    """Forces of all contacts on the vertices, newtons: the twin of the kernel's.

    Args: position; velocity, for the damping; drift, the velocity after the step without contact, for friction;
        inverse_mass, 1/kg, 0 for vertices that are clamped; dt, s.

    Guarantees: differentiable; deterministic; 1e-13 f64, 1e-5 f32 of the largest
    """
    law, bodies = contacts.law(), contacts.bodies()
    out = torch.zeros_like(position)
    if bodies.shape[-2]:
        r, size = _out_of_bodies(bodies[..., None, :, :], position[..., None, :])
        far, along = _aim(r, law[..., 0, None, None] + size)
        flat = bodies[..., None, :, 7] == 0
        normal = bodies[..., None, :, 3:6]
        height = ((position[..., None, :] - bodies[..., None, :, :3]) * normal).sum(-1)
        far, along = torch.where(flat, height, far), torch.where(flat[..., None], normal, along)
        v, u = velocity[..., None, :], drift[..., None, :]
        f = _resist(
            law[..., None, None, :], law[..., 0, None, None] + size - far, along, v, u, inverse_mass[..., None], dt
        )
        out = out + torch.where(inverse_mass[..., None] > 0, f.sum(-2), 0.0)
    if not contacts.self_contact:
        return out
    pairs, _ = meeting_edges(tuple(parent.tolist()), parent.device)
    j, k = pairs.long().unbind(-1)
    corner = torch.stack([parent[j], j, parent[k], k])
    a0, a1, b0, b1 = position[..., corner, :].unbind(-3)
    s, t = _nearest(a1 - a0, b1 - b0, a0 - b0)
    share = torch.stack([1 - s, s, t - 1, -t], -2)
    w = (share.square() * inverse_mass[..., corner]).sum(-2)
    far, along = _aim((share[..., None] * position[..., corner, :]).sum(-3), 2 * law[..., 0, None])
    v, u = ((share[..., None] * x[..., corner, :]).sum(-3) for x in (velocity, drift))
    f = _resist(law[..., None, :], 2 * law[..., 0, None] - far, along, v, u, w, dt)
    spread = share[..., None] * f[..., None, :, :]
    return out.index_add(-2, corner.reshape(-1), spread.flatten(-3, -2))


def _out_of_bodies(bodies: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """From the nearest point of each capsule's axis to x, and the capsule's radius."""
    a, e = bodies[..., :3], bodies[..., 3:6] - bodies[..., :3]
    e = torch.where(bodies[..., 7:] > 0, e, 0.0)
    square = e.square().sum(-1)
    at = (((x - a) * e).sum(-1) / torch.where(square > 0, square, 1.0)).clamp(0, 1)
    return x - a - at[..., None] * e, bodies[..., 6]


def _nearest(d1: Tensor, d2: Tensor, r0: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters in [0, 1] of least |r0 + s d1 - t d2|^2 / 2 + lazy / 2 (|d1|^2 (s - 1/2)^2 + |d2|^2 (t - 1/2)^2)."""
    tiny = 1e-12 if d1.dtype == torch.float32 else 1e-30
    a, e, b = d1.square().sum(-1), d2.square().sum(-1), (d1 * d2).sum(-1)
    A, E = a * (1 + _LAZY) + tiny, e * (1 + _LAZY) + tiny
    g, f = 0.5 * _LAZY * a - (d1 * r0).sum(-1), 0.5 * _LAZY * e + (d2 * r0).sum(-1)
    s = ((g * E + b * f) / (A * E - b * b)).clamp(0, 1)
    free = (f + b * s) / E
    t = free.clamp(0, 1)
    return torch.where(t == free, s, ((g + b * t) / A).clamp(0, 1)), t


def _aim(r: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Length and direction of r; 0 and upwards where the two sides all but coincide."""
    square = r.square().sum(-1)
    apart = square.detach().sqrt() > 1e-6 * size
    far = torch.where(apart, square, 1.0).sqrt()
    up = torch.zeros_like(r)
    up[..., 2] = 1
    return torch.where(apart, far, 0.0), torch.where(apart[..., None], r / far[..., None], up)


def _resist(
    law: Tensor, overlap: Tensor, along: Tensor, v: Tensor, u: Tensor, inverse_mass: Tensor, dt: float
) -> Tensor:
    """Force along the contact, and friction."""
    _, stiffness, damping, friction, slip, smoothing = law.unbind(-1)
    depth = (overlap - damping * (along * v).sum(-1)).clamp(min=0)
    soft = 0.5 * depth.square() / smoothing
    press = stiffness * torch.where(depth < smoothing, soft, depth - 0.5 * smoothing)
    sideways = u - (along * u).sum(-1, keepdim=True) * along
    square = sideways.square().sum(-1)
    pace = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    stick = dt * friction * press * inverse_mass + slip
    held = friction * press / torch.maximum(pace, stick)
    return press[..., None] * along - held[..., None] * sideways
