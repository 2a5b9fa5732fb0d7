"""The mechanics of one step of a tree of elastic rods, as C++ that the kernels in `geom.kernels.rods` share.

A tree is given by the vertex before each vertex, `parent` (-1 at its root): edge k runs from parent[k] to k, and bends
against edge parent[k]. All systems are solved from the leaves to the root in O(n), without fill: edges that share a
vertex are each other's neighbours, and what eliminating one couples is coupled already. `geom.rods` has the formulas;
the names of papers below are Bergou et al., "Discrete elastic rods" (2008) and "Discrete viscous threads" (2010).
"""

__all__ = ["BACK_FROM_END", "BACK_TO_START", "COLUMNS", "GLOBALS", "MECHANICS", "PLACES", "PUSH", "TREE"]

COLUMNS = ("length", "mass", "EI1", "EI2", "GJ", "EA", "curvature1", "curvature2", "twist")  # of `table`, by vertex
GLOBALS = ("drag", "quadratic_drag", "internal_damping", "viscosity", "gx", "gy", "gz")

TREE = (
    "offsets: int64[], parent: int32[], starts: int32[], near: int32[], slot: int32[], held: int32[], table: real[], "
    "globals: real[], tables: int32, batch: int32, clamps: int32, dt: real, space: int32, scratch: real[]"
)

# `starts` counts, from the tree's first vertex, where the list `near` of each edge begins.

