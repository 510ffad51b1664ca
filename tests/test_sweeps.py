"""Sweeps: a folder a cell, the same command goes on, failures are told at the end."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, config, run_into, start_command
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sweeping import DIGITS, SWEEP, cells_in, lines, sweep

import fedsim.experiment
from fedsim.errors import sentence
from fedsim.pairs import with_pairs
from fedsim.resolvers import cell_name
from fedsim.server import Server
from fedsim.sweeps.cells import identity, run_cell, standing
from fedsim.sweeps.locks import locked
from fedsim.sweeps.state import read_state
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures", "reports")


# Names and values


@given(st.lists(st.text(min_size=1).map(lambda text: f"key.a={text}"), unique=True, max_size=5), st.randoms())
def test_a_cells_name_depends_on_its_overrides_alone_and_needs_no_quotes(overrides: list[str], random: Any) -> None:
    name = cell_name([*overrides, "seed=3"])
    shuffled = [*overrides, "seed=3"]
    random.shuffle(shuffled)
    assert cell_name(shuffled) == name != cell_name([*overrides, "seed=4"])
    assert re.fullmatch(r"[\w.-]+", name, re.ASCII) and "seed-3" in name and len(name) < 130
    assert shlex.quote(name) == name
    (read,) = OverridesParser.create().parse_overrides([f"resume=sweeps/x/{name}"])
    assert read.value() == f"sweeps/x/{name}"


def test_by_size_takes_the_value_of_the_size() -> None:
    for size, rounds, axis in (("small", 20, "0.1,1"), ("full", 100, "0.05,0.1,1")):
        cfg = OmegaConf.create(
            {"size": size, "a": {"rounds": "${by_size:20,100}", "axis": "${by_size:'0.1,1','0.05,0.1,1'}"}}
        )
        assert (cfg.a.rounds, cfg.a.axis) == (rounds, axis)
    cfg = OmegaConf.create({"size": "tiny", "rounds": "${by_size:20,100}"})
    with pytest.raises(Exception, match="size=tiny") as caught:
        cfg.rounds  # noqa: B018
    assert sentence(caught.value) == "size=tiny is not known; choose from small, full"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["size=small"], ["size"]),
        (["+size=small"], ["+size=small", "studies"]),
        (["+experiment=heterogeneity", "size=tiny"], ["size=tiny", "small, full"]),
        (["seed=range(0,0)"], ["no cells", "-m seed=0,1,2"]),
        (["objectives=acuracy"], ["objectives=acuracy", "did you mean accuracy?"]),
        (["pairs={client.lrr:1},{client.lr:2}", "seed=0"], ["client.lrr", "did you mean client.lr?"]),
        (["hydra/launcher=jobli"], ["hydra/launcher=jobli"]),
        (["hydra.sweep.dir="], ["hydra.sweep.dir", "empty"]),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_sentence_that_names_it(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    if arguments[0].startswith("pairs"):
        arguments = [*arguments, "pairs={client.lrr:1},{client.lrr:2}"][1:]
    assert sweep(*TINY, *arguments) == 1
    said = capfd.readouterr().err
    assert [word for word in words if word not in said] == [] and "Traceback" not in said
    assert not list(here.rglob("summary.json")) and not list(here.rglob("sweep.json"))


# The same command goes on


def test_a_sweep_is_told_cell_by_cell_and_the_same_command_runs_nothing_again(
    here: Path, capfd: pytest.CaptureFixture[str], ran: list[tuple[str, bool]], reports: list[dict[str, Any]]
) -> None:
    assert sweep(*SWEEP, "client.lr=0.1,0.2", "seed=0,1") == 0
    out, err = capfd.readouterr()
    told = lines(out)
    assert err == "" and len(told) == 5 and len(ran) == 4
    assert re.fullmatch(r"2 of 4: client.lr=0.1 seed=1: accuracy [\d.]+, \d+ s; about \d+ s left.*", told[1])
    assert told[4] == "4 of 4 cells are finished; report: sweep/report.html"
    state = json.loads((here / "sweep" / "sweep.json").read_text())
    assert [cell["state"] for cell in state["cells"]] == ["finished"] * 4
    assert state["command"].startswith("python -m fedsim -m dataset=custom")
    assert reports[0]["command"] == state["command"] and sorted(reports[0]["runs"]) == sorted(name for name, _ in ran)
    for cell in state["cells"]:
        assert OmegaConf.load(here / "sweep" / cell["folder"] / ".hydra" / "overrides.yaml") == cell["overrides"]
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.parent.parent == here / "sweep"}
    assert sweep(*SWEEP, "client.lr=0.1,0.2", "seed=0,1") == 0
    told = lines(capfd.readouterr().out)
    assert len(ran) == 4 and all("finished before, accuracy" in line for line in told[:4])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_more_values_extend_the_sweep_and_fewer_report_fewer(
    here: Path, ran: list[tuple[str, bool]], reports: list[dict[str, Any]]
) -> None:
    assert sweep(*SWEEP, "seed=0,1") == 0
    assert sweep(*SWEEP, "seed=0,1,2") == 0
    assert len(ran) == 3 and len(reports[1]["runs"]) == 3
    assert sweep("seed=2", *SWEEP) == 0
    assert len(ran) == 3 and [name for name, _ in ran[2:]] == reports[2]["runs"]


def test_a_cell_is_the_run_that_its_overrides_give_alone(here: Path) -> None:
    assert sweep(*SWEEP, "client.lr=0.3", "seed=5") == 0
    (cell,) = cells_in(here / "sweep").values()
    run_into(here / "alone", config(*TINY, "client.lr=0.3", "seed=5"))
    assert (cell / "model.safetensors").read_bytes() == (here / "alone" / "model.safetensors").read_bytes()
    assert "client.lr=0.3" in json.loads((cell / "summary.json").read_text())["command"]


def test_a_swept_name_or_experiment_does_not_scatter_the_sweep(here: Path) -> None:
    assert sweep(*TINY, "name=a,b") == 0
    assert [path.name for path in (here / "sweeps").iterdir()] == ["custom"]
    assert len(cells_in(here / "sweeps" / "custom")) == 1 and len(list(here.rglob("summary.json"))) == 2


def test_a_failed_cell_is_told_at_the_end_and_run_again(
    here: Path, capfd: pytest.CaptureFixture[str], ran: list[tuple[str, bool]], reports: list[dict[str, Any]]
) -> None:
    assert sweep(*SWEEP, "client.lr=0.1,-1,many") == 1
    out, err = capfd.readouterr()
    assert len(lines(out)) == 4 and "2 of 3: client.lr=-1: failed: client.lr=-1 is out of range" in out
    said = lines(err)
    assert said[0].startswith("fedsim: cell client.lr=-1: client.lr=-1 is out of range")
    assert said[1].startswith("fedsim: cell client.lr=many: client.lr=many is not a finite number")
    assert said[2].startswith("fedsim: 2 of 3 cells failed") and len(said) == 3
    assert [what for what, _ in reports[0]["failed"]] == ["client.lr=-1", "client.lr=many"]
    assert list(cells_in(here / "sweep")) == ["lr-0.1"]
    assert sweep(*SWEEP, "client.lr=0.1,-1,many") == 1
    assert [name for name, _ in ran].count(ran[0][0]) == 1 and len(ran) == 5


def test_a_sweep_whose_cells_all_fail_has_no_report_and_leaves_nothing(
    here: Path, capfd: pytest.CaptureFixture[str], reports: list[dict[str, Any]]
) -> None:
    assert sweep(*TINY, "client.lr=0,-1") == 1
    assert "no cell is finished, so there is no report" in lines(capfd.readouterr().err)[-1]
    assert reports == [] and list(here.iterdir()) == []


def test_a_report_that_fails_costs_no_run(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def broken(*arguments: Any) -> Path:
        raise FedsimError("there is no ink")

    monkeypatch.setattr("fedsim.studies.report.write_study", broken)
    assert sweep(*SWEEP, "seed=0") == 1
    (said,) = lines(capfd.readouterr().err)
    assert "(there is no ink)" in said and "python -m fedsim.report sweep" in said
    assert len(cells_in(here / "sweep")) == 1


def test_another_configuration_under_the_same_overrides_is_refused_and_the_run_kept(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = here / "own" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nname: mine\nclient:\n  lr: 0.1\n")
    arguments = ("--config-dir", "own", "+experiment=mine", *TINY, "seed=0,1")
    assert sweep(*arguments) == 0
    kept = {path: path.read_bytes() for path in (here / "sweeps" / "mine").glob("*/*") if path.is_file()}
    own.write_text("# @package _global_\nname: mine\nclient:\n  lr: 0.2\n")
    capfd.readouterr()
    assert sweep(*arguments) == 1
    said = lines(capfd.readouterr().err)
    assert "holds a run of another configuration (client.lr was 0.1, is 0.2)" in said[0] and "name=..." in said[0]
    assert {path: path.read_bytes() for path in kept} == kept
    own.write_text("# @package _global_\nname: mine\nrounds: 3\nclient:\n  lr: 0.1\n")
    assert sweep(*[one for one in arguments if one != "rounds=2"]) == 0, (
        "rounds=2 was an override: these are other cells"
    )


def test_what_changes_no_bit_is_no_other_configuration(tmp_path: Path) -> None:
    cfg = config(*TINY)
    run_cell(cfg, tmp_path / "cell", TINY)
    assert standing(cfg, tmp_path / "cell") == "finished"
    assert standing(config(*TINY, "checkpoint.every=1", "logger=tensorboard"), tmp_path / "cell") == "finished"
    for other in ("rounds=3", "seed=1", "client.lr=0.7"):
        with pytest.raises(FedsimError, match=f"{other.split('=')[0]} was .*, is"):
            standing(config(*TINY, other), tmp_path / "cell")


def test_baselines_that_are_missing_are_made_up_for(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    run_cell(config(*TINY), folder, TINY)
    wanted = config(*TINY, "baselines=[central]")
    assert standing(wanted, folder) == "stopped"


def ctrl_c_in(cell: int, round: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of this round of this cell (from 1)."""
    original, seen = Server.play_round, []

    def play_round(self: Server, grid: Any, nodes: Any, number: int, last: Any) -> Any:
        if number == 1:
            seen.append(self)
        if len(seen) == cell and number == round:
            raise KeyboardInterrupt
        return original(self, grid, nodes, number, last)

    monkeypatch.setattr(Server, "play_round", play_round)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_ends_with_the_same_bits(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, ran: list[tuple[str, bool]], reports: list[dict[str, Any]]
) -> None:
    arguments = (*SWEEP, "rounds=4", "seed=0,1,2")
    with monkeypatch.context() as patch:
        ctrl_c_in(2, 3, patch)
        assert sweep(*arguments) == 130
    (said,) = lines(capfd.readouterr().err)
    assert "1 of 3 cells are finished and 1 in the middle, all of which is kept" in said and reports == []
    assert said.endswith("go on with the same command: " + shlex.join(["python", "-m", "fedsim", "-m", *arguments]))
    assert [cell["state"] for cell in read_state(here / "sweep").cells] == ["finished", "stopped", "waiting"]  # type: ignore[union-attr]
    assert sweep(*arguments) == 0
    assert [resumed for _, resumed in ran] == [False, False, True, False]
    for seed, cell in zip((0, 1, 2), cells_in(here / "sweep").values(), strict=True):
        run_into(here / str(seed), config(*TINY, "rounds=4", f"seed={seed}"))
        assert (cell / "model.safetensors").read_bytes() == (here / str(seed) / "model.safetensors").read_bytes()


