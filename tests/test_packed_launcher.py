"""`hydra/launcher=packed` as a user has it: the cells of a sweep, one process a core, together in each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import hears_ctrl_c

ROOT = Path(__file__).parent.parent
SWEEP = (
    *("-m", "hydra/launcher=packed", "dataset=digits", "model=mlp", "population.num_clients=20", "rounds=4"),
    *("sampler.cohort_size=6", "device=cpu", "checkpoint.every=1"),
)


def start(here: Path, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )


def sweep(here: Path, *overrides: str) -> tuple[int, str, str]:
    process = start(here, *SWEEP, *overrides)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def summaries(here: Path) -> dict[str, dict[str, Any]]:
    """Of finished cells, by folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in here.glob("sweeps/custom/*/summary.json")}


def children(process: subprocess.Popen[str]) -> list[int]:
    """Processes that train its cells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            environment = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if b"forkserver" in environment and fields[1] != str(process.pid):
            found.append((int(path.parent.name), int(fields[1])))
    servers = {pid for pid, parent in _all_parents().items() if parent == process.pid}
    return [pid for pid, parent in found if parent in servers]


def _all_parents() -> dict[int, int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return parents


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_packed_cells_learn_what_they_learn_one_after_the_other(tmp_path: Path) -> None:
    here, there = tmp_path / "packed", tmp_path / "basic"
    here.mkdir()
    there.mkdir()
    code, out, err = sweep(here, "seed=0,1,2", "client.lr=0.05,0.2")
    assert code == 0, err
    assert "6 of 6" in out and "report" in out
    again = start(there, *SWEEP, "hydra/launcher=basic", "seed=0,1,2", "client.lr=0.05,0.2")
    again.communicate(timeout=240)
    packed, alone = summaries(here), summaries(there)
    assert packed.keys() == alone.keys() and len(packed) == 6
    for name, one in packed.items():
        assert abs(one["accuracy"] - alone[name]["accuracy"]) <= 0.005
        assert one["execution"]["width"] > alone[name]["execution"]["width"]
        rounds = [pq.read_table(base / "sweeps/custom" / name / "rounds.parquet").to_pydict() for base in (here, there)]
        for column in ("cohort_size", "bytes_up"):
            assert rounds[0][column] == rounds[1][column]
        assert rounds[0]["train_loss"] == pytest.approx(rounds[1]["train_loss"], rel=1e-4)
    before = {path: path.stat().st_mtime_ns for path in here.glob("sweeps/custom/*/summary.json")}
    code, out, _ = sweep(here, "seed=0,1,2", "client.lr=0.05,0.2")  # the same command again runs nothing
    assert code == 0 and out.count("finished before") == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_failing_cell_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    code, _, err = sweep(tmp_path, "client.lr=0.1,1e30")
    assert code == 1 and "not finite" in err and "client.lr=1e+30" in err
    assert len(summaries(tmp_path)) == 1


def test_ctrl_c_keeps_what_was_learnt_and_the_same_command_goes_on(tmp_path: Path) -> None:
    long = ("rounds=150", "seed=0,1,2,3", "evaluation.every=50", "hydra.launcher.workers=1")
    process = start(tmp_path, *SWEEP, *long)
    wait_for(lambda: len({path.parent for path in tmp_path.glob("sweeps/custom/*/checkpoints/round_*")}) == 4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command" in err
    assert not summaries(tmp_path)
    kept = list(tmp_path.glob("sweeps/custom/*/checkpoints/round_*"))
    assert len({path.parent.parent for path in kept}) == 4
    code, _, err = sweep(tmp_path, *long)
    assert code == 0, err
    assert [one["rounds"] for one in summaries(tmp_path).values()] == [150] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_process_that_dies_fails_its_cells_alone_and_they_go_on(tmp_path: Path) -> None:
    long = ("rounds=120", "seed=0,1", "evaluation.every=50", "hydra.launcher.workers=2")
    process = start(tmp_path, *SWEEP, *long)
    wait_for(lambda: len({path.parent for path in tmp_path.glob("sweeps/custom/*/checkpoints/round_*")}) == 2)
    os.kill(children(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "SIGKILL" in err
    assert len(summaries(tmp_path)) == 1
    code, out, err = sweep(tmp_path, *long)
    assert code == 0 and out.count("finished before") == 1, err
    assert len(summaries(tmp_path)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_with_everything_it_goes_on_where_it_was(tmp_path: Path) -> None:
    long = ("rounds=60", "seed=0,1", "evaluation.every=50", "hydra.launcher.workers=1")
    process = start(tmp_path, *SWEEP, *long)
    wait_for(lambda: len({path.parent for path in tmp_path.glob("sweeps/custom/*/checkpoints/round_*")}) == 2)
    (worker,) = children(process)
    process.kill()  # it can do nothing for its cells, and they end by themselves
    process.communicate(timeout=60)
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), 30)
    reached = {
        path.parent.parent: path.stat().st_mtime_ns for path in tmp_path.glob("sweeps/custom/*/checkpoints/round_*")
    }
    code, _, err = sweep(tmp_path, *long)
    assert code == 0, err
    assert len(reached) == 2 and [one["rounds"] for one in summaries(tmp_path).values()] == [60] * 2
    for folder in reached:  # its rounds were not played anew: what they took is in the sum
        assert pq.read_table(folder / "rounds.parquet").column("round").to_pylist() == list(range(1, 61))


def test_ctrl_c_before_any_cell_has_begun_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, *SWEEP, "rounds=400", "seed=0,1")
    wait_for((tmp_path / "sweeps/custom/sweep.json").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    assert not summaries(tmp_path) and not list(tmp_path.glob("sweeps/custom/*/checkpoints/round_*"))


def test_a_cell_that_is_asked_for_twice_is_run_once(tmp_path: Path) -> None:
    code, out, err = sweep(tmp_path, "seed=0,1,0", "rounds=1")
    assert code == 0, err
    assert len(summaries(tmp_path)) == 2 and "2 of 2" in out and "of 3" not in out


NOT_NEEDED = """
import sys
from fedsim.__main__ import main
from fedsim.sweeps import together

def told(cells, workers, most):
    print("imported:", *sys.modules)
    return iter([])

together.run_together = told
main()
"""


def test_the_process_that_only_waits_imports_nothing_that_trains(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NOT_NEEDED, *SWEEP, "seed=0,1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("imported: "))
    assert not {"torch", "flwr", "matplotlib", "pyarrow"} & set(line.split()), done.stderr


@pytest.mark.parametrize("key", ["workers", "together"])
def test_wrong_keys_are_refused_in_a_sentence(tmp_path: Path, key: str) -> None:
    code, _, err = sweep(tmp_path, f"hydra.launcher.{key}=0", "seed=0,1")
    assert code == 1 and f"hydra.launcher.{key}" in err and "Traceback" not in err
