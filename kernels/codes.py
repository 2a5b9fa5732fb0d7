"""Codes of grid cells along space-filling curves, there and back, and the stable sort of codes within each cloud."""

from itertools import product

from geom.kernels.native import native_kernel
from geom.kernels.voxels import SPREAD

__all__ = ["CHUNK", "CURVES", "decode", "encode", "sort_codes"]

CHUNK = 64
CURVES = ("morton", "hilbert", "traverse")  # the kernels' `curve`

State = tuple[tuple[int, int, int], tuple[int, int, int], int]


def _plane(state: State, octant: int) -> tuple[int, State]:
    """One bit plane of Skilling's transform: the curve's octal digit for x << 2 | y << 1 | z, and the next state.

    A state says which axis stands in each place, which places are inverted, and the parity of the digits so far: all
    that is done to lower bits and to the Gray code below. From the identity 48 states are reached.
    """
    places, inverted, parity = list(state[0]), list(state[1]), state[2]
    bits = [(octant >> (2 - axis) & 1) ^ flip for axis, flip in zip(places, inverted, strict=True)]
    digit = 0
    for d, bit in enumerate(bits):
        parity ^= bit
        digit = digit << 1 | parity
        if bit:
            inverted[0] ^= 1
        else:
            places[0], places[d] = places[d], places[0]
            inverted[0], inverted[d] = inverted[d], inverted[0]
    return digit, ((places[0], places[1], places[2]), (inverted[0], inverted[1], inverted[2]), parity)


def _hilbert_tables() -> tuple[list[int], list[int], int]:
    """Two planes a step: entry 64 state + (two octants) is 64 next + (two digits), its inverse by digits, and a state
    from which a plane of zeros leads to the first state, 0: where a curve of an odd number of planes starts."""
    states: list[State] = [((0, 1, 2), (0, 0, 0), 0)]
    for state in states:  # it grows until no state is new
        for octant in range(8):
            _, after = _plane(state, octant)
            if after not in states:
                states.append(after)
    forward, backward = [0] * (64 * len(states)), [0] * (64 * len(states))
    for row, (high, low) in product(range(len(states)), product(range(8), repeat=2)):
        first, middle = _plane(states[row], high)
        second, after = _plane(middle, low)
        step, digits, onward = high << 3 | low, first << 3 | second, states.index(after) << 6
        forward[row << 6 | step] = onward | digits
        backward[row << 6 | digits] = onward | step
    start = next(row for row, state in enumerate(states) if _plane(state, 0) == (0, states[0]))
    return forward, backward, start


_FORWARD, _BACKWARD, _ODD = _hilbert_tables()


def _walk(table: list[int]) -> str:
    """C++: `word[j]` of `size` points through the table, six bits a step from the top, all points in step."""
    return f"""
        static const unsigned short TABLE[{len(table)}] = {{{", ".join(map(str, table))}}};
        unsigned int state[CHUNK];
        unsigned long long out[CHUNK];
        for (int j = 0; j < CHUNK; ++j) {{ state[j] = bits % 2 ? {_ODD << 6} : 0; out[j] = 0; }}
        for (int shift = 6 * ((bits + 1) / 2 - 1); shift >= 0; shift -= 6)
            for (int j = 0; j < size; ++j) {{
                const unsigned int entry = TABLE[state[j] | (unsigned int)(word[j] >> shift & 63)];
                out[j] = out[j] << 6 | (entry & 63);
                state[j] = entry & ~63u;
            }}
        for (int j = 0; j < size; ++j) word[j] = out[j];
    """


_SIGNATURE = "curve: int32, a: int32, b: int32, c: int32, bits: int32"

# Item i is a chunk of points; a, b, c are the grid's axes in the curve's own order, the traverse's fastest first.
_CHUNK = """
    const long long count = codes.shape[0], begin = (long long)CHUNK * i;
    const int size = count - begin < CHUNK ? (int)(count - begin) : CHUNK;
    const unsigned long long full = (1ull << bits) - 1;
    unsigned long long word[CHUNK];
"""

encode = native_kernel(
    __name__,
    "encode",
    f"grid: int64[], {_SIGNATURE}, codes: int64[]",
    (
        _CHUNK
        + """
    const wp::int64* cell = grid.data + 3 * begin;
    unsigned long long column[3][CHUNK];  // apart, so that what follows becomes vector instructions
    for (int j = 0; j < size; ++j) {
        for (int axis = 0; axis < 3; ++axis) column[axis][j] = (unsigned long long)cell[3 * j + axis];
    }
    const unsigned long long *u = column[a], *v = column[b], *w = column[c];
    if (curve == 2) {
        for (int j = 0; j < size; ++j) {
            const unsigned long long back = 0 - ((v[j] ^ w[j]) & 1), down = 0 - (w[j] & 1);
            word[j] = (w[j] << bits | (v[j] ^ (down & full))) << bits | (u[j] ^ (back & full));
        }
    } else {
        for (int j = 0; j < size; ++j) {
            unsigned long long x = u[j];
            SPREAD
            word[j] = x << 2;
            x = v[j];
            SPREAD
            word[j] |= x << 1;
            x = w[j];
            SPREAD
            word[j] |= x;
        }
    }
    if (curve == 1) { WALK }
    for (int j = 0; j < size; ++j) codes.data[begin + j] = (wp::int64)word[j];
    """
    )
    .replace("WALK", _walk(_FORWARD))
    .replace("SPREAD", SPREAD)
    .replace("CHUNK", str(CHUNK)),
)

