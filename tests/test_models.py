"""The built-in models, and the weights that a run starts from."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from helpers import parts, same_bits, tiny_dataset
from safetensors.torch import save_file
from torch import nn

from fedsim import models
from fedsim.data.dataset import Dataset, Examples
from fedsim.models.build import build_model, load_initial_weights, mixing_layers, refuse_mixing
from fedsim.training.arrays import model_arrays
from fedsim.types import FedsimError

IMAGE, COLOUR = (1, 28, 28), (3, 32, 32)


RESNET_20 = (
    (3 * 16 * 9 + 32)  # the stem and its norm
    + 6 * (16 * 16 * 9 + 32)
    + (16 * 32 * 9 + 64 + 16 * 32) + 5 * (32 * 32 * 9 + 64)
    + (32 * 64 * 9 + 128 + 32 * 64) + 5 * (64 * 64 * 9 + 128)
    + (64 * 10 + 10)
)  # fmt: skip
TWO_LAYER_LSTM = 86 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + (256 * 86 + 86)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (models.Linear(IMAGE, 10), 7_850),
        (models.MLP(IMAGE, 10), 199_210),  # the 2NN of arXiv 1602.05629
        (models.CNN(IMAGE, 10), 1_663_370),  # its CNN
        (models.CNN(IMAGE, 10, channels=[16, 32], hidden=128), 215_370),
        (models.TanhCNN(IMAGE, 10), 26_010),  # arXiv 2011.11660
        (models.ResNet(IMAGE, 10), 77_562),
        (models.ResNet(COLOUR, 10, blocks=3), RESNET_20),
        (models.CharLSTM((80,), 86, embedding=8, hidden=256, layers=2), TWO_LAYER_LSTM),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_parameter_counts(model: nn.Module, parameters: int) -> None:
    assert count(model) == parameters


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (models.Linear, [IMAGE, COLOUR, (6,), (6, 128)]),
        (models.MLP, [IMAGE, COLOUR, (6,), (6, 128)]),
        (models.CNN, [IMAGE, COLOUR, (1, 8, 8), (2, 5, 7)]),
        (models.TanhCNN, [IMAGE, COLOUR, (1, 16, 17), (2, 19, 18)]),
        (models.CNN1d, [(6, 128), (1, 20)]),
        (models.ResNet, [IMAGE, COLOUR, (1, 8, 8)]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_shapes(make: type[nn.Module], shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        assert make(shape, 7)(torch.randn(3, *shape)).shape == (3, 7)


def test_lstm_gives_outputs_at_every_position_and_sees_no_future() -> None:
    model = models.CharLSTM((9,), 20, hidden=16)
    x = torch.randint(0, 20, (4, 9))
    y = model(x)
    assert y.shape == (4, 9, 20)
    changed = x.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(model(changed)[:, :5], y[:, :5])


def test_dropout_is_in_the_models_only_where_asked_for() -> None:
    for make, shape in ((models.MLP, IMAGE), (models.CNN, IMAGE), (models.CNN1d, (6, 128))):
        for dropout in (0.0, 0.3):
            found = [m.p for m in make(shape, 5, dropout=dropout).modules() if isinstance(m, nn.Dropout)]
            assert bool(found) == bool(dropout) and set(found) <= {dropout}


@pytest.mark.parametrize(
    ("make", "shape", "sentence"),
    [
        (models.CNN, (6,), "try model=mlp"),
        (models.CNN, (1, 3, 3), "at least 4x4"),
        (models.TanhCNN, (1, 15, 28), "at least 16x16"),
        (models.CNN1d, IMAGE, "try model=cnn"),
        (models.ResNet, (6, 128), "try model=mlp"),
        (models.CharLSTM, IMAGE, "try model=cnn"),
    ],
    ids=str,
)
def test_a_model_that_does_not_fit_the_data_says_which_does(make, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence):
        make(shape, 10)


def test_no_built_in_model_mixes_examples_and_batch_norm_is_refused() -> None:
    images = (models.MLP, models.CNN, models.TanhCNN, models.ResNet)
    for model in (*(make(IMAGE, 10) for make in images), models.CNN1d((6, 128), 7)):
        assert mixing_layers(model) == []
        refuse_mixing(model, "privacy=example")
    mixed = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4)))
    with pytest.raises(FedsimError, match=r"privacy=example cannot take BatchNorm \(1\.0\).*GroupNorm") as caught:
        refuse_mixing(mixed, "privacy=example")
    assert "\n" not in str(caught.value)


# Built for a dataset


def test_the_seed_names_the_initial_weights_and_nothing_else_does() -> None:
    dataset = tiny_dataset()
    torch.manual_seed(1)
    first = build_model(models.MLP, dataset, 5)
    state = torch.random.get_rng_state()
    again, other = build_model(models.MLP, dataset, 5), build_model(models.MLP, dataset, 6)
    assert same_bits(model_arrays(first), model_arrays(again)) and not same_bits(
        model_arrays(first), model_arrays(other)
    )
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_factory_gets_only_what_it_asks_for() -> None:
    assert isinstance(build_model(lambda: nn.Linear(6, 3), tiny_dataset(), 0), nn.Linear)
    assert build_model(lambda num_outputs: nn.Linear(6, num_outputs), tiny_dataset(), 0).out_features == 3
    seen: dict = {}
    build_model(lambda **offered: seen.update(offered) or nn.Linear(6, 3), tiny_dataset(), 0)
    assert seen == {"input_shape": (6,), "num_outputs": 3}


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (lambda: nn.Linear(5, 3), r"cannot take inputs of shape \(1, 6\)"),
        (lambda: nn.Linear(6, 4), r"outputs of shape \(1, 4\) where tiny needs \(1, 3\)"),
        (lambda: nn.Identity(), "without trainable parameters"),
        (lambda: 3, "int, not a torch.nn.Module"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused_in_one_sentence(factory, sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence) as caught:
        build_model(factory, tiny_dataset(), 0)
    assert "\n" not in str(caught.value)


def test_regression_needs_one_output() -> None:
    rows = Examples(torch.randn(8, 6), torch.randn(8))
    dataset = Dataset("heights", rows, rows, "regression", ())
    assert build_model(models.Linear, dataset, 0)(torch.randn(2, 6)).shape == (2, 1)


# Initial weights


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(8)
    return {name: torch.randn(array.shape) for name, array in models.Linear((6,), 3).state_dict().items()}


def saved(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)  # type: ignore[arg-type]
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "wrapped.pt"])
def test_a_run_starts_from_the_weights_of_a_file(name: str, tmp_path: Path, weights) -> None:
    path = saved(tmp_path / name, {"state_dict": weights} if name == "wrapped.pt" else weights)
    assert same_bits(parts(f"init.weights='{path}'").server.state.arrays, weights)
    assert not same_bits(parts().server.state.arrays, weights)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_partial_takes_what_fits_and_leaves_the_rest(name: str, tmp_path: Path) -> None:
    def body(num_outputs: int) -> nn.Module:
        return models.MLP((6,), num_outputs, hidden=[4])

    source, model = body(9), body(3)
    before = {n: a.clone() for n, a in model.state_dict().items()}
    path = saved(tmp_path / name, {**source.state_dict(), "extra": torch.ones(2)})
    with pytest.raises(FedsimError, match=r"does not fit the model at .*init\.partial=true"):
        load_initial_weights(model, path, partial=False)
    assert same_bits(model.state_dict(), before)
    load_initial_weights(model, path, partial=True)
    after = model.state_dict()
    assert torch.equal(after["1.weight"], source.state_dict()["1.weight"]) and torch.equal(
        after["3.weight"], before["3.weight"]
    )


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: {**w, "1.bias": torch.full((3,), float("nan"))}, "NaN or Inf"),
        (lambda w: {**w, "1.bias": torch.full((3,), float("inf"))}, "NaN or Inf"),
        (lambda w: {"other": torch.ones(3)}, "does not fit|no array that fits"),
        (lambda w: [1, 2], "not a state dict"),
        (lambda w: {"1.bias": 3}, "not a state dict"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(
    change, sentence: str, partial: bool, tmp_path: Path, weights
) -> None:
    path = saved(tmp_path / "w.pt", change(weights))
    with pytest.raises(FedsimError, match=sentence) as caught:
        load_initial_weights(models.Linear((6,), 3), path, partial)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class Evil:
    """Unpickling it makes a file, if anything lets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
def test_a_malicious_pickle_does_not_run(how: str, name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    torch.save({"1.bias": Evil(mark)}, path) if how == "torch" else path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(FedsimError, match="cannot be read as weights alone") as caught:
        load_initial_weights(models.Linear((6,), 3), path, partial=False)
    assert not mark.exists() and "\n" not in str(caught.value)
    if how == "pickle":
        pickle.loads(path.read_bytes())  # noqa: S301  (the trap itself works)
        assert mark.exists()


def test_a_file_that_is_not_there_or_broken_is_one_sentence(tmp_path: Path, weights) -> None:
    with pytest.raises(FedsimError, match=r"init\.weights=.*is not there"):
        load_initial_weights(models.Linear((6,), 3), tmp_path / "no.pt", partial=False)
    for name in ("w.pt", "w.safetensors"):
        path = saved(tmp_path / name, weights)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(FedsimError, match="cannot be read"):
            load_initial_weights(models.Linear((6,), 3), path, partial=False)
