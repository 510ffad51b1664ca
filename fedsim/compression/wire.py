"""Bytes of a message: a header, then whatever a codec puts, little-endian. Reading trusts nothing of what was sent.

The header is 8 bytes: `fs`, the version of this format, the codec's number, and a CRC-32 of the payload and of what both
sides must agree on beforehand (the codec's keys, the names and shapes of the arrays). A message for another model or other
keys is thereby refused instead of being decoded to nonsense. A CRC keeps out accidents, not attackers: whoever forges one
meets the checks of `Reader` and of the codec.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from fedsim.types import FedsimError

_HEADER = struct.Struct("<2sBBI")
_MAGIC, _VERSION = b"fs", 1

HEADER_BYTES = _HEADER.size


def refusal(what: str) -> FedsimError:
    """The error for a message that cannot be read; `what` is wrong with it."""
    return FedsimError(
        f"a compressed message cannot be decoded, since {what}; run both sides with the same model and keys of compression"
    )


def seal(codec: int, agreed: bytes, payload: bytes) -> bytes:
    """The message: header and payload. agreed: what the receiver knows without being told."""
    return _HEADER.pack(_MAGIC, _VERSION, codec, zlib.crc32(payload, zlib.crc32(agreed))) + payload


def unseal(codec: int, agreed: bytes, message: bytes) -> Reader:
    """The payload of a message that `seal` made with the same `codec` and `agreed`. Raises FedsimError otherwise."""
    if not isinstance(message, bytes):
        raise refusal(f"it is a {type(message).__name__} and not bytes")
    if len(message) < HEADER_BYTES:
        raise refusal(f"it has {len(message)} bytes, fewer than its header")
    magic, version, number, check = _HEADER.unpack_from(message)
    if (magic, version, number) != (_MAGIC, _VERSION, codec):
        raise refusal("its header is not that of this codec")
    payload = memoryview(message)[HEADER_BYTES:]
    if zlib.crc32(payload, zlib.crc32(agreed)) != check:
        raise refusal("it was damaged, or made for other arrays or with other keys")
    return Reader(payload)


class Reader:
    """A payload, read from its start. Nothing is allocated for bytes that are not there."""

    def __init__(self, payload: bytes | memoryview) -> None:
        self._rest = memoryview(payload)

    def take(self, length: int) -> memoryview:
        """The next `length` bytes."""
        if length > len(self._rest):
            raise refusal(f"it is cut short: {length} more bytes are due and {len(self._rest)} are there")
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken

    def rest(self) -> memoryview:
        """All that is left."""
        return self.take(len(self._rest))

    def floats(self, count: int) -> np.ndarray:
        """(count,) float32, all finite; read-only."""
        found = np.frombuffer(self.take(4 * count), dtype="<f4")
        if not np.isfinite(found).all():
            raise refusal("it holds NaN or Inf")
        return found

    def word(self) -> int:
        """An unsigned integer of 64 bits."""
        return int.from_bytes(self.take(8), "little")

    def end(self) -> None:
        """Refuse what is left over."""
        if len(self._rest):
            raise refusal(f"{len(self._rest)} bytes follow its end")
