"""Privacy mechanisms: each option of `privacy=` is one file; `base.py` says what one is to a run."""

from fedsim.privacy.base import Protection, Setting
from fedsim.privacy.distributed import DistributedPrivacy
from fedsim.privacy.example import ExamplePrivacy
from fedsim.privacy.local import LocalPrivacy
from fedsim.privacy.none import NoPrivacy
from fedsim.privacy.user import UserPrivacy

__all__ = ["DistributedPrivacy", "ExamplePrivacy", "LocalPrivacy", "NoPrivacy", "Protection", "Setting", "UserPrivacy"]
