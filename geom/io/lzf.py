"""LZF (Lehmann 2000), the compression inside PCD's `binary_compressed`: literal runs and references backwards."""

from geom.io.bytes import Source

__all__ = ["decompress"]


def decompress(source: Source, start: int, stop: int, size: int) -> bytearray:
    """The `size` bytes that bytes start..stop of the file unpack to; stop is in the file, size within its budget.

    Raises: FileFormatError where they do not unpack to exactly that.
    """
    data, out, at = source.data, bytearray(), start
    while at < stop:
        control = data[at]
        at += 1
        if control < 32:  # a literal run of control + 1 bytes
            run = control + 1
            if at + run > stop:
                raise source.fail("LZF: a literal run passes the end", at)
            out += data[at : at + run]
            at += run
        else:  # 3 bits of length, 13 bits of distance; length 7 goes on in the next byte
            length = control >> 5
            need = 2 if length == 7 else 1
            if at + need > stop:
                raise source.fail("LZF: a reference passes the end", at)
            if length == 7:
                length += data[at]
                at += 1
            back = ((control & 31) << 8 | data[at]) + 1
            at += 1
            length += 2
            begin = len(out) - back
            if begin < 0:
                raise source.fail("LZF: a reference begins before the data", at)
            if back >= length:
                out += out[begin : begin + length]
            else:  # it overlaps itself: a repeated pattern
                pattern = out[begin:]
                out += (pattern * (length // back + 1))[:length]
        if len(out) > size:
            break
    if len(out) != size:
        raise source.fail(f"LZF: expected {size} bytes to come out, got {len(out)}{' or more' * (at < stop)}", start)
    return out
