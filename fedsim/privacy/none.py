"""No promise, said out loud."""

from __future__ import annotations

from fedsim.privacy.base import Protection, Setting


class NoPrivacy:
    """Every client's update is sent as it is."""

    def protect(self, setting: Setting) -> Protection:
        """The run without a mechanism."""
        return Protection()
