"""Training of many clients in lockstep: their steps are made together, each on its own weights, data and draws.

What a client draws (its batches, its dropout, its noise) is what it would draw alone, so that the width changes rounding and
nothing else. Clients are sorted by the number of their steps, and those that are done are left behind: no step is made in
vain. Where batches are of different size the shorter ones are filled up with rows that count for nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.training.arrays import distinct, load_arrays
from fedsim.training.chain import Chain, chain_of
from fedsim.training.client_half import ClientHalf, Device
from fedsim.training.dpsgd import DPSGD, KEPT, PrivateClient
from fedsim.training.factored import FEWEST_PER_BASE, Coefficients, Factored, bases_of, numbers_a_row, worth_it
from fedsim.training.group import Group, Job, Member, Recipe
from fedsim.training.objectives import ONE_TARGET, Objective, client_gradients, client_losses
from fedsim.training.private_lockstep import PerExample, private_gradients, private_step, whole_batches
from fedsim.training.private_span import InSpans
from fedsim.training.settings import LocalTraining
from fedsim.training.span import first_layer
from fedsim.training.stack import Copies, Stack, fusible
from fedsim.training.steps import SGD, clip_each, make_stacked_step
from fedsim.training.updates import (
    ClientFailure,
    ClientUpdate,
    Folded,
    Weigh,
    check_metrics,
    draw_rows,
    no_batch,
    not_finite,
)
from fedsim.types import ClientData, FedsimError, Params

Result: TypeAlias = "ClientUpdate | ClientFailure | Folded | None"
"""Of a client; of clients that were folded (`Job.weigh`) the first one's is the sum of all of them, and the others' None."""


class Lockstep:
    """Trains groups of clients on the copies of one model.

    model: is loaded only for client halves that look at it.
    """

    def __init__(
        self,
        copies: Copies,
        model: nn.Module,
        objective: Objective,
        settings: LocalTraining,
        client_half: ClientHalf,
        seed: int,
        smallest_batch: int,
        local_steps: DPSGD | None,
    ) -> None:
        self.copies, self.model, self.objective, self.settings = copies, model, objective, settings
        self.client_half, self.smallest_batch = client_half, smallest_batch
        self.local_steps = local_steps
        self.recipe = Recipe(settings, client_half, seed, local_steps)
        own = type(client_half)
        self.begins, self.corrects = own.begin is not ClientHalf.begin, own.correct is not ClientHalf.correct
        self.finishes = own.finish is not ClientHalf.finish
        plain = settings.optimizer is None and not settings.momentum and settings.max_grad_norm is None
        self.plain = plain and not self.corrects
        steps_by_sgd = settings.optimizer is None and settings.max_grad_norm is None and local_steps is None
        self.linear = steps_by_sgd and not self.corrects  # a step, in the weights and the gradient
        self.first = None if local_steps is None else first_layer(model, objective, settings, client_half)
        self.fused: dict[str, list[str]] = {}
        self.chain: Chain | None = None
        if isinstance(copies, Stack):
            self.chain = chain_of(copies, model) if objective in ONE_TARGET else None
            if self.plain and local_steps is None and not copies.compiled and copies.exact:
                self.fused = fusible(copies)
            private = local_steps is not None
            copies.captures = lambda name, layer: name in self.fused or (private and _is_trained(layer))
        self._never_drawn_from = torch.Generator()
        self._written = [name for name in copies.trained if name not in {n for own in self.fused.values() for n in own}]

    def train(
        self,
        received: Params,
        clients: Sequence[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
    ) -> list[ClientUpdate | ClientFailure]:
        """Train the clients, at most the copies' width; one result each, in the order given.

        Updates' arrays hold until the next call. What a client raises before its steps is its failure; what the steps raise may
        be of any, and is raised where there is more than one.
        """
        jobs = [Job(self.recipe, received, client, data_of, state_of, round) for client in clients]
        results = self.train_jobs(jobs)
        return [result for result in results if isinstance(result, ClientUpdate | ClientFailure)]  # nothing was weighed

    def train_folded(
        self,
        received: Params,
        clients: Sequence[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
        weigh: Weigh,
    ) -> list[ClientUpdate | ClientFailure | Folded]:
        """As `train`, but where it can be had the updates' sum, in the place of the first of them."""
        jobs = [Job(self.recipe, received, client, data_of, state_of, round, weigh) for client in clients]
        return [result for result in self.train_jobs(jobs) if result is not None]

    def train_jobs(self, jobs: Sequence[Job]) -> list[Result]:
        """As `train`, for clients of any runs whose recipes are alike; folded by run, where that can be had."""
        results: dict[int, Result] = {}
        members: list[Member] = []
        for place, job in enumerate(jobs):
            try:
                members.append(self._member(place, job, job.data_of(job.client), job.state_of(job.client)))
            except Exception as error:  # whatever a device's own code raises must not end the round for the others
                results[place] = ClientFailure.of(job.client, error)
        if members:
            places: dict[int, int] = {}  # of the arrays that members begin at: those who share them are side by side
            for member in members:
                places.setdefault(id(member.initial), len(places))
            members.sort(key=lambda member: (-member.steps, places[id(member.initial)]))
            found: Sequence[Result]
            for part in (parts := self._parted(members)):
                try:
                    found = self._fit(part)
                except Exception as error:
                    if len(jobs) > 1:
                        raise
                    found = [ClientFailure.of(jobs[0].client, error)]
                for member, result in zip(part, found, strict=True):
                    results[member.place] = result if part is parts[-1] else _kept(result)
        return [results[place] for place in range(len(jobs))]

    def _parted(self, members: list[Member]) -> list[list[Member]]:
        """Those who are trained as one group: under DP-SGD those who keep to a span apart from those who do not."""
        parts = [[member for member in members if member.in_span is within] for within in (True, False)]
        return parts if self.plain and self.chain is not None and all(parts) else [members]

    def _member(self, place: int, job: Job, data: ClientData, state: Params) -> Member:
        if len(data.x) == 0:
            raise FedsimError("it has no training examples")
        recipe, received, round = job.recipe, job.received, job.round
        half = recipe.client_half
        if self.begins or self.corrects or self.finishes:
            half = copy.copy(half)
        kept = {name: array for name, array in state.items() if name != KEPT} if state else state
        initial = half.initial(received, kept)
        device = Device(self.model, self.objective, data, received, kept)
        metrics, generator = self._begin(half, device, initial, job)
        drawn, private = None, None
        if recipe.local_steps is not None:
            check_metrics(metrics)
            private = PrivateClient(recipe.local_steps, self.copies.num_trained, recipe.settings, data, state, round)
            if self.first is not None:
                private.keep_to_span(self.first)
        else:
            drawn = self._rows(data, job)
        lr = recipe.settings.lr_in(round)
        return Member(place, job, lr, data, half, device, initial, metrics, generator, drawn, private)

    def _begin(
        self, half: ClientHalf, device: Device, initial: Params, job: Job
    ) -> tuple[dict[str, float], torch.Generator]:
        """The half's metrics, and what the client's random layers draw from afterwards."""
        name = job.recipe.seed, job.round, job.client, "model"
        if not self.begins and not self.copies.draws:
            return {}, self._never_drawn_from
        if not self.begins:
            return {}, torch.Generator(device.data.x.device).manual_seed(rng.derive_seed(*name))
        load_arrays(self.model, initial)
        self.model.train()
        with rng.seeded_globally(*name):
            metrics = half.begin(device)
            generator = torch.Generator(device.data.x.device)
            if generator.device.type == "cpu":
                generator.set_state(torch.get_rng_state())
            else:
                generator.set_state(torch.cuda.get_rng_state(generator.device))
        return metrics, generator

    def _rows(self, data: ClientData, job: Job) -> tuple[Tensor, list[int]]:
        """See `draw_rows`."""
        generator = rng.generator(job.recipe.seed, job.round, job.client, "batches")
        rows, sizes = draw_rows(len(data.x), job.recipe.settings, generator, self.smallest_batch)
        if not sizes:
            raise no_batch(len(data.x), self.smallest_batch)
        return rows, sizes

    def _fit(self, members: list[Member]) -> list[Result]:
        """Run the round's steps for members in the order of their steps, most first; a result for each."""
        group, lr = Group(members), max(member.lr for member in members)
        if any(member.lr != lr for member in members):
            weight = self.copies.arrays[self.copies.trained[0]]
            group.relative_lr = weight.new_tensor([member.lr / lr for member in members])
        if (factored := self._factored(group, lr)) is not None:
            return self._fit_factored(factored, group)
        if self.plain and self.chain is not None and group.in_spans:
            return self._fit_in_spans(self.chain, group, lr)
        copies = self.copies
        copies.load([member.initial for member in members])
        copies.generators = [member.generator for member in members]
        copies.narrow(len(members))
        anchors = [weight.detach().clone() for weight in copies.weights()] if self.corrects else []
        step = make_stacked_step(self.settings, copies, lr)
        bad = torch.zeros(len(members), dtype=torch.bool, device=group.x.device)
        done: list[Params | None] = [None] * len(members)  # of those that are left behind, where a step moves all rows
        for number in range(members[0].steps):
            while members[copies.active - 1].steps == number:
                if not isinstance(step, SGD):
                    done[copies.active - 1] = copies.client(copies.active - 1, clone=True)
                copies.narrow(copies.active - 1)
            active = copies.active
            x, y, copies.sizes = group.batch(number, active)
            if self.fused and self.chain is not None and self.chain.takes(x):
                self._chain_step(self.chain, group, x, y, lr)
                continue
            if self.fused:
                self._fused_step(group, x, y, lr)
                continue
            if self.local_steps is None:
                gradients = self._gradients(group, x, y)
            else:
                assert isinstance(copies, Stack)
                per_example = PerExample(copies, self.objective, self.chain)
                clients = group.private(active)
                if self.plain and whole_batches(copies, clients):
                    noises = (client.noise(number) for client in clients)
                    rates, decay = [member.lr for member in members[:active]], 1 - lr * self.settings.weight_decay
                    given = per_example(x, y)
                    private_step(copies, given, clients, noises, len(x), number, bad[:active], rates, decay)
                    continue
                gradients = private_gradients(copies, per_example, clients, x, y, number, bad[:active])
            if self.corrects:
                self._correct(members[:active], gradients, copies.weights(), [anchor[:active] for anchor in anchors])
            if self.settings.max_grad_norm is not None:
                clip_each(gradients, self.settings.max_grad_norm)
            step(copies.weights(), [group.at_own_lr(gradient) for gradient in gradients])
        for row, client in enumerate(group.private(len(members))):
            client.add_unseen_noise(copies.arrays[copies.trained[0]][row])
        finite = copies.finite(len(members)) & ~bad
        sums = None if any(done) else copies.total

        def arrays_of(row: int) -> Params:
            return done[row] or copies.client(row)

        return self._results(group, finite, arrays_of, sums, bad)

    def _factored(self, group: Group, lr: float) -> Factored | None:
        """The round without weights of the clients' own, where it can be had so and is worth it."""
        chain, members = self.chain, group.members
        if not self.linear or chain is None or not chain.takes(group.x):
            return None
        sizes, initial = group.longest, [member.initial for member in members]
        if not worth_it(chain, sum(sizes)) or len(bases_of(initial)) * FEWEST_PER_BASE > len(initial):
            return None
        table = Coefficients(self.settings, lr, len(sizes))
        return Factored(chain, initial, [member.steps for member in members], sizes, table, group.at_own_lr)

    def bytes_kept(self, examples: int) -> int:
        """What the steps of a client with so many examples go through again and again: its factors, or else its arrays."""
        settings, each = self.settings, self.copies.arrays[self.copies.trained[0]].element_size()
        batch = min(settings.batch_size or examples, examples)
        rows = min(settings.epochs * examples, settings.steps(examples) * batch)
        if self.linear and self.chain is not None and worth_it(self.chain, rows):
            return rows * numbers_a_row(self.chain) * each
        arrays = sum(array[0].nbytes for array in self.copies.arrays.values())
        if self.first is None or not self.plain or settings.steps(examples) < 2 or not self.first.pays_for(examples):
            return arrays
        in_span = 2 * self.first.outputs + self.first.inputs + examples  # its first layer twice, basis and coordinates
        return arrays + (in_span * examples - self.first.numbers) * each

    @torch.no_grad()
    def _fit_factored(self, factored: Factored, group: Group) -> list[Result]:
        members = group.members
        active = len(members)
        for number in range(members[0].steps):
            while members[active - 1].steps == number:
                active -= 1
            x, y, sizes = group.batch(number, active)
            outputs = factored.forward(x, number, active)
            losses, gradient = client_gradients(self.objective, outputs, y, active, sizes)
            group.count(losses, sizes)
            factored.backward(gradient, number, active)
        return self._results(group, factored.finite(), factored.client, factored.total)

    @torch.no_grad()
    def _fit_in_spans(self, chain: Chain, group: Group, lr: float) -> list[Result]:
        assert isinstance(self.copies, Stack)
        members, decay = group.members, 1 - lr * self.settings.weight_decay
        made, active = InSpans(self.copies, chain, self.objective, members), len(members)
        for number in range(members[0].steps):
            while members[active - 1].steps == number:
                active -= 1
            made.step(number, active, decay)
        return self._results(group, made.finite(), made.client, made.total, made.bad)

    def _gradients(self, group: Group, x: Tensor, y: Tensor) -> list[Tensor]:
        """(k, ...) of each client's own mean loss, in the order of the weights."""
        losses = self._losses(group, x, y)
        return distinct(torch.autograd.grad(losses.sum(), self.copies.weights(), materialize_grads=True))

    def _losses(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        copies = self.copies
        with copies.precision(x.device):
            losses = client_losses(self.objective, copies(x), y, copies.active, copies.sizes)
        group.count(losses.detach(), copies.sizes)
        return losses

    def _fused_step(self, group: Group, x: Tensor, y: Tensor, lr: float) -> None:
        """A step of plain SGD in which a dense layer's gradient g a^T goes into its weights as it is computed."""
        copies, decay = self.copies, 1 - lr * self.settings.weight_decay
        losses = self._losses(group, x, y)
        calls = copies.calls
        others = [copies.weight(name) for name in self._written]
        wanted: list[Any] = [*(call.edge for call in calls), *others]
        given = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
        with torch.no_grad():
            if decay != 1:
                torch._foreach_mul_(copies.weights(), decay)
            for call, gradient in zip(calls, given, strict=False):
                if gradient is None:
                    continue
                weight, *bias = (copies.weight(name) for name in self.fused[call.name])
                g = group.at_own_lr(gradient.reshape(copies.active, -1, gradient.shape[-1]))
                weight.baddbmm_(g.mT, call.inputs.reshape(copies.active, g.shape[1], -1), alpha=-lr)
                for one in bias:
                    one.sub_(g.sum(1), alpha=lr)
            found = [(w, group.at_own_lr(g)) for w, g in zip(others, given[len(calls) :], strict=True) if g is not None]
            if found:
                torch._foreach_add_([w for w, _ in found], [g for _, g in found], alpha=-lr)
        calls.clear()

    def _chain_step(self, chain: Chain, group: Group, x: Tensor, y: Tensor, lr: float) -> None:
        """The same step where every layer is dense."""
        copies, decay = self.copies, 1 - lr * self.settings.weight_decay
        with torch.no_grad():
            outputs = chain.forward(x)
            losses, gradient = client_gradients(self.objective, outputs, y, copies.active, copies.sizes)
            group.count(losses, copies.sizes)
            for link, inputs, g in chain.backward(gradient):
                g = group.at_own_lr(g)
                copies.weight(link.weight).baddbmm_(g.mT, inputs, beta=decay, alpha=-lr)
                if link.bias is not None:
                    copies.weight(link.bias).mul_(decay).sub_(g.sum(1), alpha=lr)

    def _correct(
        self, members: list[Member], gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]
    ) -> None:
        """The client halves' corrections: all at once where the half says that it works element by element."""
        if is_elementwise(self.client_half):
            self.client_half.correct(gradients, weights, anchors)
            return
        for row, member in enumerate(members):
            own = [gradient[row] for gradient in gradients]
            given = list(own)
            member.half.correct(given, [w[row] for w in weights], [a[row] for a in anchors])
            for gradient, old, new in zip(gradients, own, given, strict=True):
                if new is not old:  # put in the list in its stead, which alone is what the step takes
                    gradient[row] = new.detach()

    def _results(
        self,
        group: Group,
        finite: Tensor,
        arrays_of: Callable[[int], Params],
        sums: Callable[[Tensor], Params] | None,
        bad: Tensor | None = None,
    ) -> list[Result]:
        """Each member's result. sums: the arrays times weights (members,), in which updates are folded if they are weighed."""
        kept = finite.tolist()  # the one synchronisation of a group
        metrics = [{}] * len(kept) if self.local_steps is not None else group.train_losses()
        folds = None if self.finishes else sums
        results: list[Result] = []
        for row, member in enumerate(group.members):
            if not kept[row]:
                reason = str(not_finite(member.steps, bad is not None and bool(bad[row])))
                results.append(ClientFailure(member.data.client, reason))
                continue
            arrays = arrays_of(row) if folds is None or member.job.weigh is None else {}
            try:
                state = self._finish(member, arrays)
            except Exception as error:
                results.append(ClientFailure.of(member.data.client, error))
                continue
            both = {**metrics[row], **member.metrics}
            results.append(ClientUpdate(member.data.client, arrays, len(member.data.x), member.steps, both, state))
        if folds is not None:
            _fold(group.members, results, arrays_of, lambda weights: folds(weights.to(finite.device)))
        return results

    def _finish(self, member: Member, arrays: Params) -> Params:
        kept = {} if member.private is None else member.private.keeps()
        if not self.finishes:
            return kept
        load_arrays(self.model, arrays)
        state = member.half.finish(member.device, member.steps, member.lr)
        return {**{name: array.clone() for name, array in state.items()}, **kept}  # the model is the next member's


