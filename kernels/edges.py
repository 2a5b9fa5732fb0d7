"""The pattern of a sparse matrix over the vertices of a graph: its edges both ways and the diagonal, row by row."""

from geom.kernels.native import native_kernel

__all__ = ["edge_pattern"]

edge_pattern = native_kernel(
    __name__,
    "edge_pattern",
    "start: int64[], stop: int64[], sides: int64, count: int64, head: int64[], entries: int64[], cursor: int64[], "
    "rows: int64[], columns: int64[], forth: int64[], back: int64[], diagonal: int64[], size: int64[]",
    # The one item does it all, by two counting sorts. `head` (count + 1) and `cursor` (count) are zeros, `entries` has
    # room for 4 a side; out come the places (row, column), sorted, as many as `size` says, and which of them are
    # (start, stop) and (stop, start) of each side and the diagonal of each vertex. Sides from a vertex to itself fall
    # on the diagonal. Entry 2 k stands for side k at its start, 2 k + 1 at its stop.
    """
    const auto vertex = [&](wp::int64 entry) { return entry % 2 ? stop.data[entry / 2] : start.data[entry / 2]; };
    wp::int64* sorted = entries.data + 2 * sides;
    for (wp::int64 e = 0; e < 2 * sides; ++e) ++head.data[vertex(e) + 1];
    for (wp::int64 v = 0; v < count; ++v) head.data[v + 1] += head.data[v];
    for (wp::int64 e = 0; e < 2 * sides; ++e) {
        const wp::int64 v = vertex(e);
        entries.data[head.data[v] + cursor.data[v]++] = e;
    }
    for (wp::int64 v = 0; v < count; ++v) cursor.data[v] = head.data[v];
    for (wp::int64 k = 0; k < 2 * sides; ++k) sorted[cursor.data[vertex(entries.data[k] ^ 1)]++] = entries.data[k];
    wp::int64 n = 0;
    for (wp::int64 v = 0; v < count; ++v) {
        wp::int64 before = -1;
        bool open = true;
        for (wp::int64 k = head.data[v]; k < head.data[v + 1]; ++k) {
            const wp::int64 e = sorted[k], column = vertex(e);
            if (open && column >= v) {
                open = false; diagonal.data[v] = n; rows.data[n] = v; columns.data[n] = v; ++n; before = v;
            }
            if (column != before) { rows.data[n] = v; columns.data[n] = column; ++n; before = column; }
            (e % 2 ? forth.data : back.data)[e / 2] = n - 1;
        }
        if (open) { diagonal.data[v] = n; rows.data[n] = v; columns.data[n] = v; ++n; }
    }
    size.data[0] = n;
    """,
)
