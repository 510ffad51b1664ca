"""What is written for CUDA, on a machine that has it: `pytest -m gpu`. The same training, by other kernels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, config, resume, run_into, same_bits
from safetensors.torch import load_file
from test_lockstep import MODELS, PLAIN, STACKED, chances, data_of, gap, made, noise, objective_of, trained

from fedsim.build import build
from fedsim.models import MLP
from fedsim.training import ClientHalf, ClientUpdate, LocalTraining, Trainer
from fedsim.training.dpsgd import DPSGD
from fedsim.training.execution import ONE_AT_A_TIME, Execution
from fedsim.types import ClientData, Params

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

DIGITS = ("dataset=mnist5k", "population.num_clients=20", "sampler.cohort_size=10", "rounds=3", "seed=3")


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """cuDNN may choose an algorithm that adds up in another order each time; these tests compare bits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def rounds_of(
    name: str,
    device: str,
    execution: Execution,
    settings: LocalTraining = PLAIN,
    dtype: torch.dtype = torch.float64,
    local_steps: DPSGD | None = None,
    half: ClientHalf | None = None,
) -> Params:
    """Three rounds of FedAvg over ragged clients; the arrays at the end."""
    trainer = Trainer(
        copy.deepcopy(made(name, dtype)).to(device),
        objective_of(name),
        settings,
        half or ClientHalf(),
        11,
        local_steps=local_steps,
    )
    on_cpu = data_of(name, dtype)

    def there(client: int) -> ClientData:
        data = on_cpu(client)
        return ClientData(client, data.x.to(device), data.y.to(device))

    arrays, _ = trained(trainer, execution, name, dtype=dtype, data=there)
    return {key: array.cpu() for key, array in arrays.items()}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "dropout"])
def test_one_at_a_time_is_that_of_a_cpu(name: str) -> None:
    assert gap(*(rounds_of(name, device, ONE_AT_A_TIME) for device in ("cuda", "cpu"))) < 1e-9


