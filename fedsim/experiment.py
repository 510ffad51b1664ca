"""Runs one experiment: its parts are made, played and written; its baselines too; or an earlier run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import shutil
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, ListConfig, OmegaConf

from fedsim import resolvers as resolvers  # what a configuration may hold
from fedsim.build import build, check_top_level, strategy_name
from fedsim.checks import require_choice, require_int
from fedsim.pairs import with_pairs
from fedsim.parts import Parts
from fedsim.paths import conf_dir, whole
from fedsim.plan import make_plan, print_plan, warnings_of
from fedsim.results.files import write_json
from fedsim.session import Session, Stopped
from fedsim.types import FedsimError

log = logging.getLogger(__name__)

BASELINES = ("central", "local_only")
PLAIN = {
    **dict.fromkeys(("logger", "privacy", "audit", "compression", "streams", "drift", "detector", "response"), "none"),
    "fleet": "ideal",
    "availability": "always",
    "schedule": "synchronous",
}
"""Groups, and the option of each that a baseline has."""

MAY_CHANGE = ("rounds", "resume", "dry_run", "baselines", "logger", "checkpoint", "name", "objectives", "pairs")
"""Keys that change no bit of the rounds that have been run."""


class Company(Protocol):
    """What a run that is not alone in its process leaves to the others: see `fedsim.sweeps.packed`."""

    def build(self, cfg: DictConfig) -> Parts:
        """The run's parts."""

    def begin(self, session: Session) -> None:
        """Told before the first round; the session draws nothing and prints nothing."""


def run(cfg: DictConfig, run_dir: Path, command: str = "", company: Company | None = None) -> dict[str, Any]:
    """Run one experiment into `run_dir` and give its summary; with `dry_run`, give its plan and train nothing.

    Raises FedsimError, one sentence, for anything a user can mend.
    """
    if cfg.get("resume"):
        run_dir = Path(cfg.resume)
        cfg = saved_config(run_dir, cfg)
        command = command_of(run_dir)
    cfg = with_pairs(cfg)
    check_top_level(cfg)
    baselines = chosen_baselines(cfg)
    parts = build(cfg) if company is None else company.build(cfg)
    if cfg.dry_run:
        plan = make_plan(parts)
        print_plan(plan)
        write_json(run_dir / "plan.json", plan)
        return plan
    session = Session(parts, run_dir, digest(cfg), cfg.checkpoint.every, cfg.checkpoint.keep, cfg.checkpoint.states_mb)
    for warning in warnings_of(parts):
        log.warning("%s", warning)
    if company is not None:
        company.begin(session)
    if cfg.get("resume"):
        session.resume(baselines)
        save_config(cfg, run_dir)
    summary = session.run(
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        facts={
            "command": command,
            "strategy": strategy_name(cfg),
            "model": cfg.model._target_.rsplit(".", 1)[-1],
            "partition": cfg.partition._target_.rsplit(".", 1)[-1],
            "compression": parts.server.compression.name,
            "baselines": {},
        },
    )
    if baselines:
        if session.interrupts.pending:  # it came while the run was being written
            raise _stopped("before its baselines", run_dir)
        summary["baselines"] = {name: run_baseline(cfg, name, run_dir, company) for name in baselines}
        session.folder.describe(summary)
    return summary


def chosen_baselines(cfg: DictConfig) -> list[str]:
    """`baselines=true` means both; a list names them."""
    if isinstance(cfg.baselines, bool):
        return list(BASELINES) if cfg.baselines else []
    names = list(cfg.baselines) if isinstance(cfg.baselines, ListConfig) else [cfg.baselines]
    return [require_choice("baselines", name, BASELINES) for name in names]


def run_baseline(cfg: DictConfig, name: str, run_dir: Path, company: Company | None = None) -> dict[str, Any]:
    """The same experiment with another strategy, as a run of its own inside the run's folder; gives its main figures."""
    folder = run_dir / "baselines" / name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped, or had fewer rounds
    own = cfg.copy()
    own.strategy = OmegaConf.load(conf_dir() / "strategy" / f"{name}.yaml")
    for (
        group,
        plain,
    ) in PLAIN.items():  # what could be had without protection or devices' limits: it is what these cost too
        own[group] = OmegaConf.load(conf_dir() / group / f"{plain}.yaml")
    own.baselines, own.name, own.resume = False, f"{cfg.name}/{name}", None
    own.evaluation.regret, own.evaluation.data_drift = [], None  # of streams, which a baseline has none of
    save_config(own, folder)
    try:
        summary = run(own, folder, company=company)
    except Stopped:
        raise _stopped(f"in its baseline {name}", run_dir) from None
    spread = summary["federated"] or {}
    return {
        **{key: summary[key] for key in ("accuracy", "loss", "best_accuracy", "seconds")},
        **{key: spread.get(key) for key in ("accuracy_mean", "accuracy_worst10")},
    }


def _stopped(where: str, run_dir: Path) -> Stopped:
    again = shlex.quote(f"resume={run_dir}")
    return Stopped(f"stopped {where}; the run itself is whole, and its baselines begin with: python -m fedsim {again}")


def save_config(cfg: DictConfig, run_dir: Path) -> None:
    """Where Hydra keeps a run's configuration, and `resume` looks for it."""
    with whole(run_dir / ".hydra" / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.merge(cfg, {"resume": None, "resume_rounds": None}), temporary)


def digest(cfg: DictConfig) -> str:
    """SHA-256 of the configuration, less the keys that change no bit of the rounds that have been run."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def saved_config(run_dir: Path, cfg: DictConfig) -> DictConfig:
    """The configuration that the run in `run_dir` was started with; only `rounds` may differ, and only grow."""
    path = run_dir / ".hydra" / "config.yaml"
    if not path.is_file():
        raise FedsimError(
            f"resume={run_dir} is not the folder of a run (it has no .hydra/config.yaml); give one that is"
        )
    try:
        saved = OmegaConf.load(path)
    except Exception as error:  # YAML's errors, OmegaConf's and those of decoding have no base in common
        raise FedsimError(
            f"resume={run_dir}: {path} is corrupt ({type(error).__name__}); it cannot be resumed"
        ) from error
    if not isinstance(saved, DictConfig) or not {"rounds", "checkpoint", "dataset"} <= set(saved):
        raise FedsimError(
            f"resume={run_dir}: {path} is not the configuration of a run of fedsim; give the folder of one"
        )
    if cfg.resume_rounds is not None:
        if require_int("rounds", cfg.resume_rounds, low=1) < saved.rounds:
            raise FedsimError(
                f"rounds={cfg.resume_rounds} is fewer than the run's {saved.rounds}; a resumed run can only grow"
            )
        saved.rounds = cfg.resume_rounds
    saved.resume = str(run_dir)
    return saved


def command_of(run_dir: Path) -> str:
    """The command that started the run, as Hydra saved it."""
    path = run_dir / ".hydra" / "overrides.yaml"
    overrides = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else []
    return command_from([str(one) for one in overrides])  # type: ignore[union-attr]


def command_from(overrides: list[str]) -> str:
    """The command line that repeats a run."""
    return shlex.join(["python", "-m", "fedsim", *overrides])
