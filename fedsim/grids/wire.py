"""How objects go to another process and come back: pickled, with their arrays in shared memory that has no name.

Arrays of 64 KiB and more are written once into a block of memory behind a file descriptor, which travels over the Unix
socket beside the pickle. The receiver maps the block, privately: it may read and even change its arrays, and no one else sees
that. Nothing is left to be cleaned up when a process is killed: a block is gone with its last descriptor and mapping.
An answer of usual size needs no block: its arrays go through memory that both sides map once (`Slots`), and are copied out.

A worker takes whatever the main process sends, which is how it is made. The main process takes from a worker what an answer is
made of and nothing else (`Answers`), so that what runs in a worker, a user's own code with it, cannot have it call a thing.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 16
"""Bytes from which an array goes into shared memory."""
ALIGNED = 64
SLOT = 1 << 24
"""Bytes of a slot, of which only what is used takes memory; a larger answer gets a block."""

Apart = tuple[bytes, list[np.ndarray]]
"""A pickled object, and the bytes of its large arrays beside it."""


class Parcel(NamedTuple):
    """A pickled object. spans: (offset, bytes) of its arrays in the block (a file descriptor) or, of an answer, in the slot.

    A large pickle lies there too: then `pickled` is empty, and it and the spans are found at `head`.
    """

    pickled: bytes
    spans: list[tuple[int, int]]
    block: int | None = None
    head: tuple[int, int] | None = None
    slot: int | None = None

    def close(self) -> None:
        """Let go of the block; who has mapped it keeps it."""
        if self.block is not None:
            os.close(self.block)


class Slots:
    """Memory that the main process and one of its workers map once: `number` slots, which hold an answer's arrays each, in turn.

    Of a worker no more than `number` answers may be under way: asked for, and not received yet. The receiver copies the arrays,
    so that a slot is free by the time the worker comes round to it, and what is kept of an answer is nobody else's.
    """

    def __init__(self, block: int, number: int) -> None:
        """Closes the block: it is mapped."""
        self.number, self._turn = number, 0
        try:
            self._memory = memoryview(mmap.mmap(block, number * SLOT))
        finally:
            os.close(block)

    @classmethod
    def lend(cls, connection: Connection, number: int) -> Slots:
        """New ones, which the worker at the other end borrows."""
        block = _memory(number * SLOT)
        with suppress(OSError):  # it died: whoever waits for its answers will find that out
            reduction.send_handle(connection, block, None)
        return cls(block, number)

    @classmethod
    def borrow(cls, connection: Connection, number: int) -> Slots:
        """Those that were lent. Raises EOFError or OSError where the other side is gone."""
        return cls(reduction.recv_handle(connection), number)

    def __getitem__(self, slot: int) -> memoryview:
        return self._memory[slot * SLOT : (slot + 1) * SLOT]

    def fill(self, buffers: Sequence[memoryview], spans: list[tuple[int, int]]) -> int:
        """Write the buffers into the next slot; gives which it is."""
        slot, self._turn = self._turn, (self._turn + 1) % self.number
        for raw, (start, size) in zip(buffers, spans, strict=True):
            self[slot][start : start + size] = raw
        return slot


class _Pickler(pickle.Pickler):
    """As pickle, but tensors become numpy arrays, whose memory need not pass through the pickle; those on a GPU come to the CPU."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.layout is not torch.strided or obj.requires_grad or obj.is_quantized:
            return NotImplemented
        if obj.is_conj() or obj.is_neg():
            return NotImplemented
        raw = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (raw, obj.dtype, tuple(obj.shape))


