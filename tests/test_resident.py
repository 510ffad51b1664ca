"""What is kept of clients' data from round to round, and where."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import parts, play, same_bits, tiny_dataset

from fedsim.data.prepared import Prepared
from fedsim.data.resident import Resident
from fedsim.types import ClientData

CPU = torch.device("cpu")


@pytest.mark.parametrize("most_bytes", [0, 10**9])
def test_rows_are_the_examples_own_wherever_they_lie(most_bytes: int) -> None:
    examples, rows = tiny_dataset().train, np.array([5, 0, 5, 99])
    x, y = Resident(examples, CPU, most_bytes).take(rows)
    assert torch.equal(x, examples.x[rows]) and torch.equal(y, examples.y[rows])


def data(client: int, rows: int = 10) -> ClientData:
    return ClientData(client, torch.full((rows, 5), float(client)), torch.zeros(rows, dtype=torch.int64))


def test_the_newest_used_are_kept_up_to_so_many_bytes() -> None:
    made: list[int] = []

    def make(client: int) -> ClientData:
        made.append(client)
        return data(client)

    size = data(0).x.nbytes + data(0).y.nbytes
    cache = Prepared(2 * size)
    for client in (0, 1, 0, 2, 0, 1):  # 1 goes when 2 comes, since 0 was used after it
        assert cache.get(client, lambda client=client: make(client)).client == client  # type: ignore[misc]
    assert made == [0, 1, 2, 1]
    nothing = Prepared(0)
    assert [nothing.get(c, lambda: make(7)).client for c in (7, 7)] == [7, 7] and made[-2:] == [7, 7]


def test_another_process_begins_without_any() -> None:
    cache = Prepared(10**6)
    cache.get(0, lambda: data(0))
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301 - our own, of this moment
    assert again.most_bytes == 10**6 and again.get(0, lambda: data(3)).client == 3


def test_keeping_data_changes_no_bit() -> None:
    kept, made = (play(parts(f"population.cache_mb={mb}", "rounds=3", "corruption=feature_noise")) for mb in (256, 0))
    assert same_bits(kept, made)
