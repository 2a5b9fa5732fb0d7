"""Peeling of binary volumes: every point of a subfield that is simple and no end is taken away, or barred.

The neighbours of a point are a number, bit 9 z + 3 y + x for the voxel at (z, y, x) - 1 from it. A configuration of
Bertrand, "A Boolean characterization of three-dimensional simple points", 1996, is a pair (cells, ones) of such
numbers: exactly `ones` of `cells` are ones.
"""

from itertools import product

from geom.kernels.native import native_kernel

__all__ = ["A6", "A18", "A26", "B18", "B26", "FACES", "N18", "peel"]

Cell = tuple[int, ...]
_CELLS: list[Cell] = list(product(range(3), repeat=3))
_FACES, _EDGES, _CORNERS = ([cell for cell in _CELLS if sum(x != 1 for x in cell) == k] for k in (1, 2, 3))


def _bits(*cells: Cell) -> int:
    return sum(1 << _CELLS.index(cell) for cell in cells)


def _around(cell: Cell, others: list[Cell], steps: int) -> int:
    """Those of the others that touch the cell, and are at most so many steps along axes away."""
    gaps = {other: [abs(a - b) for a, b in zip(cell, other, strict=True)] for other in others}
    return _bits(*(other for other, gap in gaps.items() if max(gap) == 1 and sum(gap) <= steps))


FACES = [_bits(cell) for cell in _FACES]
N18 = _bits(*_FACES, *_EDGES)
A6 = [(_bits(cell) | ring, ring) for cell in _FACES for ring in [_around(cell, _EDGES, 1)]]
A18 = [(_bits(cell) | _around(cell, _FACES, 1), 0) for cell in _EDGES]
A26 = [(_bits(cell) | _around(cell, _FACES + _EDGES, 3), 0) for cell in _CORNERS]
B18 = [(_bits(cell) | _around(cell, _FACES + _EDGES, 3), _bits(cell)) for cell in _EDGES]
B26 = [(_bits(cell) | _around(cell, _FACES + _EDGES, 3), _bits(cell)) for cell in _CORNERS]


def _each(configurations: list[tuple[int, int]], operator: str) -> str:
    return "(" + f" {operator} ".join(f"((code & {cells}) == {ones})" for cells, ones in configurations) + ")"


peel = native_kernel(
    __name__,
    "peel",
    "now_: int64, before_: int64, changed_: int64, depth: int64, height: int64, width: int64, z0: int64, y0: int64, "
    "x0: int64, exact: int64, everywhere: int64, count: int64, grain: int64",
    # Item i is a range of `grain` points of the subfield (z0, y0, x0) + 2 k of all volumes. `now` and `before`, the
    # state before this round, are bytes of volumes with a border of zeros; bit 0 is the voxel, bit 1 bars it.
    """
    unsigned char* const now = (unsigned char*)now_;
    const unsigned char* const before = (const unsigned char*)before_;
    const long long nz = (depth - z0 + 1) / 2, ny = (height - y0 + 1) / 2, nx = (width - x0 + 1) / 2;
    const long long row = width + 2, layer = (height + 2) * row, volume = (depth + 2) * layer;
    const auto around = [&](const unsigned char* p) {
        int code = 0;
        for (int z = 0; z < 3; ++z)
            for (int y = 0; y < 3; ++y) {
                const unsigned char* const q = p + (z - 1) * layer + (y - 1) * row;
                code |= ((q[-1] & 1) | (q[0] & 1) << 1 | (q[1] & 1) << 2) << (9 * z + 3 * y);
            }
        return code & ~(1 << 13);
    };
    const auto single = [](int code) { return code != 0 && (code & (code - 1)) == 0; };
    bool changed = false;
    const long long end = (i + 1) * grain < count ? (i + 1) * grain : count;
    for (long long k = i * grain; k < end;) {
        long long x = k % nx, rest = k / nx;
        const long long y = rest % ny;
        rest /= ny;
        const long long z = rest % nz, b = rest / nz;
        const long long line = b * volume + (2 * z + z0 + 1) * layer + (2 * y + y0 + 1) * row + x0 + 1;
        for (; x < nx && k < end; ++x, ++k) {
            const long long at = line + 2 * x;
            const unsigned char* const p = now + at;
            if (everywhere ? *p & 2 : *p != 1) continue;
            const int faces = (p[-layer] & 1) + (p[-row] & 1) + (p[-1] & 1)
                + (p[1] & 1) + (p[row] & 1) + (p[layer] & 1);
            if (faces == 6) continue;
            const int code = around(p);
            if (code == 0) continue;
            if (6 - faces - HOLLOW_EDGES + HOLLOW_CORNERS != 1) continue;  // of all 2^26 codes, no simple one
            if (exact) {
                const bool corner = AT_CORNER;
                const bool simple = faces == 5 || single(code) || (single(code & N18) && !corner)
                    || !(corner || AT_EDGE || AT_FACE);
                if (!simple) continue;
            }
            const int old = around(before + at);
            if (old == 0 || single(old)) continue;
            now[at] = 2;
            changed = true;
        }
    }
    if (changed) *(wp::int32*)changed_ = 1;
    """.replace("HOLLOW_EDGES", _each(A18, "+"))
    .replace("HOLLOW_CORNERS", _each(A26, "+"))
    .replace("AT_CORNER", _each(B26, "||"))
    .replace("AT_EDGE", _each(B18, "||"))
    .replace("AT_FACE", _each(A6, "||"))
    .replace("N18", str(N18)),
)
