"""Exact neighbours by a tree of eights: points in a compact order, every eight a leaf, every eight boxes a node.

The tree is implicit: node g of a level holds the boxes of nodes 8g to 8g + 7 of the level below, of its own cloud only
(`bases` (levels + 1, B + 1) int32: where each cloud's nodes begin, level by level; level 0 counts the leaves). Eight
coordinates or bounds lie side by side, so that the CPU tests them in one or two vector instructions. Missing points
are at infinity, missing boxes start at infinity: neither is ever near.
"""

from geom.kernels.native import native_kernel

__all__ = [
    "CHUNK",
    "WIDTH",
    "ball_query",
    "knn",
    "leaves",
    "median_order",
    "median_parts",
    "middle",
    "nodes",
    "radius_count",
    "radius_fill",
]

WIDTH = 8

_CLOUD_OF_GROUP = """
    const wp::int32* base = bases.data + level * stride;
    int cloud = 0;
    while (base[cloud + 1] <= i) ++cloud;
"""

_MEDIANS = """
    REAL* p = work.data + 3 * edges.data[i];
    wp::int64* id = order.data + edges.data[i];
    const long long total = edges.data[i + 1] - edges.data[i];
    for (long long j = 0; j < (fresh ? total : 0); ++j) {
        id[j] = edges.data[i] + j;
        for (int axis = 0; axis < 3; ++axis) p[3 * j + axis] = points.data[3 * id[j] + axis];
    }
    long long begins[128], ends[128];
    int top = 0;
    if (total > 8) { begins[0] = 0; ends[0] = total; top = 1; }
    while (top > 0) {
        --top;
        const long long begin = begins[top], end = ends[top], count = end - begin;
        long long part = 8;
        while (8 * part < count) part *= 8;
        long long middle = begin + (count / 2 + part / 2) / part * part;
        if (middle >= end) middle -= part;
        if (middle <= begin) middle = begin + part;
        REAL low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};
        for (long long j = begin; j < end; ++j)
            for (int axis = 0; axis < 3; ++axis) {
                low[axis] = p[3 * j + axis] < low[axis] ? p[3 * j + axis] : low[axis];
                high[axis] = p[3 * j + axis] > high[axis] ? p[3 * j + axis] : high[axis];
            }
        int widest = 0;
        for (int axis = 1; axis < 3; ++axis)
            if (high[axis] - low[axis] > high[widest] - low[widest]) widest = axis;
        long long left = begin, right = end - 1;  // quickselect; equal keys are shared out, so duplicates halve too
        while (left < right) {
            const REAL a = p[3 * left + widest], b = p[3 * ((left + right) / 2) + widest], c = p[3 * right + widest];
            const REAL pivot = a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));
            long long l = left, r = right;
            while (l <= r) {
                while (p[3 * l + widest] < pivot) ++l;
                while (p[3 * r + widest] > pivot) --r;
                if (l > r) break;
                for (int axis = 0; axis < 3; ++axis) {
                    const REAL swap = p[3 * l + axis]; p[3 * l + axis] = p[3 * r + axis]; p[3 * r + axis] = swap;
                }
                const wp::int64 swap = id[l]; id[l] = id[r]; id[r] = swap;
                ++l; --r;
            }
            if (middle <= r) right = r;
            else if (middle >= l) left = l;
            else break;
        }
        if (once) break;
        if (middle - begin > 8) { begins[top] = begin; ends[top++] = middle; }
        if (end - middle > 8) { begins[top] = middle; ends[top++] = end; }
    }
    """

# Item i is a cloud. Ranges are halved at the median of their widest axis, at a multiple of the largest power of eight,
# times eight, that leaves eight parts or fewer (`middle`), so that every eight leaves, or boxes, in a row are compact.
median_order = native_kernel(
    __name__,
    "median_order",
    "points: real[], edges: int64[], work: real[], order: int64[]",
    "const int fresh = 1, once = 0;" + _MEDIANS,
)

# The same by parts: item i is a cloud (`fresh`) or what was left of one when it was halved `once`.
median_parts = native_kernel(
    __name__,
    "median_parts",
    "points: real[], edges: int64[], work: real[], order: int64[], fresh: int32, once: int32",
    _MEDIANS,
)


