"""What predictions on a stream cost devices: of each example as it comes, or of a round's at once, there or at the server."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedsim.fleet.hardware import Hardware

ANSWER_BYTES = 4
"""Of a prediction that the server sends back."""


class Asked(NamedTuple):
    """What was to be predicted.

    examples: (n,) of each device, over all rounds. rounds: (n,) in how many of them something came to it. fetched: (n,) how often
    it had to be sent the model for that alone, since it did not train in the round.
    flops: of one prediction. model_bytes, example_bytes: of a message with the model, and of one example. round_seconds: the
    simulated length of a round, on average.
    """

    examples: np.ndarray
    rounds: np.ndarray
    fetched: np.ndarray
    flops: float
    model_bytes: float
    example_bytes: float
    round_seconds: float


def prediction_costs(asked: Asked, hardware: Hardware) -> dict[str, dict[str, float]]:
    """By way of predicting: `seconds` from an example's arrival to its answer, on average over examples; `joules`; `bytes`.

    online: each example by itself, on its device, as it comes. device_batch: the examples of a round at its end, on their devices:
    FLOPs are counted by the example, so that it takes what online takes, and half a round of waiting more (examples come at any
    time of it). server_batch: a device sends the examples of a round at its end and is sent back answers; what the server spends on
    them is not modelled. Both ways on devices are charged for sending the model to those that do not train in the round anyway.
    At least one example.
    """
    total, transfers = float(asked.examples.sum()), asked.rounds
    compute = asked.flops / hardware.flops  # (n,) seconds of one prediction
    fetch = asked.fetched * (hardware.latency + asked.model_bytes / hardware.down)  # (n,) seconds of receiving models
    on_device = {
        "seconds": float(asked.examples @ compute) / total,
        "joules": float(asked.examples @ (compute * hardware.compute_watts) + fetch @ hardware.down_watts),
        "bytes": float(asked.fetched.sum() * asked.model_bytes),
    }
    up = (
        transfers * hardware.latency + asked.examples * asked.example_bytes / hardware.up
    )  # (n,) seconds over all rounds
    down = transfers * hardware.latency + asked.examples * ANSWER_BYTES / hardware.down
    # every example of a round waits for the whole of its message, so that the message's seconds count once an example
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(transfers > 0, (up + down) / transfers, 0.0)
    half = asked.round_seconds / 2
    return {
        "online": on_device,
        "device_batch": {**on_device, "seconds": on_device["seconds"] + half},
        "server_batch": {
            "seconds": float(asked.examples @ each) / total + half,
            "joules": float(up @ hardware.up_watts + down @ hardware.down_watts),
            "bytes": total * (asked.example_bytes + ANSWER_BYTES),
        },
    }
