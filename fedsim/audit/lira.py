"""`audit=lira`: who was a training example? The likelihood ratio attack on the final model (Carlini et al. 2022, arXiv 2112.03570).

Shadow models are trained from the weights that the run began with, each on half of some candidates, so that each candidate was
in half of them. Two Gaussians are fitted to a candidate's scores under models that saw it and models that did not; the final
model's score is judged by their ratio. What counts is how many members are found while hardly anyone else is accused, so the
curve has log axes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.audit.base import Audit, Subject, Train
from fedsim.audit.verdict import finite, shown
from fedsim.checks import require_int
from fedsim.training.arrays import load_arrays, model_arrays
from fedsim.training.trainer import Trainer
from fedsim.training.updates import ClientFailure
from fedsim.types import ClientData, FedsimError, Params

if TYPE_CHECKING:
    from fedsim.privacy.accounting import Mechanism
    from fedsim.privacy.base import Protection, Setting

ENOUGH_SHADOWS = 64
"""With fewer, a spread for each example is noise, and all examples share one, as the paper does."""

MOST_POINTS = 500
"""Of a curve that is kept."""


class Roc(NamedTuple):
    """fpr, tpr: (points,) ascending, false and true positive rates over all thresholds, from (0, 0) to (1, 1)."""

    fpr: np.ndarray
    tpr: np.ndarray
    auc: float

    def tpr_at(self, fpr: float) -> float:
        """The highest true positive rate at no more than this false positive rate."""
        return float(self.tpr[self.fpr <= fpr].max())


def membership_inference(
    shadow_scores: np.ndarray, memberships: np.ndarray, target_scores: np.ndarray, target_membership: np.ndarray
) -> Roc:
    """Online LiRA. shadow_scores: (shadows, examples); memberships: the same shape, bool, each example in and out of two
    shadows at least; target_scores, target_membership (bool): (examples,).
    """
    return roc(likelihood_ratios(shadow_scores, memberships, target_scores), target_membership)


def likelihood_ratios(shadow_scores: np.ndarray, memberships: np.ndarray, target_scores: np.ndarray) -> np.ndarray:
    """(examples,) log of how much likelier each target score is of a model that saw the example."""
    logs = []
    for chosen in (memberships, ~memberships):
        count = chosen.sum(0)
        if count.min() < 2:
            raise ValueError("each example must be in two shadows and out of two, at least")
        mean = np.where(chosen, shadow_scores, 0).sum(0) / count
        square = np.where(chosen, (shadow_scores - mean) ** 2, 0).sum(0)
        few = len(shadow_scores) < ENOUGH_SHADOWS
        variance = np.full(len(mean), square.sum() / (count - 1).sum()) if few else square / (count - 1)
        variance = np.maximum(variance, 1e-12)
        logs.append(-0.5 * (target_scores - mean) ** 2 / variance - 0.5 * np.log(variance))
    return logs[0] - logs[1]


def roc(scores: np.ndarray, membership: np.ndarray) -> Roc:
    """The curve of "a member, if the score is above a threshold". scores: (examples,); membership: (examples,) bool."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of examples with one score, all or none are accused
    found, accused = np.cumsum(membership[order])[last], np.cumsum(~membership[order])[last]
    tpr = np.concatenate([[0.0], found / membership.sum()])
    fpr = np.concatenate([[0.0], accused / (~membership).sum()])
    return Roc(fpr, tpr, float(np.trapezoid(tpr, fpr)))


