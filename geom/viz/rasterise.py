"""The numpy engine: discs, thick lines and shaded triangles with exact depth, so that a picture always exists."""

import numpy as np
import numpy.typing as npt

from geom.viz.camera import Camera
from geom.viz.scene import Scene
from geom.viz.shading import shade

__all__ = ["rasterise"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_CHUNK = 2_000_000  # fragments in flight
_OVER = 1.002  # lines stand this factor nearer than they are, so that they show on the faces they lie on


def rasterise(
    scene: Scene,
    camera: Camera,
    size: tuple[int, int],
    *,
    background: tuple[float, float, float],
    point_size: float,
    line_width: float,
) -> tuple[npt.NDArray[np.uint8], Floats]:
    """The picture (H, W, 3) uint8 and its inverse depths (H, W) float32, 0 where nothing was drawn.

    Exact to the pixel centre, no anti-aliasing: draw at twice the size and halve. Deterministic.
    """
    canvas = _Canvas(size, background)
    eye, basis = np.asarray(camera.eye) - scene.origin, camera.basis()
    focal, middle = camera.focal(size), np.asarray(size) / 2
    nearest = 1e-3 * float(np.linalg.norm(np.subtract(camera.eye, camera.target)))
    for thing in scene.drawables:
        points = (thing.positions.astype(np.float64) - eye) @ basis.T  # x right, y down, z forward
        if thing.kind == "points":
            front = points[:, 2] > nearest
            points = points[front]
            pixels = middle + focal * points[:, :2] / points[:, 2:]
            canvas.discs(pixels, 1 / points[:, 2], thing.colors[front], point_size)
        elif thing.kind == "lines":
            ends = np.concatenate([points, thing.colors.astype(np.float64)], 1)[thing.index]
            ends = _clip_lines(ends, nearest, middle / focal * 1.02)
            ends[..., 2] = 1 / ends[..., 2]
            ends[..., :2] = middle + focal * ends[..., :2] * ends[..., 2:3]
            samples = _walk(ends)
            canvas.discs(samples[:, :2], samples[:, 2] * _OVER, samples[:, 3:].astype(np.float32), line_width)
        elif thing.normals is not None:
            colors = shade(thing.colors, thing.normals, thing.positions, eye, basis)
            corners = _clip_triangles(np.concatenate([points, colors.astype(np.float64)], 1)[thing.index], nearest)
            corners[..., 2] = 1 / corners[..., 2]
            corners[..., :2] = middle + focal * corners[..., :2] * corners[..., 2:3]
            canvas.triangles(corners)
    return canvas.color.reshape(size[1], size[0], 3), canvas.near.reshape(size[1], size[0])


class _Canvas:
    """A picture under construction: `color` (H W, 3) uint8, `near` (H W,) float32 inverse depth, 0 = nothing."""

    def __init__(self, size: tuple[int, int], background: tuple[float, float, float]) -> None:
        self.width, self.height = size
        self.color = np.tile(_bytes(np.asarray(background)), (self.width * self.height, 1))
        self.near = np.zeros(self.width * self.height, np.float32)

    def discs(self, pixels: Doubles, near: Doubles, colors: Floats, diameter: float) -> None:
        """Discs of constant depth. Painted far to near into one buffer of ids, where the last assignment wins."""
        reach = int(diameter / 2)
        margin = 2 * reach  # a disc may stand `reach` outside and still never leave the buffer
        wide, high = self.width + 2 * margin, self.height + 2 * margin
        edge = np.array([self.width, self.height]) + reach
        seen = np.flatnonzero(((pixels >= -reach) & (pixels < edge)).all(1))
        seen = seen[np.argsort(near[seen], kind="stable")]
        column, row = np.floor(pixels[seen]).astype(np.int64).T + margin
        grid = np.arange(-reach, reach + 1)
        dy, dx = np.nonzero(grid[:, None] ** 2 + grid**2 <= diameter**2 / 4)
        offsets = (dy - reach) * wide + dx - reach
        ids = np.full(wide * high, -1, np.int32)
        step = max(1, _CHUNK // len(offsets))
        for i in range(0, len(seen), step):
            cells = (row[i : i + step] * wide + column[i : i + step])[:, None] + offsets
            ids[cells.ravel()] = np.repeat(seen[i : i + step].astype(np.int32), len(offsets))
        ids = ids.reshape(high, wide)[margin : high - margin, margin : wide - margin].ravel()
        cells = np.flatnonzero(ids >= 0)
        owner = ids[cells]
        closer = near[owner] > self.near[cells]
        cells, owner = cells[closer], owner[closer]
        self.near[cells] = near[owner]
        self.color[cells] = _bytes(colors)[owner]

    def triangles(self, corners: Doubles) -> None:
        """Triangles (T, 3, 6): pixel x, y, inverse depth (linear on screen), RGB (linear in space)."""
        x, y, near = corners[..., 0], corners[..., 1], corners[..., 2]
        low, high = np.ceil(y.min(1) - 0.5).clip(0), np.floor(y.max(1) - 0.5).clip(max=self.height - 1)
        # barycentrics b_i = edge[0, i] x + edge[1, i] y + edge[2, i] of pixel centres
        j, k = [1, 2, 0], [2, 0, 1]
        edge = np.stack([y[:, j] - y[:, k], x[:, k] - x[:, j], x[:, j] * y[:, k] - x[:, k] * y[:, j]])
        area = edge[2].sum(1)
        keep = (high >= low) & (x.max(1) >= 0.5) & (x.min(1) <= self.width - 0.5) & (np.abs(area) > 1e-9)
        edge, near, low, high = edge[:, keep] / area[keep, None], near[keep], low[keep], high[keep]
        if not len(near):
            return
        rows = (high - low + 1).astype(np.int64)
        tall = np.minimum(np.cumsum(rows) // (_CHUNK // 4), len(rows))  # spans are built for so many rows at a time
        owner = np.full(len(self.near), -1, np.int64)
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(tall)) + 1):
            self._spans(edge[:, part], near[part], low[part], rows[part], part, owner)
        cells = np.flatnonzero(owner >= 0)
        for i in range(0, len(cells), _CHUNK // 4):
            cell = cells[i : i + _CHUNK // 4]
            t = owner[cell]
            across, down, constant = edge[:, t]
            px, py = cell % self.width + 0.5, cell // self.width + 0.5
            share = np.maximum(across * px[:, None] + down * py[:, None] + constant, 0) * near[t]
            share /= share.sum(1, keepdims=True)
            self.color[cell] = _bytes(np.einsum("pi,pic->pc", share, corners[keep, :, 3:][t]))

    def _spans(self, edge: Doubles, near: Doubles, low: Doubles, rows: Ints, part: Ints, owner: Ints) -> None:
        """One span of pixels for each triangle and row; the nearest triangle of each pixel becomes its owner."""
        t = np.repeat(np.arange(len(rows)), rows)
        y = low[t] + _count_up(rows)
        across, offset = edge[0, t], edge[1, t] * (y + 0.5)[:, None] + edge[2, t]
        with np.errstate(divide="ignore", invalid="ignore"):
            root = -offset / across - 0.5
        first = np.where(across > 0, root, np.where((across == 0) & (offset < 0), np.inf, -np.inf)).max(1)
        last = np.where(across < 0, root, np.inf).min(1)
        first = np.ceil(first.clip(0, self.width) - 1e-6).astype(np.int64)
        last = np.floor(last.clip(-1, self.width - 1) + 1e-6).astype(np.int64)
        length = (last - first + 1).clip(0)
        slope, base = (across * near[t]).sum(1), (offset * near[t]).sum(1)
        fragments = np.cumsum(length)
        for span in np.split(np.arange(len(t)), np.flatnonzero(np.diff(fragments // _CHUNK)) + 1):
            n = length[span]
            x = np.repeat(first[span], n) + _count_up(n)
            depth = (np.repeat(slope[span], n) * (x + 0.5) + np.repeat(base[span], n)).astype(np.float32)
            cell = x + np.repeat(y[span].astype(np.int64) * self.width, n)
            np.maximum.at(self.near, cell, depth)
            wins = depth >= self.near[cell]
            owner[cell[wins]] = np.repeat(part[t[span]], n)[wins]


def _clip_triangles(corners: Doubles, nearest: float) -> Doubles:
    """The parts of triangles (T, 3, C) with z >= nearest: one that crosses it gives one or two."""
    front = corners[..., 2] >= nearest
    count = front.sum(1)
    parts = [corners[count == 3]]
    for ahead in (1, 2):  # turn each until the corner that stands alone comes first
        some, mask = corners[count == ahead], front[count == ahead]
        alone = np.argmax(mask if ahead == 1 else ~mask, axis=1)
        turn = (alone[:, None] + np.arange(3)) % 3
        a, b, c = np.take_along_axis(some, turn[..., None], 1).swapaxes(0, 1)
        ab, ac = (a + (e - a) * ((nearest - a[:, 2]) / (e[:, 2] - a[:, 2]))[:, None] for e in (b, c))
        parts += [np.stack([a, ab, ac], 1)] if ahead == 1 else [np.stack([ab, b, c], 1), np.stack([ab, c, ac], 1)]
    return np.concatenate(parts)


def _clip_lines(ends: Doubles, nearest: float, half: Doubles) -> Doubles:
    """The parts of segments (E, 2, C) inside the pyramid of sight: z >= nearest, |x| <= half_x z, |y| <= half_y z."""
    z = ends[..., 2]
    sides = [z - nearest, *(half[i] * z + sign * ends[..., i] for i in (0, 1) for sign in (1, -1))]
    enter, leave = np.zeros(len(ends)), np.ones(len(ends))
    for side in sides:
        a, b = side.T
        cut = a / np.where(a == b, 1, a - b)
        enter = np.where((a < 0) & (b >= 0), np.maximum(enter, cut), enter)
        leave = np.where((a >= 0) & (b < 0), np.minimum(leave, cut), leave)
        leave = np.where((a < 0) & (b < 0), -1, leave)
    kept = enter <= leave
    start, way = ends[kept, 0], ends[kept, 1] - ends[kept, 0]
    return np.stack([start + enter[kept, None] * way, start + leave[kept, None] * way], 1)


def _walk(ends: Doubles) -> Doubles:
    """Samples (M, C) along segments (E, 2, C), at most one pixel apart."""
    steps = np.ceil(np.abs(ends[:, 1, :2] - ends[:, 0, :2]).max(1)).astype(np.int64) + 1
    share = (_count_up(steps) / np.repeat(np.maximum(steps - 1, 1), steps))[:, None]
    return np.repeat(ends[:, 0], steps, axis=0) * (1 - share) + np.repeat(ends[:, 1], steps, axis=0) * share


def _count_up(lengths: Ints) -> Ints:
    """0 .. n-1 for each n of `lengths`, one after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _bytes(colors: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8)
