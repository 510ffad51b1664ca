"""Recorded availability: intervals by hand and by brute force, and every file that is refused."""

from __future__ import annotations

import datetime
import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.fleet.availability import World, waiting
from fedsim.fleet.trace import Trace
from fedsim.make import make
from fedsim.paths import conf_dir
from fedsim.types import FedsimError

SMALL = "client,start,end\n0,0,10\n1,5,15.5\n0,20,30\n"


def written(folder: Path, text: str, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def begun(trace: Trace, clients: int) -> Trace:
    trace.begin(World(0, clients, lambda: np.zeros(clients)))
    return trace


def told(trace: Trace, client: int, time: float) -> tuple[bool, float]:
    there, until = trace.at(np.array([client]), time)
    return bool(there[0]), float(until[0])


def test_a_trace_by_hand(tmp_path: Path) -> None:
    trace = begun(Trace(written(tmp_path, SMALL)), 2)
    for time, there, until in [
        (0, 1, 10),
        (9.99, 1, 10),
        (10, 0, 20),
        (20, 1, 30),
        (30, 0, math.inf),
        (99, 0, math.inf),
    ]:
        assert told(trace, 0, time) == (there, until)
    for time, there, until in [(0, 0, 5), (5, 1, 15.5), (15.5, 0, math.inf)]:
        assert told(trace, 1, time) == (there, until)
    found = trace.at(np.array([1, 0, 1]), np.array([5.0, 15.0, 4.0]))
    assert found[0].tolist() == [True, False, False] and found[1].tolist() == [15.5, 20, 5]


def test_a_trace_that_repeats(tmp_path: Path) -> None:
    """The period is the latest end of all, 30: client 0 goes on over it, client 1 starts anew at 35."""
    trace = begun(Trace(written(tmp_path, SMALL), repeat=True), 2)
    for time, there, until in [(25, 1, 40), (30, 1, 40), (40, 0, 50), (55, 1, 70), (300.5, 1, 310)]:
        assert told(trace, 0, time) == (there, until)
    for moment, is_there, end in [(15.5, 0, 35), (29, 0, 35), (35, 1, 45.5), (45.5, 0, 65)]:
        assert told(trace, 1, moment) == (is_there, end)
    assert waiting(trace, np.array([0, 1]), 46) == 50


def test_rows_that_touch_are_one_interval(tmp_path: Path) -> None:
    path = written(tmp_path, "end,client,start,note\n30,0,20,b\n20,0,10,a\n10,0,0,c\n")
    assert told(begun(Trace(path), 1), 0, 5) == (True, 30)
    assert told(begun(Trace(path, repeat=True), 1), 0, 5) == (True, math.inf)


def test_names_stand_for_clients_in_the_order_in_which_they_come(tmp_path: Path) -> None:
    trace = begun(Trace(written(tmp_path, "device,start,end\nzoe,0,1\nNA,2,3\nzoe,4,5\nbob,6,7\n")), 3)
    assert [told(trace, client, 0)[1] for client in range(3)] == [1, 2, 6]
    assert told(trace, 0, 2) == (False, 4)


def test_clients_without_rows_take_devices_in_turn(tmp_path: Path) -> None:
    path = written(tmp_path, "client,start,end\n0,0,1\n3,0,3\n1,0,2\n")
    trace = begun(Trace(path, reuse=True), 6)
    assert [told(trace, client, 0)[1] for client in range(6)] == [1, 2, 3, 3, 2, 3]  # devices 0, 1, 3; own rows first
    assert told(begun(Trace(path), 2), 1, 0) == (True, 2)  # more devices than clients
    words = r"trace\.csv has no row for client 2 \(nor for 1 others of 5\); set availability\.reuse=true"
    with pytest.raises(FedsimError, match=words):
        begun(Trace(path), 5)


def test_nobody_comes_after_the_end(tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match=r"set availability\.repeat=true"):
        waiting(begun(Trace(written(tmp_path, SMALL)), 2), np.array([0, 1]), 31)


@pytest.mark.parametrize("form", ["csv", "gz", "bom", "parquet", "arrow types"])
def test_all_formats_read_alike(tmp_path: Path, form: str) -> None:
    frame = pd.DataFrame({"client": [0, 1, 0], "start": [0, 5, 20], "end": [10, 15.5, 30]})
    path = tmp_path / ("trace.parquet" if form in ("parquet", "arrow types") else "trace.csv")
    if form == "gz":
        path = tmp_path / "trace.csv.gz"
        path.write_bytes(gzip.compress(SMALL.encode()))
    elif form == "arrow types":
        frame.astype({"client": "uint8", "start": "float32"}).to_parquet(path)
    elif form == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text(SMALL, encoding="utf-8-sig" if form == "bom" else "utf-8")
    trace = begun(Trace(str(path)), 2)
    assert told(trace, 0, 12) == (False, 20) and told(trace, 1, 5) == (True, 15.5)


def test_the_file_of_the_configuration_makes_one(tmp_path: Path) -> None:
    keys = yaml.safe_load((conf_dir() / "availability" / "trace.yaml").read_text())
    assert isinstance(make({**keys, "path": written(tmp_path, SMALL)}, "availability"), Trace)


# Against a plain walk over the intervals


def state(intervals: list[tuple[int, int]], period: int | None, time: int) -> bool:
    """Is the device there?"""
    time = time % period if period else time
    return any(start <= time < end for start, end in intervals)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=10, unique=True), min_size=1, max_size=4),
    repeat=st.booleans(),
)
def test_states_and_ends_are_those_of_the_intervals(tmp_path: Path, cuts: list[list[int]], repeat: bool) -> None:
    """Whole seconds, so that looking at each second of 130 tells all."""
    intervals = [[(a, b) for a, b in zip(sorted(cut)[::2], sorted(cut)[1::2], strict=False)] for cut in cuts]
    rows = [f"{client},{a},{b}" for client, own in enumerate(intervals) for a, b in own]
    path = written(tmp_path, "\n".join(["client,start,end", *reversed(rows)]))
    period = max(b for own in intervals for _, b in own) if repeat else None
    trace = begun(Trace(path, repeat=repeat), len(cuts))
    for client, own in enumerate(intervals):
        states = [state(own, period, time) for time in range(130)]
        for time in (0, 1, 7, 39, 40, 41, 80, 83):
            there, until = told(trace, client, time + 0.0)
            turns = [later for later in range(time, 130) if states[later] != states[time]]
            assert there == states[time]
            assert until == (turns[0] if turns else math.inf)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times=st.lists(st.floats(0, 1e7), min_size=1, max_size=5))
