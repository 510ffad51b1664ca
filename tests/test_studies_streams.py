"""Studies of drift: rows told apart by several keys, curves with the drift's rounds, and what the READMEs promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_devices import with_columns
from fake_study import edit, make_study, studied
from helpers import config, run_into

from experiments.drift_recovery import SHARED, with_shared_level
from experiments.studies import FOLDER
from experiments.study_list import STUDIES
from experiments.study_tables import costs_of, grid_of, markdown, stated
from fedsim.streams.regret import recoveries
from fedsim.studies.figures.drifting import prequential_curves
from fedsim.studies.figures.style import LOOKS
from fedsim.studies.report import write_study

KINDS = ("sudden", "recurring")


def streamed(rows: list[tuple[str, str, str, int, float, float]]) -> pd.DataFrame:
    """Runs of the study (strategy, response, memory, seed, right of what came, rounds to recover) as the store gives them."""
    names = ["strategy", "response", "config.streams.memory", "seed", "cumulative_accuracy", "streams.recovery_rounds"]
    frame = pd.DataFrame(rows, columns=names)
    parts = {
        "config.strategy._target_": "fedsim.algorithms." + frame["strategy"],
        "config.response._target_": "fedsim.streams.responses." + frame["response"],
        "config.drift._target_": "fedsim.streams.schedules.Sudden",
        "streams.regret_offline_each": 0.5,
        SHARED: frame["streams.recovery_rounds"] - 1,
    }
    return frame.assign(**parts)


def test_rows_are_told_apart_by_every_key_within_them_and_compared_seed_by_seed() -> None:
    methods = {
        ("fedavg", "NoResponse", "window"): (20.0, 22.0, 24.0),
        ("fedavg", "Boost", "window"): (10.0, 11.0, 15.0),
        ("fedavg", "NoResponse", "reservoir"): (31.0, 31.0, 31.0),
        ("fedavgm", "NoResponse", "window"): (25.0, 25.0, 25.0),
    }
    rows = [(*method, seed, 0.6, took[seed]) for method, took in methods.items() for seed in range(3)]
    study = STUDIES["drift"]
    lines = markdown(study, grid_of(study, streamed(rows))).splitlines()
    told = ("accuracy on what comes next", "rounds to FedAvg's accuracy", "rounds to its own", "regret an example")
    assert lines[0] == f"| strategy | {' | '.join(f'sudden, {one}' for one in told)} |"
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert names == ["FedAvg", "FedAvg, reservoir", "FedAvg, boost", "FedAvgM"]
    sooner = costs_of(study, streamed(rows))["FedAvg, boost"]["sudden, rounds to its own"]
    assert sooner.mean == pytest.approx((10 + 11 + 9) / 3)


@pytest.fixture
def drifted(tmp_path: Path) -> Path:
    """Two responses, two kinds of drift, two seeds."""
    responses = [{"_target_": f"fedsim.streams.responses.{name}"} for name in ("NoResponse", "Boost")]
    drifts = [{"_target_": f"fedsim.streams.schedules.{name.title()}"} for name in KINDS]
    folder = make_study(tmp_path / "sweep", {"response": responses, "drift": drifts}, seeds=(0, 1))
    for place, run in enumerate(sorted(folder.iterdir())):
        table = pq.read_table(run / "rounds.parquet")
        accuracy = 0.5 + 0.01 * place + 0.001 * np.arange(table.num_rows)
        pq.write_table(with_columns(table, {"prequential_accuracy": accuracy}), run / "rounds.parquet")
        recurring = json.loads((run / "summary.json").read_text())["config"]["drift"]["_target_"].endswith("Recurring")
        events = [{"round": round} for round in ((10, 20) if recurring else (10,))]
        edit(run, streams={"drift": events, "recovery_rounds": 5.0}, prequential_accuracy=float(accuracy[-1]))
    return folder


def test_a_panel_a_kind_of_drift_with_its_rounds(drifted: Path) -> None:
    with LOOKS["screen"].installed():
        figure = prequential_curves(studied(drifted), LOOKS["screen"])
    assert figure is not None
    marks = {
        axes.get_title(loc="left") or axes.get_title(): sorted(
            int(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 2
        )
        for axes in figure.axes
    }
    assert sorted(marks.values()) == [[10], [10, 20]]
    assert all(len([line for line in axes.lines if len(line.get_xdata()) > 2]) == 2 for axes in figure.axes)


def test_a_study_without_streams_has_no_such_curves(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", {"client.lr": [0.1, 0.2]}, seeds=(0, 1))
    with LOOKS["screen"].installed():
        assert prequential_curves(studied(folder), LOOKS["screen"]) is None


def test_the_studys_page_shows_them(drifted: Path, tmp_path: Path) -> None:
    page = write_study([drifted], tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "prequential_curves.png").is_file()
    assert "Rounds to recover" in page.read_text()


METHODS = {
    "FedAvg": (),
    "boost": ("response=boost",),
    "AdaGrad-Norm": ("strategy=adagrad_norm", "strategy.decay=0.9", "client.lr=1.0"),
}


def test_methods_are_timed_to_the_accuracy_that_plain_fedavg_had() -> None:
    """By hand: FedAvg at 0.7 falls at round 11 and is back at 0.7 after 8 rounds; one at 0.9 is there after 7."""
    plain, better = [0.7] * 10 + [0.1] * 4 + [0.7] * 12, [0.9] * 10 + [0.1] * 4 + [0.9] * 12
    never = [0.9] * 10 + [0.1] * 16
    series = {"plain": plain, "better": better, "never": never}
    rounds = pd.DataFrame(
        [(run, r + 1, one) for run, of in series.items() for r, one in enumerate(of)],
        columns=["run", "round", "round_accuracy"],
    )
    runs = pd.DataFrame({"run": list(series), "seed": 0, "streams.drift": '[{"round": 11}]'})
    runs["config.strategy._target_"] = ["fedsim.algorithms.fedavg", *["fedsim.algorithms.ewc"] * 2]
    runs["config.response._target_"] = "fedsim.streams.responses.NoResponse"
    runs["config.drift._target_"], runs["config.streams.memory"] = "fedsim.streams.schedules.Sudden", "window"
    found = dict(zip(series, with_shared_level(runs, rounds)[SHARED], strict=True))
    assert found == {"plain": 8, "better": 7, "never": 16}
    alone = with_shared_level(runs[runs["run"] != "plain"].reset_index(drop=True), rounds)
    assert alone[SHARED].isna().all()


def test_the_readme_shows_two_methods_that_are_back_sooner_than_plain_fedavg() -> None:
    sooner = stated(FOLDER / "drift" / "README.md", "small", "cost")
    ahead = [name for name, of in sooner.items() if of["sudden, rounds to FedAvg's accuracy"].mean > 0]
    assert len(ahead) >= 2 and {"FedAvg, boost", "AdaGrad-Norm"} <= set(ahead)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_after_a_sudden_swap_of_labels_two_methods_are_back_in_fewer_rounds_than_fedavg(tmp_path: Path) -> None:
    """Of the study's small size, each of three seeds by itself; accuracy falls, and the detector sees it within five rounds."""
    for seed in range(3):
        accuracy = {}
        for name, overrides in METHODS.items():
            small = ("+experiment=drift", "size=small", "drift=sudden", "evaluation.regret=[]", "evaluation.every=60")
            cfg = config(*small, *overrides, f"seed={seed}", "device=cpu", "grid=inprocess")
            summary = run_into(tmp_path / f"{name}_{seed}", cfg)
            accuracy[name] = pd.read_parquet(tmp_path / f"{name}_{seed}" / "rounds.parquet")[
                "round_accuracy"
            ].to_numpy()
            assert accuracy[name][29:31].mean() < accuracy[name][24:29].mean() - 0.3
            assert summary["streams"]["detection_delay"] < 5
        level = recoveries(accuracy["FedAvg"], [30])[0].level
        took = {name: recoveries(of, [30], level=level)[0].rounds for name, of in accuracy.items()}
        assert all(rounds is not None for rounds in took.values())
        assert took["boost"] < took["FedAvg"] and took["AdaGrad-Norm"] < took["FedAvg"]  # type: ignore[operator]
