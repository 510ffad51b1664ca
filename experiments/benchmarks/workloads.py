"""The work that engines are given: models, data and clients, each as overrides of fedsim's configuration."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from fedsim.build import build
from fedsim.data.dataset import Dataset
from fedsim.parts import Parts

EVERYWHERE = ("population.holdout=0", "evaluation.every=1000000000", "partition=iid")
"""No round is evaluated; every client holds the same number of rows."""

TESTED = 1_000
PRIVATE = ("privacy=example", "privacy.noise_multiplier=1", "privacy.clip_norm=1")


@dataclass(frozen=True)
class Workload:
    """overrides: of fedsim's configuration. cohort: clients a round; private_cohort: with DP-SGD. rounds: that are timed, after
    one that is not.
    """

    name: str
    overrides: tuple[str, ...]
    cohort: int
    private_cohort: int
    rounds: int

    def quick(self) -> Workload:
        """Less of the same: to see that it runs, not how fast."""
        few, fewer = min(4, self.cohort), min(2, self.private_cohort)
        return dataclasses.replace(self, cohort=few, private_cohort=fewer, rounds=1)

    def of(self, cohort: int) -> Workload:
        """With so many clients a round, plain and private."""
        return dataclasses.replace(self, cohort=cohort, private_cohort=cohort)

    def private(self) -> Workload:
        """With DP-SGD on devices: the batch becomes the expected batch of as many steps."""
        return dataclasses.replace(self, overrides=(*self.overrides, *PRIVATE), cohort=self.private_cohort)


def first_rows(source: str, rows: int) -> Dataset:
    """A dataset cut to its first rows, those of the test split after those of the training split where needed.

    source: the module in fedsim.data.sources that reads it. Rows to test on may be among those to train on: only speed counts.
    """
    whole: Dataset = importlib.import_module(f"fedsim.data.sources.{source}").load()
    splits = (whole.train, whole.test)
    x, y = (torch.cat([getattr(split, column) for split in splits])[:rows] for column in ("x", "y"))
    train = dataclasses.replace(whole.train, x=x, y=y, user=None, time=None)
    test = dataclasses.replace(whole.test, x=whole.test.x[:TESTED], y=whole.test.y[:TESTED], user=None, time=None)
    return dataclasses.replace(whole, train=train, test=test, users=())


def cut(source: str, rows: int) -> tuple[str, ...]:
    """Overrides that choose `first_rows`."""
    target = f"dataset._target_={first_rows.__module__}.{first_rows.__name__}"
    return ("dataset=custom", target, f"+dataset.source={source}", f"+dataset.rows={rows}")


HUNDRED = ("population.num_clients=100",)
WORKLOADS = {
    work.name: work
    for work in (
        Workload("2NN", (*cut("mnist5k", 5_000), *HUNDRED, "model=mlp"), 100, 50, 4),
        Workload("CNN", (*cut("mnist5k", 5_000), *HUNDRED, "model=cnn"), 20, 8, 3),
        Workload(
            "GroupNorm CNN",
            (*cut("fashion_mnist", 10_000), *HUNDRED, "model=resnet", "client.batch_size=32"),
            *(20, 8, 3),
        ),
        Workload("char-LSTM", (*cut("shakespeare", 1_000), *HUNDRED, "model=lstm", "client.batch_size=5"), 16, 4, 2),
    )
}
"""2NN, CNN: 100 clients of 50 digits, batches of 10. GroupNorm CNN: 100 of 100 pictures, batches of 32. char-LSTM: 100 of 10
sequences of 80 characters, batches of 5. One epoch each, SGD at 0.1.
"""


def config(*overrides: str) -> DictConfig:
    """A configuration as the command line would give it."""
    from hydra import compose, initialize_config_dir

    from fedsim.paths import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*overrides])


def make_parts(overrides: list[str]) -> Parts:
    """The parts of an experiment with these overrides. Raises FedsimError where they do not go together."""
    return build(config(*overrides))
