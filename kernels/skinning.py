"""Skinning: blended rows of bones, applied to vertices as matrices or as screw motions, and the adjoints by hand.

A bone is a row of 16 numbers, one register of AVX-512 in float32. For matrices: the columns of [A | t], each filled up
to four. For motions: the real part of a dual quaternion (w, x, y, z), its dual part, and the bone's strain E = S - I in
the order xx, yy, zz, xy, xz, yz, filled up with two zeros.

An item of the forward kernels is `size` vertices of one pose. An item of the adjoints is `size` vertices in all poses,
one after the other: what vertices and weights get from several poses is summed in that order. What bones get is summed
over the item's vertices in `partial` (items, poses, joints, 16), and over items, in float64, by `total`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geom.kernels import bridge
from geom.kernels.native import native_kernel

__all__ = ["deform", "deform_adjoint"]

_ROOM = 1 << 26  # bytes of `partial`

# Rows and what is done to them, in vectors on the CPU and in loops on CUDA.
_ROWS = """
#ifndef __CUDA_ARCH__
    #pragma clang fp contract(fast)
    const int LANES = 16;  // vertices of one pass
    typedef REAL Row __attribute__((ext_vector_type(16), aligned(sizeof(REAL))));
    typedef REAL Four __attribute__((ext_vector_type(4), aligned(sizeof(REAL))));
    struct Rows {
        static inline void add(REAL* sum, REAL w, const REAL* row) { *(Row*)sum += w * *(const Row*)row; }
        static inline void add(REAL* sum, REAL s, REAL w, const REAL* row) {
            Row& r = *(Row*)sum;
            const Row x = *(const Row*)row;
            r.lo += s * x.lo;
            r.hi += w * x.hi;
        }
        static inline REAL dot(const REAL* a, REAL sign, const REAL* b) {
            #pragma clang fp contract(fast)
            const Row x = *(const Row*)a * *(const Row*)b;
            const Four four = sign * (x.lo.lo + x.lo.hi) + (x.hi.lo + x.hi.hi);
            return (four[0] + four[1]) + (four[2] + four[3]);
        }
        static inline void move(const REAL* m, const REAL* v, REAL* out) {
            #pragma clang fp contract(fast)
            const Row r = *(const Row*)m;
            const Four x = r.lo.lo * v[0] + r.lo.hi * v[1] + r.hi.lo * v[2] + r.hi.hi;
            out[0] = x[0]; out[1] = x[1]; out[2] = x[2];
        }
        // products of quaternions: where they are nearly 0, rounding decides the sign, and must do so everywhere alike
        static inline Four sides(Four w, Four x, Four y, Four z, const REAL* near) {
            #pragma clang fp contract(off)
            return w * near[0] + x * near[1] + y * near[2] + z * near[3];
        }
        static inline REAL side(const REAL* q, const REAL* near) {
            #pragma clang fp contract(off)
            return q[0] * near[0] + q[1] * near[1] + q[2] * near[2] + q[3] * near[3];
        }
        // the weighted rows of a vertex, their quaternions on the side of another, `near`
        static inline void screws(
            REAL* sum, const REAL* bone, const wp::int64* index, const REAL* w, int width, bool dense, const REAL* near
        ) {
            #pragma clang fp contract(fast)
            int k = 0;
            for (; k + 4 <= width; k += 4) {
                if (dense && w[k] == 0 && w[k + 1] == 0 && w[k + 2] == 0 && w[k + 3] == 0) continue;
                const REAL* first = bone + 16 * index[k];
                const REAL* second = bone + 16 * index[k + 1];
                const REAL* third = bone + 16 * index[k + 2];
                const REAL* fourth = bone + 16 * index[k + 3];
                const Four a = *(const Four*)first, b = *(const Four*)second;
                const Four c = *(const Four*)third, d = *(const Four*)fourth;
                const Four p = __builtin_shufflevector(a, b, 0, 4, 1, 5), q = __builtin_shufflevector(a, b, 2, 6, 3, 7);
                const Four s = __builtin_shufflevector(c, d, 0, 4, 1, 5), t = __builtin_shufflevector(c, d, 2, 6, 3, 7);
                const Four x = __builtin_shufflevector(p, s, 0, 1, 4, 5), y = __builtin_shufflevector(p, s, 2, 3, 6, 7);
                const Four z = __builtin_shufflevector(q, t, 0, 1, 4, 5), u = __builtin_shufflevector(q, t, 2, 3, 6, 7);
                const Four cosine = sides(x, y, z, u, near);
                const Four plain = *(const Four*)(w + k), turned = cosine < REAL(0) ? -plain : plain;
                add(sum, turned[0], plain[0], first);
                add(sum, turned[1], plain[1], second);
                add(sum, turned[2], plain[2], third);
                add(sum, turned[3], plain[3], fourth);
            }
            for (; k < width; ++k) {
                const REAL* row = bone + 16 * index[k];
                add(sum, side(row, near) < REAL(0) ? -w[k] : w[k], w[k], row);
            }
        }
        static inline void turn(const REAL* from, REAL* to) {  // 16 x 16, rows to columns
            for (int r = 0; r < 16; r += 4)
                for (int l = 0; l < 16; l += 4) {
                    const Four a = *(const Four*)(from + 16 * r + l), b = *(const Four*)(from + 16 * r + 16 + l);
                    const Four c = *(const Four*)(from + 16 * r + 32 + l), d = *(const Four*)(from + 16 * r + 48 + l);
                    const Four p = __builtin_shufflevector(a, b, 0, 4, 1, 5);
                    const Four q = __builtin_shufflevector(a, b, 2, 6, 3, 7);
                    const Four s = __builtin_shufflevector(c, d, 0, 4, 1, 5);
                    const Four t = __builtin_shufflevector(c, d, 2, 6, 3, 7);
                    *(Four*)(to + 16 * l + r) = __builtin_shufflevector(p, s, 0, 1, 4, 5);
                    *(Four*)(to + 16 * l + 16 + r) = __builtin_shufflevector(p, s, 2, 3, 6, 7);
                    *(Four*)(to + 16 * l + 32 + r) = __builtin_shufflevector(q, t, 0, 1, 4, 5);
                    *(Four*)(to + 16 * l + 48 + r) = __builtin_shufflevector(q, t, 2, 3, 6, 7);
                }
        }
    };
