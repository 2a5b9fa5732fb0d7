"""C++ for one rotation at a time: the functions that the formulas in `geom.kernels.rotations` are put together from.

Sines, cosines and arcs are Taylor series on a reduced argument, in the precision of the data and without branches, so
that loops over them become vector instructions. What rounding takes from the angle is carried along: exp and log are
good to about one unit in the last place.
"""

import math
import re
from collections.abc import Callable, Iterable
from fractions import Fraction

__all__ = ["complete"]

_PI = Fraction(314159265358979323846264338327950288419716939937510582097494459, 10**62)


def _series(term: Callable[[int], Fraction], single: int, double: int) -> str:
    """sum of term(k) z^k, by Horner's rule, with as many terms as each precision needs."""

    def horner(terms: int) -> str:
        text = ""
        for k in reversed(range(terms)):
            text = f"fma_({text}, z, REAL({float(term(k))!r}))" if text else f"REAL({float(term(k))!r})"
        return text

    return f"(sizeof(REAL) == 4 ? {horner(single)} : {horner(double)})"


def _parts(x: Fraction, single: int, double: int, number: int) -> list[str]:
    """x as a sum of numbers that have so many bits each."""

    def split(bits: int) -> Iterable[float]:
        rest = x
        for _ in range(number):
            unit = Fraction(2) ** (math.frexp(float(rest))[1] - bits)
            yield float(round(rest / unit) * unit)
            rest -= round(rest / unit) * unit

    return [f"REAL(sizeof(REAL) == 4 ? {a!r} : {b!r})" for a, b in zip(split(single), split(double), strict=True)]


def _over_factorial(x: int, n: int) -> Fraction:
    return Fraction(x, math.factorial(n))


def _bernoulli(n: int) -> Fraction:
    numbers = [Fraction(1)]
    for m in range(1, n + 1):
        numbers.append(-sum((math.comb(m + 1, k) * b for k, b in enumerate(numbers)), Fraction(0)) / (m + 1))
    return numbers[n]


_CONSTANTS = {
    **{f"quarter{k}": part for k, part in enumerate(_parts(_PI / 2, 24, 53, 3))},
    **{f"eighth{k}": part for k, part in enumerate(_parts(_PI / 4, 22, 51, 2))},  # two bits left for its multiples
    "quarters": f"REAL({float(2 / _PI)!r})",
    "tan_eighth": f"REAL({math.sqrt(2) - 1!r})",
    # in z: (sin r - r)/r^3, (cos r - 1 + z/2)/z^2, (atan r - r)/r^3, with z = r^2
    "sine": _series(lambda k: _over_factorial(-((-1) ** k), 2 * k + 3), 5, 9),
    "cosine": _series(lambda k: _over_factorial((-1) ** k, 2 * k + 4), 5, 9),
    "arc": _series(lambda k: Fraction(-((-1) ** k), 2 * k + 3), 10, 22),
    # with z = theta^2: the derivative of sin(theta/2)/theta over theta, (theta - sin theta)/theta^3,
    # (1 - (theta/2) cot(theta/2))/theta^2; with z = tan^2(theta/2): the derivative of atan(r)/r in z
    "scale_slope": _series(lambda k: (k + 1) * _over_factorial(-((-1) ** k), 2 * k + 3) / 4 ** (k + 1), 6, 10),
    "cubic": _series(lambda k: _over_factorial((-1) ** k, 2 * k + 3), 6, 10),
    "inverse_left": _series(lambda k: abs(_bernoulli(2 * k + 2)) / math.factorial(2 * k + 2), 6, 10),
    "arc_slope": _series(lambda k: Fraction(-((-1) ** k) * (k + 1), 2 * k + 3), 12, 26),
    "pi": f"REAL({math.pi!r})",
    "locked": "REAL(sizeof(REAL) == 4 ? 9.094947017729282e-13 : 3.1554436208840472e-30)",  # (8 eps)^2
    "least": "REAL(sizeof(REAL) == 4 ? 1.0842021724855044e-19 : 1.4916681462400413e-154)",
    "open": "REAL(sizeof(REAL) == 4 ? 2e-6 : 4e-15)",
    "tiny": "REAL(sizeof(REAL) == 4 ? 4.76837158203125e-07 : 8.881784197001252e-16)",
}