def _fold(
    members: Sequence[Member],
    results: list[Result],
    arrays_of: Callable[[int], Params],
    sums: Callable[[Tensor], Params],
) -> None:
    """Put the sum of each run's updates that are wanted so in the place of the first, and None in those of the others."""
    runs: dict[Weigh, dict[int, ClientUpdate]] = {}
    for row in sorted(range(len(members)), key=lambda row: members[row].place):
        weigh, result = members[row].job.weigh, results[row]
        if weigh is not None and isinstance(result, ClientUpdate):
            runs.setdefault(weigh, {})[row] = result
    for weigh, updates in runs.items():
        weights = torch.zeros(len(members), dtype=torch.float64)
        for row, update in updates.items():
            weights[row] = weigh(update)
        if not weights.any():
            for row, update in updates.items():
                results[row] = update._replace(arrays=arrays_of(row))
            continue
        for row in updates:
            results[row] = None
        results[next(iter(updates))] = Folded(sums(weights), list(updates.values()))


def _kept(result: Result) -> Result:
    """With arrays of its own, before others train on the copies."""
    if not isinstance(result, ClientUpdate):
        return result
    return result._replace(arrays={name: array.clone() for name, array in result.arrays.items()})


def _is_trained(layer: nn.Module) -> bool:
    return any(weight.requires_grad for weight in layer.parameters())


def is_elementwise(half: ClientHalf) -> bool:
    """Whether the half says so of the very `correct` that it has: a subclass with another has to say it anew."""
    if "elementwise" in vars(half):
        return half.elementwise
    said = next(kind for kind in type(half).__mro__ if {"elementwise", "correct"} & vars(kind).keys())
    return "elementwise" in vars(said) and half.elementwise
