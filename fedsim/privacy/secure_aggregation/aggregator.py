"""The server's side of secure aggregation, for one round: who masks with whom, what was sealed, and the masks to take off."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.privacy.secure_aggregation import keys, shamir
from fedsim.privacy.secure_aggregation.graph import Graph, make_graph
from fedsim.privacy.secure_aggregation.keys import Entropy
from fedsim.rng import SERVER
from fedsim.types import FedsimError

Payload = dict[str, Any]
Ask = Callable[[str, Mapping[int, Payload]], dict[int, Payload]]


class Aggregator:
    """The sum of one round's vectors of `bits`-bit integers, of which at least `least` must arrive.

    cohort: the clients asked, at least two. neighbours: of each client (None: by Bell et al.'s rule). attempt: above 0 where
    the round is played again and must not use its keys again. Counts what the conversation cost beside the vectors:
    bytes_up and bytes_down of all clients' payloads, and the server's seconds, which include waiting for the clients.
    """

    def __init__(
        self,
        round: int,
        cohort: Sequence[int],
        least: int,
        bits: int,
        entropy: Entropy,
        neighbours: int | None = None,
        attempt: int = 0,
    ) -> None:
        self.round, self.cohort, self.least, self.bits = round, list(cohort), least, bits
        self.attempt = attempt
        self.entropy, self.degree = entropy, neighbours
        self.bytes_up = self.bytes_down = 0
        self.seconds = 0.0
        self.public: dict[int, Payload] = {}
        self.commitments: dict[int, bytes] = {}
        self.graph = Graph({}, 0)
        self.seeds: dict[int, bytes] = {}
        self.lost_keys: dict[int, bytes] = {}
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def open(self, ask: Ask) -> None:
        """Advertise, share, deliver. Raises FedsimError where fewer than `least` clients stay."""
        start = time.perf_counter()
        self.public = self._say(ask, "advertise", {one: self.greeting() for one in self.cohort})
        self._enough(self.public, "sent its keys")
        drawn = self.entropy.draw(16, self.round, SERVER, "secure aggregation graph")
        draw = np.random.default_rng(int.from_bytes(drawn, "little"))
        self.graph = make_graph(sorted(self.public), self.least, self.degree, draw)
        shared = self._say(ask, "share", {one: self._keys_for(one) for one in self.public})
        self._enough(shared, "shared its secrets")
        self.commitments = {one: answer["commitment"] for one, answer in shared.items()}
        ready = self._say(ask, "deliver", {one: self._inbox(one, shared) for one in shared})
        self._enough(ready, "could read its neighbours' shares")
        self.seconds += time.perf_counter() - start

    def greeting(self) -> Payload:
        """What every client is told first: the round, how many were asked, and which attempt it is."""
        return {"round": self.round, "clients": len(self.cohort), "attempt": self.attempt}

    def close(self, ask: Ask, survivors: Collection[int]) -> None:
        """Reveal: what is needed to take the masks off the sum of these clients' vectors, and nothing more."""
        start = time.perf_counter()
        alive = set(survivors) & set(self.commitments)
        self._enough(alive, "sent its vector")
        wanted = {one: self._wanted(one, alive) for one in sorted(alive)}
        answers = self._say(ask, "reveal", wanted)
        held: dict[int, dict[int, bytes]] = {}
        for holder, answer in answers.items():
            of = [*wanted[holder]["survivors"], *wanted[holder]["dropped"]]
            for one, share in zip(of, answer["shares"], strict=True):
                held.setdefault(one, {})[holder + 1] = share
        missed = {one for of in wanted.values() for one in of["dropped"]}
        self.seeds = {one: self._secret(one, held, "seed") for one in alive}
        self.lost_keys = {one: self._secret(one, held, "mask") for one in missed}
        self.seconds += time.perf_counter() - start

    def unmask(self, total: Tensor) -> Tensor:
        """The sum of the survivors' vectors modulo 2^bits, exactly, from the sum of what they sent."""
        start = time.perf_counter()
        numbers = keys.as_unsigned(total, self.bits)
        for seed in self.seeds.values():
            numbers -= keys.mask_of(seed, len(numbers), self.bits)
        for one, private in self.lost_keys.items():
            for other in set(self._partners(one)) & self.seeds.keys():
                key = keys.agree(private, self.public[other]["mask_key"], "mask")
                mask = keys.mask_of(key, len(numbers), self.bits)
                if other < one:  # the survivor is the earlier of the two: it added the mask
                    numbers -= mask
                else:
                    numbers += mask
        self.seconds += time.perf_counter() - start
        return keys.as_tensor(numbers, self.bits).reshape(total.shape)

    def _say(self, ask: Ask, phase: str, payloads: Mapping[int, Payload]) -> dict[int, Payload]:
        answers = ask(phase, payloads)
        self.bytes_down += sum(payload_bytes(payload) for payload in payloads.values())
        self.bytes_up += sum(payload_bytes(answer) for answer in answers.values())
        return dict(sorted(answers.items()))

    def _enough(self, clients: Collection[int], did: str) -> None:
        if len(clients) < self.least:
            raise FedsimError(
                f"secure aggregation of round {self.round}: {len(clients)} of {len(self.cohort)} clients {did}, and fewer than "
                f"{self.least} cannot be summed; raise privacy.dropout_tolerance or have fewer clients drop out"
            )

    def _keys_for(self, client: int) -> Payload:
        neighbours = self.graph.neighbours[client]
        return {
            "neighbours": neighbours,
            "encryption_keys": [self.public[one]["encryption_key"] for one in neighbours],
            "mask_keys": [self.public[one]["mask_key"] for one in neighbours],
            "threshold": self.graph.threshold,
        }

    def _partners(self, client: int) -> list[int]:
        """Neighbours that shared: those with whom a mask was agreed."""
        return [one for one in self.graph.neighbours[client] if one in self.commitments]

    def _inbox(self, client: int, shared: Mapping[int, Payload]) -> Payload:
        senders = self._partners(client)
        boxes = [shared[one]["sealed"][self.graph.neighbours[one].index(client)] for one in senders]
        return {"senders": senders, "sealed": boxes}

    def _wanted(self, client: int, alive: set[int]) -> Payload:
        partners = self._partners(client)
        return {
            "survivors": sorted([client, *(one for one in partners if one in alive)]),
            "dropped": [one for one in partners if one not in alive],
        }

    def _secret(self, client: int, held: Mapping[int, Mapping[int, bytes]], what: str) -> bytes:
        """A client's seed or mask key from the first shares that came; it must fit what the client made public."""
        shares = dict(list(held.get(client, {}).items())[: self.graph.threshold])
        if len(shares) < self.graph.threshold:
            raise FedsimError(
                f"secure aggregation of round {self.round}: {len(shares)} of the {self.graph.threshold} shares needed of client "
                f"{client}'s secret came back; raise privacy.neighbours, or have fewer clients drop out"
            )
        points = tuple(shares)
        if points not in self._weights:
            self._weights[points] = shamir.weights_at_zero(points)
        secret = shamir.combine(shares, self._weights[points])
        fits = (
            keys.commit(secret) == self.commitments[client]
            if what == "seed"
            else keys.public_key(secret) == self.public[client]["mask_key"]
        )
        if not fits:
            raise FedsimError(
                f"secure aggregation of round {self.round}: a share of client {client}'s secret is forged or garbled, so the "
                "sum is refused; run the round again without the clients that sent it"
            )
        return secret


def payload_bytes(payload: Mapping[str, Any]) -> int:
    """What a payload's contents weigh: bytes and text by length, 8 for a number, lists by their elements."""
    return sum(_weight(value) for value in payload.values())


def _weight(value: Any) -> int:
    if isinstance(value, list):
        return sum(_weight(one) for one in value)
    return len(value.encode() if isinstance(value, str) else value) if isinstance(value, bytes | str) else 8
