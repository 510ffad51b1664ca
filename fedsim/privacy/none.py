"""No promise, said out loud: the ledger of a run without a mechanism."""

from __future__ import annotations

from typing import Any


class NoPrivacy:
    """Every client's update is sent as it is."""

    unit = None

    def plan(self) -> dict[str, Any]:
        """The keys of plan.json that a mechanism fills in."""
        return {
            "noise_multiplier": None,
            "unit": None,
            "adjacency": None,
            "accountant": None,
            "delta": None,
            "epsilon": None,
            "epsilon_by": {"pld": None, "rdp": None, "prv": None},
        }

    def ledger(self) -> dict[str, Any]:
        """What privacy.json says."""
        return {
            "mechanism": "none",
            **self.plan(),
            "trust": "the server sees every client's update",
            "caveats": ["no privacy mechanism: no epsilon can be stated"],
        }
