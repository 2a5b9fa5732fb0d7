"""Elastic rods in implicit time steps: a whole rollout of a tree of rods in one kernel, and its adjoint.

One item is one tree of one batch entry. A step from x, v with directors m finds z, rolls and edge multipliers mu with

    mass ((z - x) r^2 - v r) / a + dE(y)/dy + mu e(y) + damping(u) = mass g + f,   dE(y)/droll = 0,   |e(z)| = L

where r = 1/dt, y = x + a (z - x) and u = (z - x) r; a = 1 is implicit Euler, a = 1/2 the implicit midpoint rule, r near
0 an equilibrium. A finite EA has (length)(1 - mu L / EA) = L instead; with a = 1/2 the length is then the mean of those
of x and z, which makes stretching keep its energy exactly (Gonzalez 1996).
"""

from geom.kernels.native import native_kernel
from geom.kernels.rod_mechanics import BACK_FROM_END, BACK_TO_START, TREE
from geom.kernels.rod_newton import NEWTON

__all__ = ["rollout", "rollout_adjoint", "space"]


def space(largest: int) -> int:
    """Numbers of scratch an item needs, where no tree has more than `largest` vertices, or pairs of edges that meet."""
    return 280 * largest


_SIGNATURE = (
    f"{TREE}, steps: int32, blend: real, rate: real, history: int32, still: int32, forces: int32, v: real[], "
    "before: real[], goal: real[], extra: real[], x: real[], m: real[], s: real[], mids: real[], strained: real[], "
    "tension: real[]"
)

rollout = native_kernel(
    __name__,
    "implicit_rollout",
    f"{_SIGNATURE}, failed: int32[]",
    # As `geom.kernels.rods.rollout`; and, for the adjoint, directors and strains at y (batch, steps, N, 3), mu (batch,
    # steps, N). v becomes that of the end, before the strain at the last y. failed (items, steps): 1 without a
    # solution, where the rod moves on as it did and only regains its lengths. still: each step starts at rest.
    NEWTON
    + """
    REAL *speed = v.data + own, *old = before.data + own;
    for (int k = 0; k < n; ++k) mu[k] = REAL(0);
    for (int t = 0; t < steps; ++t) {
        const REAL *x0 = x.data + t * frame + at, *m0 = m.data + t * frame + at, *s0 = s.data + t * frame + at;
        REAL *x1 = x.data + (t + 1) * frame + at, *m1 = m.data + (t + 1) * frame + at;
        REAL* s1 = s.data + (t + 1) * frame + at;
        const long long pushed = own + (entry * (steps - 1) + t) * frame;
        const REAL* to = goal.data + 3 * ((long long)entry * steps + t) * clamps;
        const REAL viscous = t > 0 || history ? G[3] * rate : REAL(0);
        const bool solved = solve(x0, speed, m0, s0, old, viscous, forces ? extra.data + pushed : nullptr, to);
        failed.data[(long long)i * steps + t] = !solved;
        if (!solved) {
            for (int k = 0; k < n; ++k) {
                weight[k] = fix[k] < 0 ? REAL(1) / T[9 * k + 1] : REAL(0);
                mu[k] = REAL(0);
                for (int c = 0; c < 3; ++c) y[3 * k + c] = aim[3 * k + c];
            }
            project(x0);
            for (int c = 0; c < 3 * n; ++c) z[c] = y[c];
            settle(x0, m0, s0, old, viscous);
        }
        for (int k = 0; k < n; ++k) {
            tension.data[(own + (entry * (steps - 1) + t) * frame) / 3 + k] = mu[k];
            for (int c = 0; c < 3; ++c) {
                const int q = 3 * k + c;
                x1[q] = z[q]; mids.data[pushed + q] = mm[q]; strained.data[pushed + q] = old[q] = ss[q]; s1[q] = ss[q];
                const REAL pace = (z[q] - x0[q]) * rate;
                speed[q] = still ? REAL(0) : midpoint ? REAL(2) * pace - speed[q] : pace;
            }
        }
        carry(mid, x1, mm, m1);
        if (midpoint) relax(x1, t1, m1, s1, old, REAL(0), 20);
        s1[0] = s1[1] = s1[2] = m1[0] = m1[1] = m1[2] = REAL(0);
    }
    """,
)

