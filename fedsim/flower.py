"""The one module that holds Flower's private names (flwr 1.41), and the records that travel.

Read this before moving to another Flower: everything here that starts with an underscore, and `flwr.supercore`, is not
part of Flower's public interface. Nothing else in fedsim touches such names.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SType
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.types import Params

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
"""Names of a message's records, as Flower's strategies expect them."""

COHORT = "cohort"
"""Record of a message to a chunk of clients at once: `clients` (ids) and `fold` (weight's name, or "" for none)."""

CLIENTS = "clients"
"""Record of a reply: one element a client in every list. `id`, the metrics, and `failed`, `reasons` of those that raised."""

PAYLOAD = "payload"
"""Record of a message beside training: what a privacy protocol says to one client, and its answer."""

SHARD = "shard"
EVALUATE_SHARD = f"evaluate.{SHARD}"
"""Action and type of a message to whichever simulated node: it evaluates a shard of the central test split, for no client."""

STREAM = "stream"
EVALUATE_STREAM = f"evaluate.{STREAM}"
"""Action and type of a message to clients: they judge the model on what comes to them in a round, before they train on it."""

BUDGET = "budget-factor"
"""Beside `server-round` in that message: by which clients' budgets of labels are raised for now."""

TALLY = "tally"
"""Record of the reply to it: sums that metrics are read off, see training/evaluation.py."""

NUM_EXAMPLES = "num-examples"

BYTES_UP = "bytes-up"
"""Beside a client's metrics in `CLIENTS`: length of the message that its update was encoded as, where one was."""

_RUN_ID = 1
_SERVER_NODE_ID = 1


def enter_runtime() -> None:
    """Say who we are, as Flower's own runtimes do before an app starts; a Message cannot be made without it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, _SERVER_NODE_ID, 1
    logging.getLogger("flwr").setLevel(logging.ERROR)


@contextmanager
def cheap_collections() -> Iterator[None]:
    """Some strategies (QFedAvg, Bulyan) collect garbage once a client; what lives already need not be walked each time.

    With torch loaded a collection takes 0.2 seconds, and a millisecond once what was there before is set aside.
    """
    if gc.get_freeze_count():  # by somebody else, who will say when no longer
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def stamp(message: Message, number: int) -> None:
    """Give a message the id that Flower's SuperLink would give it, so that its reply can name it."""
    message.metadata.__dict__["_message_id"] = f"{number:x}"


def empty_run() -> Run:
    """A Run for grids that have no SuperLink."""
    return Run.create_empty(_RUN_ID)


def node_context(node_id: int) -> Context:
    """The context of a simulated node that may hold any number of clients."""
    return Context(run_id=_RUN_ID, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


def failure_reply(message: Message, reason: str) -> Message:
    """The reply that Flower's engines give for a client whose app raised."""
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)


class HeldArray(Array):
    """An Array that holds its ndarray, and is encoded when somebody asks for its bytes and not before.

    In a simulation nobody does: a strategy reads `numpy()`, which gives a copy of its own, as Flower's does. A message to a
    real node is encoded from `data`, and arrives as a plain Array. Pickled as its ndarray, whose memory protocol 5 need not copy.
    Nobody may change `held`, which may be a model's own memory.
    """

    held: np.ndarray

    def __init__(self, held: np.ndarray) -> None:
        self.__dict__.update(held=held, dtype=str(held.dtype), shape=tuple(held.shape), stype=SType.NUMPY)

    @property
    def data(self) -> bytes:
        """The ndarray as `numpy.save` writes it."""
        if "_encoded" not in self.__dict__:
            self.__dict__["_encoded"] = Array(self.held).data
        return self.__dict__["_encoded"]

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__.update(_encoded=value, held=np.load(BytesIO(value), allow_pickle=False))

    @property
    def encoded_bytes(self) -> int:
        """Length of `data`, without making it."""
        header = np.lib.format.header_data_from_array_1_0(self.held)
        return _header_bytes(header["descr"], header["fortran_order"], header["shape"]) + self.held.nbytes

    def numpy(self) -> np.ndarray:
        """A copy for the caller to change."""
        return self.held.copy()

    def deflate(self) -> bytes:
        """See Array: what arrives elsewhere is a plain one."""
        return Array(dtype=self.dtype, shape=self.shape, stype=self.stype, data=self.data).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldArray, (self.held,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]


@lru_cache
def _header_bytes(descr: str, fortran_order: bool, shape: tuple[int, ...]) -> int:
    """Of what `numpy.save` writes before the numbers."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": fortran_order, "shape": shape})
    return len(buffer.getvalue())


def to_record(arrays: Params) -> ArrayRecord:
    """Arrays as they travel: in types that every strategy can calculate with. The server casts back.

    Where type and device allow it the record holds the very memory of `arrays`: who changes them later gives a copy.
    """
    return exact_record({name: array.to(travels_as(array.dtype)) for name, array in arrays.items()})


def exact_record(arrays: Params) -> ArrayRecord:
    """Arrays in their own types, for what no strategy calculates with (masked integers keep their width); see `to_record`."""
    record = ArrayRecord()  # made from a dictionary it would encode every array
    for name, array in arrays.items():
        record[name] = HeldArray(array.detach().cpu().numpy())
    return record


def travels_as(dtype: torch.dtype) -> torch.dtype:
    """float32 or wider for numbers with a fraction (numpy has no bfloat16), float64 for counters and indices."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float64


def from_record(record: ArrayRecord, device: torch.device | str = "cpu") -> Params:
    """Arrays from a message, which must not be changed in place. Flower reads them with `allow_pickle=False`."""
    return {name: _as_tensor(array).to(device) for name, array in record.items()}


def _as_tensor(array: Array) -> torch.Tensor:
    ndarray = array.held if isinstance(array, HeldArray) else array.numpy()
    if ndarray.flags.writeable:
        return torch.from_numpy(ndarray)
    with warnings.catch_warnings():  # torch has no read-only tensors and warns: here nobody writes
        warnings.simplefilter("ignore")
        return torch.from_numpy(ndarray)


def encoded_bytes(record: ArrayRecord) -> int:
    """Bytes of the arrays as encoded."""
    return sum(a.encoded_bytes if isinstance(a, HeldArray) else len(a.data) for a in record.values())


def column(record: ConfigRecord, name: str) -> list[Any]:
    """A list of a ConfigRecord, empty where there is none; Flower's own type is a union of eleven."""
    value = record.get(name, [])
    return list(value) if isinstance(value, list) else [value]


def record_of(content: RecordDict, name: str) -> ConfigRecord:
    """A message's ConfigRecord of this name, empty where there is none."""
    record = content.get(name)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def arrays_of(content: RecordDict) -> dict[str, ArrayRecord]:
    """A message's records of arrays by name.

    Flower's own `content.array_records` is a cycle of references, which keeps a model in memory until garbage is collected.
    """
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
