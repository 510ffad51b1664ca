"""One reply for a round whose updates began at different models, or at a model that devices saw through a codec.

A device's reply is the model that it trained, or its clipped update. Where every device began at the server's own arrays the
strategy takes the replies as they are. Otherwise what training changed is taken from what each device was sent, scaled by the
staleness of that, averaged, and shown to the strategy as one reply: the server's arrays, moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim import flower
from fedsim.types import Params


def merged(
    own: Params,
    replies: Iterable[tuple[Message, int]],
    bases: Callable[[int], Params],
    scale: Callable[[int], float],
    weighted_by: str,
) -> Params:
    """own + sum of scale_v w_v (mean_v - base_v) / sum of w_v, in float64, over (reply, version v) of folded replies.

    w_v: the sum of the metric `weighted_by` over the clients behind a reply, mean_v: their weighted mean. Staleness makes the step
    smaller rather than the other updates larger, as in arXiv 2106.06639, algorithm 1, where all weights are equal.
    """
    moved: dict[str, Tensor] = {name: torch.zeros_like(array, dtype=torch.float64) for name, array in own.items()}
    total = 0.0
    for reply, version in replies:
        weight = float(reply.content[flower.METRICS][weighted_by])  # type: ignore[arg-type]
        base = bases(version)
        for name, array in flower.from_record(flower.arrays_of(reply.content)[flower.ARRAYS]).items():
            moved[name] += scale(version) * weight * (array.double() - base[name].double())
        total += weight
    return {name: own[name].double() + change / total for name, change in moved.items()}


def as_one_reply(own: Params, moved: Mapping[str, Tensor], asked: Message, weighted_by: str) -> Message:
    """A reply to `asked` that holds the server's arrays, those in `moved` replaced."""
    arrays = {name: array.to(flower.travels_as(own[name].dtype)) for name, array in moved.items()}
    metrics = MetricRecord({flower.NUM_EXAMPLES: 1.0, weighted_by: 1.0})
    record = flower.to_record(own | arrays)
    return Message(RecordDict({flower.ARRAYS: record, flower.METRICS: metrics}), reply_to=asked)
