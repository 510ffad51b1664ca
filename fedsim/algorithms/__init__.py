"""Federated algorithms: both halves of one in one file."""

from fedsim.algorithms.base import Algorithm, as_algorithm
from fedsim.algorithms.baselines import central, local_only
from fedsim.algorithms.continual import ewc, lwf
from fedsim.algorithms.fedavg import fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from fedsim.algorithms.fedprox import fedprox
from fedsim.algorithms.online import adagrad_norm, fedogd
from fedsim.algorithms.qfedavg import qfedavg
from fedsim.algorithms.recursive import rls
from fedsim.algorithms.robust import bulyan, fedmedian, fedtrimmedavg, krum, multikrum
from fedsim.algorithms.streaming_logistic import logistic

__all__ = [
    "Algorithm",
    "adagrad_norm",
    "as_algorithm",
    "bulyan",
    "central",
    "ewc",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedmedian",
    "fedogd",
    "fedprox",
    "fedtrimmedavg",
    "fedyogi",
    "krum",
    "local_only",
    "logistic",
    "lwf",
    "multikrum",
    "qfedavg",
    "rls",
]
