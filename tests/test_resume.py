"""The same bits every time: run twice, killed and resumed, stopped and resumed, or grown after the end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import config, resume, run_into, start_command

from fedsim.server import Server
from fedsim.session import Stopped

ROUNDS = 40
QUICK = (
    *("dataset=digits", "model=linear", "population.num_clients=12", "sampler.cohort_size=6", f"rounds={ROUNDS}"),
    *("evaluation.clients=4", "client.epochs=2", "checkpoint.every=1", "device=cpu"),
)
PATIENCE = 120.0

pytestmark = pytest.mark.usefixtures("no_pictures")


def model_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def rows_of(folder: Path) -> dict[str, list]:
    return pq.read_table(folder / "rounds.parquet").drop(["seconds", "train_seconds"]).to_pydict()


def wait_for_round(folder: Path, round: int, process) -> None:
    """Until the checkpoint of this round, or of a later one, is there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if any(int(path.name[6:]) >= round for path in (folder / "checkpoints").glob("round_*")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    raise AssertionError(f"no checkpoint of round {round} after {PATIENCE} seconds")


def last_checkpoint(folder: Path) -> int:
    return max(int(path.name[6:]) for path in (folder / "checkpoints").glob("round_*"))


def disturb(folder: Path, arguments: list[str], round: int, how: signal.Signals) -> tuple[int, str]:
    """Start the command, and send it a signal once this round is kept; gives its exit status and standard error."""
    process = start_command(*arguments)
    try:
        wait_for_round(folder, round, process)
        process.send_signal(how)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert not (folder / "summary.json").exists() and round <= last_checkpoint(folder) < ROUNDS
    return process.returncode, errors


def assert_same_run(left: Path, right: Path) -> None:
    assert model_of(left) == model_of(right) and rows_of(left) == rows_of(right)
    for table in ("clients.parquet", "lineage.parquet"):
        assert pq.read_table(left / table).equals(pq.read_table(right / table))


def test_killed_three_times_and_resumed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    overrides = [*QUICK, "strategy=fedadam", "client.momentum=0.9", "grid.chunk_size=4"]
    folder, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    arguments = [*overrides, f"hydra.run.dir={folder}"]
    for round in (3, 12, 22):
        status, _ = disturb(folder, arguments, round, signal.SIGKILL)
        assert status == -signal.SIGKILL
        arguments = [f"resume={folder}"]
    process = start_command(*arguments)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    run_into(undisturbed, config(*overrides))
    assert_same_run(folder, undisturbed)


def test_ctrl_c_says_how_to_go_on_and_that_gives_the_same_bits(tmp_path: Path) -> None:
    """Clients' own states come back too: every client of local_only has its own model."""
    overrides = [*QUICK, "strategy=local_only", "checkpoint.every=4", "evaluation.local_models=3"]
    folder, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    status, errors = disturb(folder, [*overrides, f"hydra.run.dir={folder}"], 4, signal.SIGINT)
    sentences = [line for line in errors.splitlines() if line.startswith("fedsim:")]
    assert status == 130 and "Traceback" not in errors and len(sentences) == 1
    stopped, how = sentences[0].split("; ")
    assert stopped == f"fedsim: stopped after round {last_checkpoint(folder)} of {ROUNDS}"
    assert how == f"go on with: python -m fedsim resume={folder}"
    status, _ = disturb(folder, [how.split()[-1]], last_checkpoint(folder) + 4, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert resume(folder)["rounds"] == ROUNDS
    run_into(undisturbed, config(*overrides))
    assert_same_run(folder, undisturbed)


def interrupted_in(round: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of this round."""
    original = Server.play_round

    def play_round(self, grid, nodes, number, last):
        if number == round:
            raise KeyboardInterrupt
        return original(self, grid, nodes, number, last)

    monkeypatch.setattr(Server, "play_round", play_round)


def test_ctrl_c_keeps_the_last_whole_round_whatever_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*QUICK, "rounds=6", "checkpoint.every=100", "strategy=fedyogi"]
    folder, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    with monkeypatch.context() as patch:
        interrupted_in(4, patch)
        with pytest.raises(Stopped, match="stopped after round 3 of 6") as caught:
            run_into(folder, config(*overrides))
    assert caught.value.exit_code == 130 and last_checkpoint(folder) == 3
    resume(folder)
    run_into(undisturbed, config(*overrides))
    assert_same_run(folder, undisturbed)


def test_ctrl_c_in_the_first_round_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_in(1, monkeypatch)
    with pytest.raises(Stopped, match="nothing was kept"):
        run_into(tmp_path, config(*QUICK))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "local_only"])
def test_a_finished_run_grows_to_the_bits_of_a_longer_one(strategy: str, tmp_path: Path) -> None:
    overrides = [*QUICK, f"strategy={strategy}", "checkpoint.every=3", "sampler=poisson"]
    grown, long = tmp_path / "grown", tmp_path / "long"
    run_into(grown, config(*overrides, "rounds=4"))
    short = model_of(grown)
    summary = resume(grown, 9)
    run_into(long, config(*overrides, "rounds=9"))
    assert summary["rounds"] == 9 and (model_of(grown) != short) == (strategy != "local_only")
    assert model_of(grown) == model_of(long) and rows_of(grown) == rows_of(long)
    assert pq.read_table(grown / "clients.parquet").equals(pq.read_table(long / "clients.parquet"))


@pytest.mark.parametrize("strategy", ["fedavg", "fedyogi", "fedmedian"])
def test_the_same_experiment_twice_gives_the_same_bytes(strategy: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        run_into(tmp_path / name, config(*QUICK, "rounds=3", "model=mlp", "model.dropout=0.2", f"strategy={strategy}"))
    assert model_of(tmp_path / "first") == model_of(tmp_path / "second")
    assert rows_of(tmp_path / "first") == rows_of(tmp_path / "second")


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    for seed in (0, 1):
        run_into(tmp_path / str(seed), config(*QUICK, "rounds=1", f"seed={seed}"))
    assert model_of(tmp_path / "0") != model_of(tmp_path / "1")
