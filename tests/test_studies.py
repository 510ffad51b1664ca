"""What a set of runs says: the axes that were swept, cells over seeds, intervals and tests, held against SciPy and pandas."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_study import FEDADAM, FEDAVG, GRID, NO_PRIVACY, edit, make_cell, make_study, studied
from scipy import stats

from fedsim.results.store import read
from fedsim.rng import numpy_generator
from fedsim.studies.comparisons import against_best, between_values, extremes
from fedsim.studies.figures.heat import heat_map
from fedsim.studies.figures.marks import spread
from fedsim.studies.figures.style import LOOKS
from fedsim.studies.names import BY_NAME, target_name
from fedsim.studies.statistics import half_width, holm, paired, pareto_front
from fedsim.studies.tables import differences
from fedsim.studies.varied import axes_of
from fedsim.studies.words import findings, notes


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 populations x 4 epsilons x 3 seeds."""
    return make_study(tmp_path_factory.mktemp("studies") / "grid", GRID)


@pytest.fixture(scope="module")
def strategies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 strategies x 2 alphas x 5 seeds, without privacy."""
    axes = {"strategy": [FEDAVG, FEDADAM], "partition.alpha": [0.1, 1.0], "privacy": [NO_PRIVACY]}
    return make_study(tmp_path_factory.mktemp("studies") / "strategies", axes, seeds=range(5))


def test_half_width_is_scipys_t_interval() -> None:
    values = numpy_generator(0, 0, 0, "test").normal(3, 2, 7)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    half = half_width(values.std(ddof=1), 7)
    assert values.mean() - half == pytest.approx(low) and values.mean() + half == pytest.approx(high)
    assert half_width(0.03, 3) == pytest.approx(
        4.302652729911275 * 0.03 / 3**0.5
    )  # a table's t of 2 degrees of freedom
    assert np.isnan(half_width([np.nan, 0.1], [1, 0])).all()


def test_paired_is_scipys_tests() -> None:
    random = numpy_generator(0, 0, 1, "test")
    first = random.normal(0.8, 0.02, 8)
    second = first - 0.01 + random.normal(0, 0.005, 8)
    found = paired(first, second)
    t = stats.ttest_rel(first, second)
    interval = t.confidence_interval()
    assert found.n == 8 and found.difference == pytest.approx((first - second).mean())
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.p_t == pytest.approx(t.pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(first, second).pvalue)


def test_paired_leaves_out_what_one_side_lacks_and_needs_two() -> None:
    gap = paired([0.9, np.nan, 0.7, 0.6], [0.8, 0.5, 0.5, np.nan])
    assert gap.n == 2 and gap.difference == pytest.approx(0.15)
    one = paired([0.9], [0.8])
    assert one.n == 1 and one.difference == pytest.approx(0.1) and np.isnan([one.low, one.p_t, one.p_wilcoxon]).all()
    none = paired([np.nan], [0.8])
    assert none.n == 0 and np.isnan(none.difference)
    same = paired([0.5, 0.6], [0.5, 0.6])
    assert (same.difference, same.p_t, same.p_wilcoxon) == (0.0, 1.0, 1.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    corrected = holm([0.02, np.nan, 0.01])
    assert corrected[[0, 2]].tolist() == pytest.approx([0.02, 0.02]) and np.isnan(corrected[1])


def test_pareto_front_against_the_definition() -> None:
    points = numpy_generator(0, 0, 2, "test").integers(0, 8, (60, 2)).astype(float)
    points[7] = np.nan
    front = pareto_front(points, (False, True))  # cost, gain
    for index, (cost, gain) in enumerate(points):
        beaten = any(
            (c <= cost and g >= gain) and (c < cost or g > gain) for c, g in points if np.isfinite(c) and np.isfinite(g)
        )
        assert front[index] == (index != 7 and not beaten)
    assert 0 < front.sum() < 30


def test_labels_keep_their_distance_and_their_order() -> None:
    wanted = np.array([0.1, 0.5, 0.5, 0.52, 0.9])
    placed = spread(wanted, 0.08)
    assert (np.diff(placed) >= 0.08 - 1e-12).all() and placed[[0, 4]].tolist() == pytest.approx([0.1, 0.9])
    assert placed[1:4].mean() == pytest.approx(wanted[1:4].mean())
    assert spread(np.array([0.99, 1.0]), 0.1).max() <= 1.0


def test_the_axes_are_what_was_swept(grid: Path) -> None:
    runs = read([grid]).runs
    axes = axes_of(runs).axes
    assert [(axis.key, axis.values, axis.numeric) for axis in axes] == [
        ("population.num_clients", tuple(GRID["population.num_clients"]), True),
        ("privacy.epsilon", tuple(GRID["privacy.epsilon"]), True),
    ]
    assert "seed" not in axes_of(runs).ignored and axes_of(runs).shared["partition.alpha"] == 0.5


def test_a_part_that_is_exchanged_is_one_axis(strategies: Path) -> None:
    first, second = axes_of(read([strategies]).runs).axes
    assert (first.key, first.values) == ("strategy._target_", ("fedavg", "fedadam"))
    assert set(first.follows) == {"strategy.server_lr", "strategy.beta_1"}
    assert second.key == "partition.alpha" and not second.follows


def test_a_pair_that_is_swept_together_is_one_axis(tmp_path: Path) -> None:
    for clients, epsilon in ((10, 8.0), (100, 4.0), (1000, 1.0)):
        make_study(tmp_path / str(clients), {"population.num_clients": [clients], "privacy.epsilon": [epsilon]})
    (axis,) = axes_of(read([tmp_path]).runs).axes
    assert axis.key == "population.num_clients" and axis.follows == ("privacy.epsilon",)


def test_a_random_search_keeps_every_axis(tmp_path: Path) -> None:
    for number in range(9):
        make_cell(tmp_path / str(number), {"client.lr": 0.01 * (number + 1), "privacy.epsilon": 9.0 - number}, 0)
    assert [axis.key for axis in axes_of(read([tmp_path]).runs).axes] == ["privacy.epsilon", "client.lr"]
    with LOOKS["screen"].installed():
        figure = heat_map(studied(tmp_path), LOOKS["screen"])
    assert figure is not None and len(figure.axes[0].collections[0].get_offsets()) == 9  # a point a run, and no map


def test_where_it_ran_is_no_axis(tmp_path: Path) -> None:
    for number, workers in enumerate((1, 2, 4)):
        make_cell(tmp_path / str(number), {"grid.workers": workers}, number)
    study = studied(tmp_path)
    assert study.axes == () and study.varied.ignored == {"grid.workers": (1, 2, 4)}
    assert study.most_seeds == 3 and ["grid.workers", "1, 2, 4", "taken to change no result"] in differences(study).rows


def test_without_a_mechanism_there_is_no_epsilon(tmp_path: Path) -> None:
    """privacy=none beside an experiment's epsilon: the key is there, and nothing reads it."""
    make_study(tmp_path / "with", {"privacy.epsilon": [1.0, 8.0]})
    make_study(tmp_path / "without", {"privacy": [NO_PRIVACY | {"epsilon": 8.0, "clip_norm": 0.15}]})
    for path in (tmp_path / "without").glob("*/summary.json"):
        edit(path.parent, epsilon=None)
    study = studied(tmp_path)
    (axis,) = study.axes
    assert axis.values == (1.0, 8.0, None) and axis.phrase(None) == "no privacy"
    assert [study.label(cell) for cell in study.cells.index][2] == "no privacy"
    assert np.isnan(study.statistic(BY_NAME["epsilon"], "mean")[2])


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("fedsim.privacy.UserPrivacy", "user"),
        ("fedsim.privacy.NoPrivacy", "none"),
        ("fedsim.data.sources.watch.load", "watch"),
        ("fedsim.algorithms.fedadam", "fedadam"),
        ("my.Net", "Net"),
    ],
)
def test_names_of_parts(target: str, name: str) -> None:
    assert target_name(target) == name


