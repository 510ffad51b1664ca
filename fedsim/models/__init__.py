"""Models that are built in. Each takes `input_shape` and `num_outputs` from the dataset; one's own may take them too."""

from fedsim.models.dense import MLP, Linear
from fedsim.models.lstm import CharLSTM
from fedsim.models.resnet import ResNet
from fedsim.models.vision import CNN, CNN1d, TanhCNN

__all__ = ["CNN", "MLP", "CNN1d", "CharLSTM", "Linear", "ResNet", "TanhCNN"]
