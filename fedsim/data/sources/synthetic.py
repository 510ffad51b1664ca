"""Synthetic(alpha, beta) of FedProx (Li et al. 2020, arXiv:1812.06127, section 5.1): clients made when they are asked for.

Client k has a model of its own, y = argmax softmax(W_k x + b_k), and inputs of its own, x ~ N(v_k, diag(j^-1.2)), with
W_k, b_k ~ N(u_k, 1), u_k ~ N(0, alpha) and v_k ~ N(B_k, 1), B_k ~ N(0, beta). alpha says how much models differ, beta how
much inputs do; both are standard deviations, as in the authors' own code. Since W_k and b_k are drawn anew for each client
even where alpha is 0, a shared model has little to say of clients that it never saw: judge it by held-out rows, or set `iid`.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.checks import require_int, require_number
from fedsim.data.dataset import Dataset, Examples
from fedsim.data.made import MadeExamples

ABOUT = "Synthetic(alpha, beta) of FedProx, made client by client when asked for; any number of clients, 60 numbers, 10 classes"
HOW = "nothing to get: it is made"
VERSION = 1
"""Of the rows that the same keys give; part of the fingerprint."""


def find() -> str:
    """Always here."""
    return "generated"


def load(
    num_clients: int = 1000,
    examples_per_client: int = 20,
    alpha: float = 1.0,
    beta: float = 1.0,
    iid: bool = False,
    features: int = 60,
    classes: int = 10,
    test_clients: int = 500,
    seed: int = 0,
) -> Dataset:
    """x (n, features) float32 and y (n,) int64; row client * examples_per_client + i is the client's i-th.

    iid: one W, b ~ N(0, 1) for all clients and v = 0, the paper's IID data. test_clients: further clients, who are not in the
    population and depend on its size in nothing; all their rows are the test split. seed: of the data, not of the run.
    """
    keys = (("num_clients", num_clients, 1), ("examples_per_client", examples_per_client, 1), ("features", features, 1))
    for key, value, low in (*keys, ("classes", classes, 2), ("test_clients", test_clients, 1), ("seed", seed, 0)):
        require_int(f"dataset.{key}", value, low=low)
    for key, deviation in (("alpha", alpha), ("beta", beta)):
        require_number(f"dataset.{key}", deviation, low=0)
    make = partial(one_client, seed, float(alpha), float(beta), bool(iid), (examples_per_client, features, classes))
    made = [make("synthetic/test", client) for client in range(test_clients)]
    test = Examples(torch.cat([x for x, _ in made]), torch.cat([y for _, y in made]))
    identity = (
        f"synthetic {VERSION}: num_clients={num_clients} examples_per_client={examples_per_client} alpha={float(alpha)} "
        f"beta={float(beta)} iid={bool(iid)} features={features} classes={classes} seed={seed}"
    )
    train = MadeExamples(partial(make, "synthetic"), num_clients, examples_per_client, identity)
    names = tuple(f"class {label}" for label in range(classes))
    return Dataset("synthetic", train, test, "classification", names, source=f"generated; {identity}")


def one_client(
    seed: int, alpha: float, beta: float, iid: bool, shape: tuple[int, int, int], purpose: str, client: int
) -> tuple[Tensor, Tensor]:
    """A client's x (examples, features) and y (examples,); `shape` says how many examples, features, classes.

    Calculated in float64, so that no label hangs on how a machine adds up float32.
    """
    examples, features, classes = shape
    draw = rng.numpy_generator(seed, 0, client, purpose)
    x = draw.standard_normal((examples, features)) * _deviations(features)
    if iid:
        weights = _shared_model(seed, features, classes)  # (features + 1, classes), the last row is b
    else:
        u, offset = draw.standard_normal(2) * (alpha, beta)
        x += offset + draw.standard_normal(features)
        weights = u + draw.standard_normal((features + 1, classes))
    x = x.astype(np.float32)
    y = (x.astype(np.float64) @ weights[:-1] + weights[-1]).argmax(1)  # of the inputs that are given
    return torch.from_numpy(x), torch.from_numpy(y)


@lru_cache(maxsize=8)
def _deviations(features: int) -> np.ndarray:
    """(features,) standard deviations: the variance of the j-th input is j^-1.2."""
    return np.arange(1, features + 1) ** -0.6


@lru_cache(maxsize=8)
def _shared_model(seed: int, features: int, classes: int) -> np.ndarray:
    """(features + 1, classes) of IID data; the last row is b."""
    return rng.numpy_generator(seed, 0, rng.SERVER, "synthetic/model").standard_normal((features + 1, classes))