_GATHER = """
    x &= 0x1249249249249249ull;
    x = (x | x >> 2) & 0x10c30c30c30c30c3ull;
    x = (x | x >> 4) & 0x100f00f00f00f00full;
    x = (x | x >> 8) & 0x1f0000ff0000ffull;
    x = (x | x >> 16) & 0x1f00000000ffffull;
    x = (x | x >> 32) & 0x1fffffull;
"""  # SPREAD undone

decode = native_kernel(
    __name__,
    "decode",
    f"codes: int64[], {_SIGNATURE}, grid: int64[]",
    # Bits above the cell's own, a cloud's number, are ignored.
    (
        _CHUNK
        + """
    const unsigned long long own = (1ull << 3 * bits) - 1;
    for (int j = 0; j < size; ++j) word[j] = (unsigned long long)codes.data[begin + j] & own;
    if (curve == 1) { WALK }
    unsigned long long column[3][CHUNK];
    unsigned long long *u = column[a], *v = column[b], *w = column[c];
    if (curve == 2) {
        for (int j = 0; j < size; ++j) {
            w[j] = word[j] >> 2 * bits;
            v[j] = (word[j] >> bits ^ (0 - (w[j] & 1))) & full;
            u[j] = (word[j] ^ (0 - ((v[j] ^ w[j]) & 1))) & full;
        }
    } else {
        for (int j = 0; j < size; ++j) {
            unsigned long long x = word[j] >> 2;
            GATHER
            u[j] = x;
            x = word[j] >> 1;
            GATHER
            v[j] = x;
            x = word[j];
            GATHER
            w[j] = x;
        }
    }
    wp::int64* cell = grid.data + 3 * begin;
    for (int j = 0; j < size; ++j) {
        for (int axis = 0; axis < 3; ++axis) cell[3 * j + axis] = (wp::int64)column[axis][j];
    }
    """
    )
    .replace("WALK", _walk(_BACKWARD))
    .replace("GATHER", _GATHER)
    .replace("CHUNK", str(CHUNK)),
)

sort_codes = native_kernel(
    __name__,
    "sort_codes",
    "codes: int64[], offsets: int64[], bits: int32, period: int64, invert: int32, spare: int64[], order: int64[], "
    "second: int64[]",
    # Item i is a cloud. A stable radix sort of the lowest `bits` bits (those above are equal in one cloud), at most 10
    # a pass and the least first, of words that hold as much of the code as there is room for over the point's number:
    # one word moves instead of two, and nearly always all of the code fits. `second` gets the inverse permutation, or
    # the codes in order. Places count from the start of the period: clouds of several orders may follow one another.
    """
    const long long begin = offsets.data[i], count = offsets.data[i + 1] - begin;
    if (count == 0) return;
    const long long start = begin % period;
    const wp::int64* code = codes.data + begin;
    unsigned long long* words = (unsigned long long*)spare.data + begin;
    unsigned long long* places = (unsigned long long*)order.data + begin;
    int low = 1;
    while ((count - 1) >> low) ++low;
    const unsigned long long number = (1ull << low) - 1;
    int place[7][1024];
    for (int base = 0; base < bits;) {
        const int width = bits - base < 64 - low ? bits - base : 64 - low;
        int passes = width > 20 ? (width + 9) / 10 : 2;
        if (base > 0) passes += passes & 1;  // its first pass reads `places`, and so must not write there
        const int digit = (width + passes - 1) / passes, mask = (1 << digit) - 1;
        for (int pass = 0; pass < passes; ++pass)
            for (int d = 0; d <= mask; ++d) place[pass][d] = 0;
        for (long long k = 0; k < count; ++k) {
            unsigned long long x = (unsigned long long)code[k] >> base << low >> low;
            for (int pass = 0; pass < passes; ++pass) { ++place[pass][x & mask]; x >>= digit; }
        }
        for (int pass = 0; pass < passes; ++pass) {
            int sum = 0;
            for (int d = 0; d <= mask; ++d) { const int here = place[pass][d]; place[pass][d] = sum; sum += here; }
        }
        unsigned long long* to = passes % 2 == 0 ? words : places;  // so that the last pass reads `words`
        for (long long k = 0; k < count; ++k) {
            const long long id = base == 0 ? k : (long long)places[k] - start;
            const unsigned long long x = (unsigned long long)code[id] >> base;
            to[place[0][x & mask]++] = x << low | id;
        }
        for (int pass = 1; pass + 1 < passes; ++pass) {
            const unsigned long long* from = to;
            to = to == words ? places : words;
            const int shift = low + digit * pass;
            for (long long k = 0; k < count; ++k) to[place[pass][from[k] >> shift & mask]++] = from[k];
        }
        const int shift = low + digit * (passes - 1);
        const wp::int64 above = bits < 63 ? code[0] >> bits << bits : 0;
        base += width;
        for (long long k = 0; k < count; ++k) {
            const int at = place[passes - 1][words[k] >> shift & mask]++;
            const long long id = (long long)(words[k] & number);
            places[at] = start + id;
            if (base < bits) continue;
            if (invert) second.data[begin + id] = start + at;
            else second.data[begin + at] = width < bits ? code[id] : above | (wp::int64)(words[k] >> low);
        }
    }
    """,
)
