"""Bones as dual-quaternion skinning knows them: a screw motion and a strain each. The twin is in `geom.skinning`."""

from geom.kernels.elementary import complete
from geom.kernels.formula import Formula

__all__ = ["FORMULAS"]

# A bone [A | t] as a motion: A = R S, the quaternion of R, its dual part (0, t) q / 2, and S - I.
_SCREW_ROW = """
    REAL a[9], r[9], gap, right[9], stiffness[3], q[4];
    for (int i = 0; i < 3; ++i) for (int j = 0; j < 3; ++j) a[3 * i + j] = bone[4 * i + j];
    polar_(a, r, gap, right, stiffness);
    const int best = row_(r, q);
    const REAL length = unit_(q), half[4] = {REAL(0), bone[3] / 2, bone[7] / 2, bone[11] / 2};
"""
_FORMULAS = {
    "screws": (
        {"bone": 12},
        {"screw": 16},
        _SCREW_ROW
        + """
    REAL s[9];
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) s[3 * i + j] = r[i] * a[j] + r[3 + i] * a[3 + j] + r[6 + i] * a[6 + j];
    for (int k = 0; k < 4; ++k) screw[k] = q[k];
    multiply_(half, q, screw + 4);
    for (int k = 0; k < 3; ++k) screw[8 + k] = s[4 * k] - 1;
    screw[11] = (s[1] + s[3]) / 2; screw[12] = (s[2] + s[6]) / 2; screw[13] = (s[5] + s[7]) / 2;
    screw[14] = REAL(0); screw[15] = REAL(0);
    """,
    ),
    # R^T dR = hat(w), K w = vee(R^T dA - dA^T R) with the eigenvectors and eigenvalues of K that `polar_` leaves; what
    # leaves R open takes no part (see `geom.lie._polar`).
    "screws_adjoint": (
        {"bone": 12, "g": 16},
        {"out": 12},
        _SCREW_ROW
        + """
    REAL back[4], gq[4], gt[4], gr[9], way[3];
    REAL moment[3] = {REAL(0), REAL(0), REAL(0)}, w[3] = {REAL(0), REAL(0), REAL(0)};
    conjugate_(half, back);
    multiply_(back, g + 4, gq);
    for (int k = 0; k < 4; ++k) gq[k] += g[k];
    conjugate_(q, back);
    multiply_(g + 4, back, gt);
    const REAL along = gq[0] * q[0] + dot_(gq + 1, q + 1);
    for (int k = 0; k < 4; ++k) gq[k] = (gq[k] - along * q[k]) / length;
    row_adjoint_(best, gq, gr);
    const REAL gs[9] = {g[8], g[11] / 2, g[12] / 2, g[11] / 2, g[9], g[13] / 2, g[12] / 2, g[13] / 2, g[10]};
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j)
            gr[3 * i + j] += a[3 * i] * gs[j] + a[3 * i + 1] * gs[3 + j] + a[3 * i + 2] * gs[6 + j];
    for (int i = 0; i < 3; ++i) {
        cross_(gr + 3 * i, r + 3 * i, way);
        for (int k = 0; k < 3; ++k) moment[k] += way[k];
    }
    for (int k = 0; k < 3; ++k) {
        const bool held = stiffness[k] > @open * stiffness[2] && stiffness[k] > @least;
        const REAL part = held ? dot_(right + 3 * k, moment) / (held ? stiffness[k] : REAL(1)) : REAL(0);
        for (int j = 0; j < 3; ++j) w[j] += part * right[3 * k + j];
    }
    for (int i = 0; i < 3; ++i) {
        cross_(r + 3 * i, w, way);
        for (int j = 0; j < 3; ++j)
            out[4 * i + j] = way[j] + r[3 * i] * gs[j] + r[3 * i + 1] * gs[3 + j] + r[3 * i + 2] * gs[6 + j];
        out[4 * i + 3] = gt[1 + i] / 2;
    }
    """,
    ),
}
FORMULAS = {name: Formula(__name__, name, *complete(body), i, o) for name, (i, o, body) in _FORMULAS.items()}
for _formula in FORMULAS.values():
    _formula.kernels  # noqa: B018 (made now, so that one compilation covers them all)
