"""What an update goes through on its way from a device's training to the server's optimiser.

A transform is a pair: a device half that changes one client's update, and a server half that changes the sum of them.
Device halves run in order, server halves in reverse, so that what was done last is undone first (clip, then mask; unmask,
then divide). A new one never needs a new server.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.types import Params


class Transform:
    """Changes nothing. An update is what training changed: trained arrays less received ones, by name.

    A device half may add arrays of its own, or replace all by others; its server half takes them out again. Neither may
    change what it is given in place.
    """

    def on_device(self, update: Params, client: int, round: int) -> Params:
        """One client's update as it is sent. Raises FedsimError where it cannot be sent: the client then drops out."""
        return update

    def on_server(self, total: Params, round: int) -> Params:
        """The sum of what the round's clients sent, undone."""
        return total


def on_device(transforms: Sequence[Transform], update: Params, client: int, round: int) -> Params:
    """All device halves, first to last."""
    for transform in transforms:
        update = transform.on_device(update, client, round)
    return update


def on_server(transforms: Sequence[Transform], total: Params, round: int) -> Params:
    """All server halves, last to first."""
    for transform in reversed(transforms):
        total = transform.on_server(total, round)
    return total