MECHANICS = """
    const int trees = (int)offsets.shape[0] - 1, total = (int)offsets.data[trees];
    const int entry = i / trees, tree = i % trees;
    const int o = (int)offsets.data[tree], n = (int)offsets.data[tree + 1] - o;
    const wp::int32 *up = parent.data + o, *fix = slot.data + o, *hold = held.data + o, *row = starts.data + o;
    const REAL* T = table.data + 9 * ((long long)(tables > 1 ? entry : 0) * total + o);
    const REAL* G = globals.data + 7 * (tables > 1 ? entry : 0);
    const REAL tiny = sizeof(REAL) == 4 ? REAL(1e-12) : REAL(1e-30);
    const REAL eps = sizeof(REAL) == 4 ? REAL(1.2e-7) : REAL(2.2e-16), h = dt;
    REAL* pool = scratch.data + (long long)i * space;
    const auto take = [&](int count) { REAL* p = pool; pool += count; return p; };
    REAL *diag = take(n), *rhs = take(n), *low = take(row[n] - row[0]), *upp = take(row[n] - row[0]);
    REAL *lam = take(n), *roll = take(n), *weight = take(n), *lost = take(n), *length0 = take(n);
    REAL *t0 = take(3 * n), *t1 = take(3 * n), *kb = take(3 * n), *stiff = take(3 * n), *stress = take(3 * n);
    REAL *force = take(3 * n), *y = take(3 * n), *begun = take(3 * n);

    struct Dual {
        REAL a, b;
        Dual operator+(const Dual& o) const { return {a + o.a, b + o.b}; }
        Dual operator-(const Dual& o) const { return {a - o.a, b - o.b}; }
        Dual operator*(const Dual& o) const { return {a * o.a, a * o.b + b * o.a}; }
        Dual operator/(const Dual& o) const { const REAL q = a / o.a; return {q, (b - q * o.b) / o.a}; }
        Dual operator*(REAL o) const { return {a * o, b * o}; }
        Dual operator+(REAL o) const { return {a + o, b}; }
    };
    const auto root = [](auto v) {
        if constexpr (sizeof(v) == sizeof(REAL)) return wp::sqrt(v);
        else { const REAL s = wp::sqrt(v.a); return Dual{s, v.b / (REAL(2) * s)}; }
    };
    const auto dot = [](const auto* a, const auto* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; };
    const auto cross = [](const auto* a, const auto* b, auto* c) {
        c[0] = a[1] * b[2] - a[2] * b[1]; c[1] = a[2] * b[0] - a[0] * b[2]; c[2] = a[0] * b[1] - a[1] * b[0];
    };
    // Unit tangent of edge k, or `other` where it has no length; returns the length.
    const auto direct = [&](const REAL* x, int k, const REAL* other, REAL* t) {
        const REAL *a = x + 3 * up[k], *b = x + 3 * k;
        const REAL e[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]}, r = wp::sqrt(dot(e, e));
        for (int c = 0; c < 3; ++c) t[c] = r > tiny ? e[c] / r : other[c];
        return r;
    };
    const REAL across[3] = {REAL(1), REAL(0), REAL(0)};
    const auto rest = [&](int k) { return REAL(0.5) * (T[9 * k] + T[9 * up[k]]); };  // Voronoi length of bend k
    const auto bends = [&](int k) { return k > 0 && up[k] > 0; };

    // Strains (two curvatures) of a bend from its edges e, f and their directors, and the strains' derivatives in e, f
    // (directors carried along parallel, Bergou 2010) and in the rolls of both.
    const auto bend = [&](const auto* e, const auto* f, const auto* me, const auto* mf, auto* kappa, auto* de, auto* df,
                          auto* re, auto* rf) {
        auto le = root(dot(e, e)), lf = root(dot(f, f));
        using S = decltype(le);
        S te[3], tf[3], ne[3], nf[3], b[3];
        for (int c = 0; c < 3; ++c) { te[c] = e[c] / le; tf[c] = f[c] / lf; }
        S chi = dot(te, tf) + REAL(1);
        if constexpr (sizeof(S) == sizeof(REAL)) { if (chi < REAL(1e-6)) chi = REAL(1e-6); }
        else { if (chi.a < REAL(1e-6)) chi = Dual{REAL(1e-6), REAL(0)}; }
        cross(te, tf, b);
        for (int c = 0; c < 3; ++c) b[c] = b[c] * REAL(2) / chi;
        cross(te, me, ne); cross(tf, mf, nf);
        S tt[3], m1[3], m2[3], u[3], w[3];
        for (int c = 0; c < 3; ++c) {
            tt[c] = (te[c] + tf[c]) / chi; m1[c] = (me[c] + mf[c]) / chi; m2[c] = (ne[c] + nf[c]) / chi;
        }
        re[0] = dot(b, me) * REAL(-0.5); rf[0] = dot(b, mf) * REAL(-0.5);
        re[1] = dot(b, ne) * REAL(-0.5); rf[1] = dot(b, nf) * REAL(-0.5);
        kappa[0] = (re[1] + rf[1]) * REAL(-1); kappa[1] = re[0] + rf[0];
        cross(tf, m2, u); cross(te, m2, w);
        for (int c = 0; c < 3; ++c) {
            de[c] = (u[c] - kappa[0] * tt[c]) / le; df[c] = (w[c] + kappa[0] * tt[c]) / lf * REAL(-1);
        }
        cross(tf, m1, u); cross(te, m1, w);
        for (int c = 0; c < 3; ++c) {
            de[3 + c] = (u[c] + kappa[1] * tt[c]) / le * REAL(-1); df[3 + c] = (w[c] - kappa[1] * tt[c]) / lf;
            de[6 + c] = b[c] * REAL(0.5) / le; df[6 + c] = b[c] * REAL(0.5) / lf;
        }
    };

    // Stiffness over length, and stress, of bend k at strain s, with the strain before where there is one.
    const auto load = [&](int k, const REAL* s, const REAL* before, REAL viscous, REAL* moduli, REAL* out) {
        const REAL inverse = REAL(1) / rest(k);
        for (int c = 0; c < 3; ++c) {
            const REAL modulus = T[9 * k + 2 + c] * inverse;
            moduli[c] = modulus * (REAL(1) + viscous);
            out[c] = modulus * (s[c] - T[9 * k + 6 + c] + (viscous > REAL(0) ? viscous * (s[c] - before[c]) : REAL(0)));
        }
    };

    // One sweep over the bends at given rolls: energy's gradient in the rolls, its Hessian (diag, and low towards the
    // edge before), from kb and the directors.
    const auto assemble = [&](const REAL* t, const REAL* m, const REAL* s, const REAL* before, REAL viscous,
                              bool exact) {
        for (int k = 0; k < n; ++k) { diag[k] = REAL(0); rhs[k] = REAL(0); roll[k] = REAL(0); }
        for (int k = 1; k < n; ++k) {
            if (!bends(k)) continue;
            const int p = up[k];
            REAL moduli[3], w[3], ne[3], nf[3];
            load(k, s + 3 * k, before + 3 * k, viscous, moduli, w);
            const REAL *me = m + 3 * p, *mf = m + 3 * k, *b = kb + 3 * k;
            cross(t + 3 * p, me, ne); cross(t + 3 * k, mf, nf);
            const REAL e1 = REAL(-0.5) * dot(b, me), f1 = REAL(-0.5) * dot(b, mf);
            const REAL e2 = REAL(-0.5) * dot(b, ne), f2 = REAL(-0.5) * dot(b, nf);
            rhs[p] += w[0] * e1 + w[1] * e2 - w[2];
            rhs[k] += w[0] * f1 + w[1] * f2 + w[2];
            diag[p] += moduli[0] * e1 * e1 + moduli[1] * e2 * e2 + moduli[2];
            diag[k] += moduli[0] * f1 * f1 + moduli[1] * f2 * f2 + moduli[2];
            if (exact) { diag[p] += w[0] * e2 - w[1] * e1; diag[k] += w[0] * f2 - w[1] * f1; }
            roll[k] = moduli[0] * e1 * f1 + moduli[1] * e2 * f2 - moduli[2];  // to the edge before
        }
    };

    // rhs becomes the solution of (diag, roll) x = rhs over the free rolls; false where the matrix is not positive.
    const auto solve_rolls = [&](bool shifted) {
        REAL scale = REAL(0);
        for (int k = 1; k < n; ++k) if (diag[k] > scale) scale = diag[k];
        const REAL floor = REAL(64) * eps * scale;
        for (int k = n - 1; k > 0; --k) {
            if (hold[k]) { rhs[k] = REAL(0); diag[k] = REAL(0); continue; }
            if (diag[k] < -floor && !shifted) return false;
            if (diag[k] <= floor) { diag[k] = REAL(0); rhs[k] = REAL(0); continue; }  // a roll nothing resists
            diag[k] = REAL(1) / diag[k];
            if (bends(k) && !hold[up[k]]) {
                const REAL f = roll[k] * diag[k];
                diag[up[k]] -= f * roll[k];
                rhs[up[k]] -= f * rhs[k];
            }
        }
        for (int k = 1; k < n; ++k) {
            if (diag[k] == REAL(0)) continue;
            if (bends(k)) rhs[k] -= roll[k] * rhs[up[k]];
            rhs[k] *= diag[k];
        }
        return true;
    };

    // Directors rolled to rest, and their strains; returns what is left of the energy's gradient in the free rolls.
    const auto relax = [&](const REAL* x, REAL* t, REAL* m, REAL* s, const REAL* before, REAL viscous, int rounds) {
        for (int k = 1; k < n; ++k) {
            direct(x, k, across, t + 3 * k);
            REAL along = dot(m + 3 * k, t + 3 * k), norm = REAL(0);
            for (int c = 0; c < 3; ++c) { m[3 * k + c] -= along * t[3 * k + c]; norm += m[3 * k + c] * m[3 * k + c]; }
            norm = wp::sqrt(norm);
            for (int c = 0; c < 3; ++c) m[3 * k + c] /= norm;
        }
        for (int k = 1; k < n; ++k) {
            if (!bends(k)) { for (int c = 0; c < 3; ++c) s[3 * k + c] = REAL(0); continue; }
            const int p = up[k];
            const REAL *te = t + 3 * p, *tf = t + 3 * k;
            REAL chi = REAL(1) + dot(te, tf), b[3];
            if (chi < REAL(1e-6)) chi = REAL(1e-6);
            cross(te, tf, b);
            for (int c = 0; c < 3; ++c) kb[3 * k + c] = REAL(2) * b[c] / chi;
            // the director of e carried to f without twist, and the angle from it to that of f
            REAL d[3], nf[3];
            const REAL lean = dot(tf, m + 3 * p) / chi;
            for (int c = 0; c < 3; ++c) d[c] = m[3 * p + c] - lean * (te[c] + tf[c]);
            cross(tf, m + 3 * k, nf);
            REAL angle = wp::atan2(-dot(d, nf), dot(d, m + 3 * k)) - s[3 * k + 2];
            const REAL turn = REAL(6.283185307179586476925);
            angle -= turn * wp::floor(angle / turn + REAL(0.5));
            s[3 * k + 2] += angle;
        }
        REAL left = REAL(0);
        for (int round = 0;; ++round) {
            for (int k = 1; k < n; ++k) {
                if (!bends(k)) continue;
                const int p = up[k];
                REAL ne[3], nf[3];
                cross(t + 3 * p, m + 3 * p, ne); cross(t + 3 * k, m + 3 * k, nf);
                s[3 * k] = REAL(0.5) * (dot(kb + 3 * k, ne) + dot(kb + 3 * k, nf));
                s[3 * k + 1] = REAL(-0.5) * (dot(kb + 3 * k, m + 3 * p) + dot(kb + 3 * k, m + 3 * k));
            }
            assemble(t, m, s, before, viscous, true);
            REAL scale = REAL(0);
            left = REAL(0);
            for (int k = 1; k < n; ++k) {
                const REAL d = wp::abs(diag[k]), g = hold[k] ? REAL(0) : wp::abs(rhs[k]);
                scale = d > scale ? d : scale;
                left = g > left ? g : left;
            }
            if (round >= rounds || left <= REAL(16) * eps * scale) break;
            if (!solve_rolls(false)) { assemble(t, m, s, before, viscous, false); solve_rolls(true); }
            REAL most = REAL(0);
            for (int k = 1; k < n; ++k) most = wp::abs(rhs[k]) > most ? wp::abs(rhs[k]) : most;
            const REAL cut = most > REAL(0.5) ? REAL(-0.5) / most : REAL(-1);
            for (int k = 1; k < n; ++k) {
                const REAL angle = cut * rhs[k];
                if (angle == REAL(0)) continue;
                const REAL ca = wp::cos(angle), sa = wp::sin(angle);
                REAL nk[3];
                cross(t + 3 * k, m + 3 * k, nk);
                for (int c = 0; c < 3; ++c) m[3 * k + c] = ca * m[3 * k + c] + sa * nk[c];
            }
            for (int k = 1; k < n; ++k)
                if (bends(k)) s[3 * k + 2] += cut * (rhs[k] - rhs[up[k]]);
        }
        return left;
    };

    // (diag, low, upp) lambda = rhs, from the leaves to the root and back; edges near k come before it.
    const auto solve_edges = [&](REAL* lower, REAL* upper) {
        const int base = row[0];
        for (int k = n - 1; k > 0; --k) {
            const int begin = row[k] - base, many = row[k + 1] - row[k];
            const wp::int32* q = near.data + row[k];
            // where others hold this length already
            if (!(wp::abs(diag[k]) > REAL(64) * eps * (weight[k] + weight[up[k]]))) {
                diag[k] = REAL(0);
                continue;
            }
            const REAL inverse = REAL(1) / diag[k];
            diag[k] = inverse;
            for (int b = 0; b < many; ++b) {
                const REAL f = upper[begin + b] * inverse;
                if (f == REAL(0)) continue;
                rhs[q[b]] -= f * rhs[k];
                for (int a = 0; a < many; ++a) {
                    const REAL part = f * lower[begin + a];
                    if (a == b) diag[q[b]] -= part;
                    else if (a < b) lower[row[q[b]] - base + a] -= part;
                    else upper[row[q[a]] - base + b] -= part;
                }
            }
        }
        for (int k = 1; k < n; ++k) {
            const int begin = row[k] - base;
            if (diag[k] == REAL(0)) { rhs[k] = REAL(0); continue; }
            for (int a = 0; a < row[k + 1] - row[k]; ++a) rhs[k] -= lower[begin + a] * rhs[near.data[row[k] + a]];
            rhs[k] *= diag[k];
        }
    };

    // The matrix of step 3: derivative of -(|z_k - z_p| - L - a lambda) in lambda, t1 and t0 the edges of z and x.
    const auto couple = [&]() {
        for (int k = 1; k < n; ++k) {
            const int p = up[k], begin = row[k] - row[0];
            const REAL own = weight[k] + weight[p];
            const REAL stretch = T[9 * k] / (T[9 * k + 5] * h * h);  // 0 for an infinite EA
            diag[k] = own > REAL(0) ? own * dot(t1 + 3 * k, t0 + 3 * k) + stretch : REAL(1);
            for (int a = 0; a < row[k + 1] - row[k]; ++a) {
                const int q = near.data[row[k] + a];
                const bool both = own > REAL(0) && weight[q] + weight[up[q]] > REAL(0);
                const REAL sign = both ? (q == p ? -weight[p] : weight[p]) : REAL(0);
                low[begin + a] = sign * dot(t1 + 3 * k, t0 + 3 * q);
                upp[begin + a] = sign * dot(t1 + 3 * q, t0 + 3 * k);
            }
        }
    };

    const auto edges = [&](const REAL* x) {  // t0 and its lengths
        for (int k = 1; k < n; ++k) length0[k] = direct(x, k, across, t0 + 3 * k);
    };

    // Step 3. z (in y) from y along the edges of x, lambda in lam. Where an edge turns too far in one step for that to
    // have a solution, along those of y; if that has none, along those of each iterate in turn (Goldenthal et al.,
    // "Efficient simulation of inextensible cloth", 2007); at last each edge in turn gets its length. Returns 0 to 3.
    const auto project = [&](const REAL* x) {
        REAL reach = REAL(0);  // what positions are rounded to
        for (int k = 0; k < 3 * n; ++k) { begun[k] = y[k]; reach = wp::abs(y[k]) > reach ? wp::abs(y[k]) : reach; }
        edges(x);
        for (int mode = 0; mode < 3; ++mode) {
            if (mode) { for (int k = 0; k < 3 * n; ++k) y[k] = begun[k]; edges(y); }
            for (int k = 0; k < n; ++k) lam[k] = REAL(0);
            REAL last = REAL(INFINITY);
            for (int round = 0; round < (mode < 2 ? 16 : 64); ++round) {
                if (mode == 2) edges(y);
                REAL worst = REAL(0);
                for (int k = 1; k < n; ++k) {
                    const int p = up[k];
                    const REAL r = direct(y, k, t0 + 3 * k, t1 + 3 * k);
                    const bool moves = weight[k] + weight[p] > REAL(0);
                    const REAL stretch = T[9 * k] / (T[9 * k + 5] * h * h);
                    rhs[k] = moves ? r - T[9 * k] - stretch * lam[k] : REAL(0);
                    const REAL off = wp::abs(rhs[k]);
                    if (!(off <= worst)) worst = off == off ? off : REAL(INFINITY);
                }
                if (worst <= eps * reach * REAL(round < 6 ? 1 : round < 10 ? 3 : 16)) return mode;
                if (!(worst < (mode < 2 ? REAL(4) * last : REAL(INFINITY)))) break;
                last = worst;
                couple();
                solve_edges(low, upp);
                for (int k = 1; k < n; ++k) {
                    lam[k] += rhs[k];
                    const int p = up[k];
                    for (int c = 0; c < 3; ++c) {
                        y[3 * k + c] -= weight[k] * t0[3 * k + c] * rhs[k];
                        y[3 * p + c] += weight[p] * t0[3 * k + c] * rhs[k];
                    }
                }
            }
        }
        for (int k = 0; k < 3 * n; ++k) y[k] = begun[k];
        for (int k = 1; k < n; ++k)
            if (weight[k] > REAL(0))
                for (int c = 0; c < 3; ++c) y[3 * k + c] = y[3 * up[k] + c] + T[9 * k] * t0[3 * k + c];
        return 3;
    };
"""

