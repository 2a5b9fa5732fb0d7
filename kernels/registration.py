"""Local registration: neighbours kept while they provably stay the same, and normal equations chunk by chunk."""

from geom.kernels.native import native_kernel
from geom.kernels.neighbors import TREE, walk
from geom.kernels.voxels import SPREAD

__all__ = ["SUMS", "associate", "find_cells", "normal_equations"]

SUMS = 32  # 21 of H (upper triangle by rows), 6 of g, cost, sum of |e|^2, count, 2 spare

# Several poses at once: item i is point (i % count) * every under pose i / count; T is R row by row, then t.
_ITEM = """
    const int p = (i % count) * every;
    const double* T = poses.data + 12 * (i / count);
"""

_MOVE = """
    REAL x[3];
    for (int axis = 0; axis < 3; ++axis)
        x[axis] = REAL(T[3 * axis]) * source.data[3 * p] + REAL(T[3 * axis + 1]) * source.data[3 * p + 1]
                  + REAL(T[3 * axis + 2]) * source.data[3 * p + 2] + REAL(T[9 + axis]);
"""

associate = native_kernel(
    __name__,
    "associate",
    f"source: real[], poses: float64[], count: int32, every: int32, target: real[], {TREE}, limit: real, "
    "memory: int32, match: int32[], last: real[], slack: real[], found: int32[]",
    # `slack` is a lower bound, at the place `last`, on the distance of every target point but the match. A point that
    # has moved by m since then keeps its match while the match is nearer than slack - m: no search, same answer.
    # `memory` 0 starts afresh, 1 uses and renews match, last and slack, 2 uses them and writes only `found`.
    _ITEM
    + _MOVE
    + """
    const int cloud = 0;
    const REAL qx = x[0], qy = x[1], qz = x[2];
    REAL worst = limit;
    wp::int32 best = -1;
    if (memory) {
        const REAL mx = qx - last.data[3 * p], my = qy - last.data[3 * p + 1], mz = qz - last.data[3 * p + 2];
        const REAL others = (slack.data[p] - wp::sqrt(mx * mx + my * my + mz * mz)) * REAL(0.99999);
        const wp::int32 held = match.data[p];
        if (held >= 0) {
            const REAL ex = target.data[3 * held] - qx, ey = target.data[3 * held + 1] - qy;
            const REAL ez = target.data[3 * held + 2] - qz;
            const REAL d = ex * ex + ey * ey + ez * ez;
            if (d <= limit) {
                if (others > REAL(0) && d < others * others) { found.data[i] = held; return; }
                worst = d; best = held;
            }
        } else if (others > wp::sqrt(limit)) { found.data[i] = -1; return; }
    }
    REAL second = INFINITY;
"""
    + walk(
        "worst",
        """
            REAL least = d[0];
            for (int j = 1; j < 8; ++j) least = d[j] < least ? d[j] : least;
            if (least > worst) { second = least < second ? least : second; continue; }
            for (int j = 0; j < 8; ++j) {
                if (id[j] < 0 || id[j] == best) continue;
                if (d[j] > worst || (d[j] == worst && best >= 0 && id[j] > best)) {
                    second = d[j] < second ? d[j] : second;
                    continue;
                }
                if (best >= 0 && worst < second) second = worst;
                worst = d[j]; best = id[j];
            }
        """,
        "second = @ < second ? @ : second;",
    )
    + """
    found.data[i] = best;
    if (memory == 2) return;
    match.data[p] = best;
    last.data[3 * p] = qx; last.data[3 * p + 1] = qy; last.data[3 * p + 2] = qz;
    slack.data[p] = wp::sqrt(second);
    """,
)

find_cells = native_kernel(
    __name__,
    "find_cells",
    "source: real[], poses: float64[], count: int32, every: int32, means: real[], keys: int64[], cells: int32, "
    "origin: real[], inverse_size: real, limit: real, memory: int32, match: int32[], last: int64[], found: int32[]",
    # The voxel that holds the moved point: its Morton key, looked up by bisection unless it is still the last one.
    _ITEM
    + _MOVE
    + """
    long long cell[3];
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
        const REAL c = (x[axis] - origin.data[axis]) * inverse_size;
        inside = inside && c >= REAL(0) && c < REAL(2097151);
        cell[axis] = inside ? (long long)c : 0;
    }
    // `last` names the cell, `match` its place or -1, whether the mean is near enough or not
    const long long name = inside ? cell[0] | cell[1] << 21 | cell[2] << 42 : -1;
    int place = -1;
    if (memory && last.data[p] == name) {
        place = match.data[p];
    } else if (inside) {
        unsigned long long key = 0;
        for (int axis = 0; axis < 3; ++axis) {
            unsigned long long x = (unsigned long long)cell[axis];
"""
    + SPREAD
    + """
            key |= x << axis;
        }
        int low = 0, high = cells;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (keys.data[middle] < (wp::int64)key) low = middle + 1; else high = middle;
        }
        place = low < cells && keys.data[low] == (wp::int64)key ? low : -1;
    }
    if (memory != 2) { last.data[p] = name; match.data[p] = place; }
    found.data[i] = -1;
    if (place < 0) return;
    const REAL* mean = means.data + 3 * place;
    const REAL ex = mean[0] - x[0], ey = mean[1] - x[1], ez = mean[2] - x[2];
    if (ex * ex + ey * ey + ez * ez <= limit) found.data[i] = place;
    """,
)

