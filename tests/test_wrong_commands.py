"""What a user gets for a wrong command: one sentence that names the key, a non-zero exit, and nothing that reads as a run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import hears_ctrl_c
from hydra.core.global_hydra import GlobalHydra

from fedsim.__main__ import main

SMALL = "dataset=digits model=linear rounds=1 population.num_clients=10"

OWN_CODE = """
import torch
from fedsim.data.dataset import Dataset, Examples
from torch import nn

def symbols():
    texts = Examples(torch.zeros(40, 5, dtype=torch.long), torch.ones(40, 5, dtype=torch.long))
    return Dataset("symbols", texts, texts, "next_token", ("a", "b"))

class BatchNormed(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_outputs))

    def forward(self, x):
        return self.layers(x)

class Raises(nn.Module):
    def __init__(self):
        raise ZeroDivisionError("two\\nlines")

class NeedsWidth(nn.Module):
    def __init__(self, width):
        super().__init__()
"""

WRONG = [
    ("roundz=3", "roundz rounds --help"),
    ("client.lrr=0.1", "client.lrr client.lr --help"),
    ("clientt.lr=0.1", "clientt.lr client.lr --help"),
    ("modle=mlp", "modle model"),
    ("model=mlpp", "model=mlpp mlp resnet"),
    ("+experiment=quickstrat", "experiment=quickstrat quickstart"),
    ("experiment=quickstart", "+experiment=NAME"),
    ("+experiment=quickstart +experiment=watch", "experiment once"),
    ("+foo=1", "foo --help"),
    ("+roundz=1", "roundz rounds"),
    ("+client.foo=1", "client.foo"),
    ("+model.foo=1", "model.foo fedsim.models.Linear"),
    ("+partition.alhpa=1", "partition.alhpa alpha"),
    ("+grid.foo=1", "grid.foo"),
    ("client=adamw +client.optimizer.foo=1", "client.optimizer.foo torch.optim.AdamW"),
    ("+client.lr=1", "client.lr without plus"),
    ("~client", "client ~client"),
    ("~client.lrr", "client.lrr"),
    ("client=1", "client=1 sgd adamw"),
    ("logger=null", "logger=null none"),
    ("model=[mlp,cnn]", "model=[mlp,cnn] -m"),
    ("=3", "=3 key=value"),
    ("rounds", "rounds key=value"),
    ("rounds=[1", "rounds=[1 quote"),
    ("'a b=c'", "a b=c"),
    ("rounds=1,2", "rounds=1,2 -m"),
    ("'rounds=${x}'", "rounds x"),
    ("'client.lr=${nothere:1}'", "nothere"),
    ("rounds=0", "rounds=0 at least 1"),
    ("rounds=many", "rounds=many whole number"),
    ("rounds=null", "rounds=null whole number"),
    ("client.lr=-1", "client.lr=-1 above 0"),
    ("client.lr=nan", "client.lr=nan finite"),
    ("client.momentum=1", "client.momentum=1 below 1"),
    ("client.batch_size=0", "client.batch_size=0 at least 1"),
    ("client.optimizer=adam", "client.optimizer=adam client=adamw"),
    ("client=adamw client.momentum=0.9", "client.momentum=0.9 SGD"),
    ("device=gpu", "device=gpu auto cpu cuda"),
    ("dry_run=maybe", "dry_run=maybe true false"),
    ("baselines=3", "baselines=3 central local_only"),
    ("name=../elsewhere", "name=../elsewhere"),
    ("checkpoint=null", "checkpoint=null checkpoint.every"),
    ("population.num_clients=100000", "population.num_clients=100000 1438 lower"),
    ("population.holdout=1", "population.holdout=1 below 1"),
    ("sampler.cohort_size=11", "sampler.cohort_size=11 10 population.num_clients"),
    ("sampler.cohort_size=5 sampler.fraction=0.5", "sampler.cohort_size=5 sampler.fraction=0.5 null"),
    ("sampler=all sampler.cohort_size=3", "sampler.cohort_size sampler=fixed sampler=poisson"),
    ("partition=natural", "partition=natural users"),
    ("partition.alpha=0", "partition.alpha=0"),
    ("dataset=mnist", "dataset=mnist mnist5k"),
    ("dataset=images dataset.path=nowhere", "dataset.path nowhere"),
    ("dataset=csv", "dataset.path"),
    ("dataset=csv dataset.path=nothere.csv dataset.label=y", "dataset.path nothere.csv"),
    ("dataset=npz dataset.path=corrupt.npz", "corrupt.npz"),
    ("dataset.root=.", "digits.csv.gz corrupt"),
    ("dataset=custom dataset._target_=own_code.Raises", "dataset ZeroDivisionError two"),
    ("dataset=custom dataset._target_=own_code.symbols corruption=feature_noise", "symbols corruption.feature_noise 0"),
    ("model=custom", "model._target_"),
    ("model=custom model._target_=not_there.Net", "model._target_=not_there.Net imported"),
    ("model=custom model._target_=own_code.Nothing", "model._target_=own_code.Nothing"),
    ("model=custom model._target_=own_broken.Net", "model._target_=own_broken.Net RuntimeError: kaboom"),
    ("model=custom model._target_=own_code.Raises", "model._target_=own_code.Raises ZeroDivisionError two"),
    ("model=custom model._target_=own_code.NeedsWidth", "+model.width=..."),
    ("model=custom model._target_=own_code.BatchNormed client.batch_size=1", "client.batch_size=1 BatchNorm GroupNorm"),
    ("model._target_=null", "model._target_=null module.name"),
    ("model=lstm", "model=lstm model=cnn"),
    ("strategy=krum sampler.cohort_size=3", "cohort 3 5 sampler.cohort_size"),
    ("init.weights=nothere.safetensors", "init.weights=nothere.safetensors"),
    ("init.weights=corrupt.safetensors", "init.weights=corrupt.safetensors"),
    ("init.weights=3", "init.weights=3"),
    ("hydra.run.dir=corrupt.npz", "corrupt.npz hydra.run.dir"),
    ("hydra.run.dir=corrupt.npz/x", "corrupt.npz/x hydra.run.dir"),
    ("hydra.run.dir=/proc/fedsim", "/proc/fedsim hydra.run.dir"),
    ("hydra.run.dir=", "hydra.run.dir empty"),
    ("--config-dir nowhere", "--config-dir nowhere"),
    ("--config-dir conf2 +experiment=typo", "client.lrr lr"),
    ("--config-dir conf2 +experiment=nogroup", "modle model"),
    ("--config-dir conf2 +experiment=syntax", "syntax.yaml line"),
    ("--colour", "--colour --hydra-help"),
    ("--experimental-rerun x.pickle", "pickle resume=RUN_DIR"),
    ("resume=nowhere", "resume=nowhere"),
    ("-m resume=.", "resume -m"),
]
"""Arguments (SMALL stands before them, but for resume), and words that the sentence must hold."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a user's own files, broken in many ways."""
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('kaboom')\n")
    for name in ("corrupt.npz", "corrupt.safetensors", "digits.csv.gz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing of the kind")
    experiments = tmp_path / "conf2" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "typo.yaml").write_text("# @package _global_\nclient:\n  lrr: 1\n")
    (experiments / "nogroup.yaml").write_text("# @package _global_\ndefaults:\n  - override /modle: mlp\n")
    (experiments / "syntax.yaml").write_text("# @package _global_\nclient: [\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    for name in ("own_code", "own_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def command(arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of `fedsim ARGUMENTS`, in this process."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["fedsim", *shlex.split(arguments)])
    GlobalHydra.instance().clear()
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        GlobalHydra.instance().clear()
    return 0


def files(folder: Path) -> set[str]:
    """Everything below the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def one_sentence(text: str) -> str:
    """The only line of standard error."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("fedsim: ") and "Traceback" not in text and "should not have" not in text
    return lines[0]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[arguments for arguments, _ in WRONG])
def test_wrong_command_gets_one_sentence_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: str, words: str
) -> None:
    before = files(folder)
    status = command(arguments if "resume=" in arguments else f"{SMALL} {arguments}", monkeypatch)
    out, err = capfd.readouterr()
    assert status == 1
    assert [word for word in words.split() if word not in one_sentence(err)] == []
    assert out == ""
    assert files(folder) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there(folder, monkeypatch, capfd) -> None:
    before = files(folder)
    assert command(f"{SMALL} device=cuda", monkeypatch) == 1
    assert "device=cpu" in one_sentence(capfd.readouterr().err)
    assert files(folder) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round, made once."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        assert command(f"{SMALL} hydra.run.dir={run_dir}", patch) == 0
    return run_dir


