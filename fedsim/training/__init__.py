"""What happens on devices, in one place: arrays and data in, an update out. The only floor that trains."""

from fedsim.training.client_half import ClientHalf, Device
from fedsim.training.objectives import OBJECTIVES, Objective
from fedsim.training.settings import LocalTraining
from fedsim.training.trainer import Trainer
from fedsim.training.updates import ClientFailure, ClientUpdate

__all__ = [
    "OBJECTIVES",
    "ClientFailure",
    "ClientHalf",
    "ClientUpdate",
    "Device",
    "LocalTraining",
    "Objective",
    "Trainer",
]
