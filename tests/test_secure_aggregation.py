"""Secure aggregation: exact sums in spite of dropouts, refusals, and what a single message or too few shares give away."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedsim.privacy.secure_aggregation import Aggregator, Entropy, Party, graph, keys, shamir
from fedsim.privacy.secure_aggregation.aggregator import payload_bytes
from fedsim.types import FedsimError

DTYPES = {16: torch.int16, 32: torch.int32}


class Cohort:
    """Parties with their memories, and a wire on which each of them may fail or lie."""

    def __init__(self, clients: Collection[int], entropy: Entropy | None = None) -> None:
        self.entropy = entropy or Entropy(5)
        self.memories: dict[int, dict[str, Any]] = {client: {} for client in clients}
        self.silent: dict[str, set[int]] = {}
        self.forge: Callable[[str, int, dict[str, Any]], dict[str, Any]] = lambda phase, client, answer: answer
        self.refused: dict[int, str] = {}

    def party(self, client: int) -> Party:
        return Party(client, self.memories[client], self.entropy)

    def ask(self, phase: str, payloads: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        answers = {}
        for client, payload in payloads.items():
            if client in self.silent.get(phase, ()):
                continue
            # as Flower carries both: a payload or a memory that is not flat is refused by its records
            memory = dict(ConfigRecord(self.memories[client]))
            try:
                answer = Party(client, memory, self.entropy).answer(phase, dict(ConfigRecord(dict(payload))))
            except FedsimError as error:
                self.refused[client] = str(error)
                continue
            self.memories[client] = memory
            answers[client] = dict(ConfigRecord(self.forge(phase, client, answer)))
        return answers

    def vectors(self, length: int, bits: int) -> dict[int, Tensor]:
        draw = torch.Generator().manual_seed(1)
        most = 2 ** (bits - 1)
        return {c: torch.randint(-most, most, (length,), generator=draw).to(DTYPES[bits]) for c in self.memories}


def total_of(vectors: Mapping[int, Tensor], clients: Collection[int], bits: int) -> Tensor:
    """The sum modulo 2^bits, by int64."""
    exact = sum(
        (vectors[client].long() for client in clients), torch.zeros(len(next(iter(vectors.values()))), dtype=torch.long)
    )
    return ((exact + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)).to(DTYPES[bits])


def run(
    cohort: Cohort, least: int, bits: int, survivors: Collection[int], neighbours: int | None = None, length: int = 50
) -> tuple[Tensor, Tensor, Aggregator]:
    """(unmasked, wanted, aggregator) of a round in which these clients send their vectors."""
    aggregator = Aggregator(1, list(cohort.memories), least, bits, cohort.entropy, neighbours)
    aggregator.open(cohort.ask)
    vectors = cohort.vectors(length, bits)
    sent = torch.zeros(length, dtype=DTYPES[bits])
    for client in survivors:
        sent += cohort.party(client).masked(vectors[client], bits)
    aggregator.close(cohort.ask, survivors)
    assert not torch.equal(sent, total_of(vectors, survivors, bits))
    return aggregator.unmask(sent), total_of(vectors, survivors, bits), aggregator


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("size", "neighbours"), [(2, None), (10, None), (40, 26), (60, None)])
def test_sum_is_exact_with_thirty_percent_dropouts(size: int, neighbours: int | None, bits: int) -> None:
    cohort = Cohort(range(100, 100 + 7 * size, 7))
    lost = int(0.3 * size)
    survivors = sorted(random.Random(2).sample(sorted(cohort.memories), size - lost))
    found, wanted, aggregator = run(cohort, size - lost, bits, survivors, neighbours)
    assert torch.equal(found, wanted) and found.dtype == DTYPES[bits]
    assert (len(aggregator.graph.neighbours[100]) < size - 1) == (size in (40, 60))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_masks_cancel(data: st.DataObject) -> None:
    """For any clients and any tolerated dropouts at any point of the protocol."""
    clients = data.draw(st.lists(st.integers(0, 10**6), min_size=3, max_size=12, unique=True))
    least = data.draw(st.integers(len(clients) // 2 + 1, len(clients)))
    lost = data.draw(st.permutations(clients))[: data.draw(st.integers(0, len(clients) - least))]
    cohort = Cohort(clients)
    survivors = list(clients)
    for client in lost:
        phase = data.draw(st.sampled_from(["advertise", "share", "deliver", "training"]))
        cohort.silent.setdefault(phase, set()).add(client)
        survivors.remove(client)
    found, wanted, _ = run(cohort, least, 32, survivors, length=8)
    assert torch.equal(found, wanted)


def test_some_may_vanish_after_sending() -> None:
    """A threshold of shares is enough: a survivor that does not reveal is in the sum all the same."""
    cohort = Cohort(range(10))
    cohort.silent["reveal"] = {0, 9}
    found, wanted, _ = run(cohort, 7, 32, range(1, 10))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("phase", ["advertise", "share", "deliver", "training", "reveal"])
def test_too_many_dropouts_are_one_clean_sentence(phase: str) -> None:
    cohort = Cohort(range(10))
    cohort.silent[phase] = {0, 3, 4, 8}
    with pytest.raises(
        FedsimError, match=r"secure aggregation of round 1: .*(dropout_tolerance|fewer clients drop out)"
    ) as caught:
        run(cohort, 7, 32, [1, 2, 5, 6, 7, 9] if phase == "training" else range(10))
    assert "\n" not in str(caught.value)


def test_secure_entropy_is_never_the_same_and_the_sum_is() -> None:
    sums, sealed = [], []
    for secure in (False, False, True, True):
        cohort = Cohort(range(5), Entropy(5, secure))
        found, wanted, _ = run(cohort, 4, 32, range(4))
        assert torch.equal(found, wanted)
        sums.append(found)
        sealed.append(cohort.memories[0]["seed"])
    assert len({bytes(one.numpy()) for one in sums}) == 1
    assert sealed[0] == sealed[1] and len(set(sealed)) == 3


@pytest.mark.parametrize("bits", [16, 32])
def test_a_masked_vector_looks_uniform(bits: int) -> None:
    """Chi-square over the bytes of a vector of zeros, and of the difference of two clients' (their shared mask apart)."""
    cohort = Cohort(range(6))
    Aggregator(1, range(6), 5, bits, cohort.entropy).open(cohort.ask)
    zeros = torch.zeros(40_000, dtype=DTYPES[bits])
    first, second = (cohort.party(client).masked(zeros, bits) for client in (0, 1))
    for vector in (first, second, first + second):
        counts = np.bincount(np.frombuffer(vector.numpy().tobytes(), dtype=np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
    counts = np.bincount(np.frombuffer(zeros.numpy().tobytes(), dtype=np.uint8), minlength=256)
    assert stats.chisquare(counts + 1e-9).pvalue < 1e-6


def test_every_mask_is_needed() -> None:
    """The sum of all masked vectors but one is no nearer to the sum of their vectors: pairs' masks do not cancel early."""
    cohort = Cohort(range(5))
    aggregator = Aggregator(1, range(5), 4, 32, cohort.entropy)
    aggregator.open(cohort.ask)
    zeros = torch.zeros(40_000, dtype=torch.int32)
    partial = sum((cohort.party(c).masked(zeros, 32) for c in range(4)), zeros.clone())
    counts = np.bincount(np.frombuffer(partial.numpy().tobytes(), dtype=np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6


# shares


def is_prime(number: int) -> bool:
    """Miller and Rabin, 40 random bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):
        power = pow(random.Random(number).randrange(2, number - 1), odd, number)
        if power in (1, number - 1):
            continue
        if all((power := power * power % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_holds_every_secret() -> None:
    assert shamir.PRIME > 2**256 and is_prime(shamir.PRIME)


@settings(max_examples=40, deadline=None)
@given(secret=st.binary(min_size=32, max_size=32), other=st.binary(min_size=32, max_size=32), data=st.data())
def test_shares_below_the_threshold_fit_any_secret(secret: bytes, other: bytes, data: st.DataObject) -> None:
    """t shares give the secret; for t - 1 there is, for every other secret, a last share that would give that one."""
    points = data.draw(st.lists(st.integers(1, 10**7), min_size=2, max_size=8, unique=True))
    threshold = data.draw(st.integers(2, len(points)))
    shares = shamir.split(secret, threshold, points, random.Random(0).randbytes(shamir.bytes_needed(threshold)))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert shamir.combine({point: shares[point] for point in chosen}) == secret
    *known, last = chosen
    weights = shamir.weights_at_zero(chosen)
    part = sum(w * int.from_bytes(shares[p], "big") for w, p in zip(weights, known, strict=False))
    missing = (int.from_bytes(other, "big") - part) * pow(weights[-1], -1, shamir.PRIME) % shamir.PRIME
    fitting = {**{point: shares[point] for point in known}, last: missing.to_bytes(33, "big")}
    assert shamir.combine(fitting) == other


def test_a_share_alone_is_uniform_whatever_the_secret() -> None:
    for secret in (bytes(32), b"\xff" * 32):
        source = random.Random(4)
        low = [shamir.split(secret, 2, [1, 2], source.randbytes(shamir.bytes_needed(2)))[1][-1] for _ in range(8000)]
        assert stats.chisquare(np.bincount(low, minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize("bad", [b"\xff" * 33, b"short"])
def test_what_is_not_a_share_is_refused(bad: bytes) -> None:
    shares = shamir.split(bytes(32), 2, [1, 2], bytes(range(64)))
    with pytest.raises(FedsimError, match="refused"):
        shamir.combine({1: shares[1], 2: bad})


# forgeries and refusals


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_garbled_box_is_refused_by_its_receiver_who_drops_out() -> None:
    """In the tolerance the round goes on without the receivers that refused; beyond it there is no sum."""
    cohort = Cohort(range(10))

    def forge(phase: str, client: int, answer: dict[str, Any]) -> dict[str, Any]:
        if phase == "share" and client == 3:
            answer["sealed"] = [flip(answer["sealed"][0]), *answer["sealed"][1:]]  # for client 0
        return answer

    cohort.forge = forge
    found, wanted, _ = run(cohort, 7, 32, range(1, 10))
    assert torch.equal(found, wanted)
    assert "garbled or forged" in cohort.refused[0]
    with pytest.raises(FedsimError, match="no shares of its neighbours"):
        cohort.party(0).masked(torch.zeros(3, dtype=torch.int32), 32)


@pytest.mark.parametrize("target", ["survivor", "dropped"])
def test_a_forged_share_is_refused_at_the_end(target: str) -> None:
    cohort = Cohort(range(10))

    def forge(phase: str, client: int, answer: dict[str, Any]) -> dict[str, Any]:
        if phase == "reveal" and client == 2:
            place = 0 if target == "survivor" else -1
            answer["shares"][place] = flip(answer["shares"][place])
        return answer

    cohort.forge = forge
    with pytest.raises(FedsimError, match=r"forged or garbled|belong to no secret"):
        run(cohort, 7, 32, range(9))


def test_a_forged_public_key_is_refused() -> None:
    with pytest.raises(FedsimError, match="refused"):
        keys.agree(keys.Entropy(0).draw(32, 1, 1, "k"), bytes(32), "mask")  # the point of order one


def ready() -> Cohort:
    cohort = Cohort(range(5))
    Aggregator(1, range(5), 4, 32, cohort.entropy).open(cohort.ask)
    return cohort


@pytest.mark.parametrize(
    ("survivors", "dropped", "why"),
    [
        ([0, 1, 2, 3], [3, 4], "both dropped out and survived"),
        ([0, 1, 2], [3, 4], "fewer than the threshold"),
        ([0, 0, 1, 2], [3, 4], "fewer than the threshold"),
        ([1, 2, 3, 4], [], "not the neighbours"),
        ([0, 1, 2, 7], [], "not the neighbours"),
    ],
)
def test_a_party_refuses_to_reveal(survivors: list[int], dropped: list[int], why: str) -> None:
    with pytest.raises(FedsimError, match=why):
        ready().party(0).answer("reveal", {"survivors": survivors, "dropped": dropped})


def test_a_party_refuses_the_other_secret_in_a_second_question() -> None:
    party = ready().party(0)
    party.answer("reveal", {"survivors": [0, 1, 2, 3], "dropped": [4]})
    with pytest.raises(FedsimError, match="client 4 cannot have both dropped out and survived"):
        party.answer("reveal", {"survivors": [0, 1, 2, 4], "dropped": []})
    party.answer("reveal", {"survivors": [0, 1, 2, 3], "dropped": [4]})


def test_a_party_masks_once_and_in_turn() -> None:
    party = ready().party(0)
    party.masked(torch.zeros(3, dtype=torch.int32), 32)
    with pytest.raises(FedsimError, match="a second would uncover"):
        party.masked(torch.ones(3, dtype=torch.int32), 32)
    with pytest.raises(FedsimError, match="out of turn"):
        Party(1, {}, Entropy(0)).answer("reveal", {"survivors": [1], "dropped": []})
    with pytest.raises(FedsimError, match="no phase gossip"):
        party.answer("gossip", {})


def test_a_party_refuses_a_threshold_that_two_groups_could_reach() -> None:
    cohort = Cohort(range(4))
    answers = cohort.ask("advertise", {c: {"round": 1, "clients": 4, "attempt": 0} for c in range(4)})
    payload = {
        "neighbours": [1, 2, 3],
        **{f"{kind}_keys": [answers[c][f"{kind}_key"] for c in (1, 2, 3)] for kind in ("encryption", "mask")},
    }
    with pytest.raises(FedsimError, match="two groups"):
        cohort.party(0).answer("share", {**payload, "threshold": 2})
    assert len(cohort.party(0).answer("share", {**payload, "threshold": 3})["sealed"]) == 3


def test_rounds_and_attempts_have_keys_of_their_own() -> None:
    seeds: Counter[bytes] = Counter()
    for round, attempt in ((1, 0), (1, 1), (2, 0)):
        cohort = Cohort([0])
        cohort.ask("advertise", {0: {"round": round, "clients": 1, "attempt": attempt}})
        seeds.update([cohort.memories[0][name] for name in ("seed", "mask", "encryption")])
    assert len(seeds) == 9


# who talks to whom, and what it costs


def test_the_graph_is_regular_symmetric_and_connected() -> None:
    for degree in (2, 6, 7):
        made = graph.make_graph(range(40), 30, degree, np.random.default_rng(0))
        for one, others in made.neighbours.items():
            assert len(set(others)) == degree + degree % 2 and one not in others
            assert all(one in made.neighbours[other] for other in others)
        seen, front = {0}, [0]
        while front:
            front = [other for one in front for other in made.neighbours[one] if other not in seen]
            seen |= set(front)
        assert seen == set(range(40))


@pytest.mark.parametrize(("size", "dropouts"), [(60, 18), (100, 30), (200, 20)])
def test_the_degree_is_the_smallest_that_keeps_its_chances(size: int, dropouts: int) -> None:
    """Against the hypergeometric law by counting, in whole numbers."""

    def holds(degree: int) -> bool:
        others, threshold, bad = size - 1, degree // 2 + 1, int(graph.COLLUDING * size)
        every = math.comb(others, degree)

        def chance(good: int, counts: Collection[int]) -> float:
            return sum(math.comb(good, k) * math.comb(others - good, degree - k) for k in counts) / every

        fails = chance(others - dropouts, range(threshold))
        held = chance(bad, range(threshold, degree + 1))
        alone = chance(dropouts + bad, [degree])
        return size * fails <= graph.FAILS and size * (held + alone) <= graph.UNSAFE

    degree = graph.degree_for(size, dropouts)
    assert degree < size - 1 and holds(degree) and not holds(degree - 2)


def test_small_cohorts_are_complete() -> None:
    made = graph.make_graph(range(10), 7, None, np.random.default_rng(0))
    assert all(len(others) == 9 for others in made.neighbours.values()) and made.threshold == 7


def test_costs_are_those_of_the_payloads() -> None:
    cohort = Cohort(range(6))
    up: list[dict[str, Any]] = []
    down: list[dict[str, Any]] = []
    inner = cohort.ask

    def ask(phase: str, payloads: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        answers = inner(phase, payloads)
        up.extend(answers.values())
        down.extend(payloads.values())
        return answers

    cohort.ask = ask  # type: ignore[method-assign]
    *_, aggregator = run(cohort, 5, 32, range(5))
    assert aggregator.bytes_up == sum(payload_bytes(one) for one in up)
    assert aggregator.bytes_down == sum(payload_bytes(one) for one in down)
    keys_and_shares = 6 * 64 + 6 * (5 * (66 + 16) + 32) + 6 * 8 + 5 * 6 * 33
    assert aggregator.bytes_up == keys_and_shares
    assert aggregator.seconds > 0
