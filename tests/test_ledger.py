"""The ledger: what is counted, what a journal saves from a kill, and who may still take part."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.privacy.ledger import Entry, Ledger, read_journal
from fedsim.types import FedsimError

rounds_of_clients = st.lists(st.sets(st.integers(0, 9)).map(sorted), max_size=8)


def test_a_release_counts_even_of_nobody() -> None:
    ledger = Ledger()
    for round, clients in enumerate([[0, 2], [2], []], 1):
        ledger.charge(round, clients)
    assert ledger.releases == 3
    assert ledger.charges == Counter({2: 2, 0: 1})
    assert ledger.charges[7] == 0


def test_the_line_is_on_disk_before_the_round_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, seen = tmp_path / "privacy_journal.jsonl", []
    ledger = Ledger(journal)
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((journal.read_text().count("\n"), ledger.releases))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger.charge(1, [3])
    ledger.charge(2, [])
    assert seen == [(1, 0), (1, 0), (2, 1)]  # the second is the folder's, for the new file
    assert [json.loads(line) for line in journal.read_text().splitlines()] == [
        {"round": 1, "clients": [3]},
        {"round": 2, "clients": []},
    ]


def test_a_release_that_cannot_be_written_down_is_not_counted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "no such folder" / "journal")
    with pytest.raises(OSError, match="no such folder"):
        ledger.charge(1, [0])
    assert (ledger.releases, ledger.charges, ledger.attempts(1)) == (0, Counter(), 0)


@given(rounds_of_clients)
def test_the_state_is_json_and_brings_everything_back(rounds: list[list[int]]) -> None:
    ledger, again = Ledger(), Ledger()
    for round, clients in enumerate(rounds, 1):
        ledger.charge(round, clients)
    again.load_state(json.loads(json.dumps(ledger.state())))
    assert (again.releases, again.charges) == (ledger.releases, ledger.charges)
    assert again.releases == len(rounds)
    assert again.charges == Counter(client for clients in rounds for client in clients)


@pytest.mark.parametrize("broken", [{}, {"releases": 2, "clients": [1], "charges": []}, {"releases": "x"}])
def test_a_corrupt_state_is_refused_in_a_sentence(broken: dict[str, Any]) -> None:
    with pytest.raises(FedsimError, match="ledger in the checkpoint is corrupt"):
        Ledger().load_state(broken)


def killed_after_checkpoint(journal: Path, repeats_count: bool) -> Ledger:
    """A run of five rounds whose last checkpoint is of round 3, as it goes on."""
    first = Ledger(journal, repeats_count)
    for round in (1, 2, 3):
        first.charge(round, [0, round])
    state = json.loads(json.dumps(first.state()))
    for round in (4, 5):
        first.charge(round, [0, round])
    second = Ledger(journal, repeats_count)
    second.load_state(state)
    second.recount(journal, 3)
    return second


@pytest.mark.parametrize(("repeats_count", "releases", "charged"), [(True, 7, 2), (False, 5, 1)])
def test_rounds_played_again_count_twice_unless_they_give_the_same_bits(
    tmp_path: Path, repeats_count: bool, releases: int, charged: int
) -> None:
    ledger = killed_after_checkpoint(tmp_path / "journal", repeats_count)
    assert ledger.releases == (5 if repeats_count else 3)
    for round in (4, 5):
        assert ledger.attempts(round) == 1
        ledger.charge(round, [0, round])
        assert ledger.attempts(round) == 2
    assert ledger.releases == releases
    assert [ledger.charges[client] for client in (1, 4, 5)] == [1, charged, charged]
    assert ledger.charges[0] == releases
    assert ledger.attempts(6) == 0


def test_a_second_kill_counts_all_three_plays(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    second = killed_after_checkpoint(journal, True)
    second.charge(4, [0, 4])
    third = Ledger(journal, True)
    third.load_state({"releases": 3, "clients": [0, 1, 2, 3], "charges": [3, 1, 1, 1]})
    third.recount(journal, 3)
    assert third.releases == 3 + 3  # 4, 5 and 4 again
    assert (third.charges[4], third.charges[5], third.attempts(4)) == (2, 1, 2)


def test_a_checkpoint_later_than_the_repeats_holds_them_already(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    second = killed_after_checkpoint(journal, True)
    for round in (4, 5, 6):
        second.charge(round, [0])
    third = Ledger(journal, True)
    third.load_state(second.state())
    third.recount(journal, 6)
    assert (third.releases, third.charges) == (second.releases, second.charges)


@pytest.mark.parametrize("kept", range(1, 32))
def test_a_line_torn_by_a_kill_counts_as_released_and_does_not_crash(tmp_path: Path, kept: int) -> None:
    journal = tmp_path / "journal"
    writer = Ledger(journal)
    writer.charge(1, [0])
    whole = journal.read_bytes()
    writer.charge(2, [10, 11, 12])
    last = journal.read_bytes()[len(whole) :]
    assert len(last) == 33
    journal.write_bytes(whole + last[:kept])
    ledger = Ledger(journal, repeats_count=True)
    ledger.load_state({"releases": 1, "clients": [0], "charges": [1]})
    ledger.recount(journal, 1)
    assert (ledger.releases, ledger.attempts(2), dict(ledger.charges)) == (2, 1, {0: 1})
    ledger.charge(2, [10])  # the next line must not be glued to the torn one
    assert list(read_journal(journal)) == [Entry(1, [0]), Entry(2, []), Entry(2, [10])]


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_no_bytes_in_the_journal_crash(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    journal = tmp_path_factory.mktemp("junk") / "journal"
    journal.write_bytes(b'{"round":1,"clients":[]}\n' + junk)
    ledger = Ledger(journal, repeats_count=True)
    ledger.recount(journal, 0)
    assert ledger.releases >= 1


def test_without_a_journal_nothing_was_released(tmp_path: Path) -> None:
    ledger = Ledger(repeats_count=True)
    ledger.recount(tmp_path / "none", 0)
    assert ledger.releases == 0


def test_who_may_still_take_part() -> None:
    ledger = Ledger()
    for round, clients in enumerate([[0, 1], [1, 3], [1]], 1):
        ledger.charge(round, clients)
    assert ledger.at_most(5, 1).tolist() == [2, 4]
    assert ledger.at_most(5, 2).tolist() == [0, 2, 3, 4]
    assert ledger.at_most(5, 4).tolist() == [0, 1, 2, 3, 4]
    assert ledger.at_most(2, 2).tolist() == [0]
    assert ledger.at_most(5, 0).tolist() == []


@given(rounds_of_clients, st.integers(1, 4))
def test_nobody_exceeds_the_limit_when_only_the_eligible_are_charged(wanted: list[list[int]], limit: int) -> None:
    ledger = Ledger()
    for round, clients in enumerate(wanted, 1):
        allowed = set(ledger.at_most(10, limit).tolist())
        ledger.charge(round, [client for client in clients if client in allowed])
    assert max(ledger.charges.values(), default=0) <= limit
    asked = Counter(client for clients in wanted for client in clients)
    assert {client: min(count, limit) for client, count in asked.items()} == dict(ledger.charges)
