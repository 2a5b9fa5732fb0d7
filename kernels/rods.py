"""Elastic rods in time: a whole rollout of a tree of rods in one kernel, and its adjoint.

One item is one tree of one batch entry. One step from positions x, velocities v, material directors m and strains k
(two curvatures and a twist):
    1. stress of each bend, forces, drag            w = stiffness / length (k - natural) + viscous part
    2. semi-implicit Euler, with contacts           y = x + h (v + h f / mass), clamped vertices at their targets
    3. edges regain their lengths along x's edges   z = y - J(x)^T lambda / mass   (SHAKE; conserves both momenta)
    4. directors carried along, rolled to rest      m, k with dE/droll = 0 (Newton)
The adjoint recomputes a step from its stored start and goes back through it: steps 3 and 4 by the implicit function
theorem, the energy's second derivatives as the derivative of its gradient along one direction (dual numbers).
"""

from geom.kernels.native import native_kernel
from geom.kernels.rod_contact import CONTACT, LAW, TOUCH
from geom.kernels.rod_mechanics import BACK_FROM_END, BACK_TO_START, COLUMNS, GLOBALS, MECHANICS, PLACES, PUSH, TREE

__all__ = ["COLUMNS", "GLOBALS", "LAW", "rollout", "rollout_adjoint", "settle", "space"]


def space(largest: int) -> int:
    """Numbers of scratch an item needs, where no tree has more than `largest` vertices, or pairs of edges that meet."""
    return 78 * largest


settle = native_kernel(
    __name__,
    "settle",
    f"{TREE}, rounds: int32, x: real[], m: real[], s: real[], left: real[]",
    # Directors m (batch, N, 3) made perpendicular to their edges and rolled to rest, with strains s and what is left.
    MECHANICS
    + """
    const long long at = 3 * ((long long)entry * total + o);
    left.data[i] = relax(x.data + at, t1, m.data + at, s.data + at, s.data + at, REAL(0), rounds);
    """,
)

_SIGNATURE = (
    f"{TREE}, {TOUCH}, steps: int32, history: int32, forces: int32, v: real[], before: real[], goal: real[], "
    "extra: real[], x: real[], m: real[], s: real[]"
)

rollout = native_kernel(
    __name__,
    "rollout",
    _SIGNATURE,
    # x, m, s (batch, steps + 1, N, 3), the first filled in; v and before (batch, N, 3) become those of the end.
    MECHANICS
    + CONTACT
    + PUSH
    + PLACES
    + """
    REAL *speed = v.data + own, *old = before.data + own;
    for (int t = 0; t < steps; ++t) {
        const REAL *x0 = x.data + t * frame + at, *m0 = m.data + t * frame + at, *s0 = s.data + t * frame + at;
        REAL *x1 = x.data + (t + 1) * frame + at, *m1 = m.data + (t + 1) * frame + at;
        REAL* s1 = s.data + (t + 1) * frame + at;
        const REAL viscous = G[3] / h;
        const long long pushed = own + (entry * (steps - 1) + t) * frame;
        push(x0, speed, m0, s0, old, t > 0 || history ? viscous : REAL(0), forces ? extra.data + pushed : nullptr,
             goal.data + 3 * ((long long)entry * steps + t) * clamps);
        if (project(x0)) edges(x0);
        for (int k = 0; k < 3 * n; ++k) {
            x1[k] = y[k]; speed[k] = (y[k] - x0[k]) / h; old[k] = s0[k]; s1[k] = s0[k];
        }
        m1[0] = m1[1] = m1[2] = s1[0] = s1[1] = s1[2] = REAL(0);
        for (int k = 1; k < n; ++k) {  // directors carried from edge t0 to t1 without twist
            REAL e[3];
            direct(x1, k, t0 + 3 * k, e);
            REAL chi = REAL(1) + dot(t0 + 3 * k, e);
            if (chi < REAL(1e-6)) chi = REAL(1e-6);
            const REAL lean = dot(e, m0 + 3 * k) / chi;
            for (int c = 0; c < 3; ++c) m1[3 * k + c] = m0[3 * k + c] - lean * (t0[3 * k + c] + e[c]);
        }
        relax(x1, t1, m1, s1, old, viscous, 20);
    }
    """,
)