def _tensor(raw: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(raw).view(dtype).view(shape)


class Answers(pickle.Unpickler):
    """Reads what a worker says: records, arrays, numbers, text and bytes. Raises UnexpectedObject at anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ANSWER_PARTS.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise UnexpectedObject(f"{module}.{name}")


class UnexpectedObject(Exception):
    """A worker sent an object that no answer is made of; the words name it."""


_CHECKS = ("_check_key", "_check_value")
ANSWER_PARTS: dict[str, tuple[str, ...]] = {
    "fedsim.flower": ("HeldArray",),
    "fedsim.grids.wire": ("Parcel", "_tensor"),
    "fedsim.grids.worker": ("Answer",),
    "flwr.app.message.arrayrecord": ("ArrayRecord", *_CHECKS),
    "flwr.app.message.configrecord": ("ConfigRecord", *_CHECKS),
    "flwr.app.message.metricrecord": ("MetricRecord", *_CHECKS),
    "flwr.app.message.recorddict": ("RecordDict", *_CHECKS),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
}
"""What answers are made of, by the module that makes it."""


def pack(obj: Any, slots: Slots | None = None) -> Parcel:
    """Pickle an object; its arrays go into a slot where they fit. Raises what pickle raises."""
    pickled, large = _dump(obj)
    spans: list[tuple[int, int]] = []
    for raw in large:
        spans.append((_end(spans), raw.nbytes))
    light = Parcel(pickled, spans)
    if len(pickled) >= LARGE or len(spans) >= LARGE // 32:
        # what goes through the socket stays far below its buffer, so that two sides that both send cannot wait for each other
        whole = memoryview(pickle.dumps((pickled, spans), protocol=5))
        light = Parcel(b"", [], head=(_end(spans), len(whole)))
        large, spans = [*large, whole], [*spans, (_end(spans), len(whole))]
    if not large:
        return light
    if slots is not None and _end(spans) <= SLOT:
        return light._replace(slot=slots.fill(large, spans))
    return light._replace(block=_block(large, spans))


def _dump(obj: Any) -> tuple[bytes, list[memoryview]]:
    """An object pickled, less its large arrays."""
    large: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < LARGE:
            return True
        large.append(raw)
        return False

    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=keep_inside).dump(obj)
    return stream.getvalue(), large


def apart(obj: Any) -> Apart:
    """Pickle an object for a carrier that has a way of its own with arrays. Raises what pickle raises."""
    pickled, large = _dump(obj)
    return pickled, [np.frombuffer(raw, np.uint8) for raw in large]


def together(parts: Apart, *, shared: bool = False, anything: bool = False) -> Any:
    """The object again. Its large arrays are its own; `shared`: they are the carrier's, and nobody may change them. anything: see
    `unpack`.
    """
    pickled, large = parts
    if not shared:
        return _load(pickled, [array.copy().data for array in large], anything=anything)
    with warnings.catch_warnings():  # torch has no read-only tensors and warns
        warnings.simplefilter("ignore")
        return _load(pickled, [array.data for array in large], anything=anything)


def _end(spans: list[tuple[int, int]]) -> int:
    return sum(spans[-1]) + -sum(spans[-1]) % ALIGNED if spans else 0


def unpack(parcel: Parcel, slots: Slots | None = None, *, anything: bool = False) -> Any:
    """The object again; its large arrays are its own, or lie in the mapped block for as long as they live.

    anything: not answers alone.
    """
    if slots is not None and parcel.slot is not None:
        view = slots[parcel.slot]
    elif parcel.block is not None:
        view = memoryview(mmap.mmap(parcel.block, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    else:
        return _load(parcel.pickled, anything=anything)
    pickled, spans = parcel.pickled, parcel.spans
    if parcel.head is not None:
        start, size = parcel.head
        pickled, spans = _load(view[start : start + size], anything=anything)
    arrays = [view[start : start + size] for start, size in spans]
    return _load(pickled, arrays if parcel.slot is None else [bytearray(array) for array in arrays], anything=anything)


def _load(
    pickled: bytes | memoryview, buffers: Sequence[memoryview | bytearray] = (), *, anything: bool = False
) -> Any:
    kind = pickle.Unpickler if anything else Answers
    return kind(io.BytesIO(pickled), buffers=buffers).load()


def _memory(size: int) -> int:
    """A file descriptor of unnamed memory."""
    if sys.platform == "linux":  # not bounded by the size of /dev/shm, which is small in a container
        block = os.memfd_create("fedsim", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            block = os.dup(file.fileno())
    try:
        os.ftruncate(block, size)
    except BaseException:
        os.close(block)
        raise
    return block


def _block(buffers: Sequence[memoryview], spans: list[tuple[int, int]]) -> int:
    """A file descriptor of unnamed memory that holds the buffers."""
    block = _memory(sum(spans[-1]))
    try:
        for raw, (start, _) in zip(buffers, spans, strict=True):
            written = 0
            while written < raw.nbytes:  # the kernel takes 2 GiB at a time at most
                written += os.pwrite(block, raw[written:], start + written)
    except BaseException:
        os.close(block)
        raise
    return block


def send(connection: Connection, label: str, parcel: Parcel) -> None:
    """Over a Unix socket. Raises OSError where the other side is gone."""
    connection.send_bytes(pickle.dumps((label, parcel._replace(block=None), parcel.block is not None), protocol=5))
    if parcel.block is not None:
        reduction.send_handle(connection, parcel.block, None)


def receive(connection: Connection, slots: Slots | None = None, *, anything: bool = False) -> tuple[str, Any]:
    """The label and the object that were sent; see `unpack`. Raises EOFError or OSError where the other side is gone."""
    label, parcel, has_block = _load(connection.recv_bytes(), anything=anything)
    if has_block:
        parcel = parcel._replace(block=reduction.recv_handle(connection))
    try:
        return label, unpack(parcel, slots, anything=anything)
    finally:
        parcel.close()
