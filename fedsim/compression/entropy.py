"""Symbols of a small alphabet at the end of a message: packed, or entropy-coded where that is shorter.

`deflate` is zlib told to use Huffman codes alone: looking for repetitions in noise takes ten times as long and finds none.
`ans` is the asymmetric numeral system of `constriction`, within a thousandth of the entropy, and the only one of them that
spends less than a bit on a symbol. Both are told the number of symbols and decode no more than that.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedsim.compression.bits import pack, packed_bytes, unpack, width_of
from fedsim.compression.wire import Reader, refusal
from fedsim.types import MissingPackageError

_FULL = 2**16 - 1
_RAW_DEFLATE = -15


class Coder(NamedTuple):
    """encode: (symbols (n,) uint8, alphabet) -> bytes. decode: (bytes, n, alphabet) -> symbols, or FedsimError."""

    encode: Callable[[np.ndarray, int], bytes]
    decode: Callable[[memoryview, int, int], np.ndarray]


def _deflate(symbols: np.ndarray, alphabet: int) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, _RAW_DEFLATE, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(symbols.tobytes()) + coder.flush()


def _inflate(data: memoryview, count: int, alphabet: int) -> np.ndarray:
    decoder = zlib.decompressobj(_RAW_DEFLATE)
    try:
        symbols = decoder.decompress(data, count + 1)  # one more than is due, so that a bomb is seen and not inflated
    except zlib.error as error:
        raise refusal("its deflated part is damaged") from error
    if len(symbols) != count or not decoder.eof or decoder.unused_data:
        raise refusal("its deflated part has another length")
    return np.frombuffer(symbols, dtype=np.uint8)


def constriction() -> Any:
    """The package, or MissingPackageError."""
    try:
        import constriction
    except ImportError as error:
        raise MissingPackageError(
            "compression.entropy=ans needs constriction: pip install 'fedsim-flower[entropy]', or use compression.entropy=deflate"
        ) from error
    return constriction


def _model(table: np.ndarray) -> Any:
    return constriction().stream.model.Categorical(table.astype(np.float32), perfect=False)


def _ans(symbols: np.ndarray, alphabet: int) -> bytes:
    """The frequency of each symbol in 16 bits, then words of 32 bits. What occurs at all has a frequency above zero."""
    counts = np.bincount(symbols, minlength=alphabet)
    most = max(int(counts.max()), 1)
    table = ((counts * _FULL + most - 1) // most).astype("<u2")  # rounded up in integers, where _FULL cannot be passed
    coder = constriction().stream.stack.AnsCoder()
    coder.encode_reverse(symbols.astype(np.int32), _model(table))
    return table.tobytes() + coder.get_compressed().astype("<u4").tobytes()


def _read_ans(data: memoryview, count: int, alphabet: int) -> np.ndarray:
    reader = Reader(data)
    table = np.frombuffer(reader.take(2 * alphabet), dtype="<u2")
    words = reader.rest()
    if not table.any() or len(words) % 4:
        raise refusal("its table of frequencies is empty or its words are cut")
    try:
        coder = constriction().stream.stack.AnsCoder(np.frombuffer(words, dtype="<u4").astype(np.uint32))
    except ValueError as error:
        raise refusal("its entropy-coded part is damaged") from error
    symbols = coder.decode(_model(table), count)
    if not coder.is_empty():
        raise refusal("its entropy-coded part has another length")
    return symbols.astype(np.uint8)


CODERS: dict[str, Coder | None] = {"none": None, "deflate": Coder(_deflate, _inflate), "ans": Coder(_ans, _read_ans)}
"""What `entropy` may be; coded alphabets have at most 256 symbols."""


def symbols_bytes(count: int, alphabet: int, entropy: str) -> int:
    """The longest that `pack_symbols` gives."""
    return packed_bytes(count, width_of(alphabet)) + (entropy != "none")


def pack_symbols(symbols: np.ndarray, alphabet: int, entropy: str) -> bytes:
    """(n,) symbols below `alphabet`. Where they may be coded, a byte says whether they are: 1, or 0 where it is no shorter."""
    packed, coder = pack(symbols, width_of(alphabet)), CODERS[entropy]
    if coder is None:
        return packed
    coded = coder.encode(symbols, alphabet) if len(symbols) else packed
    return b"\1" + coded if len(coded) < len(packed) else b"\0" + packed


def read_symbols(reader: Reader, count: int, alphabet: int, entropy: str) -> np.ndarray:
    """The inverse of `pack_symbols`, which takes all that is left of the message."""
    coder = CODERS[entropy]
    flag = b"\0" if coder is None else bytes(reader.take(1))
    if flag not in (b"\0", b"\1"):
        raise refusal("it does not say whether it is entropy-coded")
    if coder is not None and flag == b"\1":
        symbols = coder.decode(reader.rest(), count, alphabet)
    else:
        symbols = unpack(reader, count, width_of(alphabet))
    if len(symbols) and symbols.max() >= alphabet:
        raise refusal(f"it has symbols beyond its {alphabet}")
    return symbols
