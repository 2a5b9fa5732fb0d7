"""Queries of triangles by a tree of eights: triangles in a compact order, every eight a node, every eight nodes a node.

Level 0 nodes hold triangles 8g to 8g + 7 of that order, a node of level l those of level l - 1; level l begins at
`starts[l]`, and the last level is one node. A node knows its children's boxes (low x, y, z and high x, y, z, eight
numbers each; missing children start at infinity) and, for winding numbers, their area vectors, area-weighted centres
and squared reach from there (7 times eight numbers).
"""

from geom.kernels.native import native_kernel

__all__ = ["CHUNK", "FAR", "WIDTH", "closest_triangle", "winding_number"]

WIDTH = 8
CHUNK = 16
FAR = 3.0  # a child farther than this many times its reach counts as one dipole

_TREE = "triangles: real[], index: int64[], boxes: real[], starts: int64[], levels: int32"

# Squared distance of q to a triangle: to its plane where q stands over it, else to the nearest of its sides, which
# also serves where it has no area.
_DISTANCE = """
    struct Geometry {
        CUDA_CALLABLE static REAL side(const REAL* p, const REAL* a, const REAL* b) {
            const REAL ux = b[0] - a[0], uy = b[1] - a[1], uz = b[2] - a[2];
            const REAL dx = p[0] - a[0], dy = p[1] - a[1], dz = p[2] - a[2];
            const REAL square = ux * ux + uy * uy + uz * uz;
            REAL t = square > REAL(0) ? (ux * dx + uy * dy + uz * dz) / square : REAL(0);
            t = t < REAL(0) ? REAL(0) : t > REAL(1) ? REAL(1) : t;
            const REAL x = dx - t * ux, y = dy - t * uy, z = dz - t * uz;
            return x * x + y * y + z * z;
        }
        CUDA_CALLABLE static REAL triangle(const REAL* p, const REAL* t) {
            const REAL* a = t; const REAL* b = t + 3; const REAL* c = t + 6;
            const REAL ux = b[0] - a[0], uy = b[1] - a[1], uz = b[2] - a[2];
            const REAL vx = c[0] - a[0], vy = c[1] - a[1], vz = c[2] - a[2];
            const REAL dx = p[0] - a[0], dy = p[1] - a[1], dz = p[2] - a[2];
            const REAL nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
            const REAL square = nx * nx + ny * ny + nz * nz;
            const REAL s = (dy * vz - dz * vy) * nx + (dz * vx - dx * vz) * ny + (dx * vy - dy * vx) * nz;
            const REAL r = (uy * dz - uz * dy) * nx + (uz * dx - ux * dz) * ny + (ux * dy - uy * dx) * nz;
            if (square > REAL(0) && s >= REAL(0) && r >= REAL(0) && s + r <= square) {
                const REAL height = dx * nx + dy * ny + dz * nz;
                return height * height / square;
            }
            const REAL first = side(p, a, b), second = side(p, b, c), third = side(p, c, a);
            const REAL least = first < second ? first : second;
            return least < third ? least : third;
        }
    };
"""

