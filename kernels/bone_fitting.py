"""The two halves of smooth skinning decomposition: weights of a vertex under given bones, bones of a frame under given
weights (Le and Deng 2012). Least squares through Gram matrices: neither half goes over frames times vertices again.
"""

from geom.kernels.native import native_kernel

__all__ = ["WIDEST", "fit_bones", "fit_weights"]

WIDEST = 16  # bones that a vertex may have while its weights are looked for

fit_weights = native_kernel(
    __name__,
    "fit_weights",
    "gram: real[], monomials: real[], line: real[], ridge: real, bones: int32, width: int32, wide: int32, "
    "scratch: real[], indices: int64[], weights: real[]",
    # Item i is a vertex of `monomials` h: A_jk = gram_jk . h, cost w A w / 2 - line w + ridge |w|^2 / 2 with w >= 0 and
    # sum 1. `scratch`: J numbers for each of WIDEST + 1 bones. `indices`, `weights`: a feasible start, and the end.
    # The convex problem with up to `wide` bones is solved first, then bones go until `width` are left: one that is
    # looked for among supports of `width` alone stays where it began. What cost more than the start is given up.
    """
    constexpr int N = WIDEST + 1;
    const int J = bones, K = width;
    const REAL* const h = monomials.data + 10 * (long long)i;
    const REAL* const b = line.data + (long long)J * i;
    REAL* const columns = scratch.data + (long long)N * J * i;
    int n = 0, s[N], slot[N];
    REAL w[N], L[N * N], lp[N], lq[N], x[N], z[N], level = REAL(0);
    for (int a = 0; a < N; ++a) slot[a] = a;

    const auto enter = [&](int j, REAL share) {  // slots of those that left stand behind the support
        REAL* const c = columns + (long long)J * slot[n];
        const REAL* g = gram.data + 10 * (long long)J * j;
        for (int k = 0; k < J; ++k, g += 10) {
            REAL total = REAL(0);
            for (int a = 0; a < 10; ++a) total += g[a] * h[a];
            c[k] = total;
        }
        c[j] += ridge;
        s[n] = j; w[n++] = share;
    };
    const auto leave = [&](int a) {
        const int freed = slot[a];
        --n;
        for (int c = a; c < n; ++c) { s[c] = s[c + 1]; w[c] = w[c + 1]; slot[c] = slot[c + 1]; }
        slot[n] = freed;
    };
    // Least squares over the support with sum 1 and none negative, from a feasible w; rows before `from` are factored.
    const auto settle = [&](int from) {
        for (;;) {
            for (int a = from; a < n; ++a) {
                REAL* const row = L + a * N;
                const REAL* const column = columns + (long long)J * slot[a];
                lp[a] = b[s[a]]; lq[a] = REAL(1);
                const REAL whole = column[s[a]];
                REAL rest = whole;
                for (int c = 0; c < a; ++c) {
                    REAL total = column[s[c]];
                    for (int d = 0; d < c; ++d) total -= row[d] * L[c * N + d];
                    row[c] = total * L[c * N + c];
                    rest -= row[c] * row[c]; lp[a] -= row[c] * lp[c]; lq[a] -= row[c] * lq[c];
                }
                const REAL floor = REAL(1e-13) * whole + REAL(1e-30);
                row[a] = REAL(1) / wp::sqrt(rest > floor ? rest : floor);
                lp[a] *= row[a]; lq[a] *= row[a];
            }
            REAL sp = REAL(0), sq = REAL(0);
            for (int a = n - 1; a >= 0; --a) {
                x[a] = lp[a]; z[a] = lq[a];
                for (int c = a + 1; c < n; ++c) { x[a] -= L[c * N + a] * x[c]; z[a] -= L[c * N + a] * z[c]; }
                x[a] *= L[a * N + a]; z[a] *= L[a * N + a];
                sp += x[a]; sq += z[a];
            }
            level = (REAL(1) - sp) / sq;
            REAL step = REAL(1);
            int at = -1;
            for (int a = 0; a < n; ++a) {
                x[a] += level * z[a];
                if (x[a] < REAL(0)) {
                    const REAL t = w[a] / (w[a] - x[a]);
                    if (at < 0 || t < step) { step = t; at = a; }
                }
            }
            if (at < 0) { for (int a = 0; a < n; ++a) w[a] = x[a]; return; }
            for (int a = 0; a < n; ++a) w[a] += step * (x[a] - w[a]);
            leave(at);
            from = at;
        }
    };
    const auto cost = [&]() {
        REAL total = REAL(0);
        for (int a = 0; a < n; ++a) {
            const REAL* const column = columns + (long long)J * slot[a];
            REAL r = -b[s[a]];
            for (int c = 0; c < n; ++c) r += REAL(0.5) * column[s[c]] * w[c];
            total += r * w[a];
        }
        return total;
    };
    // Bones come in, steepest first, while the cost falls and there are fewer than `most`.
    const auto grow = [&](int most) {
        for (int round = 0; round < 3 * most && n < most; ++round) {
            int best = -1;
            REAL steepest = REAL(-1e-13) * columns[(long long)J * slot[0] + s[0]];
            for (int j = 0; j < J; ++j) {
                REAL slope = -b[j] - level;
                for (int a = 0; a < n; ++a) slope += columns[(long long)J * slot[a] + j] * w[a];
                if (slope < steepest) {
                    bool in = false;
                    for (int a = 0; a < n; ++a) in = in || s[a] == j;
                    if (!in) { steepest = slope; best = j; }
                }
            }
            if (best < 0) return;
            enter(best, REAL(0));
            settle(n - 1);
        }
    };
    const auto shrink = [&]() {  // bones go, the one that costs least first, until `width` are left
        while (n > K) {
            REAL sq = REAL(0), least = REAL(0);
            int out = -1;
            for (int a = 0; a < n; ++a) sq += lq[a] * lq[a];
            for (int a = 0; a < n; ++a) {
                REAL e[N], spread = REAL(0);
                for (int c = a; c < n; ++c) {
                    e[c] = c == a ? REAL(1) : REAL(0);
                    for (int d = a; d < c; ++d) e[c] -= L[c * N + d] * e[d];
                    e[c] *= L[c * N + c];
                    spread += e[c] * e[c];
                }
                spread -= z[a] * z[a] / sq;
                const REAL loss = w[a] * w[a] / (spread > REAL(0) ? spread : REAL(1e-300));
                if (out < 0 || loss < least) { least = loss; out = a; }
            }
            const REAL share = REAL(1) - w[out];
            leave(out);
            for (int a = 0; a < n; ++a) w[a] /= share;
            settle(out);
        }
    };
    for (int k = 0; k < K; ++k)
        if (weights.data[(long long)K * i + k] > REAL(0))
            enter((int)indices.data[(long long)K * i + k], weights.data[(long long)K * i + k]);
    settle(0);
    grow(K);
    const int m = n;
    int kept[N];
    REAL share[N];
    for (int a = 0; a < n; ++a) { kept[a] = s[a]; share[a] = w[a]; }
    if (wide > K && n == K) {
        const REAL before = cost();
        grow(wide);
        shrink();
        grow(K);
        if (!(cost() < before)) {
            n = m;
            for (int a = 0; a < n; ++a) { s[a] = kept[a]; w[a] = share[a]; }
        }
    }
    REAL sum = REAL(0);
    for (int a = 0; a < n; ++a) sum += w[a];
    for (int k = 0; k < K; ++k) {
        indices.data[(long long)K * i + k] = k < n ? s[k] : 0;
        weights.data[(long long)K * i + k] = k < n ? w[k] / sum : REAL(0);
    }
    """.replace("WIDEST", str(WIDEST)),
)

