"""Correlated noise against dense linear algebra, its sensitivity against every pattern, its account against other accounts."""

import itertools

import numpy as np
import pytest
import torch
from dp_accounting import NeighboringRelation, SingleEpochTreeAggregationDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy import stats
from scipy.sparse import csc_array

from fedsim.privacy.accounting import solve, spend
from fedsim.privacy.banded import BandedNoise, sqrt_coefficients
from fedsim.privacy.correlated import MOST_BANDS, make_correlated_noise
from fedsim.privacy.evidence import gaussian_mu_lower_bound
from fedsim.privacy.matrix import MatrixReleases
from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.sensitivity import heaviest, sensitivities
from fedsim.privacy.tree import TreeNoise
from fedsim.rng import SERVER
from fedsim.types import FedsimError, MissingPackageError

LEVEL = 1e-6
LIKE = {"weight": torch.zeros(100, 120), "bias": torch.zeros(3)}
SEEDED = NoiseSource(7)
SECURE = NoiseSource(7, secure=True)

PARTS = {
    "one tree": {"kind": "tree", "rounds": 13},
    "restarted trees": {"kind": "tree", "rounds": 13, "restart": 5},
    "a tree of one round": {"kind": "tree", "rounds": 4, "restart": 1},
    "bands": {"kind": "banded", "rounds": 12, "bands": 4},
    "as many bands as rounds": {"kind": "banded", "rounds": 6, "bands": 6},
    "one band": {"kind": "banded", "rounds": 5, "bands": 1},
}
each_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)


def flat(arrays):
    return torch.cat([array.flatten() for array in arrays.values()]).double().numpy()


def rows(noise, std=1.0, like=LIKE):
    """(rounds, coordinates) what each round adds."""
    return np.array([flat(noise.noise(like, std, t + 1)) for t in range(noise.rounds)])


def patterns(rounds, most, separation):
    """Every set of at most `most` rounds, `separation` apart."""
    for size in range(most + 1):
        for chosen in itertools.combinations(range(rounds), size):
            if all(b - a >= separation for a, b in itertools.pairwise(chosen)):
                yield list(chosen)


def worst(matrix, most, separation):
    """The largest norm of a pattern's summed columns, and the pattern."""
    norms = [(np.linalg.norm(matrix[:, p].sum(1)), p) for p in patterns(len(matrix), most, separation)]
    return max(norms)


def nodes_of_prefix(t):
    """The dyadic intervals (from, to] that tile (0, t], largest first."""
    start, tiles = 0, []
    while start < t:
        size = 1 << ((t - start).bit_length() - 1)
        tiles.append((start, start + size))
        start += size
    return tiles


@each_part
@pytest.mark.parametrize("source", [SEEDED, SECURE], ids=["seeded", "secure"])
def test_rows_have_the_covariance_of_the_inverse_matrix(part, source):
    std = 0.7
    noise = make_correlated_noise(**part, source=source)
    dense = noise.matrix().toarray()
    expected = std**2 * np.linalg.inv(dense.T @ dense)
    drawn = rows(noise, std)
    coordinates = drawn.shape[1]
    deviation = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / coordinates)
    scores = abs(drawn @ drawn.T / coordinates - expected) / deviation
    assert scores.max() < stats.norm.isf(LEVEL / 2 / scores.size)


@each_part
def test_rows_are_the_solution_of_the_dense_system(part):
    noise = make_correlated_noise(**part, source=SEEDED)
    fresh = np.array([flat(SEEDED.gaussian(LIKE, 1.0, t + 1, SERVER, "noise")) for t in range(noise.rounds)])
    dense = noise.matrix().toarray()
    assert np.array_equal(dense, np.tril(dense))
    np.testing.assert_allclose(rows(noise, 2.5), 2.5 * np.linalg.solve(dense, fresh), atol=1e-4)


