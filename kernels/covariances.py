"""Covariance of each point's neighbours and its flattest direction, the surface normal."""

from geom.kernels.native import native_kernel

__all__ = ["covariances"]

covariances = native_kernel(
    __name__,
    "covariances",
    "points: real[], index: int64[], k: int32, covariance: real[], normal: real[]",
    # In float64 relative to the first neighbour. The least eigenvalue is the first root of det(C - lambda I), convex to
    # its left, so Newton from 0 climbs to it; its vector is the largest cross product of two rows of C - lambda I.
    """
    const wp::int64* row = index.data + (long long)i * k;
    double mean[3] = {0, 0, 0}, c[6] = {0, 0, 0, 0, 0, 0};
    int count = 0;
    for (int j = 0; j < k; ++j) {
        if (row[j] < 0) continue;
        double e[3];
        for (int axis = 0; axis < 3; ++axis) {
            e[axis] = (double)points.data[3 * row[j] + axis] - (double)points.data[3 * row[0] + axis];
            mean[axis] += e[axis];
        }
        c[0] += e[0] * e[0]; c[1] += e[0] * e[1]; c[2] += e[0] * e[2];
        c[3] += e[1] * e[1]; c[4] += e[1] * e[2]; c[5] += e[2] * e[2];
        ++count;
    }
    const double share = count > 0 ? 1.0 / count : 0.0;
    for (int axis = 0; axis < 3; ++axis) mean[axis] *= share;
    c[0] = c[0] * share - mean[0] * mean[0]; c[1] = c[1] * share - mean[0] * mean[1];
    c[2] = c[2] * share - mean[0] * mean[2]; c[3] = c[3] * share - mean[1] * mean[1];
    c[4] = c[4] * share - mean[1] * mean[2]; c[5] = c[5] * share - mean[2] * mean[2];
    c[0] = c[0] > 0 ? c[0] : 0; c[3] = c[3] > 0 ? c[3] : 0; c[5] = c[5] > 0 ? c[5] : 0;
    REAL* out = covariance.data + 9ll * i;
    out[0] = REAL(c[0]); out[1] = out[3] = REAL(c[1]); out[2] = out[6] = REAL(c[2]);
    out[4] = REAL(c[3]); out[5] = out[7] = REAL(c[4]); out[8] = REAL(c[5]);

    double n[3] = {0, 0, 0};
    const double trace = c[0] + c[3] + c[5];
    if (trace > 0) {
        for (int j = 0; j < 6; ++j) c[j] /= trace;
        const double c2 = 1.0;
        const double c1 = c[0] * c[3] - c[1] * c[1] + c[0] * c[5] - c[2] * c[2] + c[3] * c[5] - c[4] * c[4];
        const double c0 = c[0] * (c[3] * c[5] - c[4] * c[4]) - c[1] * (c[1] * c[5] - c[4] * c[2])
                          + c[2] * (c[1] * c[4] - c[3] * c[2]);
        double x = 0;
        for (int step = 0; step < 40; ++step) {
            const double slope = c1 - x * (2 * c2 - 3 * x);
            if (slope <= 1e-14) break;
            const double change = (c0 - x * (c1 - x * (c2 - x))) / slope;
            x += change;
            if (change < 1e-15) break;
        }
        const double r0[3] = {c[0] - x, c[1], c[2]}, r1[3] = {c[1], c[3] - x, c[4]}, r2[3] = {c[2], c[4], c[5] - x};
        const double* pairs[3][2] = {{r0, r1}, {r0, r2}, {r1, r2}};
        double best = 0;
        for (int p = 0; p < 3; ++p) {
            const double *a = pairs[p][0], *b = pairs[p][1];
            const double v[3] = {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
            const double square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
            if (square > best) { best = square; n[0] = v[0]; n[1] = v[1]; n[2] = v[2]; }
        }
        if (best < 1e-24) {  // a line: any direction across its own, the largest row
            const double* rows[3] = {r0, r1, r2};
            double d[3] = {1, 0, 0}, most = 0;
            for (int p = 0; p < 3; ++p) {
                const double square = rows[p][0] * rows[p][0] + rows[p][1] * rows[p][1] + rows[p][2] * rows[p][2];
                if (square > most) { most = square; for (int a = 0; a < 3; ++a) d[a] = rows[p][a]; }
            }
            const double ax = wp::abs(d[0]), ay = wp::abs(d[1]), az = wp::abs(d[2]);
            const double e[3] = {double(ax <= ay && ax <= az), double(ay < ax && ay <= az), double(az < ax && az < ay)};
            n[0] = d[1] * e[2] - d[2] * e[1]; n[1] = d[2] * e[0] - d[0] * e[2]; n[2] = d[0] * e[1] - d[1] * e[0];
        }
        const double length = wp::sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]);
        int big = 0;
        for (int axis = 1; axis < 3; ++axis) if (wp::abs(n[axis]) > wp::abs(n[big])) big = axis;
        const double scale = (n[big] < 0 ? -1.0 : 1.0) / length;
        for (int axis = 0; axis < 3; ++axis) n[axis] *= scale;
    }
    for (int axis = 0; axis < 3; ++axis) normal.data[3 * i + axis] = REAL(n[axis]);
    """,
)