_SOURCE = """
auto root_ = [](REAL x) -> REAL {
    #ifdef __CUDA_ARCH__
    return sqrt(x);
    #else
    return sizeof(REAL) == 4 ? (REAL)__builtin_sqrtf((float)x) : (REAL)__builtin_sqrt((double)x);
    #endif
};
auto round_ = [](REAL x) -> REAL {
    #ifdef __CUDA_ARCH__
    return rint(x);
    #else
    return sizeof(REAL) == 4 ? (REAL)__builtin_rintf((float)x) : (REAL)__builtin_rint((double)x);
    #endif
};
auto fma_ = [](REAL a, REAL b, REAL c) -> REAL {
    #ifdef __CUDA_ARCH__
    return fma(a, b, c);
    #else
    return sizeof(REAL) == 4 ? (REAL)__builtin_fmaf((float)a, (float)b, (float)c)
                             : (REAL)__builtin_fma((double)a, (double)b, (double)c);
    #endif
};
// a b and a + b, and what rounding took from them
auto times_ = [&](REAL a, REAL b, REAL& rest) -> REAL {
    #ifdef __CUDA_ARCH__
    const REAL product = sizeof(REAL) == 4 ? (REAL)__fmul_rn(a, b) : (REAL)__dmul_rn(a, b);
    #else
    const REAL product = a * b;
    #endif
    rest = fma_(a, b, -product);
    return product;
};
auto plus_ = [](REAL a, REAL b, REAL& rest) -> REAL {
    const REAL sum = a + b, back = sum - a;
    rest = (a - (sum - back)) + (b - back);
    return sum;
};
auto absolute_ = [](REAL x) -> REAL { return x < 0 ? -x : x; };
auto dot_ = [](const REAL* a, const REAL* b) -> REAL { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; };
auto cross_ = [](const REAL* a, const REAL* b, REAL* out) {
    out[0] = a[1] * b[2] - a[2] * b[1];
    out[1] = a[2] * b[0] - a[0] * b[2];
    out[2] = a[0] * b[1] - a[1] * b[0];
};
// |v| in twice the precision: the result and `low`
auto length_ = [&](const REAL* v, REAL& low) -> REAL {
    REAL a, b, c, d, e;
    const REAL x = times_(v[0], v[0], a), y = times_(v[1], v[1], b), z = times_(v[2], v[2], c);
    const REAL sum = plus_(plus_(x, y, d), z, e), high = root_(sum);
    low = high > 0 ? (fma_(-high, high, sum) + (((a + b) + c) + (d + e))) / (2 * high) : REAL(0);
    return high;
};
// cos and sin of x + low - left, x >= 0, and sin(x)/x as it is below pi/4
auto turn_ = [&](REAL x, REAL low, REAL& cosine, REAL& sine, REAL& sinc, REAL& left) {
    const REAL n = round_(x * @quarters);
    const REAL r = plus_(fma_(n, -@quarter2, fma_(n, -@quarter1, fma_(n, -@quarter0, x))), low, left);
    const int quarter = (int)n & 3;
    REAL rest, cut;
    const REAL z = times_(r, r, rest), most_cosine = plus_(REAL(1), -z / 2, cut);
    const REAL bend = @sine;
    sinc = fma_(z, bend, REAL(1));
    const REAL s = fma_(r * z, bend, r), c = most_cosine + (z * z * @cosine + (cut - rest / 2));
    cosine = quarter & 1 ? s : c;
    sine = quarter & 1 ? c : s;
    cosine = quarter == 1 || quarter == 2 ? -cosine : cosine;
    sine = quarter & 2 ? -sine : sine;
};
// a rotation vector so long that its turns have no digits left is taken shorter, and v made of it: the factor
auto bounded_ = [&](const REAL* given, REAL* v) -> REAL {
    const REAL most = sizeof(REAL) == 4 ? REAL(1e7) : REAL(1e9);
    REAL size = 0;
    for (int k = 0; k < 3; ++k) size = absolute_(given[k]) > size ? absolute_(given[k]) : size;
    const REAL factor = size > most ? most / size : REAL(1);
    for (int k = 0; k < 3; ++k) v[k] = factor * given[k];
    return factor;
};
// q = (cos(theta/2), scale v), u = theta^2; returns scale
auto exp_ = [&](const REAL* given, REAL* q, REAL& u) -> REAL {
    REAL low, left, cosine, sine, sinc, v[3];
    bounded_(given, v);
    const REAL theta = length_(v, low);
    u = theta * theta;
    turn_(theta / 2, low / 2, cosine, sine, sinc, left);
    q[0] = cosine - sine * left;
    const bool near = theta * @quarters < REAL(0.999);
    const REAL far = sine / theta, scale = near ? sinc / 2 : far;
    const REAL rest = near ? REAL(0) : (fma_(-far, theta, sine) + cosine * left - far * low) / theta;
    for (int k = 0; k < 3; ++k) q[1 + k] = fma_(scale, v[k], rest * v[k]);
    return scale;
};
auto exp_adjoint_ = [&](const REAL* given, const REAL* g, REAL* out) {
    REAL q[4], z, v[3];
    const REAL factor = bounded_(given, v), scale = exp_(v, q, z);
    const REAL slope = z < 1 ? @scale_slope : (q[0] / 2 - scale) / z;
    const REAL along = slope * dot_(g + 1, v) - scale / 2 * g[0];
    for (int k = 0; k < 3; ++k) out[k] = factor * (scale * g[1 + k] + along * v[k]);
};
// v = scale (x, y, z) for a q of any length, with the arc from the nearest of 0, pi/4 and pi/2; returns scale
auto log_ = [&](const REAL* q, REAL* v, REAL& z, bool& near) -> REAL {
    REAL low, a, b, cut;
    const REAL sign = q[0] < 0 ? REAL(-1) : REAL(1), w = sign * q[0], n = length_(q + 1, low);
    const REAL less = n < w ? n : w, more = n < w ? w : n;
    const bool middle = less > @tan_eighth * more;
    const REAL over = plus_(less, middle ? -more : REAL(0), a);
    const REAL sum = plus_(more, middle ? less : REAL(0), b), under = sum > 0 ? sum : REAL(1);
    const REAL ratio = over / under, left = (fma_(-ratio, under, over) + (a - ratio * b)) / under;
    z = ratio * ratio;
    const REAL bend = z * @arc, side = n < w ? REAL(1) : REAL(-1);
    const REAL eighths = (n < w ? REAL(0) : REAL(2)) + side * (middle ? REAL(1) : REAL(0));
    const REAL half = plus_(eighths * @eighth0, side * ratio, cut);
    const REAL whole = n * n + w * w;
    cut += side * ratio * bend + (eighths * @eighth1 + side * left / (1 + z) + w * low / (whole > 0 ? whole : REAL(1)));
    near = n < w && !middle;
    const REAL top = near ? REAL(2) : 2 * half, tail = 2 * (near ? bend : cut);
    const REAL bottom = near ? w : n > 0 ? n : REAL(1), scale = (top + tail) / bottom;
    const REAL rest = (fma_(-scale, bottom, top) + (near ? tail : tail - scale * low)) / bottom;
    for (int k = 0; k < 3; ++k) v[k] = sign * fma_(scale, q[1 + k], rest * q[1 + k]);
    return scale;
};
auto log_adjoint_ = [&](const REAL* q, const REAL* g, REAL* out) {
    REAL v[3], z;
    bool near;
    const REAL scale = log_(q, v, z, near), sign = q[0] < 0 ? REAL(-1) : REAL(1), w = sign * q[0];
    const REAL square = dot_(q + 1, q + 1), whole = square + w * w;
    const REAL slope = near ? 4 * @arc_slope / (w * w * w) : (2 * w / whole - scale) / square;
    const REAL along = dot_(g, q + 1);
    out[0] = -2 / whole * along;
    for (int k = 0; k < 3; ++k) out[1 + k] = sign * (scale * g[k] + slope * along * q[1 + k]);
};
// in pairs, so that q* q has no vector part to the last bit
auto multiply_ = [](const REAL* a, const REAL* b, REAL* out) {
    out[0] = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3];
    out[1] = (a[0] * b[1] + a[1] * b[0]) + (a[2] * b[3] - a[3] * b[2]);
    out[2] = (a[0] * b[2] + a[2] * b[0]) + (a[3] * b[1] - a[1] * b[3]);
    out[3] = (a[0] * b[3] + a[3] * b[0]) + (a[1] * b[2] - a[2] * b[1]);
};
auto conjugate_ = [](const REAL* a, REAL* out) {
    out[0] = a[0]; out[1] = -a[1]; out[2] = -a[2]; out[3] = -a[3];
};
auto rotate_ = [&](const REAL* q, const REAL* p, REAL* out) {
    REAL once[3], twice[3];
    cross_(q + 1, p, once);
    cross_(q + 1, once, twice);
    for (int k = 0; k < 3; ++k) out[k] = p[k] + 2 * (q[0] * once[k] + twice[k]);
};
// the derivative of p + 2 w u x p + 2 u x (u x p), for any q = (w, u)
auto rotate_adjoint_ = [&](const REAL* q, const REAL* p, const REAL* g, REAL* gq, REAL* gp) {
    REAL up[3], ug[3], uug[3], pg[3];
    cross_(q + 1, p, up);
    cross_(q + 1, g, ug);
    cross_(q + 1, ug, uug);
    cross_(p, g, pg);
    const REAL a = dot_(q + 1, p), b = dot_(q + 1, g), c = dot_(p, g);
    gq[0] = 2 * dot_(g, up);
    for (int k = 0; k < 3; ++k) {
        gp[k] = g[k] - 2 * (q[0] * ug[k] - uug[k]);
        gq[1 + k] = 2 * (q[0] * pg[k] + a * g[k] + b * p[k] - 2 * c * q[1 + k]);
    }
};
// 2/|q|^2 in twice the precision: the result and `low`; 2 for a q of zeros
auto double_over_square_ = [&](const REAL* q, REAL& low) -> REAL {
    REAL a, b, c, d, e, f, g;
    const REAL w = times_(q[0], q[0], a), x = times_(q[1], q[1], b);
    const REAL y = times_(q[2], q[2], c), z = times_(q[3], q[3], d);
    const REAL found = plus_(plus_(w, x, e), plus_(y, z, f), g), square = found > 0 ? found : REAL(1);
    const REAL ratio = 2 / square;
    low = (fma_(-ratio, square, REAL(2)) - ratio * (((a + b) + (c + d)) + ((e + f) + g))) / square;
    return ratio;
};
// of the direction of q, each entry rounded once: s (a b + c d) and 1 - s (a b + c d)
auto to_matrix_ = [&](const REAL* q, REAL* m) {
    if (sizeof(REAL) == 4) {  // float64 has digits enough
        const double a = q[0], b = q[1], c = q[2], d = q[3], square = (a * a + b * b) + (c * c + d * d);
        const double s = 2 / (square > 0 ? square : 1);
        const double x = s * b, y = s * c, z = s * d;
        m[0] = (REAL)(1 - (c * y + d * z)); m[1] = (REAL)(b * y - a * z); m[2] = (REAL)(b * z + a * y);
        m[3] = (REAL)(b * y + a * z); m[4] = (REAL)(1 - (b * x + d * z)); m[5] = (REAL)(c * z - a * x);
        m[6] = (REAL)(b * z - a * y); m[7] = (REAL)(c * z + a * x); m[8] = (REAL)(1 - (b * x + c * y));
        return;
    }
    REAL low;
    const REAL s = double_over_square_(q, low);
    auto scaled_ = [&](REAL a, REAL b, REAL c, REAL d, REAL& rest) -> REAL {
        REAL e, f, g, h;
        const REAL sum = plus_(times_(a, b, e), times_(c, d, f), g), result = times_(s, sum, h);
        rest = h + (s * ((e + f) + g) + low * sum);
        return result;
    };
    auto off_ = [&](REAL a, REAL b, REAL c, REAL d) -> REAL {
        REAL rest;
        const REAL result = scaled_(a, b, c, d, rest);
        return result + rest;
    };
    auto on_ = [&](REAL a, REAL b, REAL c, REAL d) -> REAL {
        REAL rest, cut;
        const REAL result = scaled_(a, b, c, d, rest), left = plus_(REAL(1), -result, cut);
        return left + (cut - rest);
    };
    const REAL w = q[0], x = q[1], y = q[2], z = q[3];
    m[0] = on_(y, y, z, z); m[1] = off_(x, y, -w, z); m[2] = off_(x, z, w, y);
    m[3] = off_(x, y, w, z); m[4] = on_(x, x, z, z); m[5] = off_(y, z, -w, x);
    m[6] = off_(x, z, -w, y); m[7] = off_(y, z, w, x); m[8] = on_(x, x, y, y);
};
auto to_matrix_adjoint_ = [&](const REAL* given, const REAL* g, REAL* out) {
    const REAL square = given[0] * given[0] + dot_(given + 1, given + 1);
    const REAL back = square > 0 ? 1 / root_(square) : REAL(0);
    REAL q[4];
    for (int k = 0; k < 4; ++k) q[k] = back * given[k];
    const REAL skew[3] = {g[7] - g[5], g[2] - g[6], g[3] - g[1]}, trace = g[0] + g[4] + g[8];
    out[0] = 2 * dot_(q + 1, skew);
    for (int k = 0; k < 3; ++k) {
        REAL pull = q[0] * skew[k] - 2 * trace * q[1 + k];
        for (int l = 0; l < 3; ++l) pull += (g[3 * k + l] + g[3 * l + k]) * q[1 + l];
        out[1 + k] = 2 * pull;
    }
    const REAL along = q[0] * out[0] + dot_(q + 1, out + 1);
    for (int k = 0; k < 4; ++k) out[k] = back * (out[k] - along * q[k]);
};
// the row of 4 q q^T with the largest diagonal, so q in some length; returns which
auto row_ = [&](const REAL* m, REAL* q) -> int {
    auto sum_ = [&](REAL a, REAL b, REAL c) -> REAL {
        REAL d, e, f;
        const REAL sum = plus_(plus_(a, b, d), plus_(c, REAL(1), e), f);
        return sum + (d + e + f);
    };
    const REAL w = sum_(m[0], m[4], m[8]), x = sum_(m[0], -m[4], -m[8]);
    const REAL y = sum_(-m[0], m[4], -m[8]), z = sum_(-m[0], -m[4], m[8]);
    const REAL wx = m[7] - m[5], wy = m[2] - m[6], wz = m[3] - m[1];
    const REAL xy = m[1] + m[3], xz = m[2] + m[6], yz = m[5] + m[7];
    REAL most = w;
    int best = 0;
    best = x > most ? 1 : best; most = x > most ? x : most;
    best = y > most ? 2 : best; most = y > most ? y : most;
    best = z > most ? 3 : best;
    q[0] = best == 0 ? w : best == 1 ? wx : best == 2 ? wy : wz;
    q[1] = best == 0 ? wx : best == 1 ? x : best == 2 ? xy : xz;
    q[2] = best == 0 ? wy : best == 1 ? xy : best == 2 ? y : yz;
    q[3] = best == 0 ? wz : best == 1 ? xz : best == 2 ? yz : z;
    return best;
};
auto row_adjoint_ = [](int best, const REAL* g, REAL* out) {
    const bool w = best == 0, x = best == 1, y = best == 2, z = best == 3;
    const REAL none = 0, own = w ? g[0] : x ? g[1] : y ? g[2] : g[3];
    const REAL wx = w ? g[1] : x ? g[0] : none, wy = w ? g[2] : y ? g[0] : none, wz = w ? g[3] : z ? g[0] : none;
    const REAL xy = x ? g[2] : y ? g[1] : none, xz = x ? g[3] : z ? g[1] : none, yz = y ? g[3] : z ? g[2] : none;
    out[0] = w || x ? own : -own; out[1] = xy - wz; out[2] = xz + wy;
    out[3] = xy + wz; out[4] = w || y ? own : -own; out[5] = yz - wx;
    out[6] = xz - wy; out[7] = yz + wx; out[8] = w || z ? own : -own;
};
// q/|q| with w >= 0; returns the length, signed
auto unit_ = [&](REAL* q) -> REAL {
    REAL length = root_(q[0] * q[0] + dot_(q + 1, q + 1));
    length = q[0] < 0 ? -length : length;
    for (int k = 0; k < 4; ++k) q[k] /= length;
    return length;
};
// v/|v| without overflow, or the direction of `instead` where no entry of v is above `least`
auto direction_ = [&](REAL* v, const REAL* instead, REAL least) {
    REAL size = 0;
    for (int k = 0; k < 3; ++k) size = absolute_(v[k]) > size ? absolute_(v[k]) : size;
    const bool zero = size <= least;
    for (int k = 0; k < 3; ++k) v[k] = zero ? instead[k] : v[k] / (zero ? REAL(1) : size);
    const REAL length = root_(dot_(v, v));
    for (int k = 0; k < 3; ++k) v[k] /= length;
};
// Gram-Schmidt of two columns, twice, to the matrix [a, b, a x b]
auto frame_ = [&](REAL* a, REAL* b, REAL* m) {
    const REAL x[3] = {REAL(1), REAL(0), REAL(0)}, tiny = @tiny;
    REAL other[3], c[3];
    direction_(a, x, REAL(0));
    const REAL i = absolute_(a[0]), j = absolute_(a[1]), l = absolute_(a[2]);
    const int far = i <= j && i <= l ? 0 : j <= l ? 1 : 2;
    const REAL part = far == 0 ? a[0] : far == 1 ? a[1] : a[2];
    for (int k = 0; k < 3; ++k) other[k] = (k == far ? REAL(1) : REAL(0)) - part * a[k];
    direction_(b, other, REAL(0));
    for (int twice = 0; twice < 2; ++twice) {
        const REAL along = dot_(a, b);
        for (int k = 0; k < 3; ++k) b[k] -= along * a[k];
        direction_(b, other, tiny);
    }
    cross_(a, b, c);
    for (int k = 0; k < 3; ++k) { m[3 * k] = a[k]; m[3 * k + 1] = b[k]; m[3 * k + 2] = c[k]; }
};
// atan2, 0 where both are 0
auto arc_ = [&](REAL y, REAL x) -> REAL {
    const REAL a = absolute_(y), b = absolute_(x), less = a < b ? a : b, more = a < b ? b : a, side = a < b ? 1 : -1;
    const bool middle = less > @tan_eighth * more;
    const REAL over = middle ? less - more : less, under = middle ? less + more : more;
    const REAL ratio = over / (under > 0 ? under : REAL(1)), z = ratio * ratio;
    const REAL eighths = (a < b ? REAL(0) : more > 0 ? REAL(2) : REAL(0)) + side * (middle ? REAL(1) : REAL(0));
    const REAL turns = x < 0 ? 4 - eighths : eighths, way = x < 0 ? -side : side;
    const REAL angle = turns * @eighth0 + (way * fma_(ratio * z, @arc, ratio) + turns * @eighth1);
    return y < 0 ? -angle : angle;
};
// see geom.lie.so3._to_euler
auto euler_ = [&](const REAL* q, const REAL* axes, REAL* out) {
    const REAL equal = axes[9], fixed = axes[10], other = 1 - equal, moving = 1 - fixed;
    const REAL w = q[0], x = dot_(axes, q + 1), y = dot_(axes + 3, q + 1), z = dot_(axes + 6, q + 1);
    const REAL a = w - other * y, b = x + other * z, c = y + other * w, d = z - other * x;
    const REAL low = c * c + d * d, high = a * a + b * b, total = arc_(b, a), difference = arc_(d, c);
    const bool bottom = low < @locked, top = high < @locked;
    const REAL lock = bottom ? 2 * total : (2 - 4 * fixed) * difference;
    const REAL first = bottom || top ? fixed * lock : total - difference;
    const REAL last = axes[11] * (bottom || top ? moving * lock : total + difference);
    auto wrap_ = [&](REAL x) -> REAL { return x - 2 * @pi * round_(x / (2 * @pi)); };
    out[0] = wrap_(fixed * first + moving * last);
    out[1] = 2 * arc_(root_(low), root_(high)) - other * @pi / 2;
    out[2] = wrap_(fixed * last + moving * first);
};
// orthonormal and right-handed, rows of `out`, on a, then b; any axes where they leave them open
auto basis_ = [&](const REAL* a, const REAL* b, REAL* out) {
    const REAL size = dot_(a, a), part = 1 / root_(size > 0 ? size : REAL(1));
    for (int k = 0; k < 3; ++k) out[k] = size > 0 ? part * a[k] : k == 0 ? REAL(1) : REAL(0);
    const bool steep = out[0] * out[0] < REAL(0.5);
    const REAL zero = 0, spare[3] = {steep ? zero : -out[2], steep ? out[2] : zero, steep ? -out[1] : out[0]};
    for (int k = 0; k < 3; ++k) out[3 + k] = b[k];
    #pragma unroll
    for (int twice = 0; twice < 2; ++twice) {  // what is left of b may be rounding along a
        const REAL along = dot_(out, out + 3);
        for (int k = 0; k < 3; ++k) out[3 + k] -= along * out[k];
        const bool none = dot_(out + 3, out + 3) <= (twice ? REAL(0.5) : zero);
        for (int k = 0; k < 3; ++k) out[3 + k] = none ? spare[k] : out[3 + k];
        const REAL length = root_(dot_(out + 3, out + 3));
        for (int k = 0; k < 3; ++k) out[3 + k] /= length;
    }
    cross_(out, out + 3, out + 6);
};
// see geom.lie._polar.decompose
auto polar_ = [&](const REAL* given, REAL* m, REAL& gap, REAL* right, REAL* stiffness) {
    REAL size = 0, c[9], left[9], s[3], v[3], once[9], twice[9], error[9];  // c, the columns one after the other
    for (int k = 0; k < 9; ++k) size = absolute_(given[k]) > size ? absolute_(given[k]) : size;
    const REAL whole = size > 0 ? size : REAL(1);
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) c[3 * j + i] = given[3 * i + j] / whole;
    auto sweep_ = [&](REAL* a, REAL* b) {
        REAL less[3], more[3];
        for (int k = 0; k < 3; ++k) { less[k] = a[k] - b[k]; more[k] = a[k] + b[k]; }
        const REAL twice = 2 * dot_(a, b), difference = dot_(less, more);
        const REAL found = absolute_(difference) + root_(difference * difference + twice * twice);
        const REAL r = found > @least ? found : @least;
        const bool ordered = difference >= 0;
        const REAL x = ordered ? r : twice, y = ordered ? twice : r, scale = 1 / root_(x * x + y * y);
        for (int k = 0; k < 3; ++k) {
            const REAL p = a[k], q = b[k];
            a[k] = scale * (x * p + y * q);
            b[k] = scale * (x * q - y * p);
        }
    };
    #pragma unroll
    for (int n = 0; n < 5; ++n) { sweep_(c, c + 3); sweep_(c, c + 6); sweep_(c + 3, c + 6); }
    basis_(c, c + 3, left);
    REAL a[3], b[3];
    for (int j = 0; j < 3; ++j) {
        a[j] = (given[j] * left[0] + given[3 + j] * left[1] + given[6 + j] * left[2]) / whole;
        b[j] = (given[j] * left[3] + given[3 + j] * left[4] + given[6 + j] * left[5]) / whole;
    }
    basis_(a, b, right);
    for (int k = 0; k < 3; ++k) {
        for (int i = 0; i < 3; ++i) v[i] = dot_(given + 3 * i, right + 3 * k);
        s[k] = dot_(left + 3 * k, v);
    }
    for (int k = 0; k < 3; ++k) {
        const REAL rest = s[(k + 1) % 3] + s[(k + 2) % 3];
        stiffness[k] = rest > 0 ? rest : REAL(0);
    }
    gap = stiffness[0] / (s[0] > 0 ? s[0] : REAL(1));
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j)
            m[3 * i + j] = left[i] * right[j] + left[3 + i] * right[3 + j] + left[6 + i] * right[6 + j];
    for (int i = 0; i < 3; ++i) { cross_(m + 3 * i, right, once + 3 * i); cross_(once + 3 * i, right, twice + 3 * i); }
    const REAL up = once[0] + once[4] + once[8], across = -(twice[0] + twice[4] + twice[8]);
    const REAL length = root_(up * up + across * across);
    const bool turned = gap < @open && length > 0;
    const REAL sine = turned ? up / length : REAL(0), cosine = turned ? across / length : REAL(1);
    for (int k = 0; k < 9; ++k) m[k] += sine * once[k] + (1 - cosine) * twice[k];
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j)
            error[3 * i + j] = (i == j ? REAL(1) : REAL(0)) - (m[i] * m[j] + m[3 + i] * m[3 + j] + m[6 + i] * m[6 + j]);
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j)
            v[j] = (m[3 * i] * error[j] + m[3 * i + 1] * error[3 + j] + m[3 * i + 2] * error[6 + j]) / 2;
        for (int j = 0; j < 3; ++j) m[3 * i + j] = s[0] > 0 ? m[3 * i + j] + v[j] : i == j ? REAL(1) : REAL(0);
    }
};
"""


def _with_constants(text: str) -> str:
    return re.sub(r"@(\w+)", lambda found: _CONSTANTS[found[1]], text)


_PARTS = re.split(r"\n(?:// .*\n)?(?=auto )", _with_constants(_SOURCE))[1:]
_FUNCTIONS = {part.split()[1]: part for part in _PARTS}


def complete(body: str) -> tuple[str, str]:
    """The definitions that `body` needs, in their order, and the body with its constants filled in."""
    needed: set[str] = set()
    found = {body}
    while found:
        names = {name for text in found for name in re.findall(r"\w+_(?=\()", text)}
        names = (names & _FUNCTIONS.keys()) - needed
        needed |= names
        found = {_FUNCTIONS[name] for name in names}
    return "\n".join(text for name, text in _FUNCTIONS.items() if name in needed), _with_constants(body)