rollout_adjoint = native_kernel(
    __name__,
    "rollout_adjoint",
    f"{_SIGNATURE}, gx: real[], gv: real[], gm: real[], gbefore: real[], "
    "ax: real[], av: real[], am: real[], abefore: real[], agoal: real[], aextra: real[], atable: real[], "
    "aglobals: real[], abodies: real[], alaw: real[]",
    # Back through `rollout`, from its inputs and its x, m, s: gx (batch, steps + 1, N, 3) and gv, gm, gbefore of the
    # end become ax, av, am, abefore of the start, agoal, aextra, and for each item atable, aglobals, abodies and alaw.
    # Directors have one derivative each, in their roll, and only those of held edges.
    MECHANICS
    + CONTACT
    + PUSH
    + PLACES
    + BACK_FROM_END
    + """
    REAL *W = take(3 * n), *speed = take(3 * n), *pull = take(3 * n), *slack = take(n), *late = take(n);
    REAL *U = take(3 * n), *bodily = abodies.data + 8 * (long long)count * i, *lawful = alaw.data + 6 * (long long)i;
    for (int k = 0; k < 8 * count; ++k) bodily[k] = REAL(0);
    for (int k = 0; k < 6; ++k) lawful[k] = REAL(0);
    for (int t = steps - 1; t >= 0; --t) {
        const REAL *x0 = x.data + t * frame + at, *m0 = m.data + t * frame + at, *s0 = s.data + t * frame + at;
        const REAL *x1 = x0 + frame, *old = t > 0 ? s0 - frame : before.data + own, *g = gx.data + (t + 1) * frame + at;
        const REAL viscous = t > 0 || history ? G[3] / h : REAL(0);
        const long long goals = 3 * ((long long)entry * steps + t) * clamps;
        const long long pushed = own + (entry * (steps - 1) + t) * frame;
        for (int k = 0; k < 3 * n; ++k) speed[k] = t > 0 ? (x0[k] - x0[k - frame]) / h : v.data[own + k];
        push(x0, speed, m0, s0, old, viscous, forces ? extra.data + pushed : nullptr, goal.data + goals);
        const int mode = project(x0);
        for (int k = 0; k < 3 * n; ++k) {
            X[k] += g[k] + V[k] / h;
            P[k] = -V[k] / h;
            V[k] = REAL(0);
        }
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            const REAL r = direct(x1, k, t0 + 3 * k, t1 + 3 * k);
            if (Y[k] == REAL(0) || r <= tiny) continue;
            REAL d[3], b[3];  // directors carried along without twist
            const REAL gone = direct(x0, k, across, d) + tiny;
            REAL chi = REAL(1) + dot(d, t1 + 3 * k);
            if (chi < REAL(1e-6)) chi = REAL(1e-6);
            cross(d, t1 + 3 * k, b);
            for (int c = 0; c < 3; ++c) {
                const REAL part = -Y[k] * b[c] / chi;
                X[3 * k + c] += part / r; X[3 * p + c] -= part / r;
                P[3 * k + c] += part / gone; P[3 * p + c] -= part / gone;
            }
        }
        // step 3, at its solution; where it found none, nothing goes further back
        if (mode > 1) for (int k = 0; k < 3 * n; ++k) X[k] = P[k] = REAL(0);
        if (mode > 1) for (int k = 0; k < n; ++k) lam[k] = REAL(0);
        couple();
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            rhs[k] = weight[k] * dot(t0 + 3 * k, X + 3 * k) - weight[p] * dot(t0 + 3 * k, X + 3 * p);
        }
        solve_edges(upp, low);
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            const REAL soft = T[9 * k + 5] * h * h;
            if (weight[k] + weight[p] <= REAL(0)) continue;
            A[9 * k] += rhs[k] * (REAL(1) + lam[k] / soft);
            A[9 * k + 5] -= rhs[k] * lam[k] * T[9 * k] / (soft * T[9 * k + 5]);
            for (int c = 0; c < 3; ++c) {
                X[3 * k + c] -= t1[3 * k + c] * rhs[k];
                X[3 * p + c] += t1[3 * k + c] * rhs[k];
            }
        }
        for (int k = 0; k < n; ++k) { slack[k] = REAL(0); for (int c = 0; c < 3; ++c) W[3 * k + c] = REAL(0); }
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            if (lam[k] == REAL(0)) continue;
            REAL d[3];
            for (int c = 0; c < 3; ++c) d[c] = -lam[k] * (weight[k] * X[3 * k + c] - weight[p] * X[3 * p + c]);
            const REAL along = dot(d, t0 + 3 * k);
            for (int c = 0; c < 3; ++c) {
                const REAL part = (d[c] - along * t0[3 * k + c]) / length0[k];
                W[3 * k + c] += part; W[3 * p + c] -= part;
            }
            slack[k] -= lam[k] * dot(t0 + 3 * k, X + 3 * k); slack[p] += lam[k] * dot(t0 + 3 * k, X + 3 * p);
        }
        REAL* along = mode == 1 ? X : P;  // the edges that step 3 went along
        for (int k = 0; k < 3 * n; ++k) along[k] += W[k];
        if (mode) edges(x0);
        // step 2, its contacts first; slack gathers the gradient in each inverse mass
        for (int k = 0; k < n; ++k) {
            for (int c = 0; c < 3; ++c) pull[3 * k + c] = U[3 * k + c] = REAL(0);
            if (fix[k] >= 0) continue;
            for (int c = 0; c < 3; ++c) {
                P[3 * k + c] += X[3 * k + c];
                if (lost[k] > REAL(0)) X[3 * k + c] = REAL(0);
                pull[3 * k + c] = h * h * weight[k] * X[3 * k + c];
                if (touching) slack[k] += h * h * X[3 * k + c] * hit[3 * k + c];
            }
        }
        if (touching) touch_back(x0, speed, pull, P, V, U, slack, bodily, lawful);
        for (int k = 0; k < n; ++k) {
            if (fix[k] >= 0) {
                for (int c = 0; c < 3; ++c) {
                    agoal.data[goals + 3 * fix[k] + c] = X[3 * k + c];
                    V[3 * k + c] += U[3 * k + c];
                }
            } else {
                const REAL *u = speed + 3 * k, w = weight[k], fast = G[1] > REAL(0) ? wp::sqrt(dot(u, u)) : REAL(0);
                REAL a[3], dull = REAL(0), work = REAL(0);
                for (int c = 0; c < 3; ++c) {
                    const REAL onward = h * X[3 * k + c] + U[3 * k + c];
                    a[c] = h * onward;
                    pull[3 * k + c] = a[c] * w;
                    Q[4 + c] += a[c];
                    dull += u[c] * a[c]; work += force[3 * k + c] * a[c];
                    V[3 * k + c] += onward;
                }
                Q[0] -= dull; Q[1] -= wp::sqrt(dot(u, u)) * dull;
                for (int c = 0; c < 3; ++c) {
                    V[3 * k + c] -= (G[0] + G[1] * fast) * a[c];
                    if (fast > tiny) V[3 * k + c] -= G[1] * dull * u[c] / fast;
                }
                A[9 * k + 1] -= w * w * (slack[k] + work);
            }
            if (forces) for (int c = 0; c < 3; ++c) aextra.data[pushed + 3 * k + c] = pull[3 * k + c];
        }
        // step 1: L = dE/dx . W + strain . H, with W = -pull
        for (int k = 0; k < n; ++k) { late[k] = REAL(0); for (int c = 0; c < 3; ++c) W[3 * k + c] = -pull[3 * k + c]; }
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            REAL d[3], u[3];
            for (int c = 0; c < 3; ++c) {
                d[c] = pull[3 * p + c] - pull[3 * k + c];
                u[c] = speed[3 * k + c] - speed[3 * p + c];
            }
            const REAL both = REAL(0.5) * (T[9 * k + 1] + T[9 * p + 1]), work = dot(u, d);
            for (int c = 0; c < 3; ++c) { V[3 * k + c] += G[2] * both * d[c]; V[3 * p + c] -= G[2] * both * d[c]; }
            Q[2] += both * work;
            A[9 * k + 1] += REAL(0.5) * G[2] * work; A[9 * p + 1] += REAL(0.5) * G[2] * work;
            if (bends(k)) {
                const REAL *te = t0 + 3 * p, *tf = t0 + 3 * k;
                REAL chi = REAL(1) + dot(te, tf), b[3];
                if (chi < REAL(1e-6)) chi = REAL(1e-6);
                cross(te, tf, b);
                for (int c = 0; c < 3; ++c) kb[3 * k + c] = REAL(2) * b[c] / chi;
            }
        }
        for (int pass = 0; pass < 2; ++pass) {  // rolls still, then with the rolls y that follow
            if (pass) {
                for (int k = 0; k < n; ++k) y[k] = late[k];
                assemble(t0, m0, s0, old, viscous, true);
                for (int k = 0; k < n; ++k) { rhs[k] = -y[k]; late[k] = REAL(0); }
                rhs[0] = REAL(0);
                solve_rolls(true);
                for (int k = 0; k < n; ++k) y[k] = k > 0 && !hold[k] ? rhs[k] : REAL(0);
            } else for (int k = 0; k < n; ++k) y[k] = REAL(0);
            for (int k = 1; k < n; ++k) {
                if (!bends(k)) continue;
                const int p = up[k], a = up[p];
                Dual e[3], f[3], me[3], mf[3], kappa[2], de[9], df[9], re[2], rf[2];
                REAL se[3], sf[3], ne[3], nf[3];
                for (int c = 0; c < 3; ++c) {
                    e[c] = Dual{x0[3 * p + c] - x0[3 * a + c], W[3 * p + c] - W[3 * a + c]};
                    f[c] = Dual{x0[3 * k + c] - x0[3 * p + c], W[3 * k + c] - W[3 * p + c]};
                    se[c] = e[c].b / length0[p]; sf[c] = f[c].b / length0[k];
                }
                const REAL lean = dot(m0 + 3 * p, se), leaf = dot(m0 + 3 * k, sf);
                cross(t0 + 3 * p, m0 + 3 * p, ne); cross(t0 + 3 * k, m0 + 3 * k, nf);
                for (int c = 0; c < 3; ++c) {
                    me[c] = Dual{m0[3 * p + c], y[p] * ne[c] - lean * t0[3 * p + c]};
                    mf[c] = Dual{m0[3 * k + c], y[k] * nf[c] - leaf * t0[3 * k + c]};
                }
                bend(e, f, me, mf, kappa, de, df, re, rf);
                REAL rate[3] = {kappa[0].b, kappa[1].b, y[k] - y[p]};
                for (int c = 0; c < 3; ++c) rate[2] += de[6 + c].a * e[c].b + df[6 + c].a * f[c].b;
                REAL flow[3];
                for (int j = 0; j < 3; ++j) flow[j] = stiff[3 * k + j] * rate[j];
                const REAL *w = stress + 3 * k, *q = H + 3 * k;
                for (int j = 0; j < 2; ++j) {
                    late[p] += (flow[j] + q[j]) * re[j].a + w[j] * re[j].b;
                    late[k] += (flow[j] + q[j]) * rf[j].a + w[j] * rf[j].b;
                }
                late[p] -= flow[2] + q[2];
                late[k] += flow[2] + q[2];
                if (!pass) continue;
                for (int c = 0; c < 3; ++c) {
                    REAL ge = REAL(0), gf = REAL(0);
                    for (int j = 0; j < 3; ++j) {
                        ge += (flow[j] + q[j]) * de[3 * j + c].a + w[j] * de[3 * j + c].b;
                        gf += (flow[j] + q[j]) * df[3 * j + c].a + w[j] * df[3 * j + c].b;
                    }
                    P[3 * a + c] -= ge; P[3 * p + c] += ge - gf; P[3 * k + c] += gf;
                }
                const REAL inverse = REAL(1) / rest(k);
                REAL shrink = REAL(0);
                for (int j = 0; j < 3; ++j) {
                    const REAL modulus = T[9 * k + 2 + j] * inverse, turn = rate[j];
                    const REAL lag = viscous > REAL(0) ? s0[3 * k + j] - old[3 * k + j] : REAL(0);
                    A[9 * k + 2 + j] += inverse * turn * (s0[3 * k + j] - T[9 * k + 6 + j] + viscous * lag);
                    A[9 * k + 6 + j] -= modulus * turn;
                    Q[3] += modulus * lag * turn / h;
                    shrink -= REAL(0.5) * inverse * w[j] * turn;
                    stiff[3 * k + j] = -modulus * viscous * turn;  // of the strain before
                }
                A[9 * k] += shrink; A[9 * p] += shrink;
            }
        }
        for (int k = 0; k < n; ++k) {
            const bool moves = k > 0 && hold[k];
            Y[k] = moves ? Y[k] + late[k] : REAL(0);
            for (int c = 0; c < 3; ++c) {
                X[3 * k + c] = P[3 * k + c];
                H[3 * k + c] = bends(k) ? stiff[3 * k + c] : REAL(0);
            }
        }
        // a motion that has lost stability has derivatives that overflow: those of what came later are dropped
        REAL most = REAL(0);
        for (int k = 0; k < 3 * n; ++k) most += wp::abs(X[k]) + wp::abs(V[k]) + wp::abs(H[k]) + wp::abs(Y[k / 3]);
        if (!(most < (sizeof(REAL) == 4 ? REAL(1e12) : REAL(1e100)))) {
            for (int k = 0; k < 3 * n; ++k) X[k] = V[k] = H[k] = Y[k / 3] = REAL(0);
            for (int k = 0; k < 9 * n; ++k) A[k] = REAL(0);
            for (int k = 0; k < 7; ++k) Q[k] = REAL(0);
            for (int k = 0; k < 8 * count; ++k) bodily[k] = REAL(0);
            for (int k = 0; k < 6; ++k) lawful[k] = REAL(0);
            for (int k = 0; k < 3 * n; ++k) if (fix[k / 3] >= 0) agoal.data[goals + 3 * fix[k / 3] + k % 3] = REAL(0);
            if (forces) for (int k = 0; k < 3 * n; ++k) aextra.data[pushed + k] = REAL(0);
        }
    }
    """
    + BACK_TO_START,
)