# Of the first frame of a rollout (batch, steps + 1, N, 3), and of what has no frames (batch, N, 3).
PLACES = """
    const long long frame = 3 * (long long)total, own = 3 * ((long long)entry * total + o);
    const long long at = own + entry * steps * frame;
"""

# How adjoint kernels begin and end: what comes back is X of positions, V of velocities, H of the strain before, Y of
# held rolls, and P of positions a step before; A and Q gather that of `table` and `globals`.
BACK_FROM_END = """
    REAL *X = take(3 * n), *V = take(3 * n), *H = take(3 * n), *Y = take(n), *P = take(3 * n);
    REAL *A = atable.data + 9 * ((long long)entry * total + o), *Q = aglobals.data + 7 * (long long)i;
    for (int k = 0; k < 9 * n; ++k) A[k] = REAL(0);
    for (int k = 0; k < 7; ++k) Q[k] = REAL(0);
    // Where a roll of edge k moves its director at a time, 0 of edges that are not held.
    const auto swing = [&](int t, int k, REAL* normal) {
        for (int c = 0; c < 3; ++c) normal[c] = REAL(0);
        if (k == 0 || !hold[k]) return false;
        REAL e[3];
        direct(x.data + t * frame + at, k, across, e);
        cross(e, m.data + t * frame + at + 3 * k, normal);
        return true;
    };
    for (int k = 0; k < n; ++k) {
        REAL normal[3];
        Y[k] = swing(steps, k, normal) ? dot(normal, gm.data + own + 3 * k) : REAL(0);
        for (int c = 0; c < 3; ++c) {
            X[3 * k + c] = REAL(0);
            V[3 * k + c] = gv.data[own + 3 * k + c];
            H[3 * k + c] = gbefore.data[own + 3 * k + c];
        }
    }
"""
BACK_TO_START = """
    for (int k = 0; k < n; ++k) {
        REAL normal[3];
        swing(0, k, normal);
        for (int c = 0; c < 3; ++c) {
            ax.data[own + 3 * k + c] = X[3 * k + c] + gx.data[at + 3 * k + c];
            av.data[own + 3 * k + c] = V[3 * k + c];
            am.data[own + 3 * k + c] = Y[k] * normal[c];
            abefore.data[own + 3 * k + c] = bends(k) ? H[3 * k + c] : REAL(0);
        }
    }
"""

