"""What the server does when a detector raises the alarm: the parts `response=...`.

An answer changes what a round leaves behind, so it holds from the round after the alarm's own. An alarm within `cool_down`
rounds of one that was answered is not answered: a model needs time to recover, and a detector may well notice twice.
Nothing is drawn at random.
"""

from __future__ import annotations

from fedsim.checks import require_int, require_number
from fedsim.types import FedsimError, Params


class Response:
    """Base class: alarms are written down, and that is all. cool_down: rounds after an answer in which there is no other."""

    kind = "none"
    moves = False
    """Whether it changes the server's arrays."""

    def __init__(self, cool_down: int = 0) -> None:
        self.cool_down = require_int("response.cool_down", cool_down, low=0)
        self.answered: int | None = None

    def hear(self, round: int, alarm: bool) -> None:
        """Told in every round, in order, whether there was an alarm in it."""
        rested = self.answered is None or round - self.answered > self.cool_down
        if alarm and rested and self.kind != "none":
            self.answered = round

    def arrays(self, round: int, start: Params, before: Params, after: Params) -> Params:
        """The server's arrays after a round. start: of the run; before: the round's own; after: what aggregation made of them."""
        return after

    def budget(self, round: int) -> float:
        """By which clients' budgets of labels are multiplied in a round."""
        return 1.0

    def state(self) -> dict[str, int]:
        """All that later answers depend on; -1 where no alarm was answered yet."""
        return {"answered": -1 if self.answered is None else self.answered}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from what `state` gave. Raises FedsimError where it is something else."""
        try:
            answered = int(state["answered"])
        except (KeyError, TypeError, ValueError) as error:
            raise FedsimError(
                "the checkpoint does not say which alarm was answered, so it is corrupt; start anew"
            ) from error
        self.answered = None if answered < 0 else answered


class NoResponse(Response):
    """`response=none`."""

    def __init__(self) -> None:
        super().__init__()


class Reset(Response):
    """`response=reset`: after an alarm the model begins anew."""

    kind = "reset"
    moves = True

    def __init__(self, cool_down: int = 10) -> None:
        super().__init__(cool_down)

    def arrays(self, round: int, start: Params, before: Params, after: Params) -> Params:
        """See Response."""
        return start if self.answered == round else after


class Boost(Response):
    """`response=boost`: from an alarm on the server's steps are `factor` times as long, back to themselves over `rounds`."""

    kind = "boost"
    moves = True

    def __init__(self, factor: float = 3.0, rounds: int = 10, cool_down: int = 10) -> None:
        super().__init__(cool_down)
        self.factor = require_number("response.factor", factor, above=0)
        self.rounds = require_int("response.rounds", rounds, low=1)

    def length(self, round: int) -> float:
        """Of this round's step, as a multiple: factor in the alarm's round, geometrically down to 1."""
        age = None if self.answered is None else round - self.answered
        return 1.0 if age is None or age >= self.rounds else float(self.factor ** (1 - age / self.rounds))

    def arrays(self, round: int, start: Params, before: Params, after: Params) -> Params:
        """See Response. Whole numbers, such as counters, are left as aggregation made them."""
        length = self.length(round)
        if length == 1.0:
            return after
        return {
            name: (before[name] + length * (array - before[name])).to(array.dtype)
            if array.is_floating_point()
            else array
            for name, array in after.items()
        }


class AskForLabels(Response):
    """`response=ask_for_labels`: in the `rounds` rounds after an alarm clients may buy `factor` times as many labels.

    The part `labels` says which ones. A budget that would be above 1 is 1: every label is bought.
    """

    kind = "ask_for_labels"

    def __init__(self, factor: float = 3.0, rounds: int = 10, cool_down: int = 10) -> None:
        super().__init__(cool_down)
        self.factor = require_number("response.factor", factor, low=1)
        self.rounds = require_int("response.rounds", rounds, low=1)

    def budget(self, round: int) -> float:
        """See Response."""
        raised = self.answered is not None and 0 < round - self.answered <= self.rounds
        return self.factor if raised else 1.0
