"""The pictures, made from run folders with plausible numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_run import AUDIT, LEDGER, OF_EVERY_RUN, TEXT, make_private, make_run, names, pixels

from fedsim.results.finished import Run, read_run, tenths
from fedsim.results.plots import DRAWINGS, write_plots
from fedsim.rng import numpy_generator
from fedsim.training.evaluation import across_clients


def test_a_thousand_clients_and_text_symbols_are_drawn_as_a_heat_map(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=1000, classes=tuple(TEXT), task="next_token", rounds=20, every=5)
    assert names(write_plots(folder)) == list(OF_EVERY_RUN)
    figure = DRAWINGS["client_classes"](read_run(folder))
    assert figure is not None
    axes = figure.axes[0]
    assert len(axes.images) == 1 and axes.images[0].get_array().shape[0] == 83
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert len(labels) == 83 and "␣" in labels and "↵" in labels and "$" in labels
    share = axes.images[0].get_array().filled(0)
    np.testing.assert_allclose(share.sum(0), 1)


def test_a_heat_map_of_few_clients_shows_each_clients_own_shares(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=150)
    run = read_run(folder)
    figure = DRAWINGS["client_classes"](run)
    assert figure is not None and run.class_counts is not None
    shown = figure.axes[0].images[0].get_array().filled(0).T
    expected = run.class_counts / run.class_counts.sum(1, keepdims=True)
    np.testing.assert_allclose(np.sort(shown.round(9), 0), np.sort(expected.round(9), 0))


def test_regression_leaves_out_every_picture_of_accuracy_and_classes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", task="regression", clients=30)
    assert names(write_plots(folder)) == ["learning_curve", "participation", "traffic"]
    figure = DRAWINGS["learning_curve"](read_run(folder))
    assert figure is not None and [axes.get_ylabel() for axes in figure.axes] == ["loss"]


def test_missing_evaluations_are_gaps_and_never_zeros(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", every=10, federated=False)
    assert "client_accuracy" not in names(write_plots(folder))
    figure = DRAWINGS["learning_curve"](read_run(folder))
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [10, 20, 30, 40, 50]
    assert min(line.get_ydata()) > 0.1 and not figure.axes[0].collections


def test_a_picture_that_no_longer_has_numbers_is_removed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1, clients=10)
    (folder / "plots").mkdir()
    (folder / "plots" / "learning_curve.png").write_bytes(b"old")
    write_plots(folder)
    assert not (folder / "plots" / "learning_curve.png").exists()
    assert {path.suffix for path in (folder / "plots").iterdir()} == {".png"}


def test_plots_leave_matplotlib_settings_alone_and_start_no_pyplot(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = make_run(tmp_path / "run", clients=12, rounds=5)
    code = (
        "import sys, pathlib, fedsim.results.plots as p; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; matplotlib.rcParams['font.size'] = 7\n"
        f"p.write_plots(pathlib.Path({str(folder)!r})); assert matplotlib.rcParams['font.size'] == 7\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_users_are_named_below_their_columns(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", clients=5, task="next_token", rounds=2))
    figure = DRAWINGS["client_classes"](run)
    assert figure is not None
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert sorted(shown) == [f"user {client}" for client in range(5)]


def test_the_tenth_of_the_report_is_that_of_the_summary() -> None:
    for clients in (1, 9, 10, 11, 94, 99, 100):
        values = numpy_generator(0, 0, clients, "tenths").uniform(size=clients)
        expected = across_clients(values.tolist())
        assert tenths(values) == (expected["worst10"], expected["best10"])


def labels(run: Run) -> list[tuple[str, str]]:
    """(x, y) of the panels of the privacy picture."""
    figure = DRAWINGS["privacy"](run)
    return [] if figure is None else [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


SPENT, BOUGHT = ("round", "ε spent so far"), ("ε spent so far", "accuracy, test rows")
OWN, NORM = ("ε that a client spent in all", "clients"), ("round", "clipping norm of the next round")


def test_a_private_run_shows_how_epsilon_was_spent_and_what_it_bought(tmp_path: Path) -> None:
    folder = make_private(make_run(tmp_path / "run", clients=30), LEDGER)
    (path,) = [path for path in write_plots(folder) if path.stem == "privacy"]
    ink = (pixels(path.read_bytes())[..., :3].min(-1) < 0.9).mean()
    assert 0.01 < ink < 0.9
    run = read_run(folder)
    assert labels(run) == [SPENT, BOUGHT]
    figure = DRAWINGS["privacy"](run)
    assert figure is not None
    over_rounds, bought = (axes.lines[0] for axes in figure.axes)
    np.testing.assert_array_equal(over_rounds.get_ydata(), run.rounds["epsilon"])
    np.testing.assert_array_equal(bought.get_xdata(), run.rounds["epsilon"])
    np.testing.assert_array_equal(bought.get_ydata(), run.rounds["accuracy"])
    assert figure.axes[0].lines[1].get_label() == "budget 8"
    assert "ε = 7.985 at δ = 1e-5 bought" in figure.get_suptitle() and "half of it" in figure.get_suptitle()


def test_clients_that_spent_differently_are_drawn(tmp_path: Path) -> None:
    run = read_run(make_private(make_run(tmp_path / "run", clients=30), LEDGER, alike=False))
    assert labels(run) == [SPENT, BOUGHT, OWN]
    figure = DRAWINGS["privacy"](run)
    assert figure is not None
    assert sum(bar.get_height() for bar in figure.axes[2].patches) == 30


def test_epsilon_stands_beside_the_rounds_that_were_judged(tmp_path: Path) -> None:
    run = read_run(make_private(make_run(tmp_path / "run", clients=30, every=10), LEDGER))
    run.rounds["epsilon"][19] = np.nan  # of a round that was judged
    figure = DRAWINGS["privacy"](run)
    assert figure is not None
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), run.rounds["epsilon"][[9, 29, 39, 49]])


def test_an_epsilon_spent_at_once_buys_nothing_bit_by_bit_and_a_moving_norm_is_drawn(tmp_path: Path) -> None:
    run = read_run(make_private(make_run(tmp_path / "run", clients=30), LEDGER))
    run.rounds["epsilon"][:] = 7.98412
    run.rounds["clip_norm"] = np.linspace(1, 2, 50)
    assert labels(run) == [SPENT, NORM]
    run.rounds["clip_norm"][:] = 1.0
    assert labels(run) == [SPENT]


def test_without_an_epsilon_there_is_no_picture_of_it(tmp_path: Path) -> None:
    folder = make_private(make_run(tmp_path / "run", clients=12, rounds=3), LEDGER | {"epsilon": None})
    (folder / "plots").mkdir()
    (folder / "plots" / "privacy.png").write_bytes(b"old")
    assert "privacy" not in names(write_plots(folder)) and not (folder / "plots" / "privacy.png").exists()


def test_a_refuted_epsilon_is_drawn_as_a_claim(tmp_path: Path) -> None:
    run = read_run(make_private(make_run(tmp_path / "run", clients=12), LEDGER, AUDIT | {"verdict": "FAIL"}))
    assert labels(run)[0] == ("round", "ε claimed so far")
    figure = DRAWINGS["privacy"](run)
    assert figure is not None and figure.get_suptitle() == "The audit refutes the claim of ε = 7.985"


def test_regression_shows_the_loss_that_an_epsilon_bought(tmp_path: Path) -> None:
    run = read_run(make_private(make_run(tmp_path / "run", task="regression", clients=30), LEDGER))
    assert labels(run) == [SPENT, ("ε spent so far", "loss, test rows")]
