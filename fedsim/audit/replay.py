"""Mechanisms that noise on the device are audited after the run, played again by their own code with nothing but canaries.

The adversary of such a promise sees every noisy message of a client (or, for examples, every noisy step), and knows all else.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.audit.directions import Directions
from fedsim.audit.scores import Scores
from fedsim.types import ClientData

if TYPE_CHECKING:
    from fedsim.privacy.accounting import Mechanism
    from fedsim.privacy.base import Protection, Setting
    from fedsim.training import LocalTraining
    from fedsim.training.dpsgd import DPSGD

MOST_NUMBERS = 200_000_000
"""Numbers of noise drawn for local messages at most: some seconds. A longer run is played in part, which shows less."""
MOST_STEPS = 5_000
"""Steps of DP-SGD played again at most; likewise."""


class Replayed(NamedTuple):
    """gap: clipping norms between neighbouring releases. releases: as many as are claimed, of `mechanism` (None: the run's own)."""

    gap: float
    releases: int
    mechanism: Mechanism | None
    words: list[str]


def replay(protection: Protection, setting: Setting, directions: Directions, scores: Scores, might: float) -> Replayed:
    """Play the client again that has spent most, by the protection's unit; fills `scores`."""
    spent = protection.client_epsilons(setting.num_clients)
    client = 0 if spent is None else int(np.argmax(spent))
    if protection.unit == "example":
        return _replay_examples(protection, setting, scores, client, might)
    messages = int(protection.spent_count)  # type: ignore[attr-defined]
    played = replay_messages(protection, directions, scores, messages, client, setting.seed, might)
    said = f"Canaries sent {played:,} messages each, by the code that clients run, after the run; neighbours are opposite updates."
    return Replayed(2.0, messages, None, [said, *_in_part(played, messages, "messages")])


def _replay_examples(protection: Protection, setting: Setting, scores: Scores, client: int, might: float) -> Replayed:
    index = protection.account_of[client]  # type: ignore[attr-defined]
    account = protection.accounts[index]  # type: ignore[attr-defined]
    steps = int(protection.participations()[client]) * account.steps  # type: ignore[attr-defined]
    rule, z = protection.local_steps, protection.local_steps.noise_multiplier(client)  # type: ignore[union-attr]
    played = replay_dpsgd(
        DPSGDRun(rule, setting.training, z, account.rate, steps),  # type: ignore[arg-type]
        scores,
        setting.num_clients,
        setting.seed,
        might,
    )
    said = (
        f"Canaries are examples, each with a gradient of its own, in {played:,} steps of DP-SGD at a rate of {account.rate:.3g}, "
        f"by the code that clients run, with all noise drawn at each step, played after the run for client {client}, which has "
        "spent most."
    )
    mechanism = account.mechanism(float(protection.z[index]))  # type: ignore[attr-defined]
    return Replayed(1.0, steps, mechanism, [said, *_in_part(played, steps, "steps")])


def _in_part(played: int, all_of_them: int, what: str) -> list[str]:
    if played >= all_of_them:
        return []
    return [f"The claim is for {all_of_them:,} {what}; playing fewer makes the first bound smaller than it could be."]


class DPSGDRun(NamedTuple):
    """What one client's steps were in a run. rate: q of its Poisson batches. steps: over all of its rounds."""

    rule: DPSGD
    training: LocalTraining
    noise_multiplier: float
    rate: float
    steps: int


def replay_messages(
    protection: Protection, directions: Directions, scores: Scores, messages: int, client: int, seed: int, might: float
) -> int:
    """Local privacy: each canary sends its direction in every message, where it is in, and the opposite, where it is out.

    client: whose noise and share of the clipping norm they use. The same noise for all canaries does not make their scores
    depend on each other, since each looks at coordinates of its own. Returns how many messages were played.
    """
    count = len(directions)
    messages = max(min(messages, 1), min(messages, MOST_NUMBERS // (count * directions.size)))
    clip_norm = float(protection.clip_norm)  # type: ignore[attr-defined]
    signs = np.where(scores.included, 1.0, -1.0)
    scores.share_room(messages)
    for message in range(1, messages + 1):
        seen = np.empty(count)
        for canary in range(count):
            update = directions.vector(canary, signs[canary] * might * clip_norm)
            sent = protection.on_device(update, client, message, {})
            seen[canary] = directions.product(canary, sent) / clip_norm
        draw = rng.numpy_generator(seed, message, rng.SERVER, "audit pairs")
        scores.add(seen, scores.included, draw)
    return messages


class OneGradientEach(nn.Module):
    """A model in which example i's gradient lies along weight i alone. x: (b, canaries), a row of the scaled identity."""

    def __init__(self, canaries: int) -> None:
        super().__init__()
        self.layer = nn.Linear(canaries, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, canaries) -> (b, 1)"""
        return self.layer(x)


def linear_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Its gradient is the same everywhere."""
    return outputs.sum()


def replay_dpsgd(run: DPSGDRun, scores: Scores, client: int, seed: int, might: float) -> int:
    """DP-SGD: canary examples with orthogonal gradients `might` times too long, through the device's own private steps.

    Those that are in are all the examples there are, each drawn into a step at the run's rate; the noisy sum is what is
    seen: with noise drawn in full, which a device may draw once a round where its steps cannot see it (`training/span.py`).
    client: a number that no client of the run has, so that no draw is shared. Returns how many steps were played.
    """
    from fedsim.training.dpsgd import PrivateSteps

    canaries, present = len(scores.included), np.flatnonzero(scores.included)
    x = torch.eye(canaries)[torch.from_numpy(present)] * (might * run.rule.clip_norm)
    data = ClientData(client, x, torch.zeros(len(x)))
    rule = dataclasses.replace(run.rule, noise_multiplier=lambda _: run.noise_multiplier)
    model = OneGradientEach(canaries)
    private = PrivateSteps(rule, "fast", model, linear_loss, run.training, data, {}, 1)
    private.rate, private.steps = run.rate, min(run.steps, MOST_STEPS)
    scores.share_room(private.steps)
    sampler = rng.numpy_generator(seed, 0, rng.SERVER, "audit pairs")
    with private:
        for batch in private.batches():
            private.clip_norm = rule.clip_norm  # canaries are always clipped, and would drive an adaptive norm away
            (gradient,) = private.gradients(batch)
            seen = gradient.flatten().double().numpy() * (private.expected_batch / rule.clip_norm)
            took_part = np.zeros(canaries, dtype=bool)
            took_part[present[batch.rows.numpy()]] = True
            scores.add(seen, took_part, sampler)
    return private.steps