fit_bones = native_kernel(
    __name__,
    "fit_bones",
    "covariance: real[], moment: real[], locked: int32[], bones: int32, sweeps: int32, motion: real[]",
    # Item i is a frame: tr(M C M^T) / 2 - tr(M Y^T) is lowered over M = [R_1 t_1 ... R_J t_J], bone after bone, each
    # exactly: t is eliminated, R found by Newton's method from where it stands. C (4J, 4J); Y, M (frames, J, 3, 4).
    """
    const int J = bones;
    const REAL* const C = covariance.data;
    REAL* const M = motion.data + (long long)12 * J * i;
    const REAL* const Y = moment.data + (long long)12 * J * i;
    for (int sweep = 0; sweep < sweeps; ++sweep)
        for (int j = 0; j < J; ++j) {
            const REAL mass = C[(long long)4 * J * (4 * j + 3) + 4 * j + 3];
            if (locked.data[j] || !(mass > REAL(1e-9))) continue;
            REAL Q[12];
            for (int a = 0; a < 12; ++a) Q[a] = Y[12 * j + a];
            for (int k = 0; k < J; ++k) {
                const REAL* const c = C + (long long)16 * J * k + 4 * j;
                if (k == j || c[12 * J + 3] == REAL(0)) continue;
                const REAL* const m = M + 12 * k;
                for (int r = 0; r < 3; ++r)
                    for (int a = 0; a < 4; ++a)
                        Q[4 * r + a] -= m[4 * r] * c[a] + m[4 * r + 1] * c[4 * J + a] + m[4 * r + 2] * c[8 * J + a]
                            + m[4 * r + 3] * c[12 * J + a];
            }
            const REAL* const own = C + (long long)16 * J * j + 4 * j;
            const REAL p[3] = {own[3] / mass, own[4 * J + 3] / mass, own[8 * J + 3] / mass};
            REAL* const m = M + 12 * j;
            REAL R[9], B[9];
            for (int r = 0; r < 3; ++r) for (int a = 0; a < 3; ++a) R[3 * r + a] = m[4 * r + a];
            REAL damping = REAL(0);
            for (int round = 0; round < 12; ++round) {  // Newton's method for the rotation of greatest tr(R^T Q)
                for (int r = 0; r < 3; ++r)
                    for (int a = 0; a < 3; ++a) {
                        REAL total = REAL(0);
                        for (int b = 0; b < 3; ++b) total += (Q[4 * r + b] - Q[4 * r + 3] * p[b]) * R[3 * a + b];
                        B[3 * r + a] = total;
                    }
                const REAL trace = B[0] + B[4] + B[8];
                const REAL g[3] = {B[7] - B[5], B[2] - B[6], B[3] - B[1]};
                const REAL off = wp::abs(g[0]) + wp::abs(g[1]) + wp::abs(g[2]);
                const REAL size = wp::abs(B[0]) + wp::abs(B[4]) + wp::abs(B[8]) + off;
                if (!(off > REAL(1e-15) * size)) break;
                const REAL xx = trace - B[0], yy = trace - B[4], zz = trace - B[8];
                const REAL xy = REAL(-0.5) * (B[1] + B[3]), xz = REAL(-0.5) * (B[2] + B[6]);
                const REAL yz = REAL(-0.5) * (B[5] + B[7]);
                bool better = false;
                REAL least = REAL(0);
                for (int trial = 0; trial < 12 && !better; ++trial) {
                    const REAL ax = xx + damping, ay = yy + damping, az = zz + damping;
                    const REAL d2 = ax * ay - xy * xy;
                    const REAL c0 = ay * az - yz * yz, c1 = xz * yz - xy * az, c2 = xy * yz - xz * ay;
                    const REAL det = ax * c0 + xy * c1 + xz * c2;
                    if (ax > REAL(0) && d2 > REAL(0) && det > REAL(1e-30) * size * size * size) {
                        const REAL c3 = ax * az - xz * xz, c4 = xy * xz - ax * yz;
                        // half the turn's vector: Cayley's map, of unit quaternion (1, h) normalised
                        const REAL hx = REAL(0.5) * (c0 * g[0] + c1 * g[1] + c2 * g[2]) / det;
                        const REAL hy = REAL(0.5) * (c1 * g[0] + c3 * g[1] + c4 * g[2]) / det;
                        const REAL hz = REAL(0.5) * (c2 * g[0] + c4 * g[1] + d2 * g[2]) / det;
                        const REAL s = REAL(2) / (REAL(1) + hx * hx + hy * hy + hz * hz);
                        const REAL W[9] = {
                            REAL(1) - s * (hy * hy + hz * hz), s * (hx * hy - hz), s * (hx * hz + hy),
                            s * (hx * hy + hz), REAL(1) - s * (hx * hx + hz * hz), s * (hy * hz - hx),
                            s * (hx * hz - hy), s * (hy * hz + hx), REAL(1) - s * (hx * hx + hy * hy)};
                        REAL gain = -trace;  // tr(W^T B) - tr B
                        for (int a = 0; a < 9; ++a) gain += W[a] * B[a];
                        if (gain >= REAL(-1e-14) * size) {
                            better = true;
                            least = hx * hx + hy * hy + hz * hz;
                            REAL next[9];
                            for (int a = 0; a < 9; ++a) {
                                const REAL* const row = W + 3 * (a / 3);
                                next[a] = row[0] * R[a % 3] + row[1] * R[3 + a % 3] + row[2] * R[6 + a % 3];
                            }
                            for (int a = 0; a < 9; ++a) R[a] = next[a];
                            damping = damping > REAL(1e-3) * size ? REAL(0.1) * damping : REAL(0);
                        }
                    }
                    if (!better) damping = damping > REAL(0) ? REAL(4) * damping : REAL(0.1) * size;
                }
                if (!better || least < REAL(1e-20)) break;
            }
            // back onto the rotations: rounding would add up over the sweeps
            for (int r = 0; r < 3; ++r) {
                REAL* const x = R + 3 * r;
                if (r == 2) {
                    x[0] = R[1] * R[5] - R[2] * R[4]; x[1] = R[2] * R[3] - R[0] * R[5];
                    x[2] = R[0] * R[4] - R[1] * R[3];
                    break;
                }
                if (r == 1) {
                    const REAL d = R[0] * x[0] + R[1] * x[1] + R[2] * x[2];
                    for (int a = 0; a < 3; ++a) x[a] -= d * R[a];
                }
                const REAL n = REAL(1) / wp::sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2]);
                for (int a = 0; a < 3; ++a) x[a] *= n;
            }
            for (int r = 0; r < 3; ++r) {
                for (int a = 0; a < 3; ++a) m[4 * r + a] = R[3 * r + a];
                m[4 * r + 3] = Q[4 * r + 3] / mass - R[3 * r] * p[0] - R[3 * r + 1] * p[1] - R[3 * r + 2] * p[2];
            }
        }
    """,
)
