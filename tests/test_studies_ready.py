"""The ready studies: they compose at both sizes, their READMEs hold their commands, and say what their sweeps found."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import run_into
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.studies import FOLDER, results, write
from experiments.study_list import SIZES, STUDIES
from experiments.study_tables import Mean, costs_of, grid_of, markdown, runs_of, stated
from fedsim.paths import conf_dir
from fedsim.resolvers import register
from fedsim.types import FedsimError

register()
EXPERIMENTS = [experiment for study in STUDIES.values() for experiment in study.experiments]
ON_FASHION = ("time_to_accuracy", *STUDIES["drift"].experiments, "online_vs_offline")
DATASETS = dict.fromkeys(ON_FASHION, ("fashion_mnist", "fashion_mnist")) | {"drift_flights": ("flights", "flights")}
"""Of studies that ask something of one dataset: at the small and at the full size."""
LEAST_SEEDS = 3
ROUNDING = 0.005
"""Of accuracy: what training the same cells in batches of other widths may change, as the READMEs say."""


def composed(*overrides: str) -> DictConfig:
    """The whole configuration, Hydra's own keys too."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def axes(cfg: DictConfig) -> dict[str, list[str]]:
    """What an experiment sweeps over by itself: values by key."""
    params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True)
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return {
        one.key_or_group: list(one.sweep_string_iterator()) if one.is_sweep_override() else [str(one.value())]
        for one in parsed
    }


