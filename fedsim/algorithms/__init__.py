"""Federated algorithms: both halves of one in one file."""

from fedsim.algorithms.base import Algorithm, as_algorithm
from fedsim.algorithms.baselines import central, local_only
from fedsim.algorithms.fedavg import fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from fedsim.algorithms.fedprox import fedprox
from fedsim.algorithms.qfedavg import qfedavg
from fedsim.algorithms.robust import bulyan, fedmedian, fedtrimmedavg, krum, multikrum

__all__ = [
    "Algorithm",
    "as_algorithm",
    "bulyan",
    "central",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedmedian",
    "fedprox",
    "fedtrimmedavg",
    "fedyogi",
    "krum",
    "local_only",
    "multikrum",
    "qfedavg",
]
