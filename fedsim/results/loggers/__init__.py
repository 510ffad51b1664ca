"""Optional experiment trackers beside the run's own files: TensorBoard, MLflow, Weights & Biases.

A tracker is told of the run's start, of each round, and of its end. Its package is imported in `start`. A number that
is missing or not finite is not sent, since trackers would draw it as zero. A resumed run goes on with the tracker's own
run, whose id lies in a small file of the run folder.
"""

from fedsim.results.loggers.base import Logger, NoLogger
from fedsim.results.loggers.mlflow import MLflowLogger
from fedsim.results.loggers.shared import flatten, numbers, without_credentials
from fedsim.results.loggers.tensorboard import TensorBoardLogger
from fedsim.results.loggers.wandb import WandbLogger

__all__ = [
    "Logger",
    "MLflowLogger",
    "NoLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "flatten",
    "numbers",
    "without_credentials",
]