def middle(begin: int, end: int) -> int:
    """Where `median_order` halves a range of more than eight points."""
    part = WIDTH
    while WIDTH * part < end - begin:
        part *= WIDTH
    at = begin + ((end - begin) // 2 + part // 2) // part * part
    return max(at - part if at >= end else at, begin + part)


leaves = native_kernel(
    __name__,
    "leaves",
    "points: real[], order: int64[], offsets: int64[], bases: int32[], stride: int32, level: int32, "
    "leaf_points: real[], leaf_index: int32[]",
    """
    const REAL FAR = INFINITY;
    if (i >= bases.data[stride - 1]) {  // spare room at the end
        for (int j = 0; j < 8; ++j) {
            for (int axis = 0; axis < 3; ++axis) leaf_points.data[24 * i + 8 * axis + j] = FAR;
            leaf_index.data[8 * i + j] = -1;
        }
        return;
    }
"""
    + _CLOUD_OF_GROUP
    + """
    const long long start = offsets.data[cloud] + 8ll * (i - base[cloud]);
    for (int j = 0; j < 8; ++j) {
        const bool there = start + j < offsets.data[cloud + 1];
        const long long k = there ? order.data[start + j] : -1;
        for (int axis = 0; axis < 3; ++axis)
            leaf_points.data[24 * i + 8 * axis + j] = there ? points.data[3 * k + axis] : FAR;
        leaf_index.data[8 * i + j] = (wp::int32)k;
    }
    """,
)

nodes = native_kernel(
    __name__,
    "nodes",
    "leaf_points: real[], bases: int32[], stride: int32, level: int32, node_base: int32, child_base: int32, "
    "boxes: real[]",
    # Node i of this level: low x, y, z and high x, y, z of its eight children, eight numbers each.
    """
    const REAL FAR = INFINITY;
    REAL* out = boxes.data + 48ll * (node_base + i);
    for (int j = 0; j < 24; ++j) { out[j] = FAR; out[24 + j] = -FAR; }
    if (i >= bases.data[level * stride + stride - 1]) return;
"""
    + _CLOUD_OF_GROUP
    + """
    const wp::int32* below = bases.data + (level - 1) * stride;
    for (int j = 0; j < 8; ++j) {
        const int child = below[cloud] + 8 * (i - base[cloud]) + j;
        if (child >= below[cloud + 1]) break;
        for (int axis = 0; axis < 3; ++axis) {
            REAL low = FAR, high = -FAR;
            if (level == 1) {
                const REAL* p = leaf_points.data + 24ll * child + 8 * axis;
                for (int c = 0; c < 8; ++c) {
                    low = p[c] < low ? p[c] : low;
                    high = p[c] > high && p[c] < FAR ? p[c] : high;
                }
            } else {
                const REAL* b = boxes.data + 48ll * (child_base + child) + 8 * axis;
                for (int c = 0; c < 8; ++c) {
                    low = b[c] < low ? b[c] : low;
                    high = b[24 + c] > high ? b[24 + c] : high;
                }
            }
            out[8 * axis + j] = low;
            out[24 + 8 * axis + j] = high;
        }
    }
    """,
)

TREE = (
    "leaf_points: real[], leaf_index: int32[], boxes: real[], bases: int32[], node_bases: int32[], stride: int32, "
    "levels: int32"
)

# The walk: nearest boxes first, from the stack; BOUND is what a squared distance must not pass; LEAF is done with the
# eight squared distances `d` and indices `id` of a leaf. A box is never judged farther than its points: the same
# operations round the same way, and SLACK covers a fused multiply-add in one place and not in the other.
WALK = """
    const REAL SLACK = REAL(1) - REAL(8) * (sizeof(REAL) == 4 ? REAL(6e-8) : REAL(1.2e-16));
    int stack_node[96];
    int stack_level[96];
    REAL stack_d[96];
    int top = 0;
    if (bases.data[cloud] < bases.data[cloud + 1]) {
        stack_node[0] = 0; stack_level[0] = levels; stack_d[0] = REAL(0); top = 1;
    }
    while (top > 0) {
        --top;
        const int node = stack_node[top], level = stack_level[top];
        if (stack_d[top] > BOUND) { DROPPED continue; }
        REAL d[8];
        if (level == 0) {
            const REAL* p = leaf_points.data + 24ll * (bases.data[cloud] + node);
            for (int j = 0; j < 8; ++j) {
                const REAL dx = p[j] - qx, dy = p[8 + j] - qy, dz = p[16 + j] - qz;
                d[j] = dx * dx + dy * dy + dz * dz;
            }
            const wp::int32* id = leaf_index.data + 8ll * (bases.data[cloud] + node);
            LEAF
            continue;
        }
        const REAL* b = boxes.data + 48ll * (node_bases.data[level] + bases.data[level * stride + cloud] + node);
        for (int j = 0; j < 8; ++j) {
            const REAL lx = b[j] - qx, ly = b[8 + j] - qy, lz = b[16 + j] - qz;
            const REAL hx = qx - b[24 + j], hy = qy - b[32 + j], hz = qz - b[40 + j];
            REAL dx = lx > hx ? lx : hx, dy = ly > hy ? ly : hy, dz = lz > hz ? lz : hz;
            dx = dx > REAL(0) ? dx : REAL(0); dy = dy > REAL(0) ? dy : REAL(0); dz = dz > REAL(0) ? dz : REAL(0);
            d[j] = (dx * dx + dy * dy + dz * dz) * SLACK;
        }
        const int bottom = top;
        unsigned hits = 0;
        for (int j = 0; j < 8; ++j) hits |= (unsigned)(d[j] <= BOUND && d[j] < REAL(INFINITY)) << j;
        MISSED
        for (; hits; hits &= hits - 1) {
#if defined(__CUDA_ARCH__)
            const int j = __ffs(hits) - 1;
#else
            const int j = __builtin_ctz(hits);
#endif
            int at = top++;
            while (at > bottom && stack_d[at - 1] < d[j]) {
                stack_d[at] = stack_d[at - 1]; stack_node[at] = stack_node[at - 1]; --at;
            }
            stack_d[at] = d[j]; stack_node[at] = 8 * node + j;
        }
        for (int at = bottom; at < top; ++at) stack_level[at] = level - 1;
    }
"""

_QUERY = """
    int cloud = 0;
    while (query_offsets.data[cloud + 1] <= i) ++cloud;
    const REAL qx = query.data[3 * i], qy = query.data[3 * i + 1], qz = query.data[3 * i + 2];
"""


def walk(bound: str, leaf: str, pruned: str = "") -> str:
    """The walk with its blanks filled in; `pruned` sees the squared distance of what is left out as `@`."""
    missed = f"for (int j = 0; j < 8; ++j) if (!(hits >> j & 1u)) {{ {pruned.replace('@', 'd[j]')} }}" if pruned else ""
    text = WALK.replace("MISSED", missed).replace("DROPPED", pruned.replace("@", "stack_d[top]"))
    return text.replace("BOUND", bound).replace("LEAF", leaf)


CHUNK = 16

knn = native_kernel(
    __name__,
    "knn",
    f"query: real[], order: int64[], query_offsets: int64[], {TREE}, k: int32, limit: real, count: int32, "
    "index: int64[], square: real[]",
    # Item i is a chunk of queries, in their `order` if there is one. Rows are kept sorted by (squared distance, index):
    # ties go to the lower index, whatever the order of the walk. The k-th neighbour of a query is no farther than that
    # of the query before it plus the way between the two: where queries follow each other closely, the walk starts with
    # a near bound.
    """
    const int end = CHUNK * (i + 1) < count ? CHUNK * (i + 1) : count;
    REAL before[4] = {0, 0, 0, INFINITY};
    int cloud = 0;
    for (int p = CHUNK * i; p < end; ++p) {
    while (query_offsets.data[cloud + 1] <= p) { ++cloud; before[3] = INFINITY; }
    const long long row = order.data ? order.data[p] : p;
    const REAL qx = query.data[3 * row], qy = query.data[3 * row + 1], qz = query.data[3 * row + 2];
    REAL* best = square.data + row * k;
    wp::int64* best_id = index.data + row * k;
    for (int j = 0; j < k; ++j) { best[j] = INFINITY; best_id[j] = -1; }
    REAL cap = limit;
    if (before[3] < INFINITY) {
        const REAL sx = qx - before[0], sy = qy - before[1], sz = qz - before[2];
        const REAL reach = (before[3] + wp::sqrt(sx * sx + sy * sy + sz * sz)) * REAL(1.00001);
        cap = reach * reach < limit ? reach * reach : limit;
    }
    REAL worst = cap;
""".replace("CHUNK", str(CHUNK))
    + walk(
        "worst",
        """
            for (int j = 0; j < 8; ++j) {
                if (!(d[j] <= worst) || id[j] < 0) continue;
                if (d[j] == best[k - 1] && id[j] > best_id[k - 1]) continue;
                int at = k - 1;
                while (at > 0 && (best[at - 1] > d[j] || (best[at - 1] == d[j] && best_id[at - 1] > id[j]))) {
                    best[at] = best[at - 1]; best_id[at] = best_id[at - 1]; --at;
                }
                best[at] = d[j]; best_id[at] = id[j];
                worst = best[k - 1] < cap ? best[k - 1] : cap;
            }
        """,
    )
    + """
    before[0] = qx; before[1] = qy; before[2] = qz; before[3] = wp::sqrt(best[k - 1]);
    }
    """,
)

ball_query = native_kernel(
    __name__,
    "ball_query",
    f"query: real[], query_offsets: int64[], {TREE}, k: int32, square_radius: real, index: int64[], square: real[]",
    # The k points of lowest index inside, each row sorted by index.
    _QUERY
    + """
    wp::int64* const out = index.data + (long long)i * k;
    REAL* const out_d = square.data + (long long)i * k;
    for (int j = 0; j < k; ++j) { out[j] = -1; out_d[j] = INFINITY; }
    int found = 0;
"""
    + walk(
        "square_radius",
        """
            for (int j = 0; j < 8; ++j) {
                if (!(d[j] < square_radius) || id[j] < 0 || (found == k && id[j] > out[k - 1])) continue;
                int at = found < k ? found++ : k - 1;
                while (at > 0 && out[at - 1] > id[j]) { out[at] = out[at - 1]; out_d[at] = out_d[at - 1]; --at; }
                out[at] = id[j]; out_d[at] = d[j];
            }
        """,
    ),
)

radius_count = native_kernel(
    __name__,
    "radius_count",
    f"query: real[], query_offsets: int64[], {TREE}, square_radius: real, count: int64[]",
    _QUERY
    + "    wp::int64 found = 0;\n"
    + walk("square_radius", "for (int j = 0; j < 8; ++j) found += d[j] <= square_radius && id[j] >= 0;")
    + "    count.data[i] = found;\n",
)

radius_fill = native_kernel(
    __name__,
    "radius_fill",
    f"query: real[], query_offsets: int64[], {TREE}, square_radius: real, rows: int64[], "
    "index: int64[], square: real[]",
    # Each row by index: a Shell sort, in place.
    _QUERY
    + """
    wp::int64* out = index.data + rows.data[i];
    REAL* out_d = square.data + rows.data[i];
    const int length = (int)(rows.data[i + 1] - rows.data[i]);
    int found = 0;
"""
    + walk(
        "square_radius",
        """
            for (int j = 0; j < 8; ++j)
                if (d[j] <= square_radius && id[j] >= 0 && found < length) {
                    out[found] = id[j]; out_d[found++] = d[j];
                }
        """,
    )
    + """
    int gap = 1;
    while (gap < length / 3) gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3)
        for (int a = gap; a < length; ++a) {
            const wp::int64 key = out[a];
            const REAL value = out_d[a];
            int at = a;
            while (at >= gap && out[at - gap] > key) {
                out[at] = out[at - gap]; out_d[at] = out_d[at - gap]; at -= gap;
            }
            out[at] = key; out_d[at] = value;
        }
    """,
)
