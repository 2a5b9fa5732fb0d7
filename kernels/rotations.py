"""The kernels under `geom.lie`: rotations and rigid motions, and the adjoints of most.

The torch twins are the functions of `geom.lie` that name these in `@fused`.
"""

from geom.kernels.elementary import complete
from geom.kernels.formula import Formula

__all__ = ["FORMULAS"]

FORMULAS: dict[str, Formula] = {}


def _formula(name: str, signature: str, body: str, *still: str) -> None:
    """`signature`: "rotvec 3 -> quat 4"; `still`: inputs that one element may serve for all others, together."""
    inputs, outputs = (
        {word: int(width) for word, width in (pair.split() for pair in side.split(","))}
        for side in signature.split("->")
    )
    together = tuple(tuple(names.split()) for names in still)
    FORMULAS[name] = formula = Formula(__name__, name, *complete(body), inputs, outputs, together)
    formula.kernels  # noqa: B018 (made now, so that one compilation covers them all)


# --- quaternions ---

_formula("exp", "rotvec 3 -> quat 4", "REAL u; exp_(rotvec, quat, u);")
_formula("exp_adjoint", "rotvec 3, g 4 -> out 3", "exp_adjoint_(rotvec, g, out);")
_formula("log", "quat 4 -> rotvec 3", "REAL z; bool near; log_(quat, rotvec, z, near);")
_formula("log_adjoint", "quat 4, g 3 -> out 4", "log_adjoint_(quat, g, out);")
_formula("multiply", "a 4, b 4 -> out 4", "multiply_(a, b, out);", "a", "b")
_formula(
    "multiply_adjoint",
    "a 4, b 4, g 4 -> ga 4, gb 4",
    "REAL back[4]; conjugate_(b, back); multiply_(g, back, ga); conjugate_(a, back); multiply_(back, g, gb);",
    "a",
    "b",
)
_formula("rotate", "quat 4, p 3 -> out 3", "rotate_(quat, p, out);", "quat", "p")
_formula("rotate_adjoint", "quat 4, p 3, g 3 -> gq 4, gp 3", "rotate_adjoint_(quat, p, g, gq, gp);", "quat", "p")
_formula("to_matrix", "quat 4 -> matrix 9", "to_matrix_(quat, matrix);")
_formula("to_matrix_adjoint", "quat 4, g 9 -> out 4", "to_matrix_adjoint_(quat, g, out);")
_formula("from_matrix", "matrix 9 -> quat 4", "row_(matrix, quat); unit_(quat);")
_formula(
    "from_matrix_adjoint",
    "matrix 9, g 4 -> out 9",
    """
    REAL q[4], gr[4];
    const int best = row_(matrix, q);
    const REAL length = unit_(q), along = g[0] * q[0] + dot_(g + 1, q + 1);
    for (int k = 0; k < 4; ++k) gr[k] = (g[k] - along * q[k]) / length;
    row_adjoint_(best, gr, out);
    """,
)
_formula(
    "slerp",
    "start 4, end 4, t 1 -> out 4",
    """
    REAL back[4], way[4], v[3], moved[4], z;
    bool near;
    conjugate_(start, back);
    multiply_(back, end, way);
    log_(way, v, z, near);
    for (int k = 0; k < 3; ++k) v[k] *= t[0];
    exp_(v, moved, z);
    multiply_(start, moved, out);
    const REAL sign = way[0] < 0 ? REAL(-1) : REAL(1);
    for (int k = 0; k < 4; ++k) out[k] = t[0] == 1 ? sign * end[k] : out[k];
    """,
    "t",
    "start end",
)
_formula(
    "slerp_adjoint",
    "start 4, end 4, t 1, g 4 -> gs 4, ge 4, gt 1",
    """
    REAL back[4], way[4], v[3], part[3], moved[4], gm[4], gv[3], gw[4], other[4], z;
    bool near;
    conjugate_(start, back);
    multiply_(back, end, way);
    log_(way, v, z, near);
    for (int k = 0; k < 3; ++k) part[k] = t[0] * v[k];
    exp_(part, moved, z);
    multiply_(back, g, gm);
    exp_adjoint_(part, gm, gv);
    gt[0] = dot_(gv, v);
    for (int k = 0; k < 3; ++k) gv[k] *= t[0];
    log_adjoint_(way, gv, gw);
    multiply_(start, gw, ge);
    conjugate_(moved, back);
    multiply_(g, back, gs);
    conjugate_(gw, back);
    multiply_(end, back, other);
    for (int k = 0; k < 4; ++k) gs[k] += other[k];
    """,
)
_formula(
    "distance",
    "a 4, b 4 -> angle 1",
    """
    REAL back[4], way[4], v[3], z, rest;
    bool near;
    conjugate_(a, back);
    multiply_(back, b, way);
    log_(way, v, z, near);
    angle[0] = length_(v, rest);
    """,
    "a",
    "b",
)
_formula(
    "distance_adjoint",
    "a 4, b 4, g 1 -> ga 4, gb 4",
    """
    REAL back[4], way[4], v[3], gv[3], gw[4], z, rest;
    bool near;
    conjugate_(a, back);
    multiply_(back, b, way);
    log_(way, v, z, near);
    const REAL angle = length_(v, rest);
    for (int k = 0; k < 3; ++k) gv[k] = angle > 0 ? g[0] * v[k] / angle : REAL(0);
    log_adjoint_(way, gv, gw);
    multiply_(a, gw, gb);
    conjugate_(gw, back);
    multiply_(b, back, ga);
    """,
    "a",
    "b",
)