def test_values_of_an_axis_are_compared_by_seed(strategies: Path) -> None:
    study = studied(strategies)
    axis = study.axis("strategy._target_")
    assert axis is not None
    (tested,) = between_values(study, axis)
    means = study.runs.groupby(["strategy._target_", "seed"])["accuracy"].mean()  # over the two alphas
    t = stats.ttest_rel(means["fedavg"], means["fedadam"])
    assert (tested.first, tested.second, tested.found.n) == ("fedavg", "fedadam", 5)
    assert tested.p_t == pytest.approx(t.pvalue) and tested.settled
    assert tested.p_wilcoxon == pytest.approx(stats.wilcoxon(means["fedavg"], means["fedadam"]).pvalue)
    assert "the widest: fedadam is" in " ".join(findings(study))


def test_every_cell_is_compared_with_the_best(grid: Path) -> None:
    study = studied(grid)
    means = study.runs.groupby("cell")["accuracy"].mean()
    tests = against_best(study)
    assert len(tests) == 11 and {one.first for one in tests} == {means.idxmax()}
    assert [one.second for one in tests] == means.sort_values(ascending=False).index[1:].tolist()
    wide = study.runs.pivot_table(index="seed", columns="cell", values="accuracy")
    raw = [stats.ttest_rel(wide[means.idxmax()], wide[one.second]).pvalue for one in tests]
    np.testing.assert_allclose([one.p_t for one in tests], holm(raw))


def test_the_ends_of_an_axis_are_compared(grid: Path) -> None:
    study = studied(grid)
    axis = study.axis("population.num_clients")
    assert axis is not None
    found = extremes(study, axis)
    assert found is not None
    by = study.runs.groupby(["population.num_clients", "seed"])["accuracy"].mean()
    assert found.found.difference == pytest.approx((by[1000] - by[10]).mean())


def test_a_run_twice_counts_once(tmp_path: Path) -> None:
    make_study(tmp_path, {"privacy.epsilon": [1.0]}, seeds=(0, 1))
    once = studied(tmp_path)
    shutil.copytree(tmp_path / "0_0", tmp_path / "again")
    twice = studied(tmp_path)
    assert twice.repeated == 1 and twice.seeds.tolist() == [2]
    for name in ("mean", "std", "low", "high", "n"):
        np.testing.assert_allclose(twice.statistic(twice.measure, name), once.statistic(once.measure, name))
    assert any("count once" in words for words in notes(twice))
