"""What comes from outside is looked at before it reaches the sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Array, Message, MessageType, MetricRecord, RecordDict

from fedsim import flower
from fedsim.rounds import Outcome, fault
from fedsim.types import Params

MODEL: Params = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
GOOD = {"num-examples": 4, "train_loss": 0.5}


def reply(arrays: Params, metrics: dict[str, float]) -> Message:
    """What a real node answers: no vectors of many clients beside it."""
    flower.enter_runtime()
    asked = Message(RecordDict(), 7, MessageType.TRAIN)
    flower.stamp(asked, 1)
    return Message(
        RecordDict({"arrays": flower.to_record(arrays), "metrics": MetricRecord({**metrics})}), reply_to=asked
    )


def spoilt(change: Callable[[Message], object]) -> Message:
    """A good reply, changed."""
    message = reply(MODEL, GOOD)
    change(message)
    return message


def with_bytes(message: Message) -> None:
    """Bytes that are a pickle where an array should be."""
    array = message.content.array_records["arrays"]["bias"]
    message.content.array_records["arrays"]["bias"] = Array(array.dtype, array.shape, array.stype, b"\x80\x04N.")


def test_a_good_reply_is_taken() -> None:
    outcome = Outcome()
    outcome.take(reply(MODEL, GOOD), 3, lambda one: fault(one, MODEL))
    assert (list(outcome.metrics), outcome.failed, len(outcome.replies)) == ([3], {}, 1)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (reply({**MODEL, "bias": torch.tensor([0.0, torch.nan])}, GOOD), "NaN or Inf"),
        (reply({**MODEL, "bias": torch.tensor([0.0, torch.inf])}, GOOD), "NaN or Inf"),
        (reply(MODEL, {**GOOD, "num-examples": torch.nan}), "NaN or Inf"),
        (reply(MODEL, {**GOOD, "num-examples": -4}), "num-examples above 0"),
        (reply(MODEL, {"train_loss": 0.5}), "num-examples above 0"),
        (reply({"weight": MODEL["weight"]}, GOOD), "not those of the model"),
        (reply({**MODEL, "bias": torch.zeros(3)}, GOOD), "not those of the model"),
        (spoilt(with_bytes), "cannot be read"),
        (spoilt(lambda message: message.content.pop("metrics")), "one record of arrays"),
    ],
)
def test_a_bad_reply_is_a_failure_of_its_client(message: Message, words: str) -> None:
    outcome = Outcome()
    outcome.take(message, 3, lambda one: fault(one, MODEL))
    assert words in outcome.failed[3]
    assert (outcome.metrics, outcome.replies) == ({}, [])
