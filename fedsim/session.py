"""One run from its first round to its folder: progress, checkpoints, Ctrl-C, and the summary at the end."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fedsim import flower
from fedsim.algorithms.state import load_strategy_state, unpack
from fedsim.grids.base import SimulationGrid
from fedsim.interrupts import Interrupts
from fedsim.online import client_columns as client_columns_of_streams
from fedsim.parts import Parts
from fedsim.results.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedsim.results.progress import Progress
from fedsim.results.run import RunFolder, client_columns
from fedsim.rounds import Row, ServerState
from fedsim.server import make_server_app
from fedsim.subject import subject_of
from fedsim.summary import closing_line, configuration, summarise
from fedsim.types import FedsimError


class Stopped(FedsimError):
    """The user stopped the run; the sentence says how to go on."""

    exit_code = 130


class Session:
    """Plays the rounds that are left and keeps the folder.

    digest: of the configuration, so that a checkpoint of another experiment is refused. every, keep: of checkpoints.
    states_mb: of clients' states that stay in memory, before they go to files.
    """

    def __init__(
        self, parts: Parts, run_dir: Path, digest: str, every: int, keep: int, states_mb: float = 2048
    ) -> None:
        self.parts, self.folder, self.digest = parts, RunFolder(run_dir), digest
        self.every, self.keep = every, keep
        self.grid: SimulationGrid = parts.grid()
        self.grid.states.keep_in(run_dir / ".client_states", states_mb)
        self.interrupts, self.quiet, self.closes = Interrupts(), False, True
        self._seconds_before, self._started, self._saved = 0.0, time.perf_counter(), 0

    @property
    def state(self) -> ServerState:
        """The server's."""
        return self.parts.server.state

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its sessions."""
        return self._seconds_before + time.perf_counter() - self._started

    def resume(self, baselines: Collection[str] = ()) -> None:
        """Go on from the newest checkpoint. Raises FedsimError where it does not belong to this experiment.

        baselines: those that are wanted; a finished run without them is not finished.
        """
        path, server = self.folder.path, self.parts.server
        checkpoint = load_checkpoint(self.folder.checkpoints)
        progress = checkpoint.progress
        if missing := self._progress().keys() - progress.keys():
            raise FedsimError(f"resume={path}: its checkpoint has no {min(missing)}, so it is corrupt; start anew")
        if progress["config"] != self.digest:
            raise FedsimError(
                f"resume={path}: its checkpoint is of another experiment than its .hydra/config.yaml; restore that file"
            )
        if progress["dataset"] != self.parts.population.dataset.fingerprint:
            raise FedsimError(
                f"resume={path}: the data of dataset {self.parts.population.dataset.name} have changed since; restore them"
            )
        if {n: a.shape for n, a in checkpoint.arrays.items()} != {n: a.shape for n, a in self.state.arrays.items()}:
            raise FedsimError(
                f"resume={path}: its checkpoint holds another model than its configuration; restore .hydra/config.yaml"
            )
        if progress["round"] >= server.rounds and self.folder.holds(baselines):
            raise FedsimError(
                f"resume={path}: the run is finished after {progress['round']} rounds; give rounds=N above that to go on"
            )
        self.parts.go_on_with(progress["execution"])
        self.grid.chunk_size = self.parts.chunk_size
        load_strategy_state(self.parts.algorithm.strategy, checkpoint.strategy)
        self.grid.states.committed = checkpoint.clients
        server.state = ServerState(
            arrays={name: checkpoint.arrays[name] for name in self.state.arrays},
            round=progress["round"],
            rows=progress["rows"],
            participations=_counter(progress["participations"]),
            failures=_counter(progress["failures"]),
            first_failure=progress["first_failure"],
            client_metrics={int(client): metrics for client, metrics in progress["client_metrics"].items()},
            strategy=checkpoint.strategy,
            privacy=checkpoint.privacy,
            versions=dict(checkpoint.versions),
        )
        server.remember(unpack(*checkpoint.privacy))
        self._seconds_before, self._saved = progress["seconds"], progress["round"]

    def run(self, config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Play the rounds and write the run; gives the summary. Ctrl-C raises Stopped after a last checkpoint."""
        server, logger = self.parts.server, self.parts.logger
        logger.start(config, self.folder.path)
        try:
            with (
                self.interrupts.installed(),
                Progress(server.rounds, self.state.round, quiet=self.quiet or None) as progress,
            ):
                self._play(progress)
                summary = self._finish(facts, config)
        except BaseException as error:
            logger.abort(str(error) or type(error).__name__)
            raise
        finally:
            self.grid.states.close()
        told = {key: value for key, value in summary.items() if key != "config"}  # which it was told at the start
        logger.finish(told)
        if not self.quiet and self.closes:
            print(closing_line(summary, self.folder.path))
        return summary

    def _play(self, progress: Progress) -> None:
        server = self.parts.server

        def on_round(row: Row) -> None:
            progress.round(row)
            self.parts.logger.round(row)
            if self.state.round % self.every == 0 or self.state.round == server.rounds:
                self._checkpoint()

        after = self.state.round if self.state.round else None
        server.protection.keep_journal(self.folder.path / "privacy_journal.jsonl", after)
        server.on_round, server.interruptible = on_round, self.interrupts.allowed
        self.grid.on_progress = progress.cohort
        try:
            make_server_app(server)(self.grid, flower.node_context(0))
        except KeyboardInterrupt:
            raise self._stopped() from None
        except FedsimError:
            if self.state.round > self._saved:  # what was learnt before it went wrong is kept
                self._checkpoint()
            raise
        finally:
            self.grid.close()
        if self.state.round == 0:
            raise FedsimError(
                "the privacy budget does not pay for one round; raise privacy.budget or privacy.noise_multiplier"
            )
        if server.protection.sums and not any(row["aggregated"] for row in self.state.rows):
            raise FedsimError(
                f"all {self.state.round} rounds were given up ({self.state.first_failure}); lower privacy.dropout, or raise "
                "privacy.dropout_tolerance or sampler.cohort_size"
            )
        if self.state.round > self._saved:  # the budget ended the run before its rounds were over
            self._checkpoint()

    def _stopped(self) -> Stopped:
        done, rounds, path = self.state.round, self.parts.server.rounds, self.folder.path
        if done == 0:
            return Stopped("stopped before the first round was over; nothing was kept")
        if done > self._saved:
            self._checkpoint()
        return Stopped(
            f"stopped after round {done} of {rounds}; go on with: python -m fedsim {shlex.quote(f'resume={path}')}"
        )

    def _progress(self) -> dict[str, Any]:
        state = self.state
        return {
            "config": self.digest,
            "dataset": self.parts.population.dataset.fingerprint,
            "execution": self.parts.execution,
            "round": state.round,
            "seconds": self.seconds,
            "rows": state.rows,
            "participations": dict(state.participations),
            "failures": dict(state.failures),
            "first_failure": state.first_failure,
            "client_metrics": state.client_metrics,
        }

    def _checkpoint(self) -> None:
        state = self.state
        checkpoint = Checkpoint(
            state.arrays, self.grid.states.written(), state.strategy, state.privacy, self._progress(), state.versions
        )
        save_checkpoint(self.folder.checkpoints, state.round, checkpoint, self.keep)
        self._saved = state.round

    def _finish(self, facts: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        state, population = self.state, self.parts.population
        protection, field = self.parts.server.protection, self.parts.server.field
        online = self.parts.server.online
        if online is not None:
            online.in_hindsight(state.rows, state.arrays)
        ledger = protection.ledger()
        evidence = self._audit(ledger)
        summary = summarise(self.parts, self.seconds, ledger, evidence) | facts
        summary["peak_memory_mb"] += self.grid.peak_mb
        summary |= {"grid": self.grid.name, "workers": self.grid.workers, "config": configuration(config)}
        epsilons = protection.client_epsilons(population.num_clients)
        if epsilons is not None and self.parts.algorithm.pools_data:  # one client trains on everybody's examples
            epsilons = epsilons.repeat(population.num_holders)
        clients = client_columns(population, state.participations, state.failures, state.client_metrics, epsilons)
        clients |= field.client_columns(population.num_holders)
        clients |= client_columns_of_streams(online, population.num_holders)
        trips = field.trips if field.modelled else None
        moved = None if online is None or online.data_drift is None else online.data_drift.table(state.round)
        self.folder.write(summary, state.rows, clients, ledger, state.arrays, population, evidence, trips, moved)
        return summary

    def _audit(self, ledger: dict[str, Any]) -> dict[str, Any]:
        """What the audit says, empty without one. Where it refutes the promise, the ledger makes none any more."""
        server = self.parts.server
        mechanism = getattr(server.protection, "mechanism", None)
        try:
            if server.audit.needs_subject:
                server.audit.examine(subject_of(self.parts))
            evidence = server.audit.finish(ledger["epsilon"], ledger["delta"] or 0.0, mechanism)
        except FedsimError as error:  # the run is whole without it
            return {"kind": "none", "verdict": None, "words": [f"The audit could not be made: {error}."]}
        if server.protection.noise_removed:  # whatever an audit finds, nothing is protected
            ledger["claimed_epsilon"], ledger["epsilon"] = ledger["epsilon"], None
        elif evidence.get("verdict") == "FAIL":
            ledger["refuted_epsilon"], ledger["epsilon"] = ledger["epsilon"], None
            ledger["caveats"].insert(0, f"The audit refutes epsilon = {ledger['refuted_epsilon']:.4g}, see audit.json.")
        return evidence


def _counter(counts: dict[str, int]) -> Counter[int]:
    return Counter({int(client): count for client, count in counts.items()})
