"""What somebody who uses worker processes in an unforeseen way is told, and what must not happen to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.grids.pool import given_up
from fedsim.training import ClientHalf, Trainer, choose
from fedsim.training.choose import Asked
from fedsim.training.objectives import OBJECTIVES
from fedsim.training.settings import LocalTraining
from fedsim.types import FedsimError

ROOT = Path(__file__).parent.parent

SCRIPT = """
from pathlib import Path

from hydra import compose, initialize_config_dir
from torch import nn

from fedsim.experiment import run
from fedsim.paths import conf_dir


class Net(nn.Sequential):
    def __init__(self, input_shape, num_outputs):
        super().__init__(nn.Flatten(), nn.Linear(input_shape[0], num_outputs))


print("once")
with initialize_config_dir(str(conf_dir()), version_base=None):
    cfg = compose("config", ["dataset=custom", "dataset._target_=helpers.tiny_dataset", "partition=iid", "rounds=1",
        "population.num_clients=4", "sampler=all", "device=cpu", "grid=processes", "grid.workers=2", "MODEL"])
run(cfg, Path("out"))
"""


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Another interpreter, which finds fedsim and the helpers of these tests."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path, **settings}, capture_output=True, text=True
    )


def script(folder: Path, model: str) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(SCRIPT.replace("MODEL", model).replace('"out"', repr(str(folder / "out"))))
    return python(str(folder / "mine.py"))


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    found = script(tmp_path, "model=linear")
    assert found.returncode == 0 and found.stdout.count("once\n") == 1, found.stderr
    assert (tmp_path / "out" / "summary.json").is_file()


def test_a_model_of_the_script_itself_is_told_where_it_must_go(tmp_path: Path) -> None:
    found = script(tmp_path, 'model=custom", "model._target_=__main__.Net')
    assert "move what your script defines into a module that it imports" in found.stderr.splitlines()[-1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes as Linux shows them")
def test_the_fork_server_is_deaf_to_ctrl_c_while_it_imports() -> None:
    show = (
        "from multiprocessing import forkserver, resource_tracker\n"
        "from pathlib import Path\n"
        "from fedsim.grids.forkserver import start_forkserver\n"
        "start_forkserver()\n"
        "print(Path(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read_text())"
    )
    lines = dict(line.split(":\t", 1) for line in python("-c", show).stdout.splitlines() if ":\t" in line)
    assert int(lines["SigBlk"], 16) >> (signal.SIGINT - 1) & 1


def test_a_long_path_to_temporary_files_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    start = "import tempfile; from fedsim.grids.forkserver import start_forkserver; start_forkserver(); "
    found = python("-c", start + "print(tempfile.gettempdir())", TMPDIR=str(folder))
    assert found.returncode == 0 and found.stdout.strip() == str(folder), found.stderr


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"compile": "maybe"}, "grid.compile=maybe is neither true nor false"),
        ({"compile": 1}, "grid.compile=1 is neither true nor false"),
        ({"way": "one", "width": 4}, "grid.width=4 is of clients in lockstep"),
        ({"way": "one", "width": "measure"}, "grid.width=measure is of clients in lockstep"),
    ],
)
def test_keys_that_make_no_sense_are_refused(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(FedsimError, match=words):
        Asked(**bad)


def test_who_is_told_to_change_a_key_is_not_told_to_resume_with_it() -> None:
    # resume=... takes nothing but rounds beside it, and a run that fails in its first round has no checkpoint
    words = str(given_up("was killed"))
    assert re.search(
        r"begin anew with a lower grid.workers, .* or, .* go on from the run's last checkpoint, if it has", words
    )


def test_one_at_a_time_is_a_width_of_one() -> None:
    assert Asked(way="one", width=1).width == 1


def test_a_precision_that_changes_the_updates_is_what_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        choose, "_alike", lambda update, expected, start, tolerance: tolerance < 0.05
    )  # a model it is bad for
    x, y = torch.randn(6, 6), torch.randint(3, (6,))
    engine = Trainer(nn.Linear(6, 3), OBJECTIVES["classification"], LocalTraining(lr=0.01), ClientHalf(), 0).alone()
    with pytest.raises(FedsimError, match=r"grid\.precision=bfloat16 .*one client at a time in float32"):
        choose.choose_execution(Asked(precision="bfloat16"), engine, x, y, cohort=100)
    assert choose.choose_execution(Asked(), engine, x, y, cohort=100).way == "lockstep"
