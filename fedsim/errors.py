"""The one sentence that a user gets for a mistake, whoever noticed it: fedsim, Hydra or OmegaConf."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsim.checks import did_you_mean
from fedsim.paths import conf_dir
from fedsim.types import FedsimError

HOW_TO_SEE_MORE = "set HYDRA_FULL_ERROR=1 to see where"
OWN_TRACES = (".hydra", ".mlflow_run", ".wandb_run", "tensorboard", "wandb")


def exit_with_sentence(error: BaseException) -> NoReturn:
    """Print the sentence on standard error and leave with the error's exit status."""
    print(f"fedsim: {sentence(error)}", file=sys.stderr)
    sys.exit(130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1))


def sentence(error: BaseException) -> str:
    """What is wrong, which key, what to do."""
    if isinstance(error, FedsimError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override}; write key=value, and quote values that hold spaces, commas or brackets"
    if isinstance(error, ConfigCompositionException):
        return _bad_override(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, HydraException | OmegaConfBaseException):
        key = getattr(error, "full_key", None)
        return f"{key}: {first_line}" if key and key not in first_line else first_line
    if isinstance(error, KeyboardInterrupt):
        return "stopped before the first round; nothing was kept"
    if isinstance(error, MemoryError):
        return "out of memory; lower client.batch_size, evaluation.batch_size or grid.chunk_size"
    return f"fedsim failed in a way it should not have ({type(error).__name__}: {first_line}); {HOW_TO_SEE_MORE}"


def _missing_option(error: MissingConfigException) -> str:
    """A group or an option that is not there, with the nearest that is."""
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    if "/" not in missing:
        return f"{missing} is not a configuration that is there; see python -m fedsim --help"
    group, option = missing.rsplit("/", 1)
    options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    if not options:
        return _unknown_key(group)
    return f"{group}={option} is not known{did_you_mean(option, options)}; choose from {', '.join(options)}"


def _bad_override(error: ConfigCompositionException) -> str:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        if "No match in the defaults list" in text:
            return f"there is no group {match.group(1)} to override; to add an experiment write +experiment=NAME"
        return _unknown_key(match.group(1))
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        key = match.group(1)
        return f"{key} is there already; write {key}=... without the plus sign"
    cause = str(error.__cause__ or text).strip().splitlines()[0]
    return f"the command line cannot be applied: {cause}"


def _unknown_key(key: str) -> str:
    return f"{key} is not a key of fedsim{did_you_mean(key, known_keys())}; see python -m fedsim --help for the keys there are"


def known_keys() -> list[str]:
    """Every dotted key of every file of the configuration, and the groups themselves."""
    keys = set(_dotted(OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml")), ""))
    for path in conf_dir().glob("*/*.yaml"):
        if path.parent.name != "experiment":
            keys |= {path.parent.name, *_dotted(OmegaConf.to_container(OmegaConf.load(path)), f"{path.parent.name}.")}
    return sorted(key for key in keys if "_target_" not in key and "_partial_" not in key)


def _dotted(value: object, prefix: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("defaults", "hydra"):
                yield f"{prefix}{key}"
                yield from _dotted(item, f"{prefix}{key}.")


@contextmanager
def undo_folder(run_dir: Path) -> Iterator[None]:
    """Where the block fails before anything worth resuming was kept, take away what was put into the run's folder."""
    try:
        yield
    except BaseException:
        kept = any((run_dir / "checkpoints").glob("round_*")) or (run_dir / "baselines").exists()
        if not kept and not (run_dir / "summary.json").exists():
            for name in OWN_TRACES:
                path = run_dir / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
            if run_dir.is_dir() and not any(run_dir.iterdir()):
                run_dir.rmdir()
        raise
