"""Distances along a surface by waves that cross its triangles, vertex after vertex in an order that is given.

Corners starts[c] to starts[c + 1] are those at vertex c. Of each, `ends` names the two ends of the side opposite, which
a wave comes through, and `shapes` holds eight numbers: that side's length; x and y of the corner where the side runs
from (0, 0) to (length, 0); four angles: of the side at its first end, at its second, and at the corner of the ways to
the first end and to the second; and how much angles at the corner are stretched. Angles are counted around each vertex;
`turn` is the whole way around, infinite where faces do not close. Angles that differ by `apart` or more belong to fans
of faces that meet in the vertex alone.
"""

from geom.kernels.native import native_kernel

__all__ = ["wave_distance"]

wave_distance = native_kernel(
    __name__,
    "wave_distance",
    "starts: int64[], ends: int64[], shapes: real[], turn: real[], apart: real, order: int64[], count: int32, "
    "sweeps: int32, stale: int32[], direction: real[], distance: real[]",
    # Item i is a set of sources, where `distance` is 0 and `direction` infinite. Elsewhere both are found; a direction
    # is that of the way back. `stale` marks vertices whose neighbours have changed since they were looked at.
    """
    const REAL PI = REAL(3.141592653589793), PRECISION = sizeof(REAL) == 4 ? REAL(1e-6) : REAL(1e-8);
    const long long row = (long long)count * i;
    REAL* d = distance.data + row;
    REAL* way_back = direction.data + row;
    wp::int32* old = stale.data + row;
    for (int sweep = 0; sweep < sweeps; ++sweep) {
        bool changed = false;
        for (int k = 0; k < count; ++k) {
            const long long c = order.data[row + k];
            if (!old[c] || way_back[c] == REAL(INFINITY)) continue;
            old[c] = 0;
            REAL best = REAL(INFINITY), angle = REAL(0);
            for (long long j = starts.data[c]; j < starts.data[c + 1]; ++j) {
                const REAL* s = shapes.data + 8 * j;
                for (int end = 0; end < 2; ++end) {
                    const REAL dx = s[1] - (end ? s[0] : REAL(0));
                    const REAL along = d[ends.data[2 * j + end]] + wp::sqrt(dx * dx + s[2] * s[2]);
                    if (along < best) { best = along; angle = s[5 + end]; }
                }
            }
            for (long long j = starts.data[c]; j < starts.data[c + 1]; ++j) {
                const REAL* s = shapes.data + 8 * j;
                const REAL side = s[0], x = s[1], y = s[2];
                const REAL da = d[ends.data[2 * j]], db = d[ends.data[2 * j + 1]];
                const REAL farther = da < db ? db : da, least = (da + db - side) / REAL(2) + y;
                if (!(da < REAL(INFINITY) && db < REAL(INFINITY) && y > REAL(0) && least < best)) continue;
                REAL rises[2];  // of the distance at the ends, as one goes away from them along the side
                bool foreign = false, beyond = true;  // fans apart; both ends reached from the side's other side
                for (int end = 0; end < 2; ++end) {
                    const long long v = ends.data[2 * j + end];
                    rises[end] = REAL(1);
                    if (way_back[v] == REAL(INFINITY)) continue;
                    const REAL inward = end ? s[4] - way_back[v] : way_back[v] - s[3];
                    beyond = beyond && !(inward > REAL(0) && inward < PI) && !(inward < PI - turn.data[v]);
                    REAL between = wp::abs(inward);
                    foreign = foreign || between >= apart;
                    between = between < turn.data[v] - between ? between : turn.data[v] - between;
                    if (between < PI) rises[end] = -wp::cos(between);  // beyond pi it bends around the vertex
                }
                // Squared distances along the side, u from 0 to 1, by the cubic of the ends' values and slopes. It is
                // exact for waves in the plane; where slopes are not known, those of such a wave serve.
                const REAL qa = da * da, rise = db * db - qa;
                const REAL pa = foreign ? rise - side * side : REAL(2) * side * da * rises[0];
                const REAL pb = foreign ? rise + side * side : REAL(-2) * side * db * rises[1];
                const REAL cubic = pa + pb - REAL(2) * rise, square = REAL(3) * rise - REAL(2) * pa - pb;
                // The shortest way over the side: zero of the derivative, by regula falsi (Illinois).
                REAL low = REAL(0), high = REAL(1), at_low = REAL(0), at_high = REAL(0), u = REAL(0);
                REAL value = REAL(INFINITY);
                int last = 0;
                for (int step = 0; step < 60; ++step) {
                    u = step < 2 ? REAL(step) : (low * at_high - high * at_low) / (at_high - at_low);
                    const REAL q = qa + u * (pa + u * (square + u * cubic)), dx = u * side - x;
                    const REAL root = q > REAL(0) ? wp::sqrt(q) : REAL(0), rest = wp::sqrt(dx * dx + y * y);
                    const REAL bend = pa + u * (REAL(2) * square + REAL(3) * u * cubic);
                    const REAL back = u > REAL(0.5) ? -side : side;  // at a source
                    const REAL slope = (root > REAL(0) ? bend / (REAL(2) * root) : back) + side * dx / rest;
                    if (step == 0) { at_low = slope; if (!(slope < REAL(0))) break; continue; }
                    if (step == 1) { at_high = slope; if (!(slope > REAL(0))) break; continue; }
                    if (!(q > REAL(0))) { value = REAL(INFINITY); break; }
                    value = root + rest;
                    if (slope < REAL(0)) { low = u; at_low = slope; if (last < 0) at_high /= REAL(2); last = -1; }
                    else { high = u; at_high = slope; if (last > 0) at_low /= REAL(2); last = 1; }
                    if (wp::abs(slope) < PRECISION * side || high - low < PRECISION) break;
                }
                if (value < best && value >= least && (beyond || value >= farther)) {
                    best = value;
                    angle = s[5] + s[7] * wp::atan2(y * u * side, y * y - x * (u * side - x));
                }
            }
            if (best == REAL(INFINITY)) continue;
            const bool same = wp::abs(best - d[c]) <= PRECISION * best;
            d[c] = best; way_back[c] = angle;
            if (same) continue;
            changed = true;
            for (long long j = 2 * starts.data[c]; j < 2 * starts.data[c + 1]; ++j) old[ends.data[j]] = 1;
        }
        if (!changed) break;
    }
    """,
)
