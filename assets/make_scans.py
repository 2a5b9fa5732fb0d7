"""Make the two pairs of partial scans that the demo and the tests use: `python assets/make_scans.py`.

`scan_street.npz`: a street with houses, cars, trees and a side road, seen by a spinning 32-beam LiDAR from two poses.
`scan_object.npz`: a ribbed teapot of 0.3 m, seen by a depth camera from two sides. Both are ray-cast, so that shadows,
thinning with range and lost grazing returns come by themselves. Keys: `src` (N, 3) and `tgt` (M, 3) float32, metres,
each in its sensor's frame; `T_tgt_src` (4, 4) float64 with tgt ~ T src. The same seed makes the same scans.
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SEED = 25
STREET_GRID = 2.0**-10  # coordinates are rounded to binary fractions of a metre: about 1 mm,
OBJECT_GRID = 2.0**-14  # and 0.06 mm; both far below the noise, and the files shrink


class Solid(NamedTuple):
    """A convex body {x: normals x <= offsets} and the part of the light it sends back."""

    normals: Array
    offsets: Array
    albedo: float


class Group(NamedTuple):
    """Solids, and one that holds them all: rays that miss it need not try them."""

    bound: Solid
    parts: list[Solid]


# ---------------------------------------------------------------- solids


def box(low: tuple[float, ...], high: tuple[float, ...], albedo: float) -> Solid:
    return Solid(np.vstack([np.eye(3), -np.eye(3)]), np.concatenate([high, np.negative(low)]), albedo)


def prism(profile: Array | list[tuple[float, float]], axis: int, start: float, stop: float, albedo: float) -> Solid:
    """A convex polygon, counter-clockwise in the other two axes (ascending), extruded along `axis`."""
    corners = np.asarray(profile, dtype=np.float64)
    edges = np.roll(corners, -1, 0) - corners
    normals = np.zeros((len(corners) + 2, 3))
    normals[:-2, [i for i in range(3) if i != axis]] = np.stack([edges[:, 1], -edges[:, 0]], 1)
    normals[:-2] /= np.linalg.norm(normals[:-2], axis=1, keepdims=True)
    normals[-2, axis], normals[-1, axis] = 1, -1
    planar = normals[:-2, [i for i in range(3) if i != axis]]
    return Solid(normals, np.concatenate([(planar * corners).sum(1), [stop, -start]]), albedo)


def rod(centre: tuple[float, float], radius: float, axis: int, start: float, stop: float, albedo: float) -> Solid:
    angle = np.arange(12) * (np.pi / 6)
    return prism(np.stack([np.cos(angle), np.sin(angle)], 1) * radius + centre, axis, start, stop, albedo)


def place(solid: Solid, x: float, y: float, yaw: float) -> Solid:
    normals = solid.normals @ rotation(yaw, 2).T
    return Solid(normals, solid.offsets + normals @ [x, y, 0], solid.albedo)


def rotation(angle: float, axis: int) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    R = np.eye(3)
    R[i, i], R[i, j], R[j, i], R[j, j] = c, -s, s, c
    return R


# ---------------------------------------------------------------- the street: x along it, y across, z up


def house(x0: float, x1: float, side: int, rng: np.random.Generator) -> Group:
    """Body, gable roof and a facade whose windows and door are holes between piers and bands, 0.25 m deep."""
    front, floors = 8.6 + rng.uniform(-0.3, 1.6), int(rng.integers(2, 5))
    height, wall, deep = 3.0 * floors + 0.5, rng.uniform(0.4, 0.8), 0.25
    count = int((x1 - x0) // 2.6)
    pitch, width = (x1 - x0) / count, rng.uniform(1.0, 1.35)
    door = int(rng.integers(count))

    def slab(xa: float, xb: float, depth: float, back: float, za: float, zb: float, albedo: float = wall) -> Solid:
        y = sorted((side * (front + depth), side * (front + back)))
        return box((xa, y[0], za), (xb, y[1], zb), albedo)

    parts = [slab(x0, x1, deep, 10.0, 0, height, 0.03)]  # the body, seen through windows: dark glass
    parts += [slab(xa, xb, 0.0, 10.0, 0, height) for xa, xb in ((x0, x0 + 0.02), (x1 - 0.02, x1))]  # blind sides
    ridge, eaves = height + rng.uniform(2.5, 4.0), (side * (front - 0.4), side * (front + 10.2))
    gable = [(min(eaves), height), (max(eaves), height), (sum(eaves) / 2, ridge)]
    parts.append(prism(gable, 0, x0, x1, 0.3))
    for floor in range(floors):
        sill, head = 3.0 * floor + 1.0, 3.0 * floor + 2.5
        low = 3.0 * floor if floor == 0 else 3.0 * floor - 0.5
        for i in range(count):
            centre = x0 + (i + 0.5) * pitch
            parts.append(slab(centre - pitch / 2, centre - width / 2, 0, deep, low, head))  # pier left of the hole
            parts.append(slab(centre + width / 2, centre + pitch / 2, 0, deep, low, head))
            if floor == 0 and i == door:
                parts.append(slab(centre - width / 2, centre + width / 2, -0.9, 0, 0, 0.18, 0.5))  # step
                parts.append(slab(centre - 0.9, centre + 0.9, -0.9, 0, 2.5, 2.62, 0.5))  # canopy
                continue
            parts.append(slab(centre - width / 2, centre + width / 2, 0, deep, low, sill))
            parts.append(slab(centre - width / 2 - 0.1, centre + width / 2 + 0.1, -0.12, 0, sill - 0.08, sill, 0.8))
            if floor > 0 and rng.random() < 0.15:  # balcony
                parts.append(slab(centre - 1.1, centre + 1.1, -1.0, 0, sill - 1.0, sill - 0.9, 0.6))
                parts.append(slab(centre - 1.1, centre + 1.1, -1.0, -0.95, sill - 0.9, sill + 0.1, 0.4))
    parts.append(slab(x0, x1, -0.15, deep, 3.0 * floors - 0.5, height, 0.7))  # cornice
    parts.append(slab(x1 - 0.3, x1 - 0.2, -0.1, 0, 0, height, 0.5))  # rain pipe
    if rng.random() < 0.7:  # hedge between two front gardens
        parts.append(slab(x1 - 0.7, x1 - 0.1, -1.8, 0, 0, rng.uniform(1.1, 1.9), 0.4))
    y = sorted((side * (front - 1.9), side * (front + 10.5)))
    return Group(box((x0 - 0.2, y[0], 0), (x1 + 0.2, y[1], ridge), 0), parts)


def car(x: float, y: float, yaw: float, rng: np.random.Generator) -> Group:
    length, tall, paint = rng.uniform(1.9, 2.4), rng.uniform(1.35, 1.9), rng.uniform(0.15, 0.7)
    back, front = -0.95 * length, 0.5 * length
    body = [(-length, 0.28), (length, 0.28), (length, 0.7), (front, 0.95), (back, 0.98), (-length, 0.8)]
    roof = [(back, 0.95), (front, 0.93), (0.15 * length, tall), (-0.65 * length, tall + 0.03)]
    parts = [prism(body, 1, -0.88, 0.88, paint), prism(roof, 1, -0.74, 0.74, 0.5 * paint)]
    parts += [
        rod((sx * 0.62 * length, 0.32), 0.32, 1, sy - 0.1, sy + 0.1, 0.1) for sx in (-1, 1) for sy in (-0.82, 0.82)
    ]
    bound = box((-length, -1, 0), (length, 1, 2), 0)
    return Group(place(bound, x, y, yaw), [place(part, x, y, yaw) for part in parts])


def street(rng: np.random.Generator) -> tuple[list[Group], list[Array]]:
    """All solids, and the crowns of the trees: leaf centres (K, 3), each a ball of 0.11 m."""
    solids = [box((-200, -200, -1), (200, 200, 0), 0.3)]
    groups = []
    gaps = {-1: (9.0, 17.0), 1: (-19.0, -15.5)}  # a side road on the right, an alley on the left
    for side, (gap0, gap1) in gaps.items():
        for start, stop in ((-70.0, gap0), (gap1, 75.0)):
            kerb = sorted((side * 5.6, side * 9.4))
            solids.append(box((start, kerb[0], 0), (stop, kerb[1], 0.13), 0.4))
            x = start
            while x < stop - 6:
                end = min(x + rng.uniform(7.5, 13.0), stop)
                end = stop if stop - end < 6 else end
                groups.append(house(x, end, side, rng))
                x = end
    solids += [box((5, -52, 0), (24, -44, 9), 0.6), box((9, -34, 0), (10.2, -20, 1.3), 0.3)]  # end of the side road
    solids += [box((-19, 24, 0), (-15.5, 24.3, 2.5), 0.5)]
    solids += [box((-70, -40, 0), (-69.5, 40, 7), 0.5), box((75, -40, 0), (75.5, 40, 9), 0.6)]
    for x in np.arange(-58, 66, 6.4):
        for side in (-1, 1):
            if rng.random() < 0.75 and not (side < 0 and 6 < x < 20):
                yaw = rng.normal(0, 0.02) + np.pi * (side > 0)
                groups.append(car(x + rng.uniform(-0.5, 0.5), side * (4.6 + rng.normal(0, 0.1)), yaw, rng))
    groups += [car(11.0, -17.0, np.pi / 2 + 0.05, rng), car(-14.0, -2.0, 0.03, rng)]
    for x in np.arange(-52, 62, 17.0):  # lamps on one side, signs and bins on the other
        solids += [rod((x, 6.0), 0.09, 2, 0, 6.2, 0.6), box((x - 0.06, 4.4, 6.1), (x + 0.06, 6.0, 6.22), 0.6)]
        if not 5 < x + 5 < 20:
            solids += [rod((x + 5, -6.1), 0.05, 2, 0, 2.6, 0.6), box((x + 4.95, -6.4, 2.0), (x + 5, -5.8, 2.6), 0.9)]
            solids.append(rod((x + 7.5, -7.9), 0.3, 2, 0, 1.1, 0.3))
    crowns = []
    for x, y in ((-34.0, -6.5), (-9.5, -6.4), (3.5, 6.6), (21.0, -6.6), (24.0, 6.5), (38.0, -6.4), (8.0, -27.0)):
        radius, high = rng.uniform(1.5, 2.1), rng.uniform(3.9, 4.8)
        solids.append(rod((x, y), rng.uniform(0.12, 0.2), 2, 0, high, 0.3))
        shell = rng.normal(size=(420, 3))
        shell *= radius * rng.uniform(0.2, 1, (420, 1)) ** 0.4 / np.linalg.norm(shell, axis=1, keepdims=True)
        crowns.append(shell * [1, 1, 1.25] + [x, y, high])
    return [*groups, *(Group(solid, [solid]) for solid in solids)], crowns


def enter(solid: Solid, origin: Array, rays: Array) -> tuple[Array, Array]:
    """Where rays (R, 3) enter a solid: distance (inf where they miss it), cosine of incidence there."""
    speed = rays @ solid.normals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (solid.offsets - solid.normals @ origin) / speed
    inward = np.where(speed < 0, t, -np.inf)
    face = inward.argmax(1)[:, None]
    first = np.take_along_axis(inward, face, 1)[:, 0]
    hit = (first > 0.5) & (first <= np.where(speed > 0, t, np.inf).min(1))
    return np.where(hit, first, np.inf), -np.take_along_axis(speed, face, 1)[:, 0]


def cast(origin: Array, rays: Array, groups: list[Group], crowns: list[Array]) -> tuple[Array, Array, Array]:
    """First hit along unit rays (R, 3): range (inf where none), cosine of incidence, albedo."""
    depth, cosine, albedo = np.full(len(rays), np.inf), np.zeros(len(rays)), np.zeros(len(rays))

    def keep(rows: Array, t: Array, cos: Array, value: float) -> None:
        near = t < depth[rows]
        rows = rows[near]
        depth[rows], cosine[rows], albedo[rows] = t[near], cos[near], value

    for bound, parts in groups:
        rows = np.flatnonzero(enter(bound, origin, rays)[0] < np.inf)
        for part in parts:
            keep(rows, *enter(part, origin, rays[rows]), part.albedo)
    for leaves in crowns:
        centre = leaves.mean(0) - origin
        reach = np.linalg.norm(leaves - leaves.mean(0), axis=1).max() + 0.2
        along = rays @ centre
        seen = np.flatnonzero((along > 0) & (centre @ centre - along**2 < reach**2))
        along = rays[seen] @ (leaves - origin).T
        inside = 0.11**2 - ((leaves - origin) ** 2).sum(1) + along**2
        t = np.where(inside > 0, along - np.sqrt(np.maximum(inside, 0)), np.inf).min(1, initial=np.inf)
        keep(seen, t, np.full(len(seen), 0.6), 0.45)
    return depth, cosine, albedo


def lidar(pose: Array, scene: tuple[list[Group], list[Array]], rng: np.random.Generator) -> Array:
    """One turn of 32 beams, -24 to +20 degrees, 0.5 degrees apart in azimuth; 1.5 cm range noise; points (N, 3).

    The share of light that comes back, albedo cos(incidence) / range^2, decides whether a return is seen.
    """
    elevation, azimuth = np.meshgrid(np.deg2rad(np.linspace(-24, 20, 32)), np.deg2rad(np.arange(0, 360, 0.5)))
    rays = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    rays = rays.reshape(-1, 3)
    depth, cosine, albedo = cast(pose[:3, 3], rays @ pose[:3, :3].T, *scene)
    power = albedo * cosine * (68.0 / depth) ** 2
    seen = (rng.random(len(rays)) < power / (1 + power)) & (depth < 90)
    return rays[seen] * (depth[seen] + rng.normal(0, 0.015, seen.sum()))[:, None]


# ---------------------------------------------------------------- the object: a teapot as a distance function


SPOUT = (  # its middle line and radius: x, y, z, r
    (0.070, 0.000, -0.022, 0.030),
    (0.108, 0.004, -0.004, 0.022),
    (0.128, 0.008, 0.026, 0.016),
    (0.142, 0.012, 0.056, 0.012),
    (0.161, 0.014, 0.070, 0.011),
)


def smooth_min(a: Array, b: Array, k: float) -> Array:
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)


def ellipsoid(p: Array, radii: tuple[float, ...]) -> Array:
    scaled = np.linalg.norm(p / radii, axis=-1)
    return scaled * (scaled - 1) / np.maximum(np.linalg.norm(p / np.square(radii), axis=-1), 1e-9)


def teapot(p: Array) -> Array:
    """Signed distance (a bound on it) of points (..., 3), z up, metres: twisted ribs, spout, handle, lid, one boss."""
    angle = np.arctan2(p[..., 1], p[..., 0])
    ribs = 1 + 0.045 * np.cos(9 * (angle + 7 * p[..., 2]))
    d = ellipsoid(p / np.stack([ribs, ribs, np.ones_like(ribs)], -1), (0.092, 0.092, 0.074))
    ring = np.hypot(p[..., 0], p[..., 1])
    foot = np.hypot(np.maximum(ring - 0.05, 0), np.maximum(abs(p[..., 2] + 0.068) - 0.008, 0)) - 0.004
    d = smooth_min(d, foot, 0.008)
    for (*a, ra), (*b, rb) in pairwise(SPOUT):
        a, b = np.array(a), np.array(b)
        h = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        d = smooth_min(d, np.linalg.norm(p - a - h[..., None] * (b - a), axis=-1) - (ra + (rb - ra) * h), 0.006)
    q = p - (-0.092, -0.006, 0.008)
    handle = np.hypot(np.hypot(q[..., 0] * 0.95, q[..., 2] * 0.85) - 0.045, q[..., 1] * 0.7) - 0.0095
    d = smooth_min(d, handle, 0.008)
    d = smooth_min(d, ellipsoid(p - (0, 0, 0.066), (0.052, 0.052, 0.018)), 0.004)
    d = smooth_min(d, np.linalg.norm(p - (0, 0, 0.094), axis=-1) - 0.015, 0.008)
    return 0.6 * smooth_min(d, ellipsoid(p - (0.035, -0.082, 0.012), (0.024, 0.014, 0.018)), 0.006)


def depth_camera(pose: Array, rng: np.random.Generator) -> Array:
    """A pinhole camera looking along its z, x right, y down: 360 x 270 pixels, focal length 300; points (N, 3).

    Depth noise 2 mm at 1 m, growing with its square; surfaces seen flatter than 12 degrees are lost.
    """
    u, v = np.meshgrid(np.arange(360) - 179.5, np.arange(270) - 134.5)
    rays = np.stack([u, v, np.full_like(u, 300.0)], -1).reshape(-1, 3) / 300.0  # z = 1: lengths are depths
    world, origin = rays @ pose[:3, :3].T, pose[:3, 3]
    size = np.linalg.norm(world, axis=1)
    middle = -(world @ origin) / size**2
    rows = np.flatnonzero(np.linalg.norm(origin + middle[:, None] * world, axis=1) < 0.19)  # those near the object
    depth, active = middle[rows] - 0.2, np.arange(len(rows))
    for _ in range(120):
        step = teapot(origin + depth[active, None] * world[rows[active]])
        depth[active] += step / size[rows[active]]
        active = active[(step > 2e-5) & (depth[active] < middle[rows[active]] + 0.2)]
    hit = depth < middle[rows] + 0.19
    rows, depth = rows[hit], depth[hit]
    at = origin + depth[:, None] * world[rows]
    slope = np.stack([teapot(at + step) - teapot(at - step) for step in 1e-4 * np.eye(3)], -1)
    cosine = -(slope * world[rows]).sum(1) / (np.linalg.norm(slope, axis=1) * size[rows])
    seen = cosine > np.sin(np.deg2rad(12))
    depth = depth[seen] + rng.normal(0, 0.002, seen.sum()) * depth[seen] ** 2
    return rays[rows[seen]] * depth[:, None]


# ---------------------------------------------------------------- the two pairs


def pose(R: Array, t: tuple[float, ...]) -> Array:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def look(azimuth: float, height: float, distance: float) -> Array:
    """Camera pose at an azimuth (degrees) round the z axis, looking at the origin."""
    a = np.deg2rad(azimuth)
    eye = np.array([np.cos(a), np.sin(a), height])
    eye *= distance / np.linalg.norm(eye)
    forward = -eye / distance
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return pose(np.stack([right, np.cross(forward, right), forward], 1), tuple(eye))


def pack(source: Array, target: Array, source_pose: Array, target_pose: Array, grid: float) -> dict[str, np.ndarray]:
    src, tgt = ((np.round(x / grid) * grid).astype(np.float32) for x in (source, target))
    return {"src": src, "tgt": tgt, "T_tgt_src": np.linalg.inv(target_pose) @ source_pose}


def make_street(seed: int = SEED) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    scene = street(rng)
    target = pose(rotation(0.01, 1), (0.0, -1.6, 1.8))
    source = pose(rotation(np.deg2rad(20), 2) @ rotation(-0.02, 0), (6.0, 0.4, 1.85))
    return pack(lidar(source, scene, rng), lidar(target, scene, rng), source, target, STREET_GRID)


def make_object(seed: int = SEED) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    source, target = look(-70, 0.45, 0.62), look(-35, 0.62, 0.66)
    return pack(depth_camera(source, rng), depth_camera(target, rng), source, target, OBJECT_GRID)


if __name__ == "__main__":
    for name, arrays in (("street", make_street()), ("object", make_object())):
        file = Path(__file__).resolve().parent / f"scan_{name}.npz"
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        print(f"{file.name}: {len(arrays['src'])} and {len(arrays['tgt'])} points, {file.stat().st_size / 1e3:.0f} kB")