# After MECHANICS and CONTACT.
PUSH = """
    // Steps 1 and 2: forces at (x, v, m, s), and y.
    const auto push = [&](const REAL* x, const REAL* v, const REAL* m, const REAL* s, const REAL* before, REAL viscous,
                          const REAL* extra, const REAL* goal) {
        REAL leap = REAL(1);  // a step longer than the rod by a metre has lost stability: the vertex rests
        for (int k = 1; k < n; ++k) leap += T[9 * k];
        for (int k = 0; k < 3 * n; ++k) force[k] = extra ? extra[k] : REAL(0);
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            const REAL shared = REAL(0.5) * G[2] * (T[9 * k + 1] + T[9 * p + 1]);
            if (shared > REAL(0)) for (int c = 0; c < 3; ++c) {
                const REAL f = shared * (v[3 * k + c] - v[3 * p + c]);
                force[3 * p + c] += f; force[3 * k + c] -= f;
            }
            if (!bends(k)) continue;
            REAL e[3], f[3], kappa[2], de[9], df[9], re[2], rf[2];
            for (int c = 0; c < 3; ++c) { e[c] = x[3 * p + c] - x[3 * up[p] + c]; f[c] = x[3 * k + c] - x[3 * p + c]; }
            bend(e, f, m + 3 * p, m + 3 * k, kappa, de, df, re, rf);
            load(k, s + 3 * k, before + 3 * k, viscous, stiff + 3 * k, stress + 3 * k);
            for (int c = 0; c < 3; ++c) {
                REAL ge = REAL(0), gf = REAL(0);
                for (int j = 0; j < 3; ++j) {
                    ge += stress[3 * k + j] * de[3 * j + c];
                    gf += stress[3 * k + j] * df[3 * j + c];
                }
                force[3 * up[p] + c] += ge; force[3 * p + c] += gf - ge; force[3 * k + c] -= gf;
            }
        }
        for (int k = 0; k < n; ++k) {
            const REAL mass = T[9 * k + 1];
            weight[k] = fix[k] < 0 ? REAL(1) / mass : REAL(0);
            const REAL speed = G[1] > REAL(0) ? wp::sqrt(dot(v + 3 * k, v + 3 * k)) : REAL(0);
            for (int c = 0; c < 3; ++c) {
                const REAL a = force[3 * k + c] / mass + G[4 + c] - (G[0] + G[1] * speed) * v[3 * k + c];
                drift[3 * k + c] = v[3 * k + c] + (fix[k] < 0 ? h * a : REAL(0));
            }
        }
        if (touching) touch(x, v);
        for (int k = 0; k < n; ++k) {
            REAL move[3], far = REAL(0);
            for (int c = 0; c < 3; ++c) {
                move[c] = h * drift[3 * k + c];
                if (touching) move[c] += h * h * weight[k] * hit[3 * k + c];
                far = wp::abs(move[c]) > far ? wp::abs(move[c]) : far;
            }
            lost[k] = fix[k] < 0 && !(far < leap) ? REAL(1) : REAL(0);
            for (int c = 0; c < 3; ++c) {
                const REAL onward = x[3 * k + c] + (lost[k] > REAL(0) ? REAL(0) : move[c]);
                y[3 * k + c] = fix[k] >= 0 ? goal[3 * fix[k] + c] : onward;
            }
        }
    };
"""
