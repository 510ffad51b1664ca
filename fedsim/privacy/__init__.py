"""What a run promises about the people whose data it learns from."""

from fedsim.privacy.none import NoPrivacy

__all__ = ["NoPrivacy"]
