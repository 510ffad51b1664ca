"""A client's side of secure aggregation. All that it remembers is a flat dict of bytes, numbers and lists of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedsim.privacy.secure_aggregation import keys, shamir
from fedsim.privacy.secure_aggregation.keys import KEY_BYTES, Entropy
from fedsim.types import FedsimError

Payload = dict[str, Any]


class Party:
    """One client. memory: what it keeps between messages, for it to change; emptied when a round begins."""

    def __init__(self, client: int, memory: dict[str, Any], entropy: Entropy) -> None:
        self.client, self.memory, self.entropy = client, memory, entropy

    def answer(self, phase: str, payload: Payload) -> Payload:
        """One of advertise, share, deliver, reveal. Raises FedsimError where it refuses: to the others it dropped out."""
        phases = {"advertise": self.advertise, "share": self.share, "deliver": self.deliver, "reveal": self.reveal}
        if phase not in phases:
            raise self._refuses(f"there is no phase {phase}")
        try:
            return phases[phase](payload)
        except KeyError as missing:
            raise self._refuses(f"{phase} came out of turn or without {missing}") from None

    def advertise(self, payload: Payload) -> Payload:
        """Fresh keys and a fresh seed for this round. payload: round, clients (how many were asked), attempt.

        Answer: encryption_key, mask_key (32 bytes each).
        """
        begun = {name: int(payload[name]) for name in ("round", "clients", "attempt")}
        self.memory.clear()
        self.memory |= begun
        for secret in ("encryption", "mask", "seed"):
            self.memory[secret] = self.draw(KEY_BYTES, f"secure aggregation {secret}")
        return {f"{name}_key": keys.public_key(self.memory[name]) for name in ("encryption", "mask")}

    def share(self, payload: Payload) -> Payload:
        """Split both secrets. payload: neighbours, their encryption_keys and mask_keys, threshold.

        Answer: sealed (for each neighbour, in order), commitment to the seed.
        """
        memory = self.memory
        neighbours, threshold = list(payload["neighbours"]), int(payload["threshold"])
        holders = sorted([self.client, *neighbours])
        if len(set(holders)) < len(holders) or len(holders) < 2 or threshold > len(holders):
            raise self._refuses("its neighbours are not distinct, or fewer than the threshold")
        if 2 * threshold <= len(holders):
            raise self._refuses(
                f"a threshold of {threshold} of {len(holders)} would let two groups reveal both secrets"
            )
        if "neighbours" in memory:
            raise self._refuses("it has shared its secrets in this round already")
        memory |= {"neighbours": neighbours, "threshold": threshold}
        memory |= {"encryption_keys": list(payload["encryption_keys"]), "mask_keys": list(payload["mask_keys"])}
        seed, mask = self._split("seed", holders), self._split("mask", holders)
        memory["own_share"] = seed[self.client + 1]
        sealed = [
            keys.seal(self._key_with(one, "encryption"), seed[one + 1] + mask[one + 1], self._label(self.client, one))
            for one in neighbours
        ]
        return {"sealed": sealed, "commitment": keys.commit(memory["seed"])}

    def deliver(self, payload: Payload) -> Payload:
        """Take in the inbox. payload: senders (neighbours, in order), sealed. Answer: ready (how many were taken in)."""
        senders, sealed = list(payload["senders"]), list(payload["sealed"])
        if not set(senders) <= set(self.memory["neighbours"]) or len(set(senders)) < len(senders):
            raise self._refuses("it was given shares of others than its neighbours")
        if len(senders) + 1 < self.memory["threshold"]:
            raise self._refuses(
                f"{len(senders) + 1} holders are fewer than the threshold of {self.memory['threshold']}"
            )
        opened = [
            keys.unseal(self._key_with(one, "encryption"), box, self._label(one, self.client))
            for one, box in zip(senders, sealed, strict=True)
        ]
        if any(len(shares) != 2 * shamir.SHARE_BYTES for shares in opened):
            raise self._refuses("a neighbour sealed what is not two shares")
        self.memory |= {"senders": senders, "shares": opened}
        return {"ready": len(senders)}

    def masked(self, vector: Tensor, bits: int) -> Tensor:
        """(length,) the integer vector under all of this client's masks, modulo 2^bits. Once a round only."""
        memory = self.memory
        if "senders" not in memory:
            raise self._refuses("it has no shares of its neighbours, so nobody could take its mask off")
        if memory.get("masked"):
            raise self._refuses(
                "it has sent a vector under these masks already, and a second would uncover their difference"
            )
        memory["masked"] = 1
        total = keys.as_unsigned(vector, bits)
        total += keys.mask_of(memory["seed"], len(total), bits)
        for one in memory["senders"]:
            mask = keys.mask_of(self._key_with(one, "mask"), len(total), bits)
            if self.client < one:
                total += mask
            else:
                total -= mask
        return keys.as_tensor(total, bits)

    def reveal(self, payload: Payload) -> Payload:
        """Show one share of each: of the seed of `survivors` (itself among them), of the mask key of `dropped`.

        Answer: shares, in that order. Refuses both for one neighbour, and fewer survivors than the threshold.
        """
        survivors, dropped = list(payload["survivors"]), list(payload["dropped"])
        memory = self.memory
        held = dict(zip(memory["senders"], memory["shares"], strict=True))
        seeds = set(survivors) | set(memory.get("seeds_shown", []))
        masks = set(dropped) | set(memory.get("masks_shown", []))
        if seeds & masks:
            raise self._refuses(f"client {min(seeds & masks)} cannot have both dropped out and survived")
        if self.client not in survivors or not (seeds | masks) <= {*held, self.client}:
            raise self._refuses("the survivors and the dropped are not the neighbours that shared with it")
        if len(set(survivors)) < memory["threshold"]:
            raise self._refuses(
                f"{len(set(survivors))} survivors are fewer than the threshold of {memory['threshold']}"
            )
        memory |= {"seeds_shown": sorted(seeds), "masks_shown": sorted(masks)}
        half = shamir.SHARE_BYTES
        shown = [memory["own_share"] if one == self.client else held[one][:half] for one in survivors]
        return {"shares": shown + [held[one][half:] for one in dropped]}

    def draw(self, size: int, purpose: str) -> bytes:
        """Secret bytes for this round and attempt."""
        attempt = self.memory["attempt"]
        return self.entropy.draw(
            size, self.memory["round"], self.client, f"{purpose} {attempt}" if attempt else purpose
        )

    def _split(self, secret: str, holders: list[int]) -> dict[int, bytes]:
        threshold = self.memory["threshold"]
        drawn = self.draw(shamir.bytes_needed(threshold), f"secure aggregation {secret} shares")
        return shamir.split(self.memory[secret], threshold, [one + 1 for one in holders], drawn)

    def _key_with(self, other: int, purpose: str) -> bytes:
        public = self.memory[f"{purpose}_keys"][self.memory["neighbours"].index(other)]
        return keys.agree(self.memory[purpose], public, purpose)

    def _label(self, sender: int, receiver: int) -> str:
        return f"of client {sender} for client {receiver} in round {self.memory['round']}"

    def _refuses(self, why: str) -> FedsimError:
        return FedsimError(f"secure aggregation: client {self.client} refuses, since {why}")