#else
    const int LANES = 1;
    struct Rows {
        CUDA_CALLABLE static void add(REAL* sum, REAL w, const REAL* row) {
            for (int l = 0; l < 16; ++l) sum[l] += w * row[l];
        }
        CUDA_CALLABLE static void add(REAL* sum, REAL s, REAL w, const REAL* row) {
            for (int l = 0; l < 16; ++l) sum[l] += (l < 8 ? s : w) * row[l];
        }
        CUDA_CALLABLE static REAL dot(const REAL* a, REAL sign, const REAL* b) {
            REAL low = 0, high = 0;
            for (int l = 0; l < 8; ++l) { low += a[l] * b[l]; high += a[8 + l] * b[8 + l]; }
            return sign * low + high;
        }
        CUDA_CALLABLE static void move(const REAL* m, const REAL* v, REAL* out) {
            for (int c = 0; c < 3; ++c) out[c] = m[c] * v[0] + m[4 + c] * v[1] + m[8 + c] * v[2] + m[12 + c];
        }
        CUDA_CALLABLE static REAL side(const REAL* q, const REAL* near) {
            return q[0] * near[0] + q[1] * near[1] + q[2] * near[2] + q[3] * near[3];
        }
        CUDA_CALLABLE static void screws(
            REAL* sum, const REAL* bone, const wp::int64* index, const REAL* w, int width, bool dense, const REAL* near
        ) {
            for (int k = 0; k < width; ++k) {
                const REAL* row = bone + 16 * index[k];
                add(sum, side(row, near) < REAL(0) ? -w[k] : w[k], w[k], row);
            }
        }
        CUDA_CALLABLE static void turn(const REAL* from, REAL* to) {  // 1 x 16
            for (int l = 0; l < 16; ++l) to[l] = from[l];
        }
    };