def commands(study: str) -> list[list[str]]:
    """The sweeps that a study's README asks for: what follows `python -m fedsim`."""
    text = (FOLDER / study / "README.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("python -m fedsim ")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_has_its_sizes_its_axes_and_enough_seeds(experiment: str, size: str) -> None:
    cfg, other = composed(f"+experiment={experiment}", f"size={size}"), composed(f"+experiment={experiment}")
    assert (cfg.size, other.size) == (size, "full")
    small, full = DATASETS.get(experiment, ("mnist5k", "fashion_mnist"))
    assert cfg.dataset._target_.split(".")[-2] == {"small": small, "full": full}[size]
    assert (cfg.rounds < other.rounds) == (size == "small")
    swept = axes(cfg)
    assert len(swept["seed"]) >= LEAST_SEEDS and len(set(swept["seed"])) == len(swept["seed"])
    study = next(one for one in STUDIES.values() if experiment in one.experiments)
    wanted = {key.removesuffix("._target_") for key in {study.rows, *study.columns, *study.within} - {"name"}}
    varied = {key for key, values in swept.items() if len(values) > 1} - {"seed"}
    assert varied <= wanted if len(study.experiments) > 1 else varied == wanted
    for key, values in swept.items():
        assert len(set(values)) == len(values) > 0
        for value in (values[0], values[-1]):  # of the type, and among the options, that there are
            node = OmegaConf.select(composed(f"+experiment={experiment}", f"size={size}", f"{key}={value}"), key)
            assert isinstance(node, DictConfig) or str(node) == value or float(node) == float(value)


@pytest.mark.parametrize("study", STUDIES)
def test_the_readme_holds_the_commands_of_its_experiments(study: str) -> None:
    found = commands(study)
    plain = [command for command in found if not any(one.startswith("privacy=none") for one in command)]
    asked = {
        frozenset(["-m", f"+experiment={experiment}", *small])
        for experiment in STUDIES[study].experiments
        for small in ([], ["size=small"])
    }
    assert {frozenset(command) for command in plain} == asked
    for command in found:
        cfg = composed(*(one for one in command if one != "-m"))
        assert cfg.name in STUDIES[study].experiments
    if STUDIES[study].reference == "no privacy":  # what a promise costs is told beside the same federation without one
        assert sorted(command[-1] for command in found if command not in plain) == [
            "privacy.epsilon=null",
            "size=small",
        ]


def test_the_commands_of_the_issue_and_of_the_experiment_are_one() -> None:
    swept = axes(composed("+experiment=privacy_vs_clients", "size=small"))
    assert swept == {
        "population.num_clients": ["10", "100", "1000"],
        "privacy.epsilon": ["1", "2", "4", "8"],
        "seed": ["0", "1", "2"],
    }


def test_a_dataset_of_ones_own_takes_the_place_of_that_of_the_size() -> None:
    for size in SIZES:
        cfg = composed("+experiment=heterogeneity", f"size={size}", "dataset=digits")
        assert cfg.dataset._target_ == "fedsim.data.sources.digits.load" and cfg.dataset.keys() == {"_target_", "root"}


# Tables


def made_up(rows: list[tuple[int, float | None, int, float]]) -> pd.DataFrame:
    """Runs of privacy_vs_clients (clients, epsilon or None for no privacy, seed, accuracy) as the store gives them."""
    frame = pd.DataFrame(rows, columns=["config.population.num_clients", "config.privacy.epsilon", "seed", "accuracy"])
    private = frame["config.privacy.epsilon"].notna().map({True: "UserPrivacy", False: "NoPrivacy"})
    return frame.assign(**{"config.privacy._target_": "fedsim.privacy." + private})


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    study, readme = STUDIES["privacy_vs_clients"], tmp_path / "README.md"
    rows = [(n, e, seed, n / 1000 + e / 100 + seed / 50) for n in (100, 10) for e in (8.0, 1.0) for seed in range(3)]
    grid = grid_of(study, made_up(rows))
    assert list(grid) == ["10", "100"] and list(grid["10"]) == ["ε = 1", "ε = 8"]
    found = grid["100"]["ε = 8"]
    assert found.mean == pytest.approx(0.2) and found.half == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    text = markdown(study, grid)
    assert text.splitlines()[0] == "| clients | ε = 1 | ε = 8 |" and "| 100 | 0.130 ± 0.050 | 0.200 ± 0.050 |" in text
    readme.write_text(f"words\n<!-- table small -->\n{text}<!-- end of table small -->\n")
    rounded = {row: {name: Mean(round(one.mean, 3), 0.05) for name, one in of.items()} for row, of in grid.items()}
    assert stated(readme, "small") == rounded
    with pytest.raises(FedsimError, match="no marks for a table of size=full"):
        stated(readme, "full")


def test_a_run_without_privacy_stands_apart_and_what_was_not_run_is_a_dash() -> None:
    study = STUDIES["privacy_vs_clients"]
    runs = made_up([(10, 8.0, 0, 0.5), (10, None, 0, 0.9), (100, 8.0, 0, 0.7)])
    lines = markdown(study, grid_of(study, runs)).splitlines()
    assert lines[0] == "| clients | ε = 8 | no privacy |"
    assert lines[2:] == ["| 10 | 0.500 (one seed) | 0.900 (one seed) |", "| 100 | 0.700 (one seed) | – |"]


def test_what_a_promise_costs_is_compared_seed_by_seed() -> None:
    rows = [(10, e, seed, level + seed / 10) for e, level in ((8.0, 0.5), (None, 0.6)) for seed in range(3)]
    rows += [(10, 8.0, 3, 0.1), (100, 8.0, 0, 0.7)]  # without a reference
    costs = costs_of(STUDIES["privacy_vs_clients"], made_up(rows))
    assert costs.keys() == {"10"} and costs["10"].keys() == {"ε = 8"}
    assert costs["10"]["ε = 8"].mean == pytest.approx(0.1) and costs["10"]["ε = 8"].half == pytest.approx(0, abs=1e-9)
    plain = STUDIES["heterogeneity"]
    assert (
        plain.reference == ""
        and costs_of(plain._replace(columns=(), rows="population.num_clients"), made_up(rows)) == {}
    )


def scheduled(rows: list[tuple[str, int, float, float | None]]) -> pd.DataFrame:
    """Runs of time_to_accuracy (schedule, seed, accuracy, seconds to the target or None) as the store gives them."""
    frame = pd.DataFrame(rows, columns=["schedule", "seed", "accuracy", "simulated_seconds_to_target"])
    target = "fedsim.fleet.schedules." + frame["schedule"]
    always = "fedsim.fleet.availability.Always"
    return frame.assign(
        **{"config.schedule._target_": target, "config.availability._target_": always, "joules_to_target": 2000.0}
    )


def test_rows_are_compared_with_the_baseline_seed_by_seed_in_accuracy_by_a_difference_and_in_time_by_a_quotient() -> (
    None
):
    seconds = {"Synchronous": (10.0, 20.0, 40.0), "FedBuff": (5.0, 8.0, 12.0)}
    rows = [
        (name, seed, 0.8 - seconds[name][seed] / 1000, seconds[name][seed]) for name in seconds for seed in range(3)
    ]
    runs, study = scheduled(rows), STUDIES["time_to_accuracy"]
    lines = markdown(study, grid_of(study, runs)).splitlines()
    assert lines[0].startswith(
        "| schedule | always there, test accuracy | always there, simulated seconds to the target |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| wait for all", "| FedBuff"]
    costs = costs_of(study, runs)
    assert costs.keys() == {"FedBuff"}
    share = costs["FedBuff"]["always there, simulated seconds to the target"]
    assert share.mean == pytest.approx((0.5 + 0.4 + 0.3) / 3)
    assert share.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert costs["FedBuff"]["always there, test accuracy"].mean == pytest.approx(-(5 + 12 + 28) / 3000)


def test_a_target_that_one_seed_missed_has_no_mean() -> None:
    rows = [("Synchronous", seed, 0.8, 10.0) for seed in range(3)] + [
        ("FedBuff", 0, 0.8, 5.0),
        ("FedBuff", 1, 0.7, None),
    ]
    study = STUDIES["time_to_accuracy"]
    grid = grid_of(study, scheduled(rows))
    assert "always there, simulated seconds to the target" in grid["wait for all"]
    assert grid["FedBuff"].keys() == {"always there, test accuracy", "always there, kJ to the target"}
    assert " | – | " in markdown(study, grid).splitlines()[-1]


def test_what_is_told_once_a_row_is_over_all_columns() -> None:
    rows = [
        (keep, feedback, seed, 0.9, 1e6 * keep) for keep in (0.1, 1.0) for feedback in (True, False) for seed in (0, 1)
    ]
    names = ["config.compression.keep", "config.compression.error_feedback", "seed", "accuracy", "bytes_up"]
    study, runs = STUDIES["error_feedback"], pd.DataFrame(rows, columns=names)
    lines = markdown(study, grid_of(study, runs)).splitlines()
    assert lines[0] == "| keep | error feedback false | error feedback true | MB sent by clients |"
    assert lines[2:] == [
        f"| {keep} | 0.900 ± 0.000 | 0.900 ± 0.000 | {sent} ± 0.0 |" for keep, sent in ((0.1, 0.1), (1, 1.0))
    ]
    assert costs_of(study, runs)["0.1"].keys() == {"error feedback false", "error feedback true", "MB sent by clients"}


def test_an_interval_is_not_rounded_to_a_smaller_one() -> None:
    assert str(Mean(0.81251, 0.00041)) == "0.813 ± 0.001" and str(Mean(0.5, 0.0)) == "0.500 ± 0.000"
    assert str(Mean(1234.56, 0.0, 1)) == "1,234.6 ± 0.0"


SHORT = (
    *("+experiment=heterogeneity", "size=small", "dataset=digits", "model=linear", "rounds=1", "device=cpu"),
    *("client.max_steps=1", "evaluation.clients=0", "grid=inprocess"),
)


def short_run(folder: Path, *overrides: str) -> None:
    """A cell of heterogeneity in a second."""
    cfg = composed(*SHORT, *overrides)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    run_into(folder, cfg)


@pytest.mark.usefixtures("no_pictures")
def test_what_a_sweep_leaves_in_the_studys_folder(tmp_path: Path) -> None:
    study, sweeps, own = STUDIES["heterogeneity"], tmp_path / "sweeps", tmp_path / "heterogeneity"
    own.mkdir()
    marks = "".join(
        f"<!-- {one} {size} -->\n<!-- end of {one} {size} -->\n" for one in ("table", "machine") for size in SIZES
    )
    (own / "README.md").write_text(f"words\n{marks}more words\n")
    assert runs_of(study, "small", sweeps) is None and not write("heterogeneity", "small", sweeps, own)
    for alpha in (1, 10):
        for seed in (0, 1):
            short_run(sweeps / "heterogeneity" / f"{alpha}_{seed}", f"seed={seed}", f"partition.alpha={alpha}")
    assert not write("heterogeneity", "full", sweeps, own)
    assert write("heterogeneity", "small", sweeps, own)
    text = (own / "README.md").read_text()
    rows = re.findall(r"^\| (1|10) \| ([\d.]+) ± ([\d.]+) \|", text, re.MULTILINE)
    accuracies = [json.loads(path.read_text())["accuracy"] for path in sorted(sweeps.rglob("summary.json"))]
    means = {"1": np.mean(accuracies[2:]), "10": np.mean(accuracies[:2])}  # 10_0 sorts before 1_0
    assert {name: float(mean) for name, mean, _ in rows} == pytest.approx(means, abs=5e-4)
    assert "4 runs on " in text and text.startswith("words\n") and text.endswith("more words\n")
    table = pd.read_csv(own / "results.csv")
    assert table["accuracy"].tolist() == pytest.approx(accuracies[2:] + accuracies[:2])
    assert table["partition.alpha"].tolist() == [1, 1, 10, 10] and table["seed"].tolist() == [0, 1, 0, 1]
    assert [path.name for path in (own / "figures").iterdir()] == ["small_table.png"]
    again = results(study, runs_of(study, "small", sweeps), "full", own / "results.csv")
    assert again["size"].tolist() == ["small"] * 4 + ["full"] * 4  # the other size's lines stay
    short_run(sweeps / "heterogeneity" / "2", "seed=0", "partition.alpha=1", "client.batch_size=5")
    with pytest.raises(FedsimError, match=r"differ in client\.batch_size too"):
        runs_of(study, "small", sweeps)


@pytest.mark.parametrize(
    ("size", "populations"), [("small", ["10", "100", "1,000"]), ("full", ["10", "100", "1,000", "10,000"])]
)
def test_the_readme_shows_that_a_promise_costs_less_in_larger_populations(size: str, populations: list[str]) -> None:
    found = stated(FOLDER / "privacy_vs_clients" / "README.md", size)
    assert list(found) == populations and len(found["10"]) == 5
    for column in (name for name in found["10"] if name != "no privacy"):
        for fewer, more in pairwise(found[clients][column] for clients in populations):
            assert fewer.mean + fewer.half < more.mean - more.half


def test_the_readme_shows_that_error_feedback_gives_back_at_least_half_of_what_top_k_loses() -> None:
    losses = stated(FOLDER / "error_feedback" / "README.md", "small", "cost")
    lossy = {float(keep): of for keep, of in losses.items() if of["error feedback false"].mean > 0.05}
    assert lossy
    for of in lossy.values():  # at the sparsest of them, and at the others
        assert of["error feedback true"].mean <= of["error feedback false"].mean / 2


def test_the_readme_shows_that_fedbuff_gets_there_in_less_simulated_time() -> None:
    readme = FOLDER / "time_to_accuracy" / "README.md"
    compared, found = stated(readme, "small", "cost")["FedBuff"], stated(readme, "small")
    share, less = (compared[f"always there, {what}"] for what in ("simulated seconds to the target", "test accuracy"))
    assert share.mean + share.half < 1 and less.mean - less.half <= 0
    assert (
        found["FedBuff"]["always there, test accuracy"].mean
        >= found["wait for all"]["always there, test accuracy"].mean
    )


# The real thing


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_the_table_is_reproduced_at_the_small_size(study: str, tmp_path: Path) -> None:
    for command in (one for one in commands(study) if "size=small" in one):
        name = next(one for one in command if one.startswith("+experiment=")).partition("=")[2]
        where = f"hydra.sweep.dir={tmp_path / name}"
        subprocess.run([sys.executable, "-m", "fedsim", *command, where], check=True, timeout=3600)
    promised, runs = stated(FOLDER / study / "README.md", "small"), runs_of(STUDIES[study], "small", tmp_path)
    assert promised and runs is not None
    found = grid_of(STUDIES[study], runs)
    assert {row: set(of) for row, of in found.items()} == {row: set(of) for row, of in promised.items()}
    outside = [
        f"{row}, {column}: {found[row][column]}, stated {mean}"
        for row, of_row in promised.items()
        for column, mean in of_row.items()
        if abs(found[row][column].mean - mean.mean)
        > max(mean.half or 0.0, ROUNDING) + 0.5 * 10**-mean.digits  # as far as it was written
    ]
    assert outside == []
