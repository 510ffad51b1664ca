"""Compression: updates as the bytes of messages. Each option of `compression=` is one class; `base.py` says what one is."""

from fedsim.compression.base import Compression
from fedsim.compression.nf4 import NF4
from fedsim.compression.none import Uncompressed
from fedsim.compression.powersgd import PowerSGD
from fedsim.compression.qsgd import QSGD
from fedsim.compression.quantize import Quantize
from fedsim.compression.sign import Sign
from fedsim.compression.sketch import Sketch
from fedsim.compression.sparse import RandomK, TopK

__all__ = ["NF4", "QSGD", "Compression", "PowerSGD", "Quantize", "RandomK", "Sign", "Sketch", "TopK", "Uncompressed"]
