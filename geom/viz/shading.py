"""Light: normals with creases, shaded vertices, and the darkening of depth edges that gives clouds their form."""

import numpy as np
import numpy.typing as npt

__all__ = ["finish", "shade", "split_creases"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def split_creases(
    vertices: Doubles, faces: npt.NDArray[np.int32], *, cosine: float = 0.75
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], Floats]:
    """Smooth normals that keep edges sharp.

    A corner's normal is the area-weighted mean over the faces at its vertex that turn less than acos(cosine) from its
    own; vertices whose corners disagree are split. Where the pairs of faces that share a vertex are too many (a fan of
    thousands), vertices keep one mean.

    Returns: `which` (N,), the vertex each new one copies; faces (F, 3) int32 over the new ones; normals (N, 3).
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    length = np.linalg.norm(area, axis=1, keepdims=True)
    unit = area / np.where(length > 0, length, 1)
    area = area / max(float(length.max()), 1e-300)  # only the ratio matters; the square of a tiny one would vanish
    corner = faces.ravel().astype(np.int64)
    order = np.argsort(corner, kind="stable")
    valence = np.bincount(corner, minlength=len(vertices))
    if float((valence.astype(np.float64) ** 2).sum()) < 1e7:
        start = np.cumsum(valence) - valence
        lengths = valence[corner]
        mine = np.repeat(np.arange(len(corner)), lengths)
        step = np.arange(len(mine)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        other = order[start[corner[mine]] + step]
        near = np.einsum("ij,ij->i", unit[mine // 3], unit[other // 3]) > cosine
        normals = _sum_at(mine[near], area[other[near] // 3], len(corner))
    else:
        normals = _sum_at(corner, np.repeat(area, 3, axis=0), len(vertices))[corner]
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(size > 0, normals / np.where(size > 0, size, 1), [0.0, 0.0, 1.0])
    grid = np.rint((normals + 1) * 500).astype(np.int64)  # corners within a thousandth share a vertex
    key = ((corner * 1001 + grid[:, 0]) * 1001 + grid[:, 1]) * 1001 + grid[:, 2]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return corner[first], inverse.reshape(-1, 3).astype(np.int32), normals[first].astype(np.float32)


def shade(colors: Floats, normals: Floats, positions: Floats, eye: Doubles, basis: Doubles) -> Floats:
    """Vertex colours under three soft lights fixed to the camera: key from the upper left, fill, and a small highlight.

    Both sides of a face are lit. `eye` and `basis` (right, down, forward) are the camera's, in the coordinates of
    `positions`.
    """
    view = eye.astype(np.float32) - positions
    view /= np.maximum(np.linalg.norm(view, axis=1, keepdims=True), 1e-30)
    facing = np.sign((normals * view).sum(1, keepdims=True))
    normals = normals * np.where(facing == 0, 1, facing)
    right, down, forward = basis.astype(np.float32)

    def light(x: float, y: float, z: float) -> Floats:  # right, up and toward the viewer
        direction = x * right - y * down - z * forward
        return np.asarray(direction / np.linalg.norm(direction), np.float32)

    key, fill = light(-0.55, 0.75, 0.6), light(0.8, 0.1, 0.5)
    sky = 0.5 - 0.5 * normals @ down
    diffuse = 0.40 + 0.16 * sky + 0.48 * np.maximum(normals @ key, 0) + 0.20 * np.maximum(normals @ fill, 0)
    half = view + key
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-30)
    gloss = 0.16 * np.maximum((normals * half).sum(1), 0) ** 24
    return np.clip(colors * diffuse[:, None] + gloss[:, None], 0, 1)


def finish(
    image: npt.NDArray[np.uint8], inverse_depth: Floats, *, strength: float = 0.8, softness: float = 0.01
) -> npt.NDArray[np.uint8]:
    """Halve a picture drawn at twice its size, and darken what lies behind a near edge or in a hollow.

    Like eye-dome lighting (Boucheny 2009), but on second differences of 1/z, which vanish on every plane whatever its
    slant: for the 8 opposed neighbour pairs (l, r) e = max(0, (l + r) / 2c - 1), and a pixel c loses the share
    strength * mean(e / (e + softness)) of its brightness, 0.6 at most.
    """
    blocks = [image[i::2, j::2].astype(np.uint16) for i in (0, 1) for j in (0, 1)]
    color = (sum(blocks[1:], blocks[0]) + 2) >> 2
    parts = [inverse_depth[i::2, j::2] for i in (0, 1) for j in (0, 1)]
    near = np.maximum(np.maximum(parts[0], parts[1]), np.maximum(parts[2], parts[3]))
    height, width = near.shape
    safe = np.where(near > 0, near, 1)
    total = np.zeros_like(near)
    pad = 4
    padded = np.pad(near, pad, mode="edge")
    for step in (1, 3):
        for dy, dx in ((0, step), (step, 0), (step, step), (step, -step)):
            left = padded[pad + dy : pad + dy + height, pad + dx : pad + dx + width]
            right = padded[pad - dy : pad - dy + height, pad - dx : pad - dx + width]
            bend = np.where((left > 0) & (right > 0), np.maximum((left + right) / safe * 0.5 - 1, 0), 0)
            total += bend / (bend + softness)
    covered = sum((p > 0).astype(np.float32) for p in parts) / 4
    dark = 1 - covered * np.minimum(strength * total / 8, 0.6)
    return np.asarray(color * dark[..., None] + 0.5, np.uint8)


def _sum_at(index: npt.NDArray[np.int64], vectors: Doubles, count: int) -> Doubles:
    sums = [np.bincount(index, vectors[:, i], minlength=count) for i in range(3)]
    return np.stack(sums, -1).astype(np.float64)
