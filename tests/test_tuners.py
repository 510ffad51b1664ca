"""Tuning: objectives, Optuna's sweeper, and what the choice among private runs costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, config, run_into
from omegaconf import OmegaConf
from sweeping import SWEEP, sweep

from fedsim.sweeps.objectives import NUMBERS, chosen_objectives, values_of
from fedsim.sweeps.state import read_state
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures", "reports")


def test_every_objective_is_a_number_of_some_run(tmp_path: Path) -> None:
    private = ("privacy=user", "privacy.epsilon=8", "sampler=poisson", "sampler.fraction=0.5")
    summary = run_into(
        tmp_path, config(*TINY, *private, "evaluation.federated_every=1") if False else config(*TINY, *private)
    )
    later = {"simulated_seconds", "joules"}
    for name in set(NUMBERS) - later:
        assert isinstance(values_of(summary, [name]), float), name
    assert values_of(summary, ["accuracy", "bytes_up"]) == (summary["accuracy"], float(summary["bytes_up"]))
    assert chosen_objectives(config(*TINY, "objectives=[accuracy,bytes_up]")) == ["accuracy", "bytes_up"]
    with pytest.raises(FedsimError, match="objectives=joules is no number in this run"):
        values_of(summary, ["joules"])


TUNE = (
    *(
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.max_failure_rate=1.0",
    ),
    *("hydra.sweeper.sampler.seed=1", "client.lr=tag(log,interval(0.01,1))", "hydra.sweep.dir=sweep"),
)


def test_optuna_tunes_two_objectives_and_goes_on_by_thinking_of_the_same_trials(
    here: Path, ran: Any, capfd: Any
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    arguments = [*TINY, *TUNE, "objectives=[accuracy,bytes_up]", "hydra.sweeper.direction=[maximize,minimize]"]
    assert sweep(*arguments, "sampler=fixed", "sampler.cohort_size=range(2,9)") == 0
    assert "4 of 4" in capfd.readouterr().out and len(ran) == 4
    best = OmegaConf.load(here / "sweep" / "optimization_results.yaml")
    assert all(0 <= solution["values"][0] <= 1 < solution["values"][1] for solution in best.solutions)
    assert sweep(*arguments, "sampler=fixed", "sampler.cohort_size=range(2,9)") == 0
    assert len(ran) == 4


def test_a_failed_trial_is_a_failed_trial(here: Path, capfd: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    arguments = [*TINY, *TUNE, "objectives=accuracy", "hydra.sweeper.direction=maximize"]
    arguments = [one for one in arguments if not one.startswith("client.lr")]
    assert sweep(*arguments, "client.lr=choice(0.1,-1)") == 1
    state = read_state(here / "sweep")
    assert state is not None and {cell["state"] for cell in state.cells} == {"finished", "failed"}
    assert "client.lr=-1 is out of range" in capfd.readouterr().err


def test_the_ready_tuning_experiments_compose() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert chosen_objectives(config("+experiment=tune")) == ["accuracy", "bytes_up"]
    assert chosen_objectives(config("+experiment=tune_private")) == ["accuracy"]


def test_private_tuning_says_what_its_choice_costs(here: Path, capfd: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    small = [
        "dataset=digits",
        "rounds=2",
        "population.num_clients=20",
        "privacy.delta=0.01",
        "device=cpu",
        "grid=inprocess",
    ]
    assert sweep("+experiment=tune_private", *small, "hydra.sweeper.n_trials=${trials:poisson,3}") == 0
    out = capfd.readouterr().out
    assert (
        re.search("runs state epsilon (7.99|8)", out)
        and "Their number was drawn (poisson of mean 3)" in out
        and "Theorem 6" in out
    )
    shared = ["hydra.sweeper.params={client.lr:'interval(0.1,1)'}", "hydra.sweep.dir=shared"]
    assert sweep("+experiment=tune_private", *small, *shared, "hydra.sweeper.n_trials=3") == 0
    assert "A fixed grid or an adaptive search is not covered" in capfd.readouterr().out


def test_a_grid_of_private_runs_says_that_its_choice_is_not_covered(here: Path, capfd: Any) -> None:
    private = ("privacy=user", "sampler=poisson", "sampler.fraction=0.5", "privacy.delta=0.01")
    assert sweep(*SWEEP, *private, "privacy.epsilon=2,8") == 0
    said = capfd.readouterr().out
    assert re.search(r"2 runs state epsilon (1.99|2).* to (7.99|8)", said) and "is not covered by the theorems" in said
    (together,) = re.findall(r"all 2 trials compose to, epsilon ([\d.]+) at delta 0.01", said)
    assert 8 < float(together) < 12