@torch.no_grad()
def logit_scores(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """(examples,) log(p / (1 - p)) of the true class, which is nearly Gaussian over models. x: (n, ...); y: (n,)."""
    model.eval()
    parts = []
    for rows in torch.arange(len(x)).split(512):
        logits, target = model(x[rows]).double(), y[rows][:, None]
        own = logits.gather(1, target).squeeze(1)
        parts.append(own - logits.scatter(1, target, -math.inf).logsumexp(1))
    return torch.cat(parts).cpu().numpy()


def halves(shadows: int, examples: int, seed: int) -> np.ndarray:
    """(shadows, examples) bool: which examples each shadow trains on; of each pair of shadows, one has what the other lacks."""
    draw = rng.numpy_generator(seed, 0, rng.SERVER, "shadow halves")
    rows = []
    for _ in range(shadows // 2):
        chosen = draw.permutation(examples) < examples // 2
        rows += [chosen, ~chosen]
    return np.stack(rows)


def shadow_training(trainer: Trainer, rounds: int, client: int) -> Train:
    """The `Train` of a run: `rounds` rounds of one client that holds all the examples, by the run's own local steps.

    client: who took part in the run, and whose noise multiplier a private training has. Shuffles, dropout, noise and Poisson
    batches are of each shadow's own and of nobody in the run. trainer: the run's; its module is overwritten.
    """

    def train(start: Params, x: Tensor, y: Tensor, number: int) -> Params:
        own, data = _own_draws(trainer, number), ClientData(client, x, y)
        arrays, kept = start, {client: dict[str, Tensor]()}
        for round in range(1, rounds + 1):
            (update,) = own.train(arrays, [client], lambda _: data, kept.__getitem__, round)
            if isinstance(update, ClientFailure):
                raise FedsimError(f"a shadow model of audit=lira cannot be trained: {update.reason}")
            arrays = {name: array.clone() for name, array in update.arrays.items()}
            kept[client] = update.state
        return arrays

    return train


def _own_draws(trainer: Trainer, number: int) -> Trainer:
    """The trainer with draws that this shadow alone has."""
    seed = rng.derive_seed(trainer.seed, 0, rng.SERVER, f"shadow {number}")
    rule = trainer.local_steps
    if rule is None:
        return dataclasses.replace(trainer, seed=seed)

    def noise(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
        return rule.noise(size, std, round, client, f"shadow {number} {purpose}")

    def chances(size: int, round: int, client: int, purpose: str) -> Tensor:
        return rule.chances(size, round, client, f"shadow {number} {purpose}")

    return dataclasses.replace(trainer, seed=seed, local_steps=dataclasses.replace(rule, noise=noise, chances=chances))


@dataclass
class LiraAudit(Audit):
    """The keys of `audit=lira`. shadows: models to train, an even number. candidates: examples, half of them members."""

    shadows: int = 16
    candidates: int = 2000
    needs_subject: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        require_int("audit.shadows", self.shadows, low=4)
        require_int("audit.candidates", self.candidates, low=20)
        if self.shadows % 2:
            raise FedsimError(f"audit.shadows={self.shadows} must be even, since shadows come in pairs; add one")

    def check(self, task: str, input_shape: tuple[int, ...]) -> None:
        """See Audit."""
        if task != "classification":
            raise FedsimError(
                f"audit=lira looks at the probability of the true class, which task={task} has not; set audit=none"
            )

    def begin(self, setting: Setting, protection: Protection, like: Params) -> None:
        """See Audit."""
        self.seed, self.unit = setting.seed, protection.unit
        self.first = {name: array.detach().clone() for name, array in like.items()}  # `like` are the module's own

    def examine(self, subject: Subject) -> None:
        """See Audit."""
        self.check(subject.task, tuple(subject.member_x.shape[1:]))
        each = min(self.candidates // 2, len(subject.member_x), len(subject.other_x))
        if each < 10:
            raise FedsimError("audit=lira needs ten training examples and ten others at least; take a larger dataset")
        draw = rng.generator(self.seed, 0, rng.SERVER, "audit candidates")
        rows = [torch.randperm(len(side), generator=draw)[:each] for side in (subject.member_x, subject.other_x)]
        x = torch.cat([subject.member_x[rows[0]], subject.other_x[rows[1]]])
        y = torch.cat([subject.member_y[rows[0]], subject.other_y[rows[1]]])
        memberships = halves(self.shadows, 2 * each, self.seed)
        start, scores = self._start(subject), []
        for number, chosen in enumerate(memberships):
            own = torch.from_numpy(chosen)
            load_arrays(subject.model, subject.train(start, x[own], y[own], number))
            scores.append(logit_scores(subject.model, x, y))
        load_arrays(subject.model, subject.arrays)
        target = logit_scores(subject.model, x, y)
        self.members = each
        self.curve = membership_inference(np.stack(scores), memberships, target, np.arange(2 * each) < each)

    def _start(self, subject: Subject) -> Params:
        """What the run began with, which the server and so the attacker knows; nothing in it is of any example."""
        load_arrays(subject.model, subject.arrays)
        for module in subject.model.modules():
            if callable(reset := getattr(module, "reset_running_stats", None)):
                reset()
        own = model_arrays(subject.model)
        for name, array in self.first.items():
            own[name].copy_(array)
        return {name: array.clone() for name, array in own.items()}

    def finish(self, claimed_epsilon: float | None, delta: float, mechanism: Mechanism | None) -> dict[str, Any]:
        """See Audit."""
        curve, each = self.curve, self.members
        low, high = curve.tpr_at(0.001), curve.tpr_at(0.01)
        kept = np.unique(np.linspace(0, len(curve.fpr) - 1, MOST_POINTS).astype(int))
        few = " (fewer than 1,000 others: no false alarm at all)" if each < 1000 else ""
        claimed = math.inf if claimed_epsilon is None else claimed_epsilon
        return {
            "kind": "lira",
            "unit": self.unit,
            "claimed": finite(claimed),
            "observed": None,
            "delta": delta,
            "confidence": None,
            "verdict": None,
            "shadows": self.shadows,
            "roc": {
                "fpr": curve.fpr[kept].round(6).tolist(),
                "tpr": curve.tpr[kept].round(6).tolist(),
                "auc": curve.auc,
                "tpr_at_0.1%": low,
                "tpr_at_1%": high,
                "members": each,
                "others": each,
            },
            "words": [
                f"Of {each:,} training examples, LiRA with {self.shadows} shadow models finds {100 * low:.3g}% at 0.1% false "
                f"alarms{few} and {100 * high:.3g}% at 1% (arXiv 2112.03570); AUC {shown(curve.auc)}. Guessing finds 0.1% and 1%.",
                "It is an attack, not a bound: a better one may find more.",
            ],
        }
