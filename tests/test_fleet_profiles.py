"""Who has which device: shares, medians and spreads against closed forms; tables; refusals; the ready fleets."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import config, yaml_files
from scipy import stats

from fedsim.fleet.draws import uniforms
from fedsim.fleet.fleet import Fleet, Ideal, Mix
from fedsim.fleet.hardware import Hardware
from fedsim.fleet.table import table
from fedsim.make import make
from fedsim.paths import conf_dir
from fedsim.types import FedsimError

FIGURES = {"gflops": 10, "memory_mb": 1500, "down_mbps": 80, "up_mbps": 16}
SLOW = {**FIGURES, "share": 1, "gflops": 2, "spread": 0.5, "network_spread": 0.7}
FAST = {**FIGURES, "share": 3, "gflops": 40, "battery_wh": 15, "charge_watts": 25, "failures_per_hour": 2}
MANY = np.arange(20_000)


def conf(name: str) -> dict[str, Any]:
    keys: dict[str, Any] = yaml.safe_load((conf_dir() / "fleet" / f"{name}.yaml").read_text())
    return keys


def same(one: Hardware, other: Hardware) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Hardware))


def rows_of(hardware: Hardware, rows: np.ndarray) -> Hardware:
    return Hardware(**{f.name: getattr(hardware, f.name)[rows] for f in fields(Hardware)})


def refused(*sentence: str) -> Any:
    return pytest.raises(FedsimError, match=".*".join(re.escape(part) for part in sentence))


# ---- mixtures -------------------------------------------------------------------------------------------------------


def test_shares_are_those_that_were_asked_for() -> None:
    kinds = {name: {**FIGURES, "share": share} for name, share in (("a", 1), ("b", 0), ("c", 5), ("d", 2.5), ("e", 0))}
    counts = np.bincount(Mix("mine", kinds).hardware(MANY, 3).kind, minlength=5)
    assert counts[1] == counts[4] == 0  # of share 0, in the middle and at the end
    expected = np.array([1, 5, 2.5]) / 8.5 * len(MANY)
    assert stats.chisquare(counts[[0, 2, 3]], expected).pvalue > 0.001


def test_speed_and_network_are_lognormal_about_the_medians() -> None:
    hardware = Mix("mine", {"slow": SLOW}).hardware(MANY, 0)
    for numbers, median, spread in (
        (hardware.flops, 2e9, 0.5),
        (hardware.down, 80e6 / 8, 0.7),
        (hardware.up, 16e6 / 8, 0.7),
    ):
        assert stats.kstest(numbers, stats.lognorm(s=spread, scale=median).cdf).pvalue > 0.001
        assert np.median(numbers) == pytest.approx(median, rel=0.02)
    assert np.allclose(hardware.down / hardware.up, 5)  # one factor for both
    assert abs(np.corrcoef(np.log(hardware.flops), np.log(hardware.up))[0, 1]) < 0.03


def test_each_kind_has_its_own_figures_in_units_of_seconds_bytes_and_joules() -> None:
    fleet = Mix("mine", {"slow": SLOW, "fast": FAST})
    hardware = fleet.hardware(MANY, 0)
    fast = rows_of(hardware, hardware.kind == 1)
    assert fleet.kinds == ("slow", "fast") and fleet.modelled and len(hardware) == len(MANY)
    expected = {"flops": 40e9, "memory": 1.5e9, "down": 1e7, "up": 2e6, "latency": 0, "compute_watts": 0}
    expected |= {"battery": 15 * 3600, "charge_watts": 25, "failures": 2 / 3600}
    for name, value in expected.items():
        assert np.all(getattr(fast, name) == value), name
    slow = rows_of(hardware, hardware.kind == 0)
    assert np.all(slow.battery == np.inf) and np.all(slow.failures == 0)


def test_all_figures_reach_the_hardware() -> None:
    more = {"latency_ms": 30, "compute_watts": 3, "down_watts": 1, "up_watts": 2}
    one = Mix("mine", {"one": {**FIGURES, **more, "share": 1}}).hardware(np.array([7]), 0)
    assert [one.latency[0], one.compute_watts[0], one.down_watts[0], one.up_watts[0]] == [0.03, 3, 1, 2]


def test_a_client_has_the_same_device_whoever_else_is_asked_for() -> None:
    fleet = Mix("mine", {"slow": SLOW, "fast": FAST})
    whole = fleet.hardware(MANY, 5)
    some = np.random.default_rng(0).permutation(MANY)[:500]
    assert same(fleet.hardware(some, 5), rows_of(whole, some))
    assert same(fleet.hardware(np.array([11]), 5), rows_of(whole, np.array([11])))
    assert not same(fleet.hardware(some, 6), rows_of(whole, some))
    assert len(fleet.hardware(np.array([], dtype=np.int64), 5)) == 0


def test_devices_follow_from_the_named_draws() -> None:
    """By hand: the kind from one uniform, the factors from two others by the normal quantile."""
    clients = np.array([0, 4, 9, 123456])
    hardware = Mix("mine", {"slow": SLOW, "fast": FAST}).hardware(clients, 8)
    kind = (uniforms(8, "kind", clients) >= 0.25).astype(int)
    factor = np.exp(np.where(kind == 0, 0.5, 0) * stats.norm.ppf(uniforms(8, "speed", clients)))
    assert np.array_equal(hardware.kind, kind)
    assert np.allclose(hardware.flops, np.where(kind == 0, 2e9, 40e9) * factor)


def test_ideal_devices_take_nothing() -> None:
    fleet = Ideal()
    hardware = fleet.hardware(np.array([3, 1]), 0)
    assert not fleet.modelled and fleet.kinds == ("ideal",) and len(hardware) == 2
    endless = ("flops", "memory", "down", "up", "battery")
    for field in fields(Hardware):
        assert np.all(getattr(hardware, field.name) == (np.inf if field.name in endless else 0)), field.name


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        *[(name, bad) for name in FIGURES for bad in (0, -1, float("nan"), float("inf"), "fast", None, True)],
        *[(name, -0.1) for name in ("share", "spread", "network_spread", "latency_ms", "compute_watts")],
        *[(name, -0.1) for name in ("down_watts", "up_watts", "charge_watts", "failures_per_hour")],
        *[("battery_wh", 0), ("battery_wh", -5), ("spread", 6), ("network_spread", 6), ("spread", None)],
    ],
)
def test_an_impossible_figure_is_refused_by_its_key(figure: str, value: object) -> None:
    with refused(f"fleet.kinds.slow.{figure}="):
        Mix("mine", {"fast": FAST, "slow": {**SLOW, figure: value}})


def test_what_is_no_fleet_is_refused() -> None:
    for kinds in ({}, None, 3, [SLOW]):
        with refused("fleet.kinds=", "names no kind"):
            Mix("mine", kinds)  # type: ignore[arg-type]
    with refused("fleet.kinds.slow=3 is no kind of device", "fleet.kinds.slow.gflops="):
        Mix("mine", {"slow": 3})  # type: ignore[dict-item]
    with refused("every fleet.kinds.*.share is 0"):
        Mix("mine", {"slow": {**SLOW, "share": 0}, "fast": {**FAST, "share": 0}})
    with refused("fleet.kinds.slow.memory is not a figure", "did you mean memory_mb?"):
        Mix("mine", {"slow": {**SLOW, "memory": 3}})
    with refused("fleet.kinds.slow has no up_mbps", "+fleet.kinds.slow.up_mbps="):
        Mix("mine", {"slow": {name: value for name, value in SLOW.items() if name != "up_mbps"}})
    with refused("fleet.carbon_intensity=-1"):
        Mix("mine", {"slow": SLOW}, carbon_intensity=-1)
    with refused("fleet.min_battery=1"):
        Mix("mine", {"slow": SLOW}, min_battery=1)


# ---- the ready fleets -----------------------------------------------------------------------------------------------

READY = ("phones", "iot", "silos", "mixed")


def test_these_are_all_there_are() -> None:
    assert {path.stem for path in yaml_files("fleet")} == {*READY, "ideal", "table"}


@pytest.mark.parametrize("name", READY)
def test_a_ready_fleet_is_made_and_says_every_figure(name: str) -> None:
    keys = conf(name)
    fleet = make(keys, "fleet")
    assert isinstance(fleet, Mix) and fleet.kinds == tuple(keys["kinds"])
    figures = set(conf("phones")["kinds"]["entry"])
    assert all(set(kind) == figures for kind in keys["kinds"].values())
    assert sum(kind["share"] for kind in keys["kinds"].values()) == pytest.approx(1)
    hardware = fleet.hardware(np.arange(1000), 0)
    assert np.all(np.isin(np.arange(len(fleet.kinds)), hardware.kind))  # each kind is somebody's


def test_mixed_has_the_figures_of_the_others() -> None:
    parts = {kind: figures for name in READY[:-1] for kind, figures in conf(name)["kinds"].items()}
    mixed = conf("mixed")["kinds"]
    assert mixed.keys() == parts.keys()
    for kind, figures in parts.items():
        assert {**mixed[kind], "share": None} == {**figures, "share": None}, kind


def test_every_figure_has_its_source_or_says_that_it_is_assumed() -> None:
    for name in READY[:-1]:
        text = (conf_dir() / "fleet" / f"{name}.yaml").read_text()
        given, cited = (set(re.findall(r"\[(\w+)\]", part)) for part in text.split("_target_"))
        assert cited == given, name
        for line in text.split("kinds:")[1].split("carbon_intensity")[0].splitlines():
            if line.startswith("    "):
                assert re.search(r"\[\w+\]|assumed|on mains|no battery|not charged", line), (name, line)


@pytest.mark.parametrize("name", [*READY, "ideal"])
def test_a_fleet_is_chosen_on_the_command_line(name: str) -> None:
    assert make(config(f"fleet={name}").fleet, "fleet").modelled == (name != "ideal")


def test_a_figure_is_changed_and_a_kind_added_on_the_command_line() -> None:
    tablet = "{share:100,gflops:12,memory_mb:3000,down_mbps:90,up_mbps:50}"
    cfg = config("fleet=phones", "fleet.kinds.flagship.gflops=21", f"+fleet.kinds.tablet={tablet}")
    fleet = make(cfg.fleet, "fleet")
    assert fleet.kinds == ("entry", "mid", "flagship", "tablet")
    hardware = fleet.hardware(MANY, 0)
    assert np.mean(hardware.kind == 3) == pytest.approx(100 / 101, abs=0.005)
    assert np.median(hardware.flops[hardware.kind == 2]) == pytest.approx(21e9, rel=0.15)
    with refused("fleet.kinds.mid.gflops=-3"):
        make(config("fleet=phones", "fleet.kinds.mid.gflops=-3").fleet, "fleet")


# ---- one's own table ------------------------------------------------------------------------------------------------


def written(folder: Path, rows: dict[str, list[Any]], suffix: str = ".csv") -> str:
    path = folder / f"devices{suffix}"
    frame = pd.DataFrame(rows)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
    return str(path)


def columns(rows: int = 3) -> dict[str, list[Any]]:
    return {name: [value * (row + 1) for row in range(rows)] for name, value in FIGURES.items()}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_of_kinds_is_the_mixture_that_it_says(tmp_path: Path, suffix: str) -> None:
    figures = {name: None if name == "battery_wh" else 0 for name in SLOW | FAST}
    rows = {"kind": ["slow", "fast"], **{n: [SLOW.get(n, none), FAST.get(n, none)] for n, none in figures.items()}}
    fleet = table(written(tmp_path, rows, suffix), carbon_intensity=20, min_battery=0.5)
    assert fleet.kinds == ("slow", "fast") and fleet.carbon_intensity == 20 and fleet.min_battery == 0.5
    assert same(fleet.hardware(MANY, 2), Mix("mine", {"slow": SLOW, "fast": FAST}).hardware(MANY, 2))
    fleet.check(10**9)  # kinds suffice for any number of clients


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_clients_is_taken_row_by_row(tmp_path: Path, suffix: str) -> None:
    rows = {"client": [2, 0, 1], "kind": ["b", "a", "b"], "battery_wh": [None, 10.0, None], **columns()}
    fleet = table(written(tmp_path, rows, suffix))
    hardware = fleet.hardware(np.array([0, 1, 2, 0]), 9)
    assert np.array_equal(hardware.flops, np.array([20, 30, 10, 20]) * 1e9)
    assert np.array_equal(hardware.up, np.array([32, 48, 16, 32]) * 1e6 / 8)
    assert np.array_equal(hardware.battery, [36000, np.inf, np.inf, 36000])
    assert [fleet.kinds[kind] for kind in hardware.kind] == ["a", "b", "b", "a"]
    assert np.all(hardware.latency == 0) and same(hardware, fleet.hardware(np.array([0, 1, 2, 0]), 1))
    fleet.check(3)
    with refused("has no row for client 3", "population.num_clients"):
        fleet.check(4)
    with refused("has no row for client 7"):
        fleet.hardware(np.array([0, 7]), 0)


def test_a_table_that_pandas_has_indexed_is_read_as_well(tmp_path: Path) -> None:
    frame = pd.DataFrame({"client": [5, 0, 1, 2], **columns(4)})
    frame[frame["client"] < 5].to_parquet(tmp_path / "cut.parquet")
    frame.set_index("client").to_parquet(tmp_path / "named.parquet")
    for name in ("cut", "named"):
        hardware = table(str(tmp_path / f"{name}.parquet")).hardware(np.arange(3), 0)
        assert np.array_equal(hardware.flops, np.array([20, 30, 40]) * 1e9), name


def test_a_table_of_clients_with_a_hole_is_refused(tmp_path: Path) -> None:
    fleet: Fleet = table(written(tmp_path, {"client": [0, 3, 1], **columns()}))
    assert fleet.kinds == ("device",)
    with refused("devices.csv has no row for client 2"):
        fleet.check(4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gflops": [1, -2, 3]}, "has -2 as gflops in row 2 (below the header); it must be above 0"),
        ({"gflops": [1, 2, "fast"]}, "has fast as gflops in row 3"),
        ({"gflops": [True, True, True]}, "has True as gflops in row 1"),
        ({"memory_mb": [1, None, 3]}, "has nothing as memory_mb in row 2"),
        ({"up_mbps": [0, 1, 2]}, "has 0 as up_mbps in row 1"),
        ({"down_mbps": [1, float("inf"), 2]}, "has inf as down_mbps in row 2"),
        ({"compute_watts": [1, 1, -1]}, "has -1 as compute_watts in row 3 (below the header); it must be at least 0"),
        ({"battery_wh": [1, "?", None]}, "has ? as battery_wh in row 2"),
        ({"battery_wh": [1, 0, None]}, "has 0.0 as battery_wh in row 2"),
        ({"client": [0, 1, 1]}, "has client 1 in rows 2 and 3 (below the header); keep one of them"),
        ({"client": [0, -1, 2]}, "has -1 as client in row 2"),
        ({"client": [0, 1.5, 2]}, "has 1.5 as client in row 2"),
        ({"client": [0, None, 2]}, "has nothing as client in row 2"),
        ({"kind": ["a", None, "b"]}, "has nothing as kind in row 2"),
        ({"memory": [1, 1, 1]}, "has a column memory, which no table of clients has (did you mean memory_mb?)"),
        ({"share": [1, 1, 1]}, "has a column share, which no table of clients has"),
        ({"spread": [1, 1, 1]}, "has a column spread, which no table of clients has"),
    ],
)
def test_a_broken_table_of_clients_is_refused(tmp_path: Path, change: dict[str, list[Any]], sentence: str) -> None:
    with refused("fleet.path=", "devices.csv ", sentence):
        table(written(tmp_path, {"client": [0, 1, 2], **columns(), **change}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"share": [1, -1, 1]}, "has -1 as share in row 2"),
        ({"share": [1, 1, None]}, "has nothing as share in row 3"),
        ({"spread": [0, 9, 0]}, "has 9 as spread in row 2 (below the header); it must be at most 5"),
        ({"kind": ["a", "b", "a"]}, "has kind a in rows 1 and 3"),
        ({"watts": [1, 1, 1]}, "has a column watts, which no table of kinds has"),
    ],
)
def test_a_broken_table_of_kinds_is_refused(tmp_path: Path, change: dict[str, list[Any]], sentence: str) -> None:
    with refused("fleet.path=", "devices.csv ", sentence):
        table(written(tmp_path, {"kind": ["a", "b", "c"], "share": [1, 1, 1], **columns(), **change}))


@pytest.mark.parametrize("missing", [*FIGURES, "kind", "share"])
def test_a_table_without_a_column_that_it_needs_is_refused(tmp_path: Path, missing: str) -> None:
    rows = {"kind": ["a", "b", "c"], "share": [1, 1, 1], **columns()}
    with refused(f"has no column {missing}, which a table of kinds needs"):
        table(written(tmp_path, {name: column for name, column in rows.items() if name != missing}))
    if missing in FIGURES:
        rows = {"client": [0, 1, 2], **columns()}
        with refused(f"has no column {missing}, which a table of clients needs"):
            table(written(tmp_path, {name: column for name, column in rows.items() if name != missing}))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with refused("fleet=table needs a file"):
        table()
    with refused("is not there"):
        table(str(tmp_path / "nothing.csv"))
    broken = {"empty.csv": b"", "broken.parquet": b"not parquet", "latin.csv": b"kind\n\xff\xfe"}
    long_rows = b"client,gflops,memory_mb,down_mbps,up_mbps\n0,1,2,3,4,5\n1,1,2,3,4,5\n"
    for name, content in {**broken, "long.csv": long_rows}.items():
        (tmp_path / name).write_bytes(content)
        with refused(name, "cannot be read"):
            table(str(tmp_path / name))
    with refused("has no rows"):
        table(written(tmp_path, {"client": [], **{name: [] for name in FIGURES}}))
    good = written(tmp_path, {"client": [0, 1, 2], **columns()})
    with refused("fleet.carbon_intensity=-1"):
        table(good, carbon_intensity=-1)
    with refused("fleet.min_battery=2"):
        table(good, min_battery=2)


def test_the_table_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, {"client": [0, 1, 2], **columns()})
    assert make(config("fleet=table", f"fleet.path='{path}'").fleet, "fleet").kinds == ("device",)
