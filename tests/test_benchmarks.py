"""Benchmarks run and say what they found; the loops beside which fedsim is measured do fedsim's own work. No timing is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, assert_close

from experiments.benchmarks import aggregation, engines, loops, measure, results, stages, tables, targets
from experiments.benchmarks.__main__ import arguments
from experiments.benchmarks.pfl_environment import PFL
from experiments.benchmarks.turn import MARK, Turn, fedsim_rounds, play
from experiments.benchmarks.workloads import EVERYWHERE, PRIVATE, WORKLOADS, Workload, first_rows, make_parts
from fedsim.parts import Parts

OWN = ("sampler=fixed", "sampler.cohort_size=8", "client.batch_size=6", "model=mlp", "model.hidden=[8]")
SMALL = Workload("small", (*TINY, *OWN), 8, 8, 1)
DIGITS = ("dataset=digits", "model=mlp", "model.hidden=[8]", "population.num_clients=40")
FOUR_OF_FORTY = Workload("digits", DIGITS, 4, 4, 1)


def small(*overrides: str) -> Parts:
    return make_parts([*EVERYWHERE, *SMALL.overrides, *overrides])


def laps() -> measure.Laps:
    return measure.Laps(torch.device("cpu"))


@pytest.mark.parametrize("way", ["one", "lockstep"])
def test_the_raw_loop_does_the_work_of_fedsim(way: str) -> None:
    expected = loops.raw_loop(small(), 3, laps())
    assert_close(fedsim_rounds(small(f"grid.way={way}"), 3, laps()), expected, 1e-5)


def quiet(parts: Parts) -> Parts:
    """Without noise, which each draws for itself."""
    rule = parts.trainer.local_steps
    assert rule is not None
    object.__setattr__(rule, "noise_multiplier", lambda client: 0.0)
    return parts


@pytest.mark.parametrize("loop", [loops.grad_sample_loop, loops.ghost_loop])
def test_opacus_loops_do_the_work_of_fedsim(loop: object) -> None:
    tight = (*PRIVATE, "privacy.clip_norm=0.3", "privacy.delta=1e-3")
    expected = fedsim_rounds(quiet(small(*tight)), 2, laps())
    assert_close(loop(quiet(small(*tight)), 2, laps()), expected, 1e-5)  # type: ignore[operator]
    loose = fedsim_rounds(quiet(small(*PRIVATE, "privacy.clip_norm=9", "privacy.delta=1e-3")), 2, laps())
    assert any(not torch.allclose(loose[name], array, atol=1e-4) for name, array in expected.items())  # it does clip


def test_a_turn_tells_the_timed_rounds_alone() -> None:
    overrides = tuple(engines.overrides_of(engines.RAW, SMALL, "cpu"))
    found = play(Turn("raw", overrides, rounds=2))
    assert len(found["seconds"]) == 2
    assert play(Turn("fedsim", (*overrides, "grid.way=vmap", "grid.width=0"), 1))["refused"].startswith("grid.width=0")


def test_engines_are_compared_kept_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = engines.fedsim("on the moon", "moon")
    compared = [engines.RAW, engines.fedsim("inprocess", "inprocess"), absent]
    records = engines.compare(FOUR_OF_FORTY, compared, engines.Options(repeats=1, memory=False, say=lambda words: None))
    rows = list(engines.rows(records, (engines.RAW,)))
    assert rows[2]["refused"] == "this build has no grid=moon"
    assert rows[0]["ratio_to"][engines.RAW.name] == [1, 1, 1]
    results.keep("engines", {"title": "", "rows": rows}, "cpu", tmp_path)
    assert "on the moon" in capsys.readouterr().out
    kept = json.loads((tmp_path / "engines.json").read_text())
    assert kept["machine"]["cores"] >= 1
    assert (tmp_path / "engines.png").read_bytes()[:4] == b"\x89PNG"
    readme = tmp_path / "README.md"
    readme.write_text(results.README.read_text())
    results.write_readme(tmp_path, readme)
    text = readme.read_text()
    assert "| fedsim inprocess | " in text and "![engines](engines.png)" in text
    assert "Not measured yet: `python -m experiments.benchmarks private`." in text
    results.write_readme(tmp_path, readme)
    assert readme.read_text() == text


def test_an_engine_that_fails_says_why() -> None:
    found, _ = engines.run([sys.executable, "-c", "raise ValueError('no luck')"], memory=False)
    assert found == {"refused": "it failed: ValueError: no luck"}


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process tree is read from /proc")
def test_a_turn_of_memory_gives_the_peak_and_no_time() -> None:
    said = MARK + json.dumps({"seconds": [1.0], "first_round_over": 0.0})
    child = f"x = bytearray(200_000_000); import time; time.sleep(0.2); print({said!r})"
    record = engines.Record("w", "e", 1)
    engines.take_turn(record, lambda: ([sys.executable, "-c", child], dict(os.environ)), memory=True)
    assert record.peak_mb is not None and 200 < record.peak_mb < 400
    assert record.seconds == []


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0.00"), (0.0312, "0.0312"), (0.5, "0.500"), (9.876, "9.88"), (123.4, "123"), (12345.6, "12,346")],
)
def test_figures_are_short(value: float, words: str) -> None:
    assert measure.short(value) == words


def test_ratios_are_taken_turn_by_turn() -> None:
    base = engines.Record("w", "raw", 10, seconds=[[1.0], [2.0]])
    own = engines.Record("w", "own", 10, seconds=[[0.5], [1.0]])
    assert own.ratios(base) == [2.0, 2.0]
    assert own.speeds == [20.0, 10.0]


def test_targets_compare_what_comes_with_each_rival() -> None:
    def row(engine: str, speed: float) -> dict[str, object]:
        return {"workload": "2NN", "engine": engine, "client_rounds_per_second": [speed, speed, speed]}

    speeds = {engines.AS_IT_COMES.name: 50, "fedsim inprocess": 99, engines.RAW.name: 10}
    speeds |= {f"pfl {PFL}, 1 thread": 5, f"pfl {PFL}, 2 processes": 20}
    found = {"engines": {"rows": [row(*item) for item in speeds.items()]}}
    by_name = {target.what: target for target in targets.targets(found)}
    assert by_name["2NN: times the raw loop"].met and by_name["2NN: times the raw loop"].found == 5
    one, two = (by_name[f"2NN: times pfl in {number}"] for number in ("one process", "two processes"))
    assert (one.found, one.met) == (10, True) and (two.found, two.met) == (2.5, False)
    assert by_name["CNN: times the raw loop"].met is None


def test_aggregation_gives_the_mean_of_what_was_prepared() -> None:
    parts = small()
    start = parts.server.state.arrays
    updates = [{n: a + number for n, a in start.items()} for number in range(aggregation.PREPARED)]
    assert aggregation.fedsim_path(parts, updates, 8) > 0
    assert_close(parts.server.state.arrays, {n: a + 1.5 for n, a in start.items()}, 1e-5)
    assert aggregation.flower_path(parts, updates, 8) > 0


def test_stages_add_up_to_the_rounds() -> None:
    found = stages.measure(SMALL, "cpu", rounds=1)
    assert set(found["stages"]) == {"server", *stages.STAGES}
    assert all(seconds > 0 for seconds in found["stages"].values())
    assert found["operators"][0]["calls"] > 0
    shown = [table.markdown() for table in tables.of_profile({"rows": [found]})]
    assert "| training |" in shown[0] and "aten::" in shown[1]


def test_a_stage_inside_another_counts_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(now))
    watch = stages.Watch(torch.device("cpu"))
    with watch.stage("outer"), watch.stage("inner"):
        pass
    assert watch.seconds == {"server": 1.0, "outer": 2.0 + 8.0, "inner": 4.0}


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process tree is read from /proc")
def test_memory_of_a_tree_counts_children() -> None:
    child = "x = bytearray(200_000_000); print('there', flush=True); input()"
    before = measure.tree_mb(os.getpid())
    command = [sys.executable, "-c", child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        after = measure.tree_mb(os.getpid())
        process.communicate("\n")
    assert before is not None and after is not None and after - before > 195


def test_first_rows_take_the_test_split_where_needed() -> None:
    dataset = first_rows("mnist5k", 5_000)
    assert len(dataset.train) == 5_000 and np.bincount(dataset.train.y.numpy()).tolist() == [500] * 10
    work = WORKLOADS["2NN"]
    parts = make_parts([*EVERYWHERE, *work.overrides, f"sampler.cohort_size={work.cohort}"])
    assert parts.population.partition.sizes.tolist() == [50] * 100
    assert parts.num_parameters == 199_210


def test_the_command_line_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["--quick"]).repeats == 1
    with pytest.raises(SystemExit):
        arguments(["engine"])
    assert "engine is not one of engines" in capsys.readouterr().err