@pytest.mark.parametrize("restart", [None, 8, 6])
def test_prefix_sums_of_a_tree_carry_the_noise_of_its_nodes(restart):
    rounds = 21
    noise = make_correlated_noise("tree", SEEDED, rounds=rounds, restart=restart)
    size = restart or rounds
    tiles = [
        {(tree, node) for tree in range(t // size) for node in nodes_of_prefix(size)}
        | {(t // size, node) for node in nodes_of_prefix(t % size)}
        for t in range(1, rounds + 1)
    ]
    shared = np.array([[len(a & b) for a in tiles] for b in tiles])
    decoder = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(noise.matrix().toarray())
    np.testing.assert_allclose(decoder @ decoder.T, shared, atol=1e-9)

    prefix = rows(noise, 3.0).cumsum(axis=0)
    for t in (1, 3, 8, 15, 16, 21):
        total = float((prefix[t - 1] ** 2).sum()) / 9
        chance = stats.chi2.cdf(total / shared[t - 1, t - 1], prefix.shape[1])
        assert LEVEL / 2 < chance < 1 - LEVEL / 2


def test_a_tree_keeps_no_more_than_its_live_nodes():
    noise = make_correlated_noise("tree", SEEDED, rounds=40, restart=32)
    for t in range(1, 41):
        noise.noise({"one": torch.zeros(1)}, 1.0, t)
        assert len(noise.memory) == (t if t <= 32 else t - 32).bit_count()


CASES = [(8, 3, 1), (8, 8, 1), (11, 4, 2), (12, 3, 4), (13, 2, 5), (9, 1, 3), (12, 4, 3)]


@pytest.mark.parametrize(("rounds", "most", "separation"), CASES)
@pytest.mark.parametrize("restart", [None, 1, 4, 5, 7])
def test_the_worst_pattern_moves_a_tree_just_as_far_as_its_sensitivity(rounds, most, separation, restart):
    noise = make_correlated_noise(
        "tree", SEEDED, rounds=rounds, max_participations=most, min_separation=separation, restart=restart
    )
    dense = noise.matrix().toarray()
    expected = [worst(dense, count + 1, separation)[0] for count in range(noise.max_participations)]
    np.testing.assert_allclose(noise.sensitivities(noise.max_participations), expected, rtol=1e-12)
    bound = sensitivities(noise.matrix(), noise.max_participations, separation)  # what very long runs fall back on
    assert (expected <= bound + 1e-9).all() and (bound <= np.array(expected) * 1.2).all()


def test_a_long_run_falls_back_on_the_bound(monkeypatch):
    noise = make_correlated_noise("tree", SEEDED, rounds=100, restart=32, min_separation=10)
    exact = noise.sensitivity()
    monkeypatch.setattr("fedsim.privacy.tree.MOST_WORK", 1)
    assert exact < noise.sensitivity() == sensitivities(noise.matrix(), 10, 10)[-1] < 1.1 * exact


@pytest.mark.parametrize(("rounds", "most", "separation"), CASES)
@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_no_pattern_moves_a_banded_matrix_further_than_its_sensitivity(rounds, most, separation, bands):
    noise = make_correlated_noise(
        "banded", SEEDED, rounds=rounds, max_participations=most, min_separation=separation, bands=bands
    )
    true, _ = worst(noise.matrix().toarray(), most, separation)
    assert true <= noise.sensitivity() + 1e-9
    assert noise.sensitivity() <= true * 1.15
    if separation >= bands:
        assert noise.sensitivity() == pytest.approx(min(most, -(-rounds // separation)) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_sensitivity_of_any_matrix_bounds_every_pattern_of_any_updates(seed):
    rng = np.random.default_rng(seed)
    dense = np.tril(rng.normal(size=(9, 9)))  # of both signs: the updates may point where they add up
    bounds = sensitivities(csc_array(dense), 3, 2)
    for most in (1, 2, 3):
        for pattern in patterns(9, most, 2):
            updates = rng.normal(size=(len(pattern), 4))
            signs = rng.choice([-1.0, 1.0], size=(len(pattern), 1)) * np.eye(4)[:1]
            for u in (updates / np.linalg.norm(updates, axis=1, keepdims=True), signs):
                assert np.linalg.norm(dense[:, pattern] @ u) <= bounds[most - 1] + 1e-9
    assert bounds[0] == pytest.approx(np.linalg.norm(dense, axis=0).max())


def test_columns_are_taken_in_blocks_without_a_change(monkeypatch):
    matrix = make_correlated_noise("tree", SEEDED, rounds=50).matrix()
    whole = sensitivities(matrix, 4, 7)
    monkeypatch.setattr("fedsim.privacy.sensitivity.COLUMNS", 9)
    assert np.array_equal(whole, sensitivities(matrix, 4, 7))


def test_the_heaviest_pattern_is_found():
    values = np.random.default_rng(2).random(12)
    for most, separation in itertools.product((1, 3, 5), (1, 2, 4, 12, 20)):
        expected = [max(values[p].sum() for p in patterns(12, m + 1, separation)) for m in range(most)]
        np.testing.assert_allclose(heaviest(values, most, separation), expected)


def test_more_participations_cost_more_and_none_nothing():
    noise = make_correlated_noise("tree", SEEDED, rounds=32, min_separation=8)
    assert noise.max_participations == 4
    costs = [noise.sensitivity(count) for count in range(6)]
    assert costs[0] == 0 and all(a < b for a, b in itertools.pairwise(costs[:5]))
    assert costs[1] == pytest.approx(6**0.5)  # round 1 is in a node of each of the six levels
    assert costs[5] == costs[4] == noise.mechanism().sensitivity


@pytest.mark.parametrize("rounds", [8, 64])
def test_one_participation_in_a_tree_agrees_with_the_tree_event(rounds):
    z, delta = 3.0, 1e-5
    noise = make_correlated_noise("tree", SEEDED, rounds=rounds, max_participations=1)
    mechanism = MatrixReleases(z, noise.mechanism().sensitivity)
    spent = spend(mechanism, 1, delta)
    exact, renyi = spent.by["pld"], spent.by["rdp"]
    zeroed = RdpAccountant(
        neighboring_relation=NeighboringRelation.REPLACE_SPECIAL
    )  # by zeros, as MatrixReleases has it
    tree = zeroed.compose(SingleEpochTreeAggregationDpEvent(z, rounds)).get_epsilon(delta)
    assert renyi == pytest.approx(tree, rel=1e-6)
    assert 0.85 * tree < exact < tree


def test_two_runs_cost_what_two_releases_do():
    mechanism = MatrixReleases(4.0, 2.0)
    double, wider = spend(mechanism, 2, 1e-5).epsilon, spend(MatrixReleases(4.0, 2.0 * 2**0.5), 1, 1e-5).epsilon
    assert double == pytest.approx(wider, rel=1e-3)


def test_noise_is_solved_for_the_whole_run():
    """Of one participation a tree of 8 rounds is 4 nodes: a plain Gaussian release wants half the noise."""
    tree = make_correlated_noise("tree", SEEDED, rounds=8, max_participations=1).mechanism()
    plain = make_correlated_noise("banded", SEEDED, rounds=8, max_participations=1, bands=1).mechanism()
    assert solve(tree, 1, 2.0, 1e-5) == pytest.approx(2 * solve(plain, 1, 2.0, 1e-5), rel=2e-3)


@pytest.mark.parametrize(
    "part",
    [
        {"kind": "tree", "rounds": 16, "restart": 8, "min_separation": 4},
        {"kind": "banded", "rounds": 12, "bands": 4, "min_separation": 4},
    ],
    ids=["tree", "banded"],
)
def test_what_a_run_shows_of_the_worst_client_is_no_more_than_promised(part):
    noise = make_correlated_noise(**part, source=SECURE)
    dense = noise.matrix().toarray()
    _, pattern = worst(dense, noise.max_participations, noise.min_separation)
    shift = dense[:, pattern].sum(1)
    many = {"release": torch.zeros(80_000)}  # each coordinate is a release of its own
    z = 0.9 * noise.sensitivity()

    def scores(present, z):
        released = rows(make_correlated_noise(**part, source=SECURE), z, many)
        released[pattern] += present
        return shift @ dense @ released / np.linalg.norm(shift)

    promised = noise.sensitivity() / z
    assert 0.9 * promised < gaussian_mu_lower_bound(scores(1, z), scores(0, z), 1 - LEVEL) <= promised
    assert gaussian_mu_lower_bound(scores(1, 0.8 * z), scores(0, 0.8 * z), 1 - LEVEL) > promised


@each_part
@pytest.mark.parametrize("source", [SEEDED, SECURE], ids=["seeded", "secure"])
def test_a_run_goes_on_from_its_state(part, source):
    noise = make_correlated_noise(**part, source=source)
    half = noise.rounds // 2
    before = [flat(noise.noise(LIKE, 1.5, t + 1)) for t in range(half)]
    state = noise.state()
    again = make_correlated_noise(**part, source=source)
    again.load_state(state)
    after = [flat(again.noise(LIKE, 1.5, t + 1)) for t in range(half, noise.rounds)]
    if not source.secure:
        others = [flat(noise.noise(LIKE, 1.5, t + 1)) for t in range(half, noise.rounds)]
        np.testing.assert_array_equal(after, others)
    fresh = noise.matrix().toarray() @ np.array(before + after) / 1.5  # independent again
    scores = abs(fresh @ fresh.T / fresh.shape[1] - np.eye(noise.rounds)) * fresh.shape[1] ** 0.5
    assert scores.max() < stats.norm.isf(LEVEL / 2 / scores.size) * 2**0.5


def test_a_state_of_another_length_is_refused():
    state = make_correlated_noise("tree", SEEDED, rounds=8).state()
    with pytest.raises(FedsimError, match="laid out for 8 rounds"):
        make_correlated_noise("tree", SEEDED, rounds=9).load_state(state)


@each_part
def test_rounds_come_in_order_and_of_one_deviation(part):
    noise = make_correlated_noise(**part, source=SEEDED)
    with pytest.raises(ValueError, match="round 2"):
        noise.noise(LIKE, 1.0, 2)
    noise.noise(LIKE, 1.0, 1)
    for std, round in ((1.0, 1), (2.0, 2)):
        with pytest.raises(ValueError, match="noise"):
            noise.noise(LIKE, std, round)
    for round in range(2, noise.rounds + 1):
        noise.noise(LIKE, 1.0, round)
    with pytest.raises(ValueError, match="of"):
        noise.noise(LIKE, 1.0, noise.rounds + 1)


def test_no_deviation_adds_nothing():
    assert not rows(make_correlated_noise("tree", SEEDED, rounds=5), 0.0).any()


def test_another_purpose_gives_other_noise():
    first = make_correlated_noise("tree", SEEDED, rounds=5).noise(LIKE, 1.0, 1, "noise")
    second = make_correlated_noise("tree", SEEDED, rounds=5).noise(LIKE, 1.0, 1, "noise 2")
    assert (flat(first) != flat(second)).mean() > 0.99


def test_the_square_root_squares_to_prefix_sums():
    cut = sqrt_coefficients(20)
    assert np.linalg.norm(cut) == pytest.approx(1)
    np.testing.assert_allclose(np.convolve(cut, cut)[:20] / cut[0] ** 2, np.ones(20))
    assert (np.diff(cut) < 0).all()


def error_of(noise):
    """Mean squared error of prefix sums for Z of standard deviation 1 and a single participation of norm 1."""
    decoder = np.tril(np.ones((noise.rounds, noise.rounds))) @ np.linalg.inv(noise.matrix().toarray())
    return (decoder**2).sum() / noise.rounds * noise.sensitivity(1) ** 2


def test_memory_pays():
    """Per unit of sensitivity, prefix sums err less with a tree than with fresh noise, and less yet with bands."""
    fresh, banded = (make_correlated_noise("banded", SEEDED, rounds=100, bands=bands) for bands in (1, 10))
    tree = make_correlated_noise("tree", SEEDED, rounds=100)
    assert error_of(banded) < error_of(tree) < error_of(fresh)
    assert error_of(banded) < error_of(fresh) / 5


def test_limits_that_are_not_given_follow_from_the_population():
    some = {"rounds": 40, "num_clients": 100, "cohort_size": 10}
    tree = make_correlated_noise("tree", SEEDED, **some)
    assert isinstance(tree, TreeNoise)
    assert (tree.min_separation, tree.max_participations, tree.restart) == (10, 4, 40)
    banded = make_correlated_noise("banded", SEEDED, **some)
    assert isinstance(banded, BandedNoise)
    assert (banded.min_separation, banded.max_participations, len(banded.coefficients)) == (10, 4, 10)
    many = make_correlated_noise("banded", SEEDED, rounds=40, num_clients=1000, cohort_size=10)
    assert (many.min_separation, many.max_participations, len(many.coefficients)) == (40, 1, MOST_BANDS)
    given = make_correlated_noise("banded", SEEDED, **some, max_participations=2, min_separation=5, bands=3)
    assert (given.min_separation, given.max_participations, len(given.coefficients)) == (5, 2, 3)
    with pytest.raises(FedsimError, match=r"privacy\.bands=41"):
        make_correlated_noise("banded", SEEDED, **some, bands=41)


def test_the_optimised_matrix_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax_privacy.matrix_factorization", None)
    with pytest.raises(MissingPackageError, match=r"fedsim-flower\[matrix\]"):
        make_correlated_noise("banded", SEEDED, rounds=10, bands=3, strategy_matrix="optimized")


@pytest.mark.parametrize(("rounds", "bands"), [(50, 5), (40, 12)])
def test_the_optimised_matrix_errs_less_and_has_the_sensitivity_that_jax_privacy_states(rounds, bands):
    factorization = pytest.importorskip("jax_privacy.matrix_factorization")
    from jax import numpy
    from jax_privacy.matrix_factorization import sensitivity

    made = {
        name: make_correlated_noise(
            "banded", SEEDED, rounds=rounds, bands=bands, min_separation=bands, strategy_matrix=name
        )
        for name in ("sqrt", "optimized")
    }
    assert error_of(made["optimized"]) < error_of(made["sqrt"])
    for noise in made.values():
        dense, most = noise.matrix().toarray(), noise.max_participations
        assert noise.sensitivity() == pytest.approx(sensitivity.get_sensitivity_banded(dense, bands, most), rel=1e-4)
        below = sensitivities(noise.matrix(), 4, bands - 2)[-1]
        theirs = sensitivity.get_min_sep_sensitivity_upper_bound(dense, bands - 2, 4)
        assert below == pytest.approx(theirs, rel=1e-4)
        assert below == pytest.approx(sensitivities(noise.matrix(), 4, bands - 2)[3])
    square = made["sqrt"].coefficients
    toeplitz = np.asarray(factorization.toeplitz.materialize_lower_triangular(square, rounds))
    exact = float(factorization.toeplitz.minsep_sensitivity_squared(square, 2, 3, rounds)) ** 0.5
    assert exact * (1 - 1e-5) <= sensitivities(csc_array(toeplitz), 3, 2)[-1] < 1.05 * exact
    drawn = rows(make_correlated_noise("banded", SEEDED, rounds=rounds, bands=bands))
    fresh = [flat(SEEDED.gaussian(LIKE, 1.0, t + 1, SERVER, "noise")) for t in range(rounds)]
    inverse = factorization.toeplitz.inverse_as_streaming_matrix(square, column_normalize_for_n=rounds)
    np.testing.assert_allclose(drawn, inverse @ numpy.asarray(np.array(fresh, dtype=np.float32)), atol=1e-3)