def wait_for(there: Callable[[], bool], process: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_killed_in_the_middle_it_goes_on_with_the_same_bits(here: Path, ran: list[tuple[str, bool]]) -> None:
    arguments = [*DIGITS, "rounds=30", "checkpoint.every=1", "seed=0,1", "hydra.sweep.dir=sweep"]
    process = start_command("-m", *arguments)
    try:
        wait_for(lambda: any((here / "sweep").glob("*seed-1*/checkpoints/round_*")), process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        process.kill()
    state = read_state(here / "sweep")
    assert state is not None and [cell["state"] for cell in state.cells] == ["finished", "waiting"]
    assert sweep(*arguments) == 0
    assert [resumed for _, resumed in ran] == [True], (
        "the lock of the killed process is gone, and the finished cell is not run"
    )
    run_into(here / "alone", config(*DIGITS, "rounds=30", "checkpoint.every=1", "seed=1"))
    (cell,) = (here / "sweep").glob("*seed-1*")
    assert (cell / "model.safetensors").read_bytes() == (here / "alone" / "model.safetensors").read_bytes()


def test_a_cell_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    (folder / "checkpoints" / ".round_000001.tmp").mkdir(parents=True)
    (folder / "privacy_journal.jsonl").write_text('{"round": 1, "clients": [0]}\n')
    outcome = run_cell(config(*TINY), folder, TINY)
    assert outcome.state == "finished" and not outcome.before and not (folder / "privacy_journal.jsonl").exists()


def test_nobody_runs_a_cell_or_sweeps_into_a_folder_twice_at_a_time(here: Path, capfd: Any) -> None:
    with locked(here / "cell", "busy"):
        outcome = run_cell(config(*TINY), here / "cell", TINY)
    assert outcome.state == "failed" and "another process is running this cell" in str(outcome.reason)
    assert run_cell(config(*TINY), here / "cell", TINY).state == "finished"
    with locked(here / "sweep", "busy"):
        assert sweep(*SWEEP, "seed=0") == 1
    assert "another command is sweeping into" in capfd.readouterr().err
    assert sweep(*SWEEP, "seed=0") == 0
    assert not [path for path in here.rglob("*.lock") if path.is_file()]


def test_a_dry_run_of_a_sweep_plans_every_cell_and_is_no_sweep(here: Path, reports: list[dict[str, Any]]) -> None:
    assert sweep(*SWEEP, "seed=0,1", "dry_run=true") == 0
    assert len(list(here.rglob("plan.json"))) == 2 and not list(here.rglob("sweep.json")) and reports == []


# Pairs


def test_pairs_are_swept_beside_each_other_and_are_the_cells_of_their_values(here: Path) -> None:
    assert (
        sweep(
            *SWEEP,
            "pairs={client.lr:0.1,population.num_clients:4},{client.lr:0.2,population.num_clients:6}",
            "seed=0,1",
        )
        == 0
    )
    found = []
    for path in (here / "sweep").glob("*/.hydra/config.yaml"):
        cfg = OmegaConf.load(path)
        assert cfg.pairs is None
        found.append((cfg.client.lr, cfg.population.num_clients, cfg.seed))
    assert sorted(found) == [(0.1, 4, 0), (0.1, 4, 1), (0.2, 6, 0), (0.2, 6, 1)]


def test_pairs_give_the_configuration_that_the_same_overrides_give() -> None:
    paired = config(*TINY, "pairs={client.lr:0.3,seed:4}")
    assert identity(paired) == identity(config(*TINY, "client.lr=0.3", "seed=4")) != identity(config(*TINY))
    assert with_pairs(config(*TINY)).client.lr == config(*TINY).client.lr
    for wrong, words in (
        ("{model:cnn}", "model, which is no single value"),
        ("{client.lrr:1}", "client.lr"),
        ("3", "pairs=3"),
    ):
        with pytest.raises(FedsimError, match=words):
            with_pairs(config(*TINY, f"pairs={wrong}"))


def test_the_command_that_repeats_a_cell_is_its_own(here: Path) -> None:
    assert sweep(*SWEEP, "seed=3") == 0
    (cell,) = (here / "sweep").glob("*/summary.json")
    assert fedsim.experiment.command_of(cell.parent) == json.loads(cell.read_text())["command"]
