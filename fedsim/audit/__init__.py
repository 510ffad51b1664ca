"""The evidence beside the promise: what an adversary could find out from a run, measured."""

from fedsim.audit.base import Audit, NoAudit, Subject
from fedsim.audit.canary import CanaryAudit
from fedsim.audit.inversion import InversionAudit
from fedsim.audit.lira import LiraAudit
from fedsim.audit.one_shot import OneShotAudit

__all__ = ["Audit", "CanaryAudit", "InversionAudit", "LiraAudit", "NoAudit", "OneShotAudit", "Subject"]