rollout_adjoint = native_kernel(
    __name__,
    "implicit_rollout_adjoint",
    f"{_SIGNATURE}, failed: int32[], gx: real[], gv: real[], gm: real[], gbefore: real[], ax: real[], av: real[], "
    "am: real[], abefore: real[], agoal: real[], aextra: real[], atable: real[], aglobals: real[]",
    # Back through `implicit_rollout`, with the same arrays as `geom.kernels.rods.rollout_adjoint`: with K the matrix of
    # a step at its solution, a = -K^-T (what comes back) times the residual is differentiated in all that is given.
    NEWTON
    + BACK_FROM_END
    + """
    REAL *M = take(3 * n), *R = take(n), *speed = take(3 * n);
    for (int c = 0; c < 3 * n; ++c) {
        speed[c] = v.data[own + c];
        for (int t = 0; t < steps; ++t) {
            const REAL pace = (x.data[(t + 1) * frame + at + c] - x.data[t * frame + at + c]) * rate;
            speed[c] = still ? REAL(0) : midpoint ? REAL(2) * pace - speed[c] : pace;
        }
    }
    // A held edge's roll, and what carrying its director from x0 to x1 gives to both.
    const auto uncarry = [&](const REAL* x0, const REAL* x1, int k, REAL value, REAL* to0, REAL* to1) {
        REAL d[3], e[3], b[3];
        const REAL l0 = direct(x0, k, across, d), l1 = direct(x1, k, d, e);
        if (value == REAL(0) || l0 <= tiny || l1 <= tiny) return;
        REAL chi = REAL(1) + dot(d, e);
        if (chi < REAL(1e-6)) chi = REAL(1e-6);
        cross(d, e, b);
        for (int c = 0; c < 3; ++c) {
            const REAL part = -value * b[c] / chi;
            to1[3 * k + c] += part / l1; to1[3 * up[k] + c] -= part / l1;
            to0[3 * k + c] += part / l0; to0[3 * up[k] + c] -= part / l0;
        }
    };
    for (int t = steps - 1; t >= 0; --t) {
        const REAL *x0 = x.data + t * frame + at, *x1 = x0 + frame, *g = gx.data + (t + 1) * frame + at;
        const REAL* last = t > 0 ? strained.data + own + (entry * (steps - 1) + t - 1) * frame : before.data + own;
        const REAL viscous = t > 0 || history ? G[3] * rate : REAL(0);
        const long long goals = 3 * ((long long)entry * steps + t) * clamps;
        const long long pushed = own + (entry * (steps - 1) + t) * frame;
        for (int c = 0; c < 3 * n; ++c) {
            const REAL pace = (x1[c] - x0[c]) * rate;
            speed[c] = still ? REAL(0) : midpoint ? REAL(2) * pace - speed[c]
                       : t > 0 ? (x0[c] - x0[c - frame]) * rate : v.data[own + c];
            const REAL back = still ? REAL(0) : V[c] * rate / blend;
            X[c] += g[c] + back;
            P[c] = -back;
            V[c] = still ? REAL(0) : (REAL(1) - REAL(1) / blend) * V[c];
            M[c] = REAL(0);
            z[c] = x1[c]; mid[c] = x0[c] + blend * (x1[c] - x0[c]);
            mm[c] = mids.data[pushed + c]; ss[c] = strained.data[pushed + c];
        }
        if (failed.data[(long long)i * steps + t]) {
            for (int c = 0; c < 3 * n; ++c) X[c] = V[c] = H[c] = P[c] = REAL(0);
            for (int k = 0; k < n; ++k) Y[k] = REAL(0);
            for (int k = 0; k < n; ++k) for (int c = 0; c < 3; ++c)
                if (fix[k] >= 0) agoal.data[goals + 3 * fix[k] + c] = REAL(0);
            if (forces) for (int c = 0; c < 3 * n; ++c) aextra.data[pushed + c] = REAL(0);
            continue;
        }
        for (int k = 0; k < n; ++k) { mu[k] = tension.data[pushed / 3 + k]; R[k] = REAL(0); }
        for (int k = 1; k < n; ++k) {
            direct(mid, k, across, t1 + 3 * k);
            if (hold[k]) uncarry(x0, x1, k, Y[k], P, X);
        }
        const REAL steepest = linearise(x0, speed, last, viscous, nullptr, rate, REAL(0));
        for (int pass = 0; pass < 2; ++pass) {  // before and after the system is solved
            for (int k = 1; k < n; ++k) {
                if (!bends(k)) continue;
                const int p = up[k], who[3] = {up[p], p, k};
                REAL J[3][8], S[8][8], moduli[3], w[3], out[8], wide[11], along[8];
                load(k, ss + 3 * k, last + 3 * k, viscous, moduli, w);
                second(mid, k, moduli, w, J, S);
                REAL turn[3] = {REAL(0), REAL(0), REAL(0)};
                if (pass) {
                    for (int c = 0; c < 3; ++c) {
                        along[c] = side[5 * p + 1 + c] - side[5 * up[p] + 1 + c];
                        along[3 + c] = side[5 * k + 1 + c] - side[5 * p + 1 + c];
                    }
                    along[6] = side[5 * p]; along[7] = side[5 * k];
                    for (int j = 0; j < 3; ++j) for (int a = 0; a < 8; ++a) turn[j] += J[j][a] * along[a];
                }
                for (int a = 0; a < 8; ++a) {
                    out[a] = REAL(0);
                    if (pass) for (int b = 0; b < 8; ++b) out[a] += S[a][b] * along[b];
                    else for (int j = 0; j < 3; ++j) out[a] += H[3 * k + j] * J[j][a];
                }
                widen(out, wide);
                for (int a = 0; a < 9; ++a) M[3 * who[vertex[a]] + slots[a] - 1] += wide[a];
                R[p] += wide[9]; R[k] += wide[10];
                if (!pass) continue;
                const REAL inverse = REAL(1) / rest(k);
                REAL shrink = REAL(0);
                for (int j = 0; j < 3; ++j) {
                    const REAL modulus = T[9 * k + 2 + j] * inverse;
                    const REAL lag = viscous > REAL(0) ? ss[3 * k + j] - last[3 * k + j] : REAL(0);
                    A[9 * k + 2 + j] += inverse * turn[j] * (ss[3 * k + j] - T[9 * k + 6 + j] + viscous * lag);
                    A[9 * k + 6 + j] -= modulus * turn[j];
                    Q[3] += modulus * lag * turn[j] * rate;
                    shrink -= REAL(0.5) * inverse * w[j] * turn[j];
                    H[3 * k + j] = -modulus * viscous * turn[j];
                }
                A[9 * k] += shrink; A[9 * p] += shrink;
            }
            for (int c = 0; c < 3 * n; ++c) {
                X[c] += blend * M[c];
                P[c] += (REAL(1) - blend) * M[c];
                M[c] = REAL(0);
            }
            if (pass) break;
            for (int k = 0; k < n; ++k) {
                for (int j = 0; j < 5; ++j) {
                    for (int c = 0; c < 5; ++c) {
                        REAL *one = block[0] + 25 * k + 5 * j + c, *two = block[0] + 25 * k + 5 * c + j;
                        if (c < j) { const REAL keep = *one; *one = *two; *two = keep; }
                        for (int pair = 1; pair < 5; pair += 2) {
                            REAL *a = block[pair] + 25 * k + 5 * j + c, *b = block[pair + 1] + 25 * k + 5 * c + j;
                            const REAL keep = *a;
                            *a = *b; *b = keep;
                        }
                    }
                    side[5 * k + j] = !open(k, j) || j == 4 ? REAL(0) : j ? -X[3 * k + j - 1] : -R[k];
                }
            }
            eliminate(steepest);
            refine(4);
        }
        for (int k = 0; k < n; ++k) {
            const REAL* a = side + 5 * k + 1;
            REAL u[3], mass = T[9 * k + 1];
            for (int c = 0; c < 3; ++c) u[c] = (x1[3 * k + c] - x0[3 * k + c]) * rate;
            const REAL fast = G[1] > REAL(0) ? wp::sqrt(dot(u, u)) : REAL(0), slow = G[0] + G[1] * fast, ua = dot(u, a);
            Q[0] += mass * ua; Q[1] += mass * fast * ua;
            for (int c = 0; c < 3; ++c) {
                const REAL inertia = (u[c] - speed[3 * k + c]) * rate / blend;
                A[9 * k + 1] += a[c] * (inertia + slow * u[c] - G[4 + c]);
                Q[4 + c] -= mass * a[c];
                REAL drag = mass * slow * a[c];
                if (fast > tiny) drag += mass * G[1] * ua * u[c] / fast;
                P[3 * k + c] -= rate * (mass * rate / blend * a[c] + drag);
                V[3 * k + c] -= still ? REAL(0) : mass * rate / blend * a[c];
                if (forces) aextra.data[pushed + 3 * k + c] = -a[c];
            }
        }
        for (int k = 1; k < n; ++k) {
            const int p = up[k];
            REAL t0k[3], tz[3], size, part, da[3], du[3];
            const REAL soft = law(x0, x1, k, tz, &size, &part), scale = size * size / T[9 * k];
            direct(x0, k, tz, t0k);
            for (int c = 0; c < 3; ++c) {
                da[c] = side[5 * k + 1 + c] - side[5 * p + 1 + c];
                du[c] = rate * (x1[3 * k + c] - x0[3 * k + c] - x1[3 * p + c] + x0[3 * p + c]);
            }
            const REAL both = T[9 * k + 1] + T[9 * p + 1], work = dot(du, da), push = scale * side[5 * k + 4];
            Q[2] += REAL(0.5) * both * work;
            A[9 * k + 1] += REAL(0.5) * G[2] * work; A[9 * p + 1] += REAL(0.5) * G[2] * work;
            A[9 * k] -= push * (REAL(1) + mu[k] * size / T[9 * k + 5]);
            A[9 * k + 5] += push * mu[k] * size * soft / T[9 * k + 5];
            for (int c = 0; c < 3; ++c) {
                const REAL middle = mu[k] * da[c], drag = rate * REAL(0.5) * G[2] * both * da[c];
                const REAL row = push * (REAL(1) - mu[k] * soft);
                const REAL later = blend * middle + drag + row * part * tz[c];
                const REAL sooner = (REAL(1) - blend) * middle - drag + row * (REAL(1) - part) * t0k[c];
                X[3 * k + c] += later; X[3 * p + c] -= later;
                P[3 * k + c] += sooner; P[3 * p + c] -= sooner;
            }
            if (!hold[k]) continue;
            uncarry(x0, mid, k, R[k], P, M);
            Y[k] += R[k];
        }
        for (int c = 0; c < 3 * n; ++c) { X[c] += blend * M[c]; P[c] += (REAL(1) - blend) * M[c]; }
        for (int k = 0; k < n; ++k)
            for (int c = 0; c < 3; ++c) {
                if (fix[k] >= 0) agoal.data[goals + 3 * fix[k] + c] = X[3 * k + c];
                X[3 * k + c] = P[3 * k + c];
            }
    }
    """
    + BACK_TO_START,
)