@pytest.mark.parametrize("name", [name for name in STACKED if name != "dropout"])
@pytest.mark.parametrize("width", [3, 7])
def test_lockstep_is_one_at_a_time(name: str, width: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        together, alone = (
            rounds_of(name, "cuda", way, dtype=dtype) for way in (Execution("lockstep", width), ONE_AT_A_TIME)
        )
        assert gap(together, alone) <= tolerance, f"{dtype}: {gap(together, alone):.1e}"


def test_random_layers_draw_for_each_client() -> None:
    """In lockstep each client's dropout is its own and the same from start to start, whoever trains beside it."""
    seven, three = (rounds_of("dropout", "cuda", Execution("lockstep", width)) for width in (7, 3))
    assert gap(seven, three) < 1e-9


@pytest.mark.parametrize("name", ["mlp", "own weights", "cnn"])
def test_vmap_is_one_at_a_time(name: str) -> None:
    assert gap(*(rounds_of(name, "cuda", way) for way in (Execution("vmap", 4), ONE_AT_A_TIME))) < 1e-9


@pytest.mark.parametrize(
    "settings",
    [
        replace(PLAIN, momentum=0.9, weight_decay=0.01),
        replace(PLAIN, max_grad_norm=0.3),
        LocalTraining(epochs=2, batch_size=4, lr=0.01, optimizer=torch.optim.AdamW),
    ],
    ids=["momentum", "clipped", "adamw"],
)
def test_settings_of_a_client(settings: LocalTraining) -> None:
    ways = Execution("lockstep", 3), ONE_AT_A_TIME
    assert gap(*(rounds_of("mlp", "cuda", way, settings) for way in ways)) < 1e-9


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("name", ["mlp", "tanh_cnn", "normed"])
def test_private_lockstep_is_one_at_a_time(clipping: str, name: str) -> None:
    rule = DPSGD(lambda client: 0.3 + client / 10, noise, chances, clip_norm=0.3, clipping=clipping, way="fast")
    together, alone, cpu = (
        rounds_of(name, device, way, local_steps=rule)
        for device, way in (("cuda", Execution("lockstep", 3)), ("cuda", ONE_AT_A_TIME), ("cpu", ONE_AT_A_TIME))
    )
    assert gap(together, alone) < 1e-6 and gap(alone, cpu) < 1e-6  # the noise itself is float32


def round_of_wide(execution: Execution) -> Params:
    """One round of two clients on layers wide enough for a card's tensor cores."""
    torch.manual_seed(2)
    model = MLP((256,), 16, hidden=(256, 256)).to("cuda")
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(512, 256, generator=draw).to("cuda"), torch.randint(16, (512,), generator=draw).to("cuda")
    settings = replace(PLAIN, batch_size=128)
    trainer = Trainer(model, objective_of("mlp"), settings, ClientHalf(), 1, execution=execution)
    start = {n: a.detach().clone() for n, a in model.state_dict().items()}
    found = trainer.train(start, range(2), lambda client: ClientData(client, x, y), lambda client: {}, 1)
    return {f"{u.client}.{n}": a.clone() for u in found if isinstance(u, ClientUpdate) for n, a in u.arrays.items()}


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_coarser_products_are_near(precision: str) -> None:
    exact, coarse = (round_of_wide(Execution("lockstep", 2, precision=p)) for p in ("float32", precision))
    assert 0 < gap(coarse, exact) < 0.05
    assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")


def test_compiled_is_the_same() -> None:
    ways = Execution("lockstep", 7, compile=True), Execution("lockstep", 7)
    assert gap(*(rounds_of("cnn", "cuda", way, dtype=torch.float32) for way in ways)) < 1e-5


def test_memory_that_runs_out_halves_the_width(caplog: pytest.LogCaptureFixture) -> None:
    """For real: this process may take 1.2 GB more, in which 32 clients of 20 MB, with twice as much again each, do not fit."""
    torch.cuda.empty_cache()
    total, taken = torch.cuda.get_device_properties(0).total_memory, torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((1.2e9 + taken) / total)
    try:
        model = MLP((784,), 10, hidden=(2048, 1700)).to("cuda")
        trainer = Trainer(
            model,
            objective_of("mlp"),
            replace(PLAIN, max_grad_norm=1.0),  # on weights of their own
            ClientHalf(),
            1,
            execution=Execution("lockstep", 32),
        )
        start = {n: a.detach().clone() for n, a in model.state_dict().items()}
        data = ClientData(0, torch.rand(8, 784, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda"))
        found = list(trainer.train(start, range(32), lambda c: data._replace(client=c), lambda c: {}, 1))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trainer.execution.width == 16 and "memory ran out with 32 clients" in caplog.text
    assert [type(update).__name__ for update in found] == ["ClientUpdate"] * 32


def whole_run(folder: Path, *overrides: str) -> tuple[dict[str, Any], Params]:
    summary = run_into(folder, config(*DIGITS, *overrides))
    return summary, load_file(folder / "model.safetensors")


def test_a_whole_run_is_that_of_a_cpu(tmp_path: Path) -> None:
    """To the rounding of float32: the same clients, batches and steps, and the same accuracy."""
    (cuda, on_cuda), (cpu, on_cpu) = (
        whole_run(tmp_path / device, f"device={device}", "grid=inprocess", "model=mlp") for device in ("cuda", "cpu")
    )
    assert gap(on_cuda, on_cpu) < 1e-3
    assert abs(cuda["accuracy"] - cpu["accuracy"]) < 0.01


def test_workers_on_one_card_give_the_same_bits(tmp_path: Path) -> None:
    """Chunks are cut by grid.chunk_size alone, whoever trains them."""
    same = "device=cuda", "model=mlp", "grid.width=5", "grid.chunk_size=5"
    _, alone = whole_run(tmp_path / "one", *same, "grid=inprocess")
    _, two = whole_run(tmp_path / "two", *same, "grid=processes", "grid.workers=2")
    assert same_bits(alone, two)


def test_a_run_that_was_broken_off_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    _, whole = whole_run(tmp_path / "whole", "device=cuda", "model=mlp")
    run_into(tmp_path / "part", config(*DIGITS, "device=cuda", "model=mlp", "rounds=1"))
    resume(tmp_path / "part", 3)
    assert same_bits(load_file(tmp_path / "part" / "model.safetensors"), whole)


@pytest.mark.parametrize(
    "overrides",
    [
        ("privacy=example", "privacy.epsilon=8"),
        ("privacy=user", "privacy.epsilon=8"),
        ("strategy=fedprox",),
        ("fleet=phones", "compression=quantize"),
        ("streams=steady",),
    ],
    ids=lambda one: one[0],
)
def test_every_kind_of_run_works_there(overrides: tuple[str, ...], tmp_path: Path) -> None:
    made_of = build(config(*TINY, *overrides, "device=cuda"))
    assert made_of.device.type == "cuda"
    summary = run_into(tmp_path, config(*TINY, *overrides, "device=cuda"))
    assert summary["rounds"] == 2


def test_factors_are_one_at_a_time() -> None:
    """Dense layers wide enough to be trained by factors (see test_factored.py), alone and as a sum."""
    import test_factored as factored

    def there(client: int) -> ClientData:
        data = factored.data_of()(client)
        return ClientData(client, data.x.to("cuda"), data.y.to("cuda"))

    settings = replace(factored.PLAIN, momentum=0.9, weight_decay=0.01)
    both = [
        factored.trained(factored.trainer_of(factored.model_of("mlp").to("cuda"), settings, way), there)
        for way in (Execution("lockstep", 7), ONE_AT_A_TIME)
    ]
    assert gap(*both) < 1e-9
