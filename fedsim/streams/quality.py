"""What a device does about labels that cost, lack or lie: the parts `labels`, `unlabelled` and `cleaning` of a run together."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedsim.streams.arrivals import Arrivals, Unstreamed
from fedsim.streams.asking import AllLabels, Labels
from fedsim.streams.cleaning import Cleaning, Uncleaned
from fedsim.streams.guessing import Dropped, Unlabelled
from fedsim.types import FedsimError


@dataclass(frozen=True)
class Quality:
    """The parts `labels=...`, `unlabelled=...` and `cleaning=...`; the defaults do nothing."""

    labels: Labels = field(default_factory=AllLabels)
    unlabelled: Unlabelled = field(default_factory=Dropped)
    cleaning: Cleaning = field(default_factory=Uncleaned)

    @property
    def acts(self) -> bool:
        """Whether devices keep notes of what comes."""
        return self.labels.asks or self.unlabelled.guesses or self.cleaning.cleans

    @property
    def looks(self) -> bool:
        """Whether the model is asked about what comes."""
        return self.labels.looks or self.unlabelled.looks or self.cleaning.cleans

    @property
    def named(self) -> str:
        """The parts that do something, as a user types them."""
        kinds = {"labels": self.labels.kind, "unlabelled": self.unlabelled.kind, "cleaning": self.cleaning.kind}
        return " ".join(f"{group}={kind}" for group, kind in kinds.items() if kind not in ("all", "none"))

    def check(self, arrivals: Arrivals | Unstreamed, task: str, by_example: bool) -> None:
        """Refuse what makes no sense, before any work. by_example: the run promises privacy to single examples.

        A promise to a client covers whatever that client does with its own rows: which it buys labels of, guesses or leaves out
        follows from its own rows and from models that were released already. A promise to one example does not: whose labels are
        still bought once it took of the budget, and which rows look wrong by thresholds that are means over all, are what it does
        to the others of its client; and its accounting takes what a memory holds from the stream, not from what was bought.
        """
        if not self.acts:
            return
        if not isinstance(arrivals, Arrivals):
            raise FedsimError(
                f"{self.named} is of rows that come as a stream; set streams=steady (or poisson, bursts, day_night), or "
                "labels=all unlabelled=none cleaning=none"
            )
        self.labels.check(task)
        if (self.unlabelled.guesses or self.cleaning.cleans) and task != "classification":
            raise FedsimError(
                f"{self.named} guesses or doubts classes, which a {task} has not; set unlabelled=none cleaning=none"
            )
        if self.labels.asks and arrivals.label_delay:
            raise FedsimError(
                f"labels={self.labels.kind} buys a label when its row comes, and has it at once; set streams.label_delay=0, "
                "or labels=all"
            )
        if by_example:
            raise FedsimError(
                f"{self.named} decides which rows are learnt, for how long and beside which others, which privacy=example does not "
                "cover; use privacy=user, whose promise is to all rows of a client, or labels=all unlabelled=none cleaning=none"
            )
        self.cleaning.prepare()
