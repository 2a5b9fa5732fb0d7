"""Newton's method for one implicit step of a tree of elastic rods, as C++ that both kernels of
`geom.kernels.rod_implicit` share; that module says what is solved.

Blocks of 5 numbers a vertex (roll, position, mu) are eliminated from the leaves to the root: a vertex meets its parent
and grandparent, and what its elimination couples is coupled already. Second derivatives of the strains: Bergou et al.,
"Discrete viscous threads" (2010), appendix; `geom.rods.hessian` is their readable twin.
"""

from geom.kernels.rod_mechanics import MECHANICS, PLACES

__all__ = ["NEWTON"]

NEWTON = (
    MECHANICS
    + PLACES
    + """
    REAL *block[5];  // diagonal, with the parent (below, above the diagonal), with the grandparent (below, above)
    for (int j = 0; j < 5; ++j) block[j] = take(25 * n);
    REAL *side = take(5 * n), *z = take(3 * n), *mid = take(3 * n), *mm = take(3 * n), *ss = take(3 * n), *mu = take(n);
    REAL *guess = take(3 * n), *aim = take(3 * n), *yield = take(n), *given = take(5 * n);
    const bool midpoint = blend < REAL(1);

    // Derivatives of the three strains of bend k in (e, f, roll of e, roll of f), J; and the energy's Hessian in these.
    const auto second = [&](const REAL* x, int k, const REAL* moduli, const REAL* w, REAL (*J)[8], REAL (*H)[8]) {
        const int p = up[k];
        const REAL *te = t1 + 3 * p, *tf = t1 + 3 * k;
        REAL e[3], f[3], n1[4][3], b[3], tt[3], cf[3], ce[3];
        for (int c = 0; c < 3; ++c) { e[c] = x[3 * p + c] - x[3 * up[p] + c]; f[c] = x[3 * k + c] - x[3 * p + c]; }
        REAL le = wp::sqrt(dot(e, e)), lf = wp::sqrt(dot(f, f)), chi = REAL(1) + dot(te, tf);
        le = le > tiny ? le : REAL(1); lf = lf > tiny ? lf : REAL(1);
        if (chi < REAL(1e-6)) chi = REAL(1e-6);
        cross(te, tf, b);
        for (int c = 0; c < 3; ++c) {
            b[c] *= REAL(2) / chi; tt[c] = (te[c] + tf[c]) / chi; n1[0][c] = mm[3 * p + c]; n1[1][c] = mm[3 * k + c];
        }
        cross(te, n1[0], n1[2]); cross(tf, n1[1], n1[3]);
        for (int i = 0; i < 8; ++i) for (int j = 0; j < 8; ++j) H[i][j] = REAL(0);
        for (int j = 0; j < 2; ++j) {
            const REAL *me = n1[2 * j], *mf = n1[2 * j + 1];
            REAL ne[3], nf[3], m2[3], ue[3], uf[3], ve[3], vf[3];
            for (int c = 0; c < 3; ++c) {
                ne[c] = j ? -n1[0][c] : n1[2][c]; nf[c] = j ? -n1[1][c] : n1[3][c]; m2[c] = (ne[c] + nf[c]) / chi;
            }
            const REAL s = REAL(0.5) * (dot(b, ne) + dot(b, nf));
            const REAL re = REAL(-0.5) * dot(b, me), rf = REAL(-0.5) * dot(b, mf), W = w[j], sc = s / chi;
            cross(tf, m2, cf); cross(te, m2, ce); cross(tf, me, ue); cross(tf, mf, uf); cross(te, me, ve);
            cross(te, mf, vf);
            const REAL skew[3][3] = {{REAL(0), -m2[2], m2[1]}, {m2[2], REAL(0), -m2[0]}, {-m2[1], m2[0], REAL(0)}};
            for (int r = 0; r < 3; ++r) {
                J[j][r] = (cf[r] - s * tt[r]) / le; J[j][3 + r] = -(ce[r] + s * tt[r]) / lf;
                for (int c = 0; c < 3; ++c) {
                    const REAL both = REAL(2) * s * tt[r] * tt[c], unit = r == c ? REAL(1) : REAL(0);
                    H[r][c] += W / (le * le) * (both - cf[r] * tt[c] - tt[r] * cf[c] - sc * (unit - te[r] * te[c])
                                                + REAL(0.25) * (b[r] * ne[c] + ne[r] * b[c]));
                    H[3 + r][3 + c] += W / (lf * lf) * (both + ce[r] * tt[c] + tt[r] * ce[c]
                                                        - sc * (unit - tf[r] * tf[c])
                                                        + REAL(0.25) * (b[r] * nf[c] + nf[r] * b[c]));
                    H[r][3 + c] += W / (le * lf) * (both - sc * (unit + te[r] * tf[c]) - cf[r] * tt[c] + tt[r] * ce[c]
                                                    - skew[r][c]);
                }
                H[r][6] += W / le * (-re * tt[r] - ue[r] / chi); H[r][7] += W / le * (-rf * tt[r] - uf[r] / chi);
                H[3 + r][6] += W / lf * (ve[r] / chi - re * tt[r]);
                H[3 + r][7] += W / lf * (vf[r] / chi - rf * tt[r]);
            }
            J[j][6] = re; J[j][7] = rf;
            H[6][6] -= REAL(0.5) * W * dot(b, ne); H[7][7] -= REAL(0.5) * W * dot(b, nf);
        }
        const REAL skew[3][3] = {{REAL(0), -te[2], te[1]}, {te[2], REAL(0), -te[0]}, {-te[1], te[0], REAL(0)}};
        for (int r = 0; r < 3; ++r) {
            J[2][r] = REAL(0.5) * b[r] / le; J[2][3 + r] = REAL(0.5) * b[r] / lf;
            for (int c = 0; c < 3; ++c) {
                H[r][c] -= REAL(0.25) * w[2] / (le * le) * (b[r] * (te[c] + tt[c]) + (te[r] + tt[r]) * b[c]);
                H[3 + r][3 + c] -= REAL(0.25) * w[2] / (lf * lf) * (b[r] * (tf[c] + tt[c]) + (tf[r] + tt[r]) * b[c]);
                H[r][3 + c] += REAL(0.5) * w[2] / (le * lf) * (REAL(2) / chi * skew[r][c] - b[r] * tt[c]);
            }
        }
        J[2][6] = REAL(-1); J[2][7] = REAL(1);
        for (int i = 0; i < 8; ++i)
            for (int j = i; j < 8; ++j) {
                for (int c = 0; c < 3; ++c) H[i][j] += moduli[c] * J[c][i] * J[c][j];
                H[j][i] = H[i][j];
            }
    };
    const int vertex[11] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 2}, slots[11] = {1, 2, 3, 1, 2, 3, 1, 2, 3, 0, 0};
    // Rows or columns of (e, f, rolls) as those of the 3 positions and 2 rolls.
    const auto widen = [&](const REAL* row, REAL* out) {
        for (int c = 0; c < 3; ++c) {
            out[c] = -row[c]; out[3 + c] = row[c] - row[3 + c]; out[6 + c] = row[3 + c];
        }
        out[9] = row[6]; out[10] = row[7];
    };
    const auto moves = [&](int k) { return fix[k] < 0 || fix[up[k]] < 0; };
    const auto open = [&](int v, int slot) {  // whether it is an unknown
        return slot == 0 ? v > 0 && !hold[v] : slot == 4 ? v > 0 && moves(v) : fix[v] < 0;
    };

    // Length of edge k that its law reads, its derivative in that of z, and the law's scale; 0 compliance for EA = inf.
    const auto law = [&](const REAL* x, const REAL* end, int k, REAL* tz, REAL* size, REAL* part) {
        const REAL after = direct(end, k, t1 + 3 * k, tz), soft = T[9 * k] / T[9 * k + 5];
        REAL t[3];
        *part = midpoint && soft > REAL(0) ? REAL(0.5) : REAL(1);
        *size = *part < REAL(1) ? REAL(0.5) * (after + direct(x, k, tz, t)) : after;
        return soft;
    };

    // The blocks and, in `side`, minus the residual, at z; `shift` times their largest entries on the diagonals. Edges
    // `yield` a little in the blocks, so that any may be eliminated before what it is fixed to; `refine` undoes that.
    const auto linearise = [&](const REAL* x, const REAL* v, const REAL* old, REAL viscous, const REAL* extra, REAL r,
                               REAL shift) {
        for (int j = 0; j < 5; ++j) for (int c = 0; c < 25 * n; ++c) block[j][c] = REAL(0);
        for (int c = 0; c < 5 * n; ++c) side[c] = REAL(0);
        for (int k = 0; k < n; ++k) {
            const REAL mass = T[9 * k + 1];
            REAL u[3];
            for (int c = 0; c < 3; ++c) u[c] = (z[3 * k + c] - x[3 * k + c]) * r;
            const REAL fast = G[1] > REAL(0) ? wp::sqrt(dot(u, u)) : REAL(0), slow = G[0] + G[1] * fast;
            for (int c = 0; c < 3; ++c) {
                const REAL push = mass * G[4 + c] + (extra ? extra[3 * k + c] : REAL(0));
                side[5 * k + 1 + c] = push - mass * ((u[c] - v[3 * k + c]) * r / blend + slow * u[c]);
                block[0][25 * k + 6 * (1 + c)] = mass * r * (r / blend + slow);
                if (fast > tiny) for (int d = 0; d < 3; ++d)
                    block[0][25 * k + 5 * (1 + c) + 1 + d] += mass * r * G[1] * u[c] * u[d] / fast;
            }
        }
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            REAL tz[3], e[3], size, part, du[3];
            const REAL soft = law(x, z, k, tz, &size, &part), scale = size * size / T[9 * k];
            const REAL shared = REAL(0.5) * G[2] * (T[9 * k + 1] + T[9 * p + 1]);
            REAL *own = block[0] + 25 * k, *its = block[0] + 25 * p, *low = block[1] + 25 * k, *upp = block[2] + 25 * k;
            for (int c = 0; c < 3; ++c) {
                e[c] = mid[3 * k + c] - mid[3 * p + c];
                du[c] = r * (z[3 * k + c] - x[3 * k + c] - z[3 * p + c] + x[3 * p + c]);
                const REAL f = mu[k] * e[c] + shared * du[c], stiff = blend * mu[k] + shared * r;
                side[5 * k + 1 + c] -= f; side[5 * p + 1 + c] += f;
                own[6 * (1 + c)] += stiff; its[6 * (1 + c)] += stiff;
                low[6 * (1 + c)] -= stiff; upp[6 * (1 + c)] -= stiff;
                if (!moves(k)) continue;
                const REAL row = scale * (REAL(1) - mu[k] * soft) * part * tz[c];
                own[5 * (1 + c) + 4] += e[c]; upp[5 * (1 + c) + 4] -= e[c];
                own[20 + 1 + c] += row; low[20 + 1 + c] -= row;
            }
            if (!moves(k)) continue;
            own[24] -= scale * size * soft;
            side[5 * k + 4] = -scale * (size * (REAL(1) - mu[k] * soft) - T[9 * k]);
        }
        for (int k = 1; k < n; ++k) {
            if (!bends(k)) continue;
            const int p = up[k], who[3] = {up[p], p, k};
            REAL *where[3][3] = {
                {block[0] + 25 * up[p], block[2] + 25 * p, block[4] + 25 * k},
                {block[1] + 25 * p, block[0] + 25 * p, block[2] + 25 * k},
                {block[3] + 25 * k, block[1] + 25 * k, block[0] + 25 * k}};
            REAL J[3][8], H[8][8], rows[8][11], turned[11][8], full[11], moduli[3], w[3], g[8], wide[11];
            load(k, ss + 3 * k, old + 3 * k, viscous, moduli, w);
            second(mid, k, moduli, w, J, H);
            for (int i = 0; i < 8; ++i) {
                g[i] = w[0] * J[0][i] + w[1] * J[1][i] + w[2] * J[2][i];
                widen(H[i], rows[i]);
                for (int j = 0; j < 11; ++j) turned[j][i] = rows[i][j];
            }
            widen(g, wide);
            for (int i = 0; i < 11; ++i) {
                side[5 * who[vertex[i]] + slots[i]] -= wide[i];
                widen(turned[i], full);
                for (int j = 0; j < 11; ++j)
                    where[vertex[i]][vertex[j]][5 * slots[i] + slots[j]] += full[j] * (slots[j] ? blend : REAL(1));
            }
        }
        REAL most[2] = {REAL(0), REAL(0)};
        for (int k = 0; k < n; ++k)
            for (int c = 0; c < 4; ++c) {
                const REAL d = block[0][25 * k + 6 * c];
                if (open(k, c) && d > most[c > 0]) most[c > 0] = d;
            }
        for (int k = 0; k < n; ++k) {
            const int p = k > 0 ? up[k] : 0, a = p > 0 ? up[p] : 0;
            yield[k] = open(k, 4) ? T[9 * k] * T[9 * k] / (REAL(1e5) * most[1] + tiny) : REAL(0);
            block[0][25 * k + 24] -= yield[k];
            for (int c = 0; c < 5; ++c) {
                const bool free = open(k, c);
                if (!free) side[5 * k + c] = REAL(0);
                else if (c < 4) block[0][25 * k + 6 * c] += shift * most[c > 0];
                for (int d = 0; d < 5; ++d) {
                    const int below = 25 * k + 5 * c + d, above = 25 * k + 5 * d + c;
                    if (!free || !open(k, d)) block[0][below] = REAL(c == d);
                    if (!free || !open(p, d)) block[1][below] = block[2][above] = REAL(0);
                    if (!free || !open(a, d)) block[3][below] = block[4][above] = REAL(0);
                }
            }
        }
        return most[0];
    };

    // The blocks eliminated, diagonal ones inverted; false where the matrix is not that of a minimum.
    const auto eliminate = [&](REAL steepest) {
        bool convex = true;
        const REAL floor = REAL(64) * eps * steepest;
        for (int k = n - 1; k >= 0; --k) {
            REAL *D = block[0] + 25 * k, W[5][10];
            for (int i = 0; i < 5; ++i) for (int j = 0; j < 10; ++j) W[i][j] = j < 5 ? D[5 * i + j] : REAL(j == i + 5);
            const bool spins = k > 0 && !hold[k];
            if (spins && W[0][0] < -floor) convex = false;
            if (spins && wp::abs(W[0][0]) <= floor) {  // a roll nothing resists
                for (int j = 0; j < 5; ++j) W[0][j] = W[j][0] = REAL(0);
                for (int j = 5; j < 10; ++j) W[0][j] = REAL(0);
                W[0][0] = REAL(1);
            }
            for (int c = 0; c < 5; ++c) {
                int best = c;
                if (c) for (int i = c + 1; i < 5; ++i) if (wp::abs(W[i][c]) > wp::abs(W[best][c])) best = i;
                if (c == 1 && fix[k] < 0) {  // positive across the edge, or in all directions at the root?
                    REAL a[3], b[3];
                    REAL e[3] = {W[1][4], W[2][4], W[3][4]}, A[3][3];
                    for (int i = 0; i < 3; ++i) for (int j = 0; j < 3; ++j)
                        A[i][j] = REAL(0.5) * (W[1 + i][1 + j] + W[1 + j][1 + i]);
                    const REAL size = wp::sqrt(dot(e, e));
                    if (size > tiny) {
                        for (int i = 0; i < 3; ++i) e[i] /= size;
                        const int least = wp::abs(e[0]) < wp::abs(e[1]) ? (wp::abs(e[0]) < wp::abs(e[2]) ? 0 : 2)
                                                                       : (wp::abs(e[1]) < wp::abs(e[2]) ? 1 : 2);
                        const REAL axis[3] = {REAL(least == 0), REAL(least == 1), REAL(least == 2)};
                        cross(e, axis, a);
                        const REAL inverse = REAL(1) / wp::sqrt(dot(a, a));
                        for (int i = 0; i < 3; ++i) a[i] *= inverse;
                        cross(e, a, b);
                        REAL aa = REAL(0), ab = REAL(0), bb = REAL(0);
                        for (int i = 0; i < 3; ++i) for (int j = 0; j < 3; ++j) {
                            aa += a[i] * A[i][j] * a[j]; ab += a[i] * A[i][j] * b[j]; bb += b[i] * A[i][j] * b[j];
                        }
                        if (!(aa > REAL(0) && aa * bb > ab * ab)) convex = false;
                    } else {
                        const REAL minor = A[0][0] * A[1][1] - A[0][1] * A[0][1];
                        const REAL det = A[0][0] * (A[1][1] * A[2][2] - A[1][2] * A[1][2])
                                         - A[0][1] * (A[0][1] * A[2][2] - A[1][2] * A[0][2])
                                         + A[0][2] * (A[0][1] * A[1][2] - A[1][1] * A[0][2]);
                        if (!(A[0][0] > REAL(0) && minor > REAL(0) && det > REAL(0))) convex = false;
                    }
                }
                for (int j = 0; j < 10; ++j) { const REAL s = W[c][j]; W[c][j] = W[best][j]; W[best][j] = s; }
                const REAL pivot = W[c][c], inverse = wp::abs(pivot) > tiny ? REAL(1) / pivot : REAL(0);
                for (int j = 0; j < 10; ++j) W[c][j] *= inverse;
                for (int i = 0; i < 5; ++i) {
                    const REAL f = W[i][c];
                    if (i == c || f == REAL(0)) continue;
                    for (int j = 0; j < 10; ++j) W[i][j] -= f * W[c][j];
                }
            }
            for (int i = 0; i < 5; ++i) for (int j = 0; j < 5; ++j) D[5 * i + j] = W[i][5 + j];
            if (k == 0) continue;
            const int p = up[k], many = p > 0 ? 2 : 1;
            const int to[2] = {p, p > 0 ? up[p] : 0};
            for (int a = 0; a < many; ++a) {
                const REAL* above = block[2 + 2 * a] + 25 * k;
                REAL F[25];
                for (int i = 0; i < 5; ++i) for (int j = 0; j < 5; ++j) {
                    REAL sum = REAL(0);
                    for (int c = 0; c < 5; ++c) sum += above[5 * i + c] * D[5 * c + j];
                    F[5 * i + j] = sum;
                }
                for (int b = 0; b < many; ++b) {
                    REAL* out = a == b ? block[0] + 25 * to[a] : block[a ? 2 : 1] + 25 * p;
                    const REAL* below = block[1 + 2 * b] + 25 * k;
                    for (int i = 0; i < 5; ++i) for (int c = 0; c < 5; ++c) {
                        const REAL f = F[5 * i + c];
                        if (f != REAL(0)) for (int j = 0; j < 5; ++j) out[5 * i + j] -= f * below[5 * c + j];
                    }
                }
            }
        }
        return convex;
    };

    // side becomes the solution of the eliminated system.
    const auto substitute = [&]() {
        for (int k = n - 1; k > 0; --k)
            for (int a = 0; a < (up[k] > 0 ? 2 : 1); ++a) {
                const REAL* above = block[2 + 2 * a] + 25 * k;
                REAL* to = side + 5 * (a ? up[up[k]] : up[k]);
                REAL b[5];
                for (int i = 0; i < 5; ++i) {
                    b[i] = REAL(0);
                    for (int j = 0; j < 5; ++j) b[i] += block[0][25 * k + 5 * i + j] * side[5 * k + j];
                }
                for (int i = 0; i < 5; ++i) for (int j = 0; j < 5; ++j) to[i] -= above[5 * i + j] * b[j];
            }
        for (int k = 0; k < n; ++k) {
            REAL b[5];
            for (int i = 0; i < 5; ++i) {
                b[i] = side[5 * k + i];
                for (int j = 0; j < 5 && k > 0; ++j) {
                    b[i] -= block[1][25 * k + 5 * i + j] * side[5 * up[k] + j];
                    if (up[k] > 0) b[i] -= block[3][25 * k + 5 * i + j] * side[5 * up[up[k]] + j];
                }
            }
            for (int i = 0; i < 5; ++i) {
                REAL sum = REAL(0);
                for (int j = 0; j < 5; ++j) sum += block[0][25 * k + 5 * i + j] * b[j];
                side[5 * k + i] = sum;
            }
        }
    };
    const auto refine = [&](int rounds) {  // the solution with edges that do not yield
        for (int c = 0; c < 5 * n; ++c) given[c] = side[c];
        substitute();
        for (int round = 0; round < rounds; ++round) {
            for (int k = 0; k < n; ++k) {
                const REAL f = side[5 * k + 4];
                for (int j = 0; j < 5; ++j) side[5 * k + j] = given[5 * k + j];
                side[5 * k + 4] -= yield[k] * f;
            }
            substitute();
        }
    };

    // Directors `from` carried with the edges of x0 to those of x1 by the least rotation.
    const auto carry = [&](const REAL* x0, const REAL* x1, const REAL* from, REAL* to) {
        to[0] = to[1] = to[2] = REAL(0);
        for (int k = 1; k < n; ++k) {
            REAL d[3], e[3];
            direct(x0, k, across, d);
            direct(x1, k, d, e);
            REAL chi = REAL(1) + dot(d, e);
            if (chi < REAL(1e-6)) chi = REAL(1e-6);
            const REAL lean = dot(e, from + 3 * k) / chi;
            for (int c = 0; c < 3; ++c) to[3 * k + c] = from[3 * k + c] - lean * (d[c] + e[c]);
        }
    };

    // Rolls and strains at mid, from directors m0 carried there; mm, ss, and t1.
    const auto settle = [&](const REAL* x, const REAL* m0, const REAL* near, const REAL* old, REAL viscous) {
        for (int c = 0; c < 3 * n; ++c) { mid[c] = x[c] + blend * (z[c] - x[c]); ss[c] = near[c]; }
        carry(x, mid, m0, mm);
        relax(mid, t1, mm, ss, old, viscous, 20);
    };

    // z, mu, mm, ss of a step with r = 1/dt to the targets `to`, from a first z; false where Newton does not get there.
    const auto newton = [&](const REAL* x, const REAL* v, const REAL* m0, const REAL* near, const REAL* old,
                            REAL viscous, const REAL* extra, REAL r, const REAL* to) {
        REAL shift = REAL(0), last = REAL(INFINITY), reach = REAL(0);
        for (int k = 0; k < n; ++k)
            for (int c = 0; c < 3; ++c) {
                if (fix[k] >= 0) z[3 * k + c] = to[3 * k + c];
                reach = wp::abs(z[3 * k + c]) > reach ? wp::abs(z[3 * k + c]) : reach;
            }
        for (int k = 1; k < n; ++k) reach += T[9 * k];
        const REAL blur = eps * REAL(n) * REAL(n) * REAL(n);  // rounding of the stiffest forces moves the softest
        const REAL coarse = blur > REAL(1e-9) ? blur : REAL(1e-9);
        settle(x, m0, near, old, viscous);
        for (int round = 0; round < 40; ++round) {
            REAL steepest = linearise(x, v, old, viscous, extra, r, shift), tried = shift;
            shift = REAL(0.1) * shift > REAL(1e-9) ? REAL(0.1) * shift : REAL(0);
            while (!eliminate(steepest) && !midpoint && tried < REAL(1e3)) {  // the midpoint rule is no minimum
                tried = tried > REAL(0) ? REAL(10) * tried : REAL(1e-8);
                steepest = linearise(x, v, old, viscous, extra, r, tried);
                shift = tried;
            }
            REAL worst = REAL(0);  // what is left of the lengths
            for (int k = 1; k < n; ++k) {
                const REAL left = wp::abs(side[5 * k + 4]) / T[9 * k];
                worst = left > worst ? left : worst;
            }
            refine(2);
            REAL turn = REAL(0), step = REAL(0);
            for (int k = 1; k < n; ++k) {
                REAL d[3];
                for (int c = 0; c < 3; ++c) d[c] = side[5 * k + 1 + c] - side[5 * up[k] + 1 + c];
                const REAL swing = wp::sqrt(dot(d, d)) / T[9 * k];
                turn = swing > turn ? swing : turn;
            }
            for (int k = 0; k < n; ++k) for (int c = 1; c < 4; ++c)
                step = wp::abs(side[5 * k + c]) > step ? wp::abs(side[5 * k + c]) : step;
            if (!(step < REAL(INFINITY)) || !(turn < REAL(INFINITY))) return false;
            const REAL cut = turn > REAL(0.5) ? REAL(0.5) / turn : REAL(1);
            for (int k = 0; k < n; ++k) {
                for (int c = 0; c < 3; ++c) z[3 * k + c] += cut * side[5 * k + 1 + c];
                if (k > 0) mu[k] += cut * side[5 * k + 4];
            }
            settle(x, m0, ss, old, viscous);
            const bool close = worst <= REAL(1e-9) * reach && step <= coarse * reach;
            if (close && (step <= REAL(4) * eps * reach || (round > 2 && step > REAL(0.25) * last))) return true;
            last = step;
        }
        return false;
    };

    // A step; where Newton fails from x moving on, shorter steps towards the same targets lead to it.
    const auto solve = [&](const REAL* x, const REAL* v, const REAL* m0, const REAL* near, const REAL* old,
                           REAL viscous, const REAL* extra, const REAL* goal) {
        for (int k = 0; k < n; ++k) for (int c = 0; c < 3; ++c)
            aim[3 * k + c] = fix[k] < 0 ? x[3 * k + c] : goal[3 * fix[k] + c];
        for (int c = 0; c < 3 * n; ++c) z[c] = x[c] + (still ? REAL(0) : v[c] / rate);
        if (newton(x, v, m0, near, old, viscous, extra, rate, aim)) return true;
        REAL done = REAL(0), stride = REAL(0.25);
        for (int c = 0; c < 3 * n; ++c) { guess[c] = x[c]; begun[c] = near[c]; }
        for (int k = 0; k < n; ++k) lam[k] = mu[k] = REAL(0);
        while (stride > REAL(1e-4)) {
            const REAL part = done + stride < REAL(1) ? done + stride : REAL(1);
            for (int c = 0; c < 3 * n; ++c) { z[c] = guess[c]; y[c] = x[c] + part * (aim[c] - x[c]); }
            if (newton(x, v, m0, begun, old, viscous, extra, rate / part, y)) {
                if (part >= REAL(1)) return true;
                done = part;
                stride *= REAL(2);
                for (int c = 0; c < 3 * n; ++c) { guess[c] = z[c]; begun[c] = ss[c]; }
                for (int k = 0; k < n; ++k) lam[k] = mu[k];
            } else {
                stride *= REAL(0.25);
                for (int k = 0; k < n; ++k) mu[k] = lam[k];
            }
        }
        return false;
    };
"""
)