def test_ends_are_exact_where_the_period_is_no_round_number(tmp_path: Path, times: list[float]) -> None:
    path = written(tmp_path, f"client,start,end\n0,0.1,0.3\n0,0.7,{math.pi}\n1,0,0.7\n1,1.1,{math.pi}\n2,0.3,0.9\n")
    for time in times:
        who = np.arange(3)
        there, until = begun(Trace(path, repeat=True), 3).at(who, time)
        assert (until > time).all()
        assert (begun(Trace(path, repeat=True), 3).at(who, np.nextafter(until, 0))[0] == there).all()
        assert (begun(Trace(path, repeat=True), 3).at(who, until)[0] == ~there).all()


# What is refused


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("client,start,end\n0,0,10\n1,3,4\n0,9,12\n", "row 3 starts at 9, within another row of its device"),
        ("client,start,end\n0,5,10\n0,5,6\n", "row 2 starts at 5, within another row of its device"),
        ("client,start,end\n0,0,10\n0,20,20\n", "row 2 ends at 20, not after its start at 20"),
        ("client,start,end\n0,30,20\n", "row 1 ends at 20, not after its start at 30"),
        ("client,start,end\n0,1,2\n0,-3,1\n", "row 2 starts at -3, before the run"),
        ("client,start,end\n0,1,2\n0,3,\n", "row 2 has nothing as its end"),
        ("client,start,end\n0,1,2\n0,nan,4\n", "row 2 has nothing as its start"),
        ("client,start,end\n0,1,2\n0,3,inf\n", "row 2 has inf as its end"),
        ("client,start,end\n0,1,2\n0,noon,4\n", "row 2 has 'noon' as its start"),
        ("client,start,end\n0,2024-01-01,2024-01-02\n", "row 1 has 2024-01-01"),
        ("client,start,end\n0,1,2\n-1,3,4\n", "row 2 has client -1"),
        ("client,start,end\n0,1,2\n0.5,3,4\n", "row 2 has client 0.5"),
        ("client,start,end\nphone,1,2\n", "row 1 has 'phone' as its client"),
        ("device,start,end\na,1,2\n,3,4\n", "row 2 names no device"),
        ("client,start,stop\n0,1,2\n", "has no columns named end"),
        ("user,start,end\n0,1,2\n", "has no columns named client"),
        ("client,start,start,end\n0,1,1,2\n", "has 2 columns named start"),
        ("client,device,start,end\n0,a,1,2\n", "has a column client and a column device"),
        ("client,start,end\n", "has no rows"),
        ("", "cannot be read as CSV"),
        ("client,start,end\n0,1,2,3\n", "cannot be read as CSV"),
    ],
)
def test_impossible_traces_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    refuses(written(tmp_path, rows), words)


def refuses(path: str, words: str, **keys: Any) -> None:
    with pytest.raises(FedsimError) as caught:
        Trace(path, **keys)
    assert words in str(caught.value) and path in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["1", "2"], "row 1 has '1' as its start"),
        ([None, 1.0], "row 1 has nothing as its start"),
        ([1.0, math.nan], "row 2 has n"),
        ([True, False], "row 1 has True as its start"),
        ([datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)], "row 1 has 2024-01-01 00:00:00 as its start"),
    ],
)
def test_impossible_columns_of_parquet_are_refused(tmp_path: Path, column: list[Any], words: str) -> None:
    path = tmp_path / "trace.parquet"
    pd.DataFrame({"client": [0, 1], "start": column, "end": [5.0, 6.0]}).to_parquet(path)
    refuses(str(path), words)


def test_files_that_are_not_there_or_broken_are_refused(tmp_path: Path) -> None:
    refuses(str(tmp_path / "none.csv"), "there is no file")
    refuses(str(tmp_path), "there is no file")
    refuses(written(tmp_path, "not parquet", "broken.parquet"), "cannot be read as Parquet")
    for key in ("repeat", "reuse"):
        keys: Any = {key: 1}
        with pytest.raises(FedsimError, match=rf"availability\.{key}=1 is neither true nor false"):
            Trace(written(tmp_path, SMALL), **keys)
