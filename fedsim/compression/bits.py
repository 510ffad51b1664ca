"""Small integers as bits, and sorted positions as few of them.

`pack` puts integers of `width` bits one after another, the lowest bit first (numpy's packbits in little order). Wider ones
than 8 bits are put as planes: the low bytes of all, then the next, so that every plane is packed in the same way.
"""

from __future__ import annotations

import numpy as np

from fedsim.compression.wire import Reader, refusal


def width_of(alphabet: int) -> int:
    """Bits of a symbol out of so many."""
    return (alphabet - 1).bit_length()


def packed_bytes(count: int, width: int) -> int:
    """Length of what `pack` gives."""
    return sum((count * plane + 7) // 8 for plane in _planes(width))


def _planes(width: int) -> list[int]:
    return [min(8, width - start) for start in range(0, width, 8)]


def pack(values: np.ndarray, width: int) -> bytes:
    """(count,) unsigned integers below 2^width as bytes."""
    planes = _planes(width)
    if len(planes) == 1:
        return _pack_plane(values, width)
    return b"".join(_pack_plane((values >> (8 * i)) & 0xFF, plane) for i, plane in enumerate(planes))


def unpack(reader: Reader, count: int, width: int) -> np.ndarray:
    """The inverse of `pack`: (count,) uint8, or uint32 where width is above 8. Bits beyond the last one must be zero."""
    planes = [_unpack_plane(reader.take((count * plane + 7) // 8), count, plane) for plane in _planes(width)]
    if len(planes) == 1:
        return planes[0]
    values = np.zeros(count, dtype=np.uint32)
    for i, plane in enumerate(planes):
        values |= plane.astype(np.uint32) << np.uint32(8 * i)
    return values


def _pack_plane(values: np.ndarray, width: int) -> bytes:
    """Eight values at a time are the low `width` bytes of one 64-bit word."""
    count = len(values)
    if width == 8:
        return values.astype(np.uint8).tobytes()
    padded = np.zeros((-(-count // 8), 8), dtype=np.uint64)
    padded.reshape(-1)[:count] = values
    words = padded[:, 0].copy()
    for i in range(1, 8):
        words |= padded[:, i] << np.uint64(i * width)
    raw = words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
    return raw.tobytes()[: (count * width + 7) // 8]


def _unpack_plane(data: memoryview, count: int, width: int) -> np.ndarray:
    if width == 8:
        return np.frombuffer(data, dtype=np.uint8)
    groups = -(-count // 8)
    raw = np.zeros(groups * width, dtype=np.uint8)
    raw[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    bytes_of = np.zeros((groups, 8), dtype=np.uint8)
    bytes_of[:, :width] = raw.reshape(groups, width)
    words = bytes_of.view("<u8")[:, 0]
    values = np.empty((groups, 8), dtype=np.uint8)
    mask = np.uint64((1 << width) - 1)
    for i in range(8):
        values[:, i] = (words >> np.uint64(i * width)) & mask
    flat = values.reshape(-1)
    if flat[count:].any():
        raise refusal("bits are set beyond its last symbol")
    return flat[:count]


def _low_bits(size: int, count: int) -> int:
    return (size // count).bit_length() - 1


def _gap_bits(size: int, count: int) -> int:
    """Bits of the unary half of `pack_positions`."""
    return ((size - 1) >> _low_bits(size, count)) + count


def _as_gaps(size: int, count: int) -> bool:
    return _gap_bits(size, count) + count * _low_bits(size, count) < size


def positions_bytes(size: int, count: int) -> int:
    """Length of what `pack_positions` gives for so many of `size` places."""
    if count in (0, size):
        return 0
    if not _as_gaps(size, count):
        return (size + 7) // 8
    return (_gap_bits(size, count) + 7) // 8 + packed_bytes(count, _low_bits(size, count))


def pack_positions(positions: np.ndarray, size: int) -> bytes:
    """(count,) increasing integers in [0, size): a bitmap or gaps, whichever is shorter; nothing where all are meant.

    Gaps are Elias and Fano's (Elias 1974, doi 10.1145/321812.321820): floor(log2(size / count)) low bits of each as they are,
    the rest as unary differences, at most 2 + log2(size / count) bits a position. Indices of 32 bits are never shorter than that
    below 2^30 places. The length follows from size and count, so that the choice need not be sent.
    """
    count = len(positions)
    if count in (0, size):
        return b""
    if not _as_gaps(size, count):
        return _as_bitmap(positions, size)
    low = _low_bits(size, count)
    unary = _as_bitmap((positions >> low) + np.arange(count), _gap_bits(size, count))
    return unary + pack(positions & ((1 << low) - 1), low)


def read_positions(reader: Reader, size: int, count: int) -> np.ndarray:
    """The inverse of `pack_positions`: (count,) int64, increasing, in [0, size). Raises FedsimError where they are not."""
    if count in (0, size):
        return np.arange(count)
    if not _as_gaps(size, count):
        return _read_bitmap(reader, size, count)
    low = _low_bits(size, count)
    high = _read_bitmap(reader, _gap_bits(size, count), count) - np.arange(count)
    positions = (high << low) + unpack(reader, count, low) if low else high
    if positions[-1] >= size or (np.diff(positions) <= 0).any():
        raise refusal("its positions are not in order")
    return positions


def _as_bitmap(positions: np.ndarray, size: int) -> bytes:
    marks = np.zeros(size, dtype=np.uint8)
    marks[positions] = 1
    return np.packbits(marks, bitorder="little").tobytes()


def _read_bitmap(reader: Reader, size: int, count: int) -> np.ndarray:
    raw = np.frombuffer(reader.take((size + 7) // 8), dtype=np.uint8)
    found = np.flatnonzero(np.unpackbits(raw, bitorder="little"))
    if len(found) != count or (count and found[-1] >= size):
        raise refusal(f"it marks {len(found)} positions where {count} are due")
    return found