def other_configuration(run: Path) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))


def corrupt(name: str):
    def spoil(run: Path) -> None:
        (newest,) = (run / "checkpoints").glob("round_*")
        (newest / name).write_bytes(b"nothing of the kind")

    return spoil


def foreign_configuration(run: Path) -> None:
    (run / ".hydra" / "config.yaml").write_text("lr: 3\n")


def no_configuration(run: Path) -> None:
    shutil.rmtree(run / ".hydra")


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (lambda run: None, "resume=run", "finished rounds=N"),
        (lambda run: None, "resume=run client.lr=1", "client.lr=1 rounds=N"),
        (lambda run: None, "resume=run rounds=0", "rounds=0"),
        (lambda run: None, f"{SMALL} hydra.run.dir=run", "hydra.run.dir resume=run"),
        (lambda run: None, f"{SMALL} 'hydra.run.dir=${{oc.decode:run}}'", "hydra.run.dir resume="),
        (lambda run: (run / "summary.json").unlink(), f"{SMALL} hydra.run.dir=run", "hydra.run.dir stopped resume=run"),
        (lambda run: None, f"-m {SMALL} seed=1,2 hydra.sweep.dir=run", "hydra.sweep.dir resume=run"),
        (other_configuration, "resume=run rounds=2", "another experiment"),
        (corrupt("arrays.safetensors"), "resume=run rounds=2", "arrays.safetensors corrupt"),
        (corrupt("state.json"), "resume=run rounds=2", "state.json corrupt"),
        (foreign_configuration, "resume=run rounds=2", "resume= config.yaml"),
        (no_configuration, "resume=run", "resume= .hydra"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "resume=run rounds=2", "checkpoint"),
    ],
)
def test_wrong_resume_leaves_the_run_as_it_was(finished, folder, monkeypatch, capfd, spoil, arguments, words) -> None:
    run = folder / "run"
    shutil.copytree(finished, run)
    spoil(run)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name != ".hydra"}
    before = files(folder)
    assert command(arguments, monkeypatch) == 1
    out, err = capfd.readouterr()
    assert [word for word in words.split() if word not in one_sentence(err)] == []
    assert out == ""
    assert files(folder) == before
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_folder_of_ones_own_is_left_as_it_was(folder, monkeypatch, capfd) -> None:
    for name in ("mine/wandb/notes.txt", "mine/checkpoints/best.pt", "mine/.hydra/other.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = files(folder)
    assert command(f"{SMALL} rounds=0 hydra.run.dir=mine", monkeypatch) == 1
    assert command("resume=mine", monkeypatch) == 1
    monkeypatch.chdir(folder / "mine" / "wandb")
    assert command(f"{SMALL} rounds=0 hydra.run.dir=.", monkeypatch) == 1
    assert files(folder) == before


def process(folder: Path, arguments: str, **environment: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[1]
    wanted = {**os.environ, "PYTHONPATH": str(root), "HYDRA_FULL_ERROR": "0", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", *shlex.split(arguments)],
        cwd=folder, env=wanted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c,
        text=True,
    )  # fmt: skip


def test_a_real_process_says_one_sentence(folder) -> None:
    before = files(folder)
    wrong = process(folder, f"{SMALL} client.lr=-1")
    out, err = wrong.communicate(timeout=60)
    assert (wrong.returncode, out) == (1, "")
    assert "client.lr=-1" in one_sentence(err)
    assert files(folder) == before


def test_full_error_shows_the_traceback(folder) -> None:
    wrong = process(folder, f"{SMALL} model=custom model._target_=own_code.Raises", HYDRA_FULL_ERROR="1")
    _, err = wrong.communicate(timeout=60)
    assert wrong.returncode == 1
    assert "Traceback" in err and "own_code.py" in err and "ZeroDivisionError" in err
    assert not list(folder.rglob("summary.json"))


def test_ctrl_c_in_the_middle_keeps_what_was_learnt(folder) -> None:
    running = process(folder, f"{SMALL} rounds=100000 checkpoint.every=1 hydra.run.dir=run")
    deadline = time.monotonic() + 60
    while not list((folder / "run" / "checkpoints").glob("round_*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    said = err.splitlines()[-1]
    assert said.startswith("fedsim: stopped after round") and "resume=" in said and "Traceback" not in err
    assert not (folder / "run" / "summary.json").exists()
    (newest, *_) = sorted((folder / "run" / "checkpoints").glob("round_*"), reverse=True)
    assert json.loads((newest / "state.json").read_text())["round"] >= 1


def test_ctrl_c_while_data_are_read_leaves_nothing(folder) -> None:
    (folder / "slow.py").write_text(
        "import pathlib, time\n"
        "def load():\n"
        "    pathlib.Path('reading').touch()\n"
        "    time.sleep(60)\n"
    )  # fmt: skip
    running = process(folder, "dataset=custom dataset._target_=slow.load", PYTHONDONTWRITEBYTECODE="1")
    deadline = time.monotonic() + 60
    while not (folder / "reading").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "nothing was kept" in one_sentence(err)
    assert not (folder / "runs").exists()


def test_version_and_options_between_overrides(folder, monkeypatch, capfd) -> None:
    assert command("--version", monkeypatch) == 0
    assert capfd.readouterr().out.startswith("fedsim ")
    assert command("rounds=3 --cfg job client.lr=0.7", monkeypatch) == 0
    shown = capfd.readouterr().out
    assert "rounds: 3" in shown and "lr: 0.7" in shown


def test_help_shows_what_there_is_to_choose(folder, monkeypatch, capfd) -> None:
    assert command("--help client.lr=0.7", monkeypatch) == 0
    shown = capfd.readouterr().out
    assert (
        "model: cnn" in shown
        and "experiment: " in shown
        and "lr: 0.7" in shown
        and "$(fedsim -sc install=bash)" in shown
    )
