"""Gradient inversion: images come back from a bare update, and do not from a private one; and its pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from test_audit_canary import DELTA, GaussianSum, setting
from torch import nn

from fedsim.audit.base import Subject
from fedsim.audit.inversion import InversionAudit, privatised, psnr, total_variation
from fedsim.audit.pictures import draw_inversion
from fedsim.privacy.base import Protection
from fedsim.training import OBJECTIVES
from fedsim.training.arrays import model_arrays
from fedsim.types import FedsimError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a run on the CPU has it: several threads on small arrays mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def subject() -> Subject:
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:100, None] / 16, torch.tensor(digits.target)[:100]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(512, 10))
    arrays = {name: array.clone() for name, array in model_arrays(model).items()}
    return Subject(arrays, model, OBJECTIVES["classification"], "classification", x, y, x, y, lambda *_: {}, 0.1)


class Noisy(GaussianSum):
    noise_multiplier = 1.0


def inverted(protection: Protection, **keys: Any) -> dict[str, Any]:
    made = subject()
    audit = InversionAudit(**keys)
    audit.begin(setting(), protection, made.arrays)
    audit.examine(made)
    return audit.finish(None, DELTA, None)


def test_images_come_back_from_a_bare_update_and_not_from_a_private_one() -> None:
    found = inverted(Noisy(1.0), images=2, steps=200)
    assert (
        np.mean(found["psnr"]["plain"]) > 18 and np.mean(found["psnr"]["plain"]) > np.mean(found["psnr"]["private"]) + 5
    )
    assert np.shape(found["images"]["originals"]) == (2, 8, 8) == np.shape(found["images"]["private"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    figure = draw_inversion(found)
    assert figure is not None and len(figure.axes) == 6
    assert "dB" in figure.axes[2].get_xlabel() and "dB" not in figure.axes[0].get_xlabel()


def test_without_privacy_there_is_one_row_less() -> None:
    found = inverted(Protection(), images=1, steps=20)
    figure = draw_inversion(found)
    assert set(found["psnr"]) == {"plain"} and figure is not None and len(figure.axes) == 2


def test_private_gradients_are_clipped_alone_and_noised_once() -> None:
    generator = torch.Generator().manual_seed(0)
    large, small = [torch.full((4,), 3.0), torch.zeros(5)], [torch.zeros(4), torch.full((5,), 0.1)]
    found = privatised([large, small], 2.0, 0.0, generator)
    torch.testing.assert_close(found, [torch.full((4,), 1.0), torch.full((5,), 0.1)])
    noise = privatised([[torch.zeros(20_000)]], 1.0, 0.7, generator)[0]
    assert float(noise.std()) == pytest.approx(0.7, rel=0.03)


def test_quality_and_variation_are_what_they_are_called() -> None:
    true = torch.zeros(2, 1, 4, 4)
    assert psnr(torch.stack([true[0] + 0.1, true[1] + 1]), true) == [20.0, 0.0]
    assert float(total_variation(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))) == 1.0


def test_what_is_no_image_is_refused() -> None:
    made = subject()
    audit = InversionAudit()
    audit.begin(setting(), Protection(), made.arrays)
    with pytest.raises(FedsimError, match="audit=inversion"):
        audit.examine(made._replace(member_x=torch.zeros(10, 6)))
