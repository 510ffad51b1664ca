"""The one module that holds Flower's private names (flwr 1.41), and the records that travel.

Read this before moving to another Flower: everything here that starts with an underscore, and `flwr.supercore`, is not
part of Flower's public interface. Nothing else in fedsim touches such names.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
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

NUM_EXAMPLES = "num-examples"

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


def to_record(arrays: Params) -> ArrayRecord:
    """Arrays as they travel: in types that every strategy can calculate with. The server casts back."""
    return ArrayRecord(
        {name: Array(array.detach().to(travels_as(array.dtype)).cpu().numpy()) for name, array in arrays.items()}
    )


def exact_record(arrays: Params) -> ArrayRecord:
    """Arrays in their own types, for what no strategy calculates with (masked integers keep their width)."""
    return ArrayRecord({name: Array(array.detach().cpu().numpy()) for name, array in arrays.items()})


def travels_as(dtype: torch.dtype) -> torch.dtype:
    """float32 or wider for numbers with a fraction (numpy has no bfloat16), float64 for counters and indices."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float64


def from_record(record: ArrayRecord, device: torch.device | str = "cpu") -> Params:
    """Arrays from a message. Flower reads them with `allow_pickle=False`."""
    return {name: torch.from_numpy(array.numpy()).to(device) for name, array in record.items()}


def encoded_bytes(record: ArrayRecord) -> int:
    """Bytes of the arrays as encoded."""
    return sum(len(array.data) for array in record.values())


def column(record: ConfigRecord, name: str) -> list[Any]:
    """A list of a ConfigRecord, empty where there is none; Flower's own type is a union of eleven."""
    value = record.get(name, [])
    return list(value) if isinstance(value, list) else [value]


def record_of(content: RecordDict, name: str) -> ConfigRecord:
    """A message's ConfigRecord of this name, empty where there is none."""
    return content.config_records.get(name, ConfigRecord())