# --- matrices ---

_formula("so3_exp", "rotvec 3 -> matrix 9", "REAL q[4], u; exp_(rotvec, q, u); to_matrix_(q, matrix);")
_formula(
    "so3_exp_adjoint",
    "rotvec 3, g 9 -> out 3",
    "REAL q[4], gq[4], u; exp_(rotvec, q, u); to_matrix_adjoint_(q, g, gq); exp_adjoint_(rotvec, gq, out);",
)
# log_ is the same for any length of the quaternion
_formula("so3_log", "matrix 9 -> rotvec 3", "REAL q[4], z; bool near; row_(matrix, q); log_(q, rotvec, z, near);")
_formula(
    "so3_log_adjoint",
    "matrix 9, g 3 -> out 9",
    "REAL q[4], gq[4]; const int best = row_(matrix, q); log_adjoint_(q, g, gq); row_adjoint_(best, gq, out);",
)
_formula(
    "from_6d",
    "columns 6 -> matrix 9",
    """
    REAL a[3], b[3];
    for (int k = 0; k < 3; ++k) { a[k] = columns[k]; b[k] = columns[3 + k]; }
    frame_(a, b, matrix);
    """,
)
_formula(
    "to_euler",
    "matrix 9, axes 12 -> angles 3",
    "REAL q[4]; row_(matrix, q); unit_(q); euler_(q, axes, angles);",
    "axes",
)
_formula(
    "polar",
    "given 9 -> matrix 9, gap 1, right 9, stiffness 3",
    "REAL g; polar_(given, matrix, g, right, stiffness); gap[0] = g;",
)

# --- rigid motions ---

_formula(
    "se3_exp",
    "twist 6 -> quat 4, translation 3",
    """
    REAL z, once[3], twice[3];
    const REAL scale = exp_(twist + 3, quat, z);
    const REAL cubic = z < 1 ? @cubic : (1 - 2 * scale * quat[0]) / z;
    cross_(twist + 3, twist, once);
    cross_(twist + 3, once, twice);
    for (int k = 0; k < 3; ++k) translation[k] = twist[k] + 2 * scale * scale * once[k] + cubic * twice[k];
    """,
)
_formula(
    "se3_log",
    "quat 4, translation 3 -> twist 6",
    """
    REAL z, once[3], twice[3];
    bool near;
    const REAL scale = log_(quat, twist + 3, z, near);
    z = dot_(twist + 3, twist + 3);
    const REAL eta = z < 1 ? @inverse_left : (1 - scale * absolute_(quat[0]) / 2) / z;
    cross_(twist + 3, translation, once);
    cross_(twist + 3, once, twice);
    for (int k = 0; k < 3; ++k) twist[k] = translation[k] - once[k] / 2 + eta * twice[k];
    """,
)
_formula(
    "se3_inverse",
    "q 4, t 3 -> quat 4, translation 3",
    """
    conjugate_(q, quat);
    rotate_(quat, t, translation);
    for (int k = 0; k < 3; ++k) translation[k] = -translation[k];
    """,
)
_formula(
    "se3_compose",
    "qa 4, ta 3, qb 4, tb 3 -> quat 4, translation 3",
    "multiply_(qa, qb, quat); rotate_(qa, tb, translation); for (int k = 0; k < 3; ++k) translation[k] += ta[k];",
    "qa ta",
    "qb tb",
)
_formula(
    "se3_compose_adjoint",
    "qa 4, ta 3, qb 4, tb 3, gq 4, gt 3 -> ga 4, gta 3, gb 4, gtb 3",
    """
    REAL back[4], turned[4];
    conjugate_(qb, back);
    multiply_(gq, back, ga);
    conjugate_(qa, back);
    multiply_(back, gq, gb);
    rotate_adjoint_(qa, tb, gt, turned, gtb);
    for (int k = 0; k < 4; ++k) ga[k] += turned[k];
    for (int k = 0; k < 3; ++k) gta[k] = gt[k];
    """,
    "qa ta",
    "qb tb",
)
_formula(
    "se3_move",
    "quat 4, translation 3, point 3 -> out 3",
    "rotate_(quat, point, out); for (int k = 0; k < 3; ++k) out[k] += translation[k];",
    "quat translation",
    "point",
)
_formula(
    "se3_move_adjoint",
    "quat 4, translation 3, point 3, g 3 -> gq 4, gt 3, gp 3",
    "rotate_adjoint_(quat, point, g, gq, gp); for (int k = 0; k < 3; ++k) gt[k] = g[k];",
    "quat translation",
    "point",
)
