"""Farthest points: each next sample is the point farthest from all before, exactly, by buckets that may be skipped.

Points lie in buckets of 64, buckets in groups of 64, each with its box and the greatest squared distance of its points
to the samples so far. A new sample whose distance to a box is no less than that changes nothing inside: the box is
skipped (Han et al., "QuickFPS", 2023). Products are rounded before they are added, on either device: a box is then
never judged farther than its points, and all forms give the same bits.
"""

from geom.kernels.native import native_kernel

__all__ = ["BLOCK", "BUCKET", "GROUP", "farthest_points"]

BUCKET = 64
GROUP = 64
BLOCK = 256  # threads of a cloud on CUDA

farthest_points = native_kernel(
    __name__,
    "farthest_points",
    "points: real[], order: int64[], offsets: int64[], starts: int64[], rows: int64[], groups: int32, "
    "store: real[], ids: int32[], boxes: real[], tops: real[], index: int64[]",
    # Item i is a cloud; on CUDA, one of its BLOCK threads, which go over all points, for there the skipping would wait.
    # `store` holds x, y, z and the squared distance of each bucket's 64 points, `ids` which they are; `boxes` and
    # `tops` those of 64 buckets, one group after the other, and last of all the groups. What is missing stands at -1.
    """
#if defined(__CUDA_ARCH__)
    const auto times = [](REAL a, REAL b) {
        return sizeof(REAL) == 4 ? REAL(__fmul_rn((float)a, (float)b)) : REAL(__dmul_rn((double)a, (double)b));
    };
    const int cloud = i / BLOCK, lane = i % BLOCK;
    __shared__ REAL farthest[BLOCK];
    __shared__ wp::int64 which[BLOCK];
    const long long begin = offsets.data[cloud], end = offsets.data[cloud + 1];
    REAL* nearest = store.data + begin;
    for (long long j = begin + lane; j < end; j += BLOCK) nearest[j - begin] = REAL(INFINITY);
    long long sample = starts.data[cloud];
    for (long long row = rows.data[cloud]; row < rows.data[cloud + 1]; ++row) {
        if (lane == 0) index.data[row] = sample;
        const REAL sx = points.data[3 * sample], sy = points.data[3 * sample + 1], sz = points.data[3 * sample + 2];
        REAL most = REAL(-1);
        long long at = end;
        for (long long j = begin + lane; j < end; j += BLOCK) {
            const REAL dx = points.data[3 * j] - sx, dy = points.data[3 * j + 1] - sy, dz = points.data[3 * j + 2] - sz;
            const REAL d = times(dx, dx) + times(dy, dy) + times(dz, dz);
            const REAL old = nearest[j - begin], now = d < old ? d : old;
            nearest[j - begin] = now;
            if (now > most) { most = now; at = j; }
        }
        farthest[lane] = most; which[lane] = at;
        for (int half = BLOCK / 2; half > 0; half /= 2) {
            __syncthreads();
            if (lane < half) {
                const REAL a = farthest[lane], b = farthest[lane + half];
                if (b > a || (b == a && which[lane + half] < which[lane])) {
                    farthest[lane] = b; which[lane] = which[lane + half];
                }
            }
        }
        __syncthreads();
        sample = which[0];
        __syncthreads();
    }
#else
    {
#pragma clang fp contract(off)
    const long long begin = offsets.data[i], total = offsets.data[i + 1] - begin;
    const int buckets = (int)((total + BUCKET - 1) / BUCKET), parts = (buckets + GROUP - 1) / GROUP;
    const long long first = begin / BUCKET + i, first_part = begin / (BUCKET * GROUP) + i;
    REAL* const p = store.data + 4 * BUCKET * first;
    wp::int32* const id = ids.data + BUCKET * first;
    REAL* const box = boxes.data + 6 * GROUP * first_part;
    REAL* const top = tops.data + GROUP * first_part;
    REAL* const hull = boxes.data + 6 * GROUP * (long long)groups + 6 * first_part;
    REAL* const crown = tops.data + GROUP * (long long)groups + first_part;
    for (int g = 0; g < parts; ++g) {
        REAL* const h = hull + 6 * g;
        for (int axis = 0; axis < 3; ++axis) { h[axis] = INFINITY; h[3 + axis] = -INFINITY; }
        crown[g] = INFINITY;
        for (int b = 0; b < GROUP; ++b) {
            REAL low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};
            const long long bucket = (long long)GROUP * g + b;
            if (bucket < buckets)
                for (int j = 0; j < BUCKET; ++j) {
                    const long long at = BUCKET * bucket + j;
                    const bool there = at < total;
                    const long long k = there ? order.data[begin + at] : 0;
                    for (int axis = 0; axis < 3; ++axis) {
                        const REAL x = there ? points.data[3 * k + axis] : REAL(0);
                        p[4 * BUCKET * bucket + BUCKET * axis + j] = x;
                        low[axis] = there && x < low[axis] ? x : low[axis];
                        high[axis] = there && x > high[axis] ? x : high[axis];
                    }
                    p[4 * BUCKET * bucket + BUCKET * 3 + j] = there ? REAL(INFINITY) : REAL(-1);
                    id[at] = (wp::int32)k;
                }
            for (int axis = 0; axis < 3; ++axis) {
                box[6 * GROUP * g + GROUP * axis + b] = low[axis];
                box[6 * GROUP * g + GROUP * (3 + axis) + b] = high[axis];
                h[axis] = low[axis] < h[axis] ? low[axis] : h[axis];
                h[3 + axis] = high[axis] > h[3 + axis] ? high[axis] : h[3 + axis];
            }
            top[bucket] = bucket < buckets ? REAL(INFINITY) : REAL(-1);
        }
    }
    long long sample = starts.data[i];
    for (long long row = rows.data[i]; row < rows.data[i + 1]; ++row) {
        index.data[row] = sample;
        const REAL sx = points.data[3 * sample], sy = points.data[3 * sample + 1], sz = points.data[3 * sample + 2];
        REAL most = REAL(-1);
        for (int g = 0; g < parts; ++g) {
            const REAL* const h = hull + 6 * g;
            REAL gap = REAL(0);
            for (int axis = 0; axis < 3; ++axis) {
                const REAL s = axis == 0 ? sx : (axis == 1 ? sy : sz), l = h[axis] - s, u = s - h[3 + axis];
                const REAL d = l > u ? l : u;
                gap += d > REAL(0) ? d * d : REAL(0);
            }
            if (gap < crown[g]) {
                const REAL* const c = box + 6 * GROUP * g;
                REAL* const t = top + GROUP * g;
                int hit[GROUP];
                for (int b = 0; b < GROUP; ++b) {
                    const REAL lx = c[b] - sx, ly = c[GROUP + b] - sy, lz = c[2 * GROUP + b] - sz;
                    const REAL ux = sx - c[3 * GROUP + b], uy = sy - c[4 * GROUP + b], uz = sz - c[5 * GROUP + b];
                    REAL dx = lx > ux ? lx : ux, dy = ly > uy ? ly : uy, dz = lz > uz ? lz : uz;
                    dx = dx > REAL(0) ? dx : REAL(0);
                    dy = dy > REAL(0) ? dy : REAL(0);
                    dz = dz > REAL(0) ? dz : REAL(0);
                    hit[b] = dx * dx + dy * dy + dz * dz < t[b];
                }
                for (int b = 0; b < GROUP; ++b) {
                    if (!hit[b]) continue;
                    REAL* const q = p + 4 * BUCKET * ((long long)GROUP * g + b);
                    REAL lane[16];
                    for (int l = 0; l < 16; ++l) lane[l] = REAL(-1);
                    for (int j = 0; j < BUCKET; j += 16)
                        for (int l = 0; l < 16; ++l) {
                            const REAL dx = q[j + l] - sx, dy = q[BUCKET + j + l] - sy, dz = q[2 * BUCKET + j + l] - sz;
                            const REAL d = dx * dx + dy * dy + dz * dz, old = q[3 * BUCKET + j + l];
                            const REAL now = d < old ? d : old;
                            q[3 * BUCKET + j + l] = now;
                            lane[l] = now > lane[l] ? now : lane[l];
                        }
                    for (int half = 8; half > 0; half /= 2)
                        for (int l = 0; l < half; ++l) lane[l] = lane[l] > lane[l + half] ? lane[l] : lane[l + half];
                    t[b] = lane[0];
                }
                REAL lane[16];
                for (int l = 0; l < 16; ++l) lane[l] = t[l];
                for (int b = 16; b < GROUP; b += 16)
                    for (int l = 0; l < 16; ++l) lane[l] = t[b + l] > lane[l] ? t[b + l] : lane[l];
                for (int half = 8; half > 0; half /= 2)
                    for (int l = 0; l < half; ++l) lane[l] = lane[l] > lane[l + half] ? lane[l] : lane[l + half];
                crown[g] = lane[0];
            }
            most = crown[g] > most ? crown[g] : most;
        }
        wp::int32 least = 0x7fffffff;  // of the points at that distance, the first
        for (int g = 0; g < parts; ++g) {
            if (crown[g] != most) continue;
            for (int b = 0; b < GROUP; ++b) {
                if (top[GROUP * g + b] != most) continue;
                const long long at = BUCKET * ((long long)GROUP * g + b);
                const REAL* const d = p + 4 * at + 3 * BUCKET;
                for (int j = 0; j < BUCKET; ++j) {
                    const wp::int32 k = d[j] == most ? id[at + j] : 0x7fffffff;
                    least = k < least ? k : least;
                }
            }
        }
        sample = least;
    }
    }
#endif
    """.replace("BUCKET", str(BUCKET))
    .replace("GROUP", str(GROUP))
    .replace("BLOCK", str(BLOCK)),
)