#endif
    const REAL LEAST = sizeof(REAL) == 4 ? REAL(1e-18) : REAL(1e-150);
    const int count = weights.shape[0], width = weights.shape[1], joints = bones.shape[1];
    const int parts = (count + size - 1) / size;
    const bool dense = indices.shape[0] == 1;  // one row of indices for all vertices
    const long long next = dense ? 0 : width;
"""

# The bones of vertex m, and the first of those of the greatest weight.
_INFLUENCES = """
                const REAL* w = weights.data + (long long)width * m;
                const wp::int64* index = indices.data + next * m;
"""
_PIVOT = """
                int pivot = (int)index[0];
                REAL most = w[0];
                for (int k = 1; k < width; ++k) {
                    const int j = (int)index[k];
                    const bool better = (w[k] > most) | ((w[k] == most) & (j < pivot));
                    pivot ^= (pivot ^ j) & -(int)better;  // no branch, which would often be guessed wrong
                    most = w[k] > most ? w[k] : most;
                }
                const REAL* near = bone + 16 * pivot;
"""
_FORWARD = "vertices: real[], weights: real[], indices: int64[], bones: real[], step: int32, size: int32, moved: real[]"
_BEGIN = """
    const int pose = i / parts, begin = (i - pose * parts) * size, end = begin + size < count ? begin + size : count;
    const REAL* bone = bones.data + 16ll * joints * pose;
    const REAL* v = vertices.data + 3ll * count * step * pose;
    REAL* out = moved.data + 3ll * count * pose;
"""

lbs = native_kernel(
    __name__,
    "lbs",
    _FORWARD,
    _ROWS
    + _BEGIN
    + """
    if (dense) {  // four vertices for each load of a bone
        for (int n = begin; n < end; n += 4) {
            const int some = end - n < 4 ? end - n : 4;
            REAL sum[4][16];
            const REAL* w[4];
            for (int r = 0; r < 4; ++r) {
                w[r] = weights.data + (long long)width * (r < some ? n + r : n);
                for (int l = 0; l < 16; ++l) sum[r][l] = REAL(0);
            }
            for (int k = 0; k < width; ++k)
                for (int r = 0; r < 4; ++r) Rows::add(sum[r], w[r][k], bone + 16 * indices.data[k]);
            for (int r = 0; r < some; ++r) Rows::move(sum[r], v + 3 * (n + r), out + 3 * (n + r));
        }
        return;
    }
    for (int m = begin; m < end; ++m) {
        INFLUENCES
        REAL sum[16];
        for (int l = 0; l < 16; ++l) sum[l] = REAL(0);
        for (int k = 0; k < width; ++k) Rows::add(sum, w[k], bone + 16 * index[k]);
        Rows::move(sum, v + 3 * m, out + 3 * m);
    }
    """.replace("INFLUENCES", _INFLUENCES),
)

# The place of a vertex under a blended row: out = u + c F, u = v + E v, c = 2 / |q|^2, q = (w, r), dual part (e, d),
#     h = r x u + w u + d,    F = r x h + w d - e r.
_SCREW = """
            const REAL w = b[0][l], x = b[1][l], y = b[2][l], z = b[3][l];
            const REAL e = b[4][l], dx = b[5][l], dy = b[6][l], dz = b[7][l];
            const REAL vx = p[0][l], vy = p[1][l], vz = p[2][l];
            const REAL ux = vx + b[8][l] * vx + b[11][l] * vy + b[12][l] * vz;
            const REAL uy = vy + b[11][l] * vx + b[9][l] * vy + b[13][l] * vz;
            const REAL uz = vz + b[12][l] * vx + b[13][l] * vy + b[10][l] * vz;
            const REAL square = w * w + x * x + y * y + z * z;
            const bool none = !(square > LEAST);
            const REAL inverse = none ? REAL(0) : REAL(1) / (none ? REAL(1) : square), c = 2 * inverse;
            const REAL hx = y * uz - z * uy + w * ux + dx;
            const REAL hy = z * ux - x * uz + w * uy + dy;
            const REAL hz = x * uy - y * ux + w * uz + dz;
            const REAL fx = y * hz - z * hy + w * dx - e * x;
            const REAL fy = z * hx - x * hz + w * dy - e * y;
            const REAL fz = x * hy - y * hx + w * dz - e * z;