normal_equations = native_kernel(
    __name__,
    "normal_equations",
    "source: real[], source_normals: real[], target: real[], target_shape: real[], found: int32[], poses: float64[], "
    "count: int32, every: int32, chunk: int32, method: int32, robust: int32, square_scale: float64, "
    "derivatives: int32, sums: float64[], squares: float64[], scores: float64[]",
    # Item i is a chunk of points under one pose, chunks fastest, summed in order in float64. With e = q - x
    # and x = T p the cost of a point is rho(e^T M e)/2.
    #   method 0  point  M = I
    #   method 1  plane  M = n n^T
    #   method 2  gicp   M = (C_q + R C_p R^T)^-1 with C = I - a n n^T, a = 1 - 1e-3: the same plane at either end
    #   method 3  vgicp  M = (C_voxel + R C_p R^T)^-1, C_voxel = I - a S, S the mean of n n^T over the voxel
    # For gicp, m = R n_p, c = n_q . m, u = m + n_q, w = m - n_q:  M = I/2 + a/(4 l+) u u^T + a/(4 l-) w w^T with
    # l+- = 2 - a (1 +- c), the eigenvalues along u and w. Derivatives are those of a left perturbation (v, omega):
    # J = [-I, [x]x]; the caller turns them to the right.
    """
    const int chunks = (count + chunk - 1) / chunk;
    const double* T = poses.data + 12 * (i / chunks);
    double total[30];
    for (int j = 0; j < 30; ++j) total[j] = 0;
    const int begin = (i % chunks) * chunk, end = begin + chunk < count ? begin + chunk : count;
    for (int item = begin; item < end; ++item) {
        const int p = item * every;
        const int q = found.data[(long long)(i / chunks) * count + item];
        if (q < 0) {
            if (derivatives == 2) for (int j = 0; j < 6; ++j) scores.data[6ll * p + j] = 0;
            if (derivatives != 1) squares.data[p] = -1;
            continue;
        }
"""
    + _MOVE
    + """
        const REAL e[3] = {target.data[3 * q] - x[0], target.data[3 * q + 1] - x[1], target.data[3 * q + 2] - x[2]};
        REAL M[6] = {REAL(1), REAL(0), REAL(0), REAL(1), REAL(0), REAL(1)};
        REAL m[3] = {REAL(0), REAL(0), REAL(0)};
        const REAL a = REAL(1) - REAL(1e-3);
        if (method >= 2)
            for (int axis = 0; axis < 3; ++axis)
                m[axis] = REAL(T[3 * axis]) * source_normals.data[3 * p]
                          + REAL(T[3 * axis + 1]) * source_normals.data[3 * p + 1]
                          + REAL(T[3 * axis + 2]) * source_normals.data[3 * p + 2];
        if (method == 1) {
            const REAL* n = target_shape.data + 3 * q;
            M[0] = n[0] * n[0]; M[1] = n[0] * n[1]; M[2] = n[0] * n[2];
            M[3] = n[1] * n[1]; M[4] = n[1] * n[2]; M[5] = n[2] * n[2];
        } else if (method == 2) {
            const REAL* n = target_shape.data + 3 * q;
            const REAL c = n[0] * m[0] + n[1] * m[1] + n[2] * m[2];
            const REAL along = a / (REAL(4) * (REAL(2) - a * (REAL(1) + c)));
            const REAL across = a / (REAL(4) * (REAL(2) - a * (REAL(1) - c)));
            const REAL u[3] = {m[0] + n[0], m[1] + n[1], m[2] + n[2]}, w[3] = {m[0] - n[0], m[1] - n[1], m[2] - n[2]};
            M[0] = REAL(0.5) + along * u[0] * u[0] + across * w[0] * w[0];
            M[1] = along * u[0] * u[1] + across * w[0] * w[1];
            M[2] = along * u[0] * u[2] + across * w[0] * w[2];
            M[3] = REAL(0.5) + along * u[1] * u[1] + across * w[1] * w[1];
            M[4] = along * u[1] * u[2] + across * w[1] * w[2];
            M[5] = REAL(0.5) + along * u[2] * u[2] + across * w[2] * w[2];
        } else if (method == 4) {
            M[0] = m[0] * m[0]; M[1] = m[0] * m[1]; M[2] = m[0] * m[2];
            M[3] = m[1] * m[1]; M[4] = m[1] * m[2]; M[5] = m[2] * m[2];
        } else if (method == 3) {
            const REAL* s = target_shape.data + 6 * q;
            const REAL C[6] = {REAL(2) - a * (s[0] + m[0] * m[0]), -a * (s[1] + m[0] * m[1]), -a * (s[2] + m[0] * m[2]),
                               REAL(2) - a * (s[3] + m[1] * m[1]), -a * (s[4] + m[1] * m[2]),
                               REAL(2) - a * (s[5] + m[2] * m[2])};
            M[0] = C[3] * C[5] - C[4] * C[4]; M[1] = C[2] * C[4] - C[1] * C[5]; M[2] = C[1] * C[4] - C[2] * C[3];
            M[3] = C[0] * C[5] - C[2] * C[2]; M[4] = C[1] * C[2] - C[0] * C[4]; M[5] = C[0] * C[3] - C[1] * C[1];
            const REAL inverse = REAL(1) / (C[0] * M[0] + C[1] * M[1] + C[2] * M[2]);
            for (int j = 0; j < 6; ++j) M[j] *= inverse;
        }
        const REAL f[3] = {M[0] * e[0] + M[1] * e[1] + M[2] * e[2], M[1] * e[0] + M[3] * e[1] + M[4] * e[2],
                           M[2] * e[0] + M[4] * e[1] + M[5] * e[2]};  // M e
        const double square = (double)(e[0] * f[0] + e[1] * f[1] + e[2] * f[2]);
        const double s = square / square_scale;
        double rho = s, weight = 1;
        if (robust == 1 && s > 1) { const double root = wp::sqrt(s); rho = 2 * root - 1; weight = 1 / root; }
        if (robust == 2) { rho = wp::log(1 + s); weight = 1 / (1 + s); }
        if (robust == 3) { rho = s / (1 + s); weight = 1 / ((1 + s) * (1 + s)); }
        total[27] += 0.5 * square_scale * rho;
        total[28] += (double)(e[0] * e[0] + e[1] * e[1] + e[2] * e[2]);
        total[29] += 1;
        if (derivatives != 1) squares.data[p] = square;
        if (derivatives == 0) continue;
        const REAL g[6] = {-f[0], -f[1], -f[2], f[1] * x[2] - f[2] * x[1], f[2] * x[0] - f[0] * x[2],
                           f[0] * x[1] - f[1] * x[0]};
        for (int j = 0; j < 6; ++j) total[21 + j] += weight * g[j];
        if (derivatives == 2) for (int j = 0; j < 6; ++j) scores.data[6ll * p + j] = weight * g[j];
        // A = M [x]x, row by row; H_vv = M, H_vw = -A, H_ww = -[x]x A
        const REAL A[9] = {M[1] * x[2] - M[2] * x[1], M[2] * x[0] - M[0] * x[2], M[0] * x[1] - M[1] * x[0],
                           M[3] * x[2] - M[4] * x[1], M[4] * x[0] - M[1] * x[2], M[1] * x[1] - M[3] * x[0],
                           M[4] * x[2] - M[5] * x[1], M[5] * x[0] - M[2] * x[2], M[2] * x[1] - M[4] * x[0]};
        const REAL H[21] = {M[0], M[1], M[2], -A[0], -A[1], -A[2],
                            M[3], M[4], -A[3], -A[4], -A[5],
                            M[5], -A[6], -A[7], -A[8],
                            x[2] * A[3] - x[1] * A[6], x[2] * A[4] - x[1] * A[7], x[2] * A[5] - x[1] * A[8],
                            x[0] * A[7] - x[2] * A[1], x[0] * A[8] - x[2] * A[2],
                            x[1] * A[2] - x[0] * A[5]};
        for (int j = 0; j < 21; ++j) total[j] += weight * H[j];
    }
    for (int j = 0; j < 30; ++j) sums.data[32ll * i + j] = total[j];
    """,
)
