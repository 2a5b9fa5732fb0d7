"""Contact of one tree of rods with obstacles and with itself, as C++ that the kernels in `geom.kernels.rods` share.

`geom.rods.contact` has the formulas and their torch twin. A body is a plane (a point and a unit normal) or a capsule
(two ends and a radius; a sphere's ends coincide) and meets vertices; edges meet the edges of the list `pairs`. The
vector-Jacobian product of a contact is written out, stage by stage: where the two are nearest, then the force.
"""

__all__ = ["CONTACT", "LAW", "TOUCH"]

LAW = ("radius", "stiffness", "damping", "friction", "slip", "smoothing")  # of `law`
TOUCH = "bodies: real[], law: real[], pairs: int32[], first_pair: int32[], scenes: int32, count: int32"

CONTACT = """
    const int scene = scenes > 1 ? entry : 0;
    const REAL *C = law.data + 6 * scene, *B = bodies.data + 8 * (long long)count * scene;
    const int pair0 = first_pair.data[tree], pair1 = first_pair.data[tree + 1];
    const bool touching = count > 0 || pair0 < pair1;
    REAL *drift = take(3 * n), *hit = take(3 * n), *middle = take(4 * n);

    // Force f of a contact of depth D, the lead of damping included, along n; u is the velocity that friction opposes.
    const auto press = [&](REAL D, REAL* slope) {
        *slope = D < C[5] ? C[1] * D / C[5] : C[1];
        return D < C[5] ? REAL(0.5) * C[1] * D * D / C[5] : C[1] * (D - REAL(0.5) * C[5]);
    };
    const auto resist = [&](REAL D, const REAL* along, const REAL* u, REAL w, REAL* f) {
        REAL slope, sideways[3];
        const REAL N = press(D, &slope), rise = dot(along, u), stick = h * C[3] * N * w + C[4];
        for (int c = 0; c < 3; ++c) sideways[c] = u[c] - along[c] * rise;
        const REAL pace = wp::sqrt(dot(sideways, sideways)), q = C[3] * N / (pace > stick ? pace : stick);
        for (int c = 0; c < 3; ++c) f[c] = N * along[c] - q * sideways[c];
    };
    // From g, the gradient in f, those in n, v, u, w and the law; returns that in D.
    const auto resist_back = [&](REAL D, const REAL* along, const REAL* v, const REAL* u, REAL w, const REAL* g,
                                 REAL* gn, REAL* gv, REAL* gu, REAL* gw, REAL* gl) {
        REAL slope, sideways[3], gs[3];
        const REAL N = press(D, &slope), rise = dot(along, u), stick = h * C[3] * N * w + C[4];
        for (int c = 0; c < 3; ++c) sideways[c] = u[c] - along[c] * rise;
        const REAL pace = wp::sqrt(dot(sideways, sideways)), most = pace > stick ? pace : stick;
        const REAL work = dot(g, sideways), late = C[3] * N * work / (most * most);
        REAL push = dot(g, along) - C[3] * work / most;
        gl[3] -= N * work / most;
        for (int c = 0; c < 3; ++c) gs[c] = -C[3] * N / most * g[c];
        *gw = REAL(0);
        if (pace > stick) {
            for (int c = 0; c < 3; ++c) gs[c] += late * sideways[c] / pace;
        } else {
            push += h * C[3] * w * late;
            gl[3] += h * N * w * late;
            gl[4] += late;
            *gw = h * C[3] * N * late;
        }
        const REAL lift = dot(along, gs), deep = slope * push;
        gl[1] += push * N / C[1];
        gl[2] -= dot(along, v) * deep;
        gl[5] += push * C[1] * (D < C[5] ? REAL(-0.5) * D * D / (C[5] * C[5]) : REAL(-0.5));
        for (int c = 0; c < 3; ++c) {
            gn[c] = N * g[c] - rise * gs[c] - lift * u[c] - C[2] * deep * v[c];
            gu[c] = gs[c] - lift * along[c];
            gv[c] = -C[2] * deep * along[c];
        }
        return deep;
    };

    // Unit vector along r, and its length, 0 and upwards where the two all but coincide.
    const auto aim = [&](const REAL* r, REAL size, REAL* along) {
        const REAL far = wp::sqrt(dot(r, r));
        const bool apart = far > REAL(1e-6) * size;
        for (int c = 0; c < 3; ++c) along[c] = apart ? r[c] / far : REAL(c == 2);
        return apart ? far : REAL(0);
    };
    const auto aim_back = [&](const REAL* along, REAL far, REAL gap, const REAL* gn, REAL* gr) {
        const REAL lean = dot(along, gn);
        for (int c = 0; c < 3; ++c)
            gr[c] = far > REAL(0) ? along[c] * gap + (gn[c] - lean * along[c]) / far : REAL(0);
    };

    // Where body b is nearest to x: its parameter, the way out, and how far x is out.
    const auto nearest = [&](const REAL* b, const REAL* x, REAL* at, REAL* along) {
        REAL r[3], e[3];
        for (int c = 0; c < 3; ++c) r[c] = x[c] - b[c];
        *at = REAL(0);
        if (b[7] == REAL(0)) {
            for (int c = 0; c < 3; ++c) along[c] = b[3 + c];
            return dot(along, r);
        }
        for (int c = 0; c < 3; ++c) e[c] = b[3 + c] - b[c];
        const REAL square = dot(e, e);
        if (square > REAL(0)) *at = dot(r, e) / square;
        *at = *at < REAL(0) ? REAL(0) : *at > REAL(1) ? REAL(1) : *at;
        for (int c = 0; c < 3; ++c) r[c] -= *at * e[c];
        return aim(r, C[0] + b[6], along);
    };

    // Where two edges are nearest: parameters s, t of least |p(s) - q(t)|^2 / 2 with a pull of a thousandth towards the
    // middles, so that parallel edges have one answer. Q: both squares with the pull, their product, s, t and if free.
    const REAL lazy = REAL(1e-3);
    const auto approach = [&](const REAL* x, int j, int k, REAL* d1, REAL* d2, REAL* r0, REAL* r, REAL* Q) {
        for (int c = 0; c < 3; ++c) {
            d1[c] = x[3 * j + c] - x[3 * up[j] + c];
            d2[c] = x[3 * k + c] - x[3 * up[k] + c];
            r0[c] = x[3 * up[j] + c] - x[3 * up[k] + c];
        }
        const auto within = [](REAL z) { return z < REAL(0) ? REAL(0) : z > REAL(1) ? REAL(1) : z; };
        const REAL a = dot(d1, d1), e = dot(d2, d2), b = dot(d1, d2);
        const REAL A = a * (REAL(1) + lazy) + tiny, E = e * (REAL(1) + lazy) + tiny;
        const REAL g = REAL(0.5) * lazy * a - dot(d1, r0), f = REAL(0.5) * lazy * e + dot(d2, r0);
        REAL s = within((g * E + b * f) / (A * E - b * b)), t = (f + b * s) / E;
        if (within(t) != t) { t = within(t); s = within((g + b * t) / A); }
        for (int c = 0; c < 3; ++c) r[c] = r0[c] + s * d1[c] - t * d2[c];
        Q[0] = A; Q[1] = E; Q[2] = b; Q[3] = s; Q[4] = t;
    };

    // Calls `pair(j, k)` for the edges of the list that may touch, the damping's lead included.
    const auto each_pair = [&](const REAL* x, const REAL* v, const auto& pair) {
        if (pair0 == pair1) return;
        REAL fast = REAL(0);
        for (int k = 0; k < n; ++k) { const REAL u = dot(v + 3 * k, v + 3 * k); fast = u > fast ? u : fast; }
        const REAL reach = REAL(2) * (C[0] + C[2] * wp::sqrt(fast));
        for (int k = 1; k < n; ++k) {
            const REAL *a = x + 3 * up[k], *b = x + 3 * k;
            const REAL e[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
            for (int c = 0; c < 3; ++c) middle[4 * k + c] = REAL(0.5) * (a[c] + b[c]);
            middle[4 * k + 3] = REAL(0.501) * (wp::sqrt(dot(e, e)) + reach);
        }
        for (int q = pair0; q < pair1; ++q) {
            const int j = pairs.data[2 * q] - o, k = pairs.data[2 * q + 1] - o;
            const REAL *a = middle + 4 * j, *b = middle + 4 * k;
            const REAL e[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]}, far = a[3] + b[3];
            if (dot(e, e) < far * far) pair(j, k);
        }
    };

    // Contact forces, in hit, at positions x and velocities v; drift is where free vertices would go without contact.
    const auto touch = [&](const REAL* x, const REAL* v) {
        for (int k = 0; k < 3 * n; ++k) hit[k] = REAL(0);
        for (int b = 0; b < count; ++b)
            for (int k = 0; k < n; ++k) {
                REAL at, along[3], f[3];
                if (fix[k] >= 0) continue;
                const REAL far = nearest(B + 8 * b, x + 3 * k, &at, along);
                const REAL D = C[0] + B[8 * b + 6] - far - C[2] * dot(along, v + 3 * k);
                if (!(D > REAL(0))) continue;
                resist(D, along, drift + 3 * k, weight[k], f);
                for (int c = 0; c < 3; ++c) hit[3 * k + c] += f[c];
            }
        each_pair(x, v, [&](int j, int k) {
            REAL d1[3], d2[3], r0[3], r[3], Q[5], along[3], f[3], vs[3], us[3];
            approach(x, j, k, d1, d2, r0, r, Q);
            const REAL far = aim(r, REAL(2) * C[0], along);
            const REAL share[4] = {REAL(1) - Q[3], Q[3], Q[4] - REAL(1), -Q[4]};
            const int at[4] = {up[j], j, up[k], k};
            REAL w = REAL(0);
            for (int c = 0; c < 3; ++c) vs[c] = us[c] = REAL(0);
            for (int q = 0; q < 4; ++q) {
                for (int c = 0; c < 3; ++c) {
                    vs[c] += share[q] * v[3 * at[q] + c];
                    us[c] += share[q] * drift[3 * at[q] + c];
                }
                w += share[q] * share[q] * weight[at[q]];
            }
            const REAL D = REAL(2) * C[0] - far - C[2] * dot(along, vs);
            if (!(D > REAL(0))) return;
            resist(D, along, us, w, f);
            for (int q = 0; q < 4; ++q)
                for (int c = 0; c < 3; ++c) hit[3 * at[q] + c] += share[q] * f[c];
        });
    };

    // From g, the gradient in `hit`, to those in x, v, drift, inverse masses, bodies and law, all added to.
    const auto touch_back = [&](const REAL* x, const REAL* v, const REAL* g, REAL* gx, REAL* gv, REAL* gu, REAL* gw,
                                REAL* gb, REAL* gl) {
        for (int body = 0; body < count; ++body)
            for (int k = 0; k < n; ++k) {
                REAL at, along[3], gn[3], gr[3], part[3], flow[3], wide;
                if (fix[k] >= 0) continue;
                const REAL *b = B + 8 * body, *p = x + 3 * k;
                const REAL far = nearest(b, p, &at, along), D = C[0] + b[6] - far - C[2] * dot(along, v + 3 * k);
                if (!(D > REAL(0))) continue;
                const REAL deep =
                    resist_back(D, along, v + 3 * k, drift + 3 * k, weight[k], g + 3 * k, gn, part, flow, &wide, gl);
                REAL* own = gb + 8 * body;
                gw[k] += wide;
                gl[0] += deep;
                for (int c = 0; c < 3; ++c) { gv[3 * k + c] += part[c]; gu[3 * k + c] += flow[c]; }
                if (b[7] == REAL(0)) {
                    for (int c = 0; c < 3; ++c) {
                        gx[3 * k + c] -= deep * along[c]; own[c] += deep * along[c];
                        own[3 + c] += gn[c] - deep * (p[c] - b[c]);
                    }
                    continue;
                }
                own[6] += deep;
                aim_back(along, far, -deep, gn, gr);
                REAL e[3], r[3];
                for (int c = 0; c < 3; ++c) { e[c] = b[3 + c] - b[c]; r[c] = p[c] - b[c]; }
                const bool inside = at > REAL(0) && at < REAL(1);
                const REAL turn = inside ? -dot(gr, e) / dot(e, e) : REAL(0);
                for (int c = 0; c < 3; ++c) {
                    const REAL ge = turn * (r[c] - REAL(2) * at * e[c]), move = gr[c] + turn * e[c];
                    gx[3 * k + c] += move;
                    own[c] += at * gr[c] - move - ge;
                    own[3 + c] += ge - at * gr[c];
                }
            }
        each_pair(x, v, [&](int j, int k) {
            REAL d1[3], d2[3], r0[3], r[3], Q[5], along[3], vs[3], us[3], gf[3], gn[3], gr[3], part[3], flow[3], f[3];
            approach(x, j, k, d1, d2, r0, r, Q);
            const REAL far = aim(r, REAL(2) * C[0], along), s = Q[3], t = Q[4];
            const REAL share[4] = {REAL(1) - s, s, t - REAL(1), -t};
            const int at[4] = {up[j], j, up[k], k};
            REAL w = REAL(0), wide;
            for (int c = 0; c < 3; ++c) vs[c] = us[c] = gf[c] = REAL(0);
            for (int q = 0; q < 4; ++q) {
                for (int c = 0; c < 3; ++c) {
                    vs[c] += share[q] * v[3 * at[q] + c];
                    us[c] += share[q] * drift[3 * at[q] + c];
                    gf[c] += share[q] * g[3 * at[q] + c];
                }
                w += share[q] * share[q] * weight[at[q]];
            }
            const REAL D = REAL(2) * C[0] - far - C[2] * dot(along, vs);
            if (!(D > REAL(0))) return;
            resist(D, along, us, w, f);
            const REAL deep = resist_back(D, along, vs, us, w, gf, gn, part, flow, &wide, gl);
            gl[0] += REAL(2) * deep;
            aim_back(along, far, -deep, gn, gr);
            REAL weigh[4];  // gradient in each share
            for (int q = 0; q < 4; ++q) {
                const int z = 3 * at[q];
                weigh[q] = dot(g + z, f) + dot(v + z, part) + dot(drift + z, flow)
                    + REAL(2) * share[q] * weight[at[q]] * wide;
                gw[at[q]] += share[q] * share[q] * wide;
                for (int c = 0; c < 3; ++c) { gv[z + c] += share[q] * part[c]; gu[z + c] += share[q] * flow[c]; }
            }
            // s and t at their minimum: those between 0 and 1 move
            REAL gs = weigh[1] - weigh[0] + dot(gr, d1), gt = weigh[2] - weigh[3] - dot(gr, d2);
            const bool fs = s > REAL(0) && s < REAL(1), ft = t > REAL(0) && t < REAL(1);
            const REAL det = fs && ft ? Q[0] * Q[1] - Q[2] * Q[2] : REAL(1);
            const REAL ls = !fs ? REAL(0) : ft ? (Q[1] * gs + Q[2] * gt) / det : gs / Q[0];
            const REAL lt = !ft ? REAL(0) : fs ? (Q[0] * gt + Q[2] * gs) / det : gt / Q[1];
            const REAL ga = -ls * ((REAL(1) + lazy) * s - REAL(0.5) * lazy);
            const REAL ge = -lt * ((REAL(1) + lazy) * t - REAL(0.5) * lazy), both = ls * t + lt * s;
            for (int c = 0; c < 3; ++c) {
                const REAL g1 = s * gr[c] + REAL(2) * ga * d1[c] + both * d2[c] - ls * r0[c];
                const REAL g2 = REAL(2) * ge * d2[c] + both * d1[c] + lt * r0[c] - t * gr[c];
                const REAL g0 = gr[c] - ls * d1[c] + lt * d2[c];
                gx[3 * j + c] += g1; gx[3 * up[j] + c] += g0 - g1;
                gx[3 * k + c] += g2; gx[3 * up[k] + c] -= g0 + g2;
            }
        });
    };
"""