closest_triangle = native_kernel(
    __name__,
    "closest_triangle",
    f"query: real[], {_TREE}, count: int32, face: int64[]",
    # Item i is a chunk of queries: no triangle nearest to one is farther than the last one's and the way between them.
    # Boxes are judged a little nearer than they are, for rounding; among equally near faces the lowest index wins.
    _DISTANCE
    + """
    const REAL SLACK = REAL(1) - REAL(64) * (sizeof(REAL) == 4 ? REAL(6e-8) : REAL(1.2e-16));
    const int end = CHUNK * (i + 1) < count ? CHUNK * (i + 1) : count;
    REAL before[4] = {0, 0, 0, INFINITY};
    int stack_node[96];
    int stack_level[96];
    REAL stack_d[96];
    for (int k = CHUNK * i; k < end; ++k) {
        const REAL q[3] = {query.data[3 * k], query.data[3 * k + 1], query.data[3 * k + 2]};
        REAL bound = INFINITY, best = INFINITY;
        wp::int64 best_face = -1;
        if (before[3] < REAL(INFINITY)) {
            const REAL sx = q[0] - before[0], sy = q[1] - before[1], sz = q[2] - before[2];
            const REAL reach = (before[3] + wp::sqrt(sx * sx + sy * sy + sz * sz)) * REAL(1.0001);
            bound = reach * reach;
        }
        int top = 1;
        stack_node[0] = 0; stack_level[0] = levels - 1; stack_d[0] = REAL(0);
        while (top > 0) {
            --top;
            const int node = stack_node[top], level = stack_level[top];
            if (stack_d[top] > bound) continue;
            const REAL* b = boxes.data + 48ll * (starts.data[level] + node);
            REAL d[8];
            for (int j = 0; j < 8; ++j) {
                const REAL lx = b[j] - q[0], ly = b[8 + j] - q[1], lz = b[16 + j] - q[2];
                const REAL hx = q[0] - b[24 + j], hy = q[1] - b[32 + j], hz = q[2] - b[40 + j];
                REAL x = lx > hx ? lx : hx, y = ly > hy ? ly : hy, z = lz > hz ? lz : hz;
                x = x > REAL(0) ? x : REAL(0); y = y > REAL(0) ? y : REAL(0); z = z > REAL(0) ? z : REAL(0);
                d[j] = (x * x + y * y + z * z) * SLACK;
            }
            if (level == 0) {
                for (int j = 0; j < 8; ++j) {
                    if (!(d[j] <= bound) || b[j] == REAL(INFINITY)) continue;
                    const long long place = 8ll * node + j;
                    const REAL exact = Geometry::triangle(q, triangles.data + 9 * place);
                    const wp::int64 id = index.data[place];
                    if (exact < best || (exact == best && id < best_face)) { best = exact; best_face = id; }
                    bound = best < bound ? best : bound;
                }
                continue;
            }
            const int bottom = top;
            for (int j = 0; j < 8; ++j) {
                if (!(d[j] <= bound) || b[j] == REAL(INFINITY)) continue;
                int at = top++;
                while (at > bottom && stack_d[at - 1] < d[j]) {
                    stack_d[at] = stack_d[at - 1]; stack_node[at] = stack_node[at - 1]; --at;
                }
                stack_d[at] = d[j]; stack_node[at] = 8 * node + j;
            }
            for (int at = bottom; at < top; ++at) stack_level[at] = level - 1;
        }
        face.data[k] = best_face;
        before[0] = q[0]; before[1] = q[1]; before[2] = q[2]; before[3] = wp::sqrt(best);
    }
    """.replace("CHUNK", str(CHUNK)),
)

winding_number = native_kernel(
    __name__,
    "winding_number",
    f"query: real[], {_TREE}, moments: real[], winding: real[]",
    # The solid angles of near triangles (van Oosterom & Strackee 1983, Eq. (8)), and of far children as dipoles.
    """
    const REAL qx = query.data[3 * i], qy = query.data[3 * i + 1], qz = query.data[3 * i + 2];
    int stack_node[96];
    int stack_level[96];
    int top = 1;
    stack_node[0] = 0; stack_level[0] = levels - 1;
    REAL total = 0;
    while (top > 0) {
        --top;
        const int node = stack_node[top], level = stack_level[top];
        const long long at = starts.data[level] + node;
        const REAL* m = moments.data + 56 * at;
        const REAL* box = boxes.data + 48 * at;
        REAL square[8], dipole[8];
        for (int j = 0; j < 8; ++j) {
            const REAL x = m[24 + j] - qx, y = m[32 + j] - qy, z = m[40 + j] - qz;
            square[j] = x * x + y * y + z * z;
            dipole[j] = m[j] * x + m[8 + j] * y + m[16 + j] * z;
        }
        for (int j = 0; j < 8; ++j) {
            if (box[j] == REAL(INFINITY)) continue;
            if (square[j] > REAL(FAR) * REAL(FAR) * m[48 + j]) {
                total += dipole[j] / (square[j] * wp::sqrt(square[j]));
            } else if (level > 0) {
                stack_node[top] = 8 * node + j; stack_level[top++] = level - 1;
            } else {
                const REAL* t = triangles.data + 9 * (8ll * node + j);
                const REAL ax = t[0] - qx, ay = t[1] - qy, az = t[2] - qz;
                const REAL bx = t[3] - qx, by = t[4] - qy, bz = t[5] - qz;
                const REAL cx = t[6] - qx, cy = t[7] - qy, cz = t[8] - qz;
                const REAL a = wp::sqrt(ax * ax + ay * ay + az * az);
                const REAL b = wp::sqrt(bx * bx + by * by + bz * bz);
                const REAL c = wp::sqrt(cx * cx + cy * cy + cz * cz);
                const REAL top_ = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx);
                const REAL bottom = a * b * c + (ax * bx + ay * by + az * bz) * c + (bx * cx + by * cy + bz * cz) * a
                    + (cx * ax + cy * ay + cz * az) * b;
                total += top_ == REAL(0) ? REAL(0) : REAL(2) * wp::atan2(top_, bottom);
            }
        }
    }
    winding.data[i] = total * REAL(0.07957747154594767);  // 1 / (4 pi)
    """.replace("FAR", str(FAR)),
)
