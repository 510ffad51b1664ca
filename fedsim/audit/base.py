"""What an audit is to a run: it slips its own clients in, watches what is released, and says in the end what it saw.

A part of `conf/audit/` is itself the Audit. The base class looks at nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from fedsim.types import Params

if TYPE_CHECKING:
    from fedsim.privacy.accounting import Mechanism
    from fedsim.privacy.base import Protection, Setting

Train = Callable[[Params, Tensor, Tensor, int], Params]
"""(start, x, y, number) -> arrays trained from `start` as the run trains, but on these examples in one place; each number has
draws of its own."""


class Subject(NamedTuple):
    """A run that has ended, as an audit may look at it.

    arrays: the final model's. model: a module of the run's kind on the training device, in which an audit may load what it
    likes. member_x, member_y: (members, ...) preprocessed examples that clients trained on; other_x, other_y: (others, ...)
    examples that nobody trained on. lr: the clients' step size.
    """

    arrays: Params
    model: nn.Module
    objective: Callable[[Tensor, Tensor], Tensor]
    task: str
    member_x: Tensor
    member_y: Tensor
    other_x: Tensor
    other_y: Tensor
    train: Train
    lr: float


class Audit:
    """Sees nothing and says nothing. Calls come in this order: begin, [load_state], rounds of join and observe, examine, finish.

    remove_noise: leave the mechanism's noise out while its claim stands, to test that the audit finds it.
    needs_subject: whether `examine` looks at anything.
    """

    remove_noise: bool = False
    needs_subject: bool = False

    def check(self, task: str, input_shape: tuple[int, ...]) -> None:
        """Before any work. Raises FedsimError where the audit cannot look at such data; input_shape: of one example."""

    def begin(self, setting: Setting, protection: Protection, like: Params) -> None:
        """Before the first round. like: the server's arrays. Raises FedsimError where this run cannot be audited so."""

    def join(self, round: int) -> Sequence[Params]:
        """Raw updates of the canary clients of this round, before the device half of any transform."""
        return ()

    def observe(self, round: int, residual: Params) -> None:
        """residual: the released sum less what the real clients sent, which one who knows all of them can compute."""

    def examine(self, subject: Subject) -> None:
        """After the last round."""

    def finish(self, claimed_epsilon: float | None, delta: float, mechanism: Mechanism | None) -> dict[str, Any]:
        """What audit.json says: kind, claimed, observed, verdict, words and more; empty where nothing was audited."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers and numpy arrays."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""


class NoAudit(Audit):
    """`audit=none`."""