"""

dqs = native_kernel(
    __name__,
    "dqs",
    _FORWARD,
    _ROWS
    + _BEGIN
    + """
    for (int n = begin; n < end; n += LANES) {
        const int some = end - n < LANES ? end - n : LANES;
        REAL rows[LANES][16], b[16][LANES], p[3][LANES], o[3][LANES];
        for (int r = 0; r < LANES; ++r) {
            const int m = r < some ? n + r : n;
            INFLUENCES PIVOT
            REAL sum[16];
            for (int l = 0; l < 16; ++l) sum[l] = REAL(0);
            Rows::screws(sum, bone, index, w, width, dense, near);
            for (int l = 0; l < 16; ++l) rows[r][l] = sum[l];
            for (int a = 0; a < 3; ++a) p[a][r] = v[3 * m + a];
        }
        Rows::turn(rows[0], b[0]);
        for (int l = 0; l < LANES; ++l) {
            SCREW
            o[0][l] = ux + c * fx; o[1][l] = uy + c * fy; o[2][l] = uz + c * fz;
        }
        for (int r = 0; r < some; ++r) for (int a = 0; a < 3; ++a) out[3 * (n + r) + a] = o[a][r];
    }
    """.replace("INFLUENCES", _INFLUENCES)
    .replace("PIVOT", _PIVOT)
    .replace("SCREW", _SCREW),
)

_ADJOINT = (
    "grad: real[], vertices: real[], weights: real[], indices: int64[], bones: real[], step: int32, size: int32, "
    "vertices_grad: real[], weights_grad: real[], partial: real[]"
)
_BACK = """
    const int poses = bones.shape[0], begin = i * size, end = begin + size < count ? begin + size : count;
    const bool to_vertices = vertices_grad.shape[0] > 0;
    const bool to_weights = weights_grad.shape[0] > 0, to_bones = partial.shape[0] > 0;
    for (int pose = 0; pose < poses; ++pose) {
        const REAL* bone = bones.data + 16ll * joints * pose;
        const REAL* v = vertices.data + 3ll * count * step * pose;
        const REAL* g = grad.data + 3ll * count * pose;
        REAL* back = vertices_grad.data + 3ll * count * step * pose;
        REAL* own = partial.data + 16ll * joints * ((long long)poses * i + pose);
        const bool first = pose == 0, first_of_vertex = first || step;
        if (to_bones) for (int j = 0; j < 16 * joints; ++j) own[j] = REAL(0);
"""

lbs_adjoint = native_kernel(
    __name__,
    "lbs_adjoint",
    _ADJOINT,
    _ROWS
    + _BACK
    + """
        for (int m = begin; m < end; ++m) {
            INFLUENCES
            const REAL* at = v + 3ll * m;
            const REAL gx = g[3ll * m], gy = g[3ll * m + 1], gz = g[3ll * m + 2];
            REAL outer[16];
            for (int a = 0; a < 4; ++a) {
                const REAL x = a < 3 ? at[a] : REAL(1);
                outer[4 * a] = gx * x; outer[4 * a + 1] = gy * x; outer[4 * a + 2] = gz * x; outer[4 * a + 3] = REAL(0);
            }
            if (to_vertices) {
                REAL sum[16];
                for (int l = 0; l < 16; ++l) sum[l] = REAL(0);
                for (int k = 0; k < width; ++k) Rows::add(sum, w[k], bone + 16 * (int)index[k]);
                for (int a = 0; a < 3; ++a) {
                    REAL& to = back[3ll * m + a];
                    const REAL all = sum[4 * a] * gx + sum[4 * a + 1] * gy + sum[4 * a + 2] * gz;
                    to = first_of_vertex ? all : to + all;
                }
            }
            for (int k = 0; k < width; ++k) {
                const int j = (int)index[k];
                if (to_weights) {
                    REAL& to = weights_grad.data[(long long)width * m + k];
                    const REAL all = Rows::dot(outer, REAL(1), bone + 16 * j);
                    to = first ? all : to + all;
                }
                if (to_bones) Rows::add(own + 16 * j, w[k], outer);
            }
        }
    }
    """.replace("INFLUENCES", _INFLUENCES),
)

dqs_adjoint = native_kernel(
    __name__,
    "dqs_adjoint",
    _ADJOINT,
    _ROWS
    + _BACK
    + """
        for (int n = begin; n < end; n += LANES) {
            const int some = end - n < LANES ? end - n : LANES;
            REAL rows[LANES][16], b[16][LANES], p[3][LANES], o[3][LANES], t[16][LANES];
            int pivots[LANES];
            for (int r = 0; r < LANES; ++r) {
                const int m = r < some ? n + r : n;
                INFLUENCES PIVOT
                pivots[r] = pivot;
                REAL sum[16];
                for (int l = 0; l < 16; ++l) sum[l] = REAL(0);
                Rows::screws(sum, bone, index, w, width, dense, near);
                for (int l = 0; l < 16; ++l) rows[r][l] = sum[l];
                for (int a = 0; a < 3; ++a) { p[a][r] = v[3ll * m + a]; o[a][r] = g[3ll * m + a]; }
            }
            Rows::turn(rows[0], b[0]);
            for (int l = 0; l < LANES; ++l) {
                SCREW
                const REAL gx = o[0][l], gy = o[1][l], gz = o[2][l];
                const REAL kx = c * gx, ky = c * gy, kz = c * gz;  // to F, and from there to h: k x r
                const REAL lx = ky * z - kz * y, ly = kz * x - kx * z, lz = kx * y - ky * x;
                const REAL down = -2 * c * inverse * (gx * fx + gy * fy + gz * fz);  // to |q|^2, twice
                t[0][l] = dx * kx + dy * ky + dz * kz + ux * lx + uy * ly + uz * lz + w * down;
                t[1][l] = hy * kz - hz * ky - e * kx + uy * lz - uz * ly + x * down;
                t[2][l] = hz * kx - hx * kz - e * ky + uz * lx - ux * lz + y * down;
                t[3][l] = hx * ky - hy * kx - e * kz + ux * ly - uy * lx + z * down;
                t[4][l] = -(x * kx + y * ky + z * kz);
                t[5][l] = w * kx + lx; t[6][l] = w * ky + ly; t[7][l] = w * kz + lz;
                const REAL ax = gx + ly * z - lz * y + w * lx;  // to u
                const REAL ay = gy + lz * x - lx * z + w * ly;
                const REAL az = gz + lx * y - ly * x + w * lz;
                t[8][l] = ax * vx; t[9][l] = ay * vy; t[10][l] = az * vz;
                t[11][l] = ax * vy + ay * vx; t[12][l] = ax * vz + az * vx; t[13][l] = ay * vz + az * vy;
                t[14][l] = REAL(0); t[15][l] = REAL(0);
                o[0][l] = ax + b[8][l] * ax + b[11][l] * ay + b[12][l] * az;
                o[1][l] = ay + b[11][l] * ax + b[9][l] * ay + b[13][l] * az;
                o[2][l] = az + b[12][l] * ax + b[13][l] * ay + b[10][l] * az;
            }
            Rows::turn(t[0], rows[0]);
            for (int r = 0; r < some; ++r) {
                const int m = n + r;
                INFLUENCES
                const REAL* near = bone + 16 * pivots[r];
                if (to_vertices)
                    for (int a = 0; a < 3; ++a) {
                        REAL& to = back[3ll * m + a];
                        to = first_of_vertex ? o[a][r] : to + o[a][r];
                    }
                for (int k = 0; k < width; ++k) {
                    const REAL* row = bone + 16 * (int)index[k];
                    const REAL sign = Rows::side(row, near) < REAL(0) ? REAL(-1) : REAL(1);
                    if (to_weights) {
                        REAL& to = weights_grad.data[(long long)width * m + k];
                        const REAL all = Rows::dot(rows[r], sign, row);
                        to = first ? all : to + all;
                    }
                    if (to_bones) Rows::add(own + (row - bone), sign * w[k], w[k], rows[r]);
                }
            }
        }
    }
    """.replace("INFLUENCES", _INFLUENCES)
    .replace("PIVOT", _PIVOT)
    .replace("SCREW", _SCREW),
)

total = native_kernel(
    __name__,
    "total",
    "partial: real[], bones_grad: real[]",
    # Item i is a number of a bone in a pose.
    """
    const long long step = partial.shape[1];
    double sum = 0;
    for (int part = 0; part < partial.shape[0]; ++part) sum += (double)partial.data[step * part + i];
    bones_grad.data[i] = (REAL)sum;
    """,
)

_KERNELS = {"lbs": (lbs, lbs_adjoint), "dqs": (dqs, dqs_adjoint)}


def deform(name: str, vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor) -> Tensor:
    """Vertices (B, V, 3) moved by the kernel `name`, from (1 or B, V, 3) and rows (B, J, 16)."""
    size = 1 if rows.is_cuda else 256
    items = len(rows) * -(-len(weights) // size)
    args = _arguments(vertices, weights, indices, rows)
    moved = vertices.new_empty((len(rows), *vertices.shape[1:]))
    kernel = _KERNELS[name][0][rows.dtype]
    bridge.launch(kernel, items, *args, size, moved, device=rows.device, grain=4096 // size)
    return moved


def deform_adjoint(
    name: str,
    grad: Tensor,
    vertices: Tensor,
    weights: Tensor,
    indices: Tensor | None,
    rows: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """What vertices, weights and rows get, those that are wanted; empty tensors for the others."""
    poses, joints = rows.shape[:2]
    # an item's sums take as much room as its joints: more vertices for each where that would be too much in all
    room = len(weights) * rows.numel() * rows.itemsize // _ROOM
    size = max(64 if rows.is_cuda else 1024, joints, room)
    parts = -(-len(weights) // size)
    own = [x.new_empty(x.shape if want else 0) for x, want in zip((vertices, weights), wanted, strict=False)]
    if not poses:
        own = [x.zero_() for x in own]
    partial = rows.new_empty((parts, rows.numel()) if wanted[2] else 0)
    args = _arguments(vertices, weights, indices, rows)
    kernel = _KERNELS[name][1][rows.dtype]
    bridge.launch(kernel, parts, grad.contiguous(), *args, size, *own, partial, device=rows.device, grain=4)
    rows_grad = rows.new_empty(rows.shape if wanted[2] else 0)
    bridge.launch(total[rows.dtype], rows_grad.numel(), partial, rows_grad, device=rows.device)
    return own[0], own[1], rows_grad


def _arguments(vertices: Tensor, weights: Tensor, indices: Tensor | None, rows: Tensor) -> tuple[Any, ...]:
    named = torch.arange(rows.shape[1], device=rows.device)[None] if indices is None else indices.contiguous()
    step = int(len(vertices) == len(rows) != 1)
    return vertices.contiguous(), weights.contiguous(), named, rows.contiguous(), step
