"""The one sentence that a user gets for a mistake, whoever noticed it: fedsim, Hydra or OmegaConf."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from fedsim.checks import did_you_mean
from fedsim.paths import conf_dir
from fedsim.types import FedsimError

PLUGINS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/ray": "ray-launcher",
    "hydra/sweeper/optuna": "optuna",
    "hydra/sweeper/sampler": "optuna",
}
"""Options that optional packages bring, and the extra that installs each."""

HOW_TO_SEE_MORE = "set HYDRA_FULL_ERROR=1 to see where"
SEE_HELP = "see python -m fedsim --help for the keys there are"
OF_RESOLVER = "FedsimError raised while resolving interpolation: "
"""What OmegaConf puts before the sentence of one of our resolvers."""
STOPPED = 130
"""Exit status of a command that was stopped, as shells have it for SIGINT."""


class Failure(NamedTuple):
    """What went wrong, and in which cell of a sweep ("" where there is none)."""

    error: BaseException
    cell: str = ""


class Interrupted(FedsimError):
    """The user stopped the command where something is kept."""

    exit_code = STOPPED


def exit_with_sentence(failures: Sequence[Failure]) -> NoReturn:
    """Print a sentence each on standard error, and leave: with 130 where the user stopped it, else 1."""
    for error, cell in failures:
        text = " ".join(f"{f'{cell}: ' if cell else ''}{sentence(error)}".split())
        print(f"fedsim: {text}", file=sys.stderr)
    sys.exit(STOPPED if any(is_stop(error) for error, _ in failures) else 1)


def is_stop(error: BaseException) -> bool:
    """Whether the user stopped it (Ctrl-C), rather than something being wrong."""
    return isinstance(error, KeyboardInterrupt) or getattr(error, "exit_code", 1) == STOPPED


def kept(run_dir: Path) -> bool:
    """Whether the folder holds what can be resumed, or a finished run."""
    return (run_dir / "summary.json").exists() or any((run_dir / "checkpoints").glob("round_*"))


def interrupted(error: BaseException, run_dir: Path) -> BaseException:
    """The error itself; for a bare Ctrl-C that left something, one that says how to go on."""
    if isinstance(error, KeyboardInterrupt) and kept(run_dir):
        return Interrupted(f"stopped; what was finished is kept, go on with: python -m fedsim resume={run_dir}")
    return error


def sentence(error: BaseException) -> str:
    """What is wrong, which key, what to do."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    match error:
        case FedsimError():
            return str(error)
        case OmegaConfBaseException() if first_line.startswith(OF_RESOLVER):
            return first_line.removeprefix(OF_RESOLVER)
        case MissingConfigException():
            return _missing_option(error)
        case OverrideParseException():
            return (
                f"cannot read {error.override}; write key=value, and quote values that hold spaces, commas or brackets"
            )
        case ConfigCompositionException():
            return _bad_override(error)
        case HydraException() | OmegaConfBaseException():
            return _bad_value(error, first_line)
        case KeyboardInterrupt():
            return "stopped before the first round was over; nothing was kept"
        case MemoryError():
            return "out of memory; lower client.batch_size, evaluation.batch_size or grid.chunk_size"
        case OSError() if error.filename is not None:
            return f"{error.filename} cannot be used ({error.strerror}); check it, and hydra.run.dir where the run is written"
        case yaml.MarkedYAMLError() if error.problem_mark is not None:
            mark = error.problem_mark
            return f"{mark.name}, line {mark.line + 1}, is not YAML ({error.problem}); mend that file"
    return f"fedsim failed in a way it should not have ({type(error).__name__}: {first_line}); {HOW_TO_SEE_MORE}"


def _missing_option(error: MissingConfigException) -> str:
    """A group or an option that is not there, with the nearest that is."""
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    if "/" not in missing:
        return (
            f"there is no main configuration {missing}".rstrip()
            + "; leave --config-path and --config-name out, and add a folder of your own with --config-dir"
        )
    group, option = missing.rsplit("/", 1)
    if package := PLUGINS.get(f"{group}/{option}") or PLUGINS.get(group):
        more = " && pip install --no-deps hydra-optuna-sweeper" if package == "optuna" else ""
        return f"{group}={option} needs a package that is not installed; pip install 'fedsim-flower[{package}]'{more}"
    options = sorted(error.options or ())
    if not options:
        return _unknown_key(group)
    return f"{group}={option} is not known{did_you_mean(option, options)}; choose from {', '.join(options)}"


def _bad_override(error: ConfigCompositionException) -> str:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_group(match[1]) if "No match in the defaults list" in text else _unknown_key(match[1])
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{match[1]} is there already; write {match[1]}=... without the plus sign"
    if match := re.search(r"Could not delete from config\. .*?'([^']+)'", text):
        return f"{match[1]} cannot be taken away, since it is not there; leave ~{match[1]} out"
    if match := re.search(r"Multiple values for (\S+?)\.", text):
        return f"{match[1]} is given more than once; give it once"
    cause = str(error.__cause__ or text).strip().splitlines()[0]
    if match := re.search(r"Ambiguous value for argument '(.+)'", cause):
        key, _, value = match[1].partition("=")
        return f"{match[1]} holds commas; sweep over the values with -m {match[1]}, or write {key}=[{value}] for a list"
    if match := re.search(r"duplicate|appears more than once", cause):
        return f"the same group is chosen twice ({cause}); choose it once"
    return f"the command line cannot be applied ({cause}); {SEE_HELP}"


def _bad_value(error: HydraException | OmegaConfBaseException, first_line: str) -> str:
    """Of a value that is missing, or cannot be resolved."""
    found = re.search(r"^\s*full_key: (\S+)", str(error), re.MULTILINE)
    key = found[1] if found else ""
    if isinstance(error, MissingMandatoryValue) or first_line.startswith("Missing mandatory value"):
        key = key or first_line.rpartition(" ")[2]
        return f"{key} has no value; give {key}=..."
    if isinstance(error, ConfigKeyError | AttributeError) and key:
        return f"{key} is missing from the configuration; leave ~{key.split('.')[0]} out, or compare the file that should give it"
    if "config directory" in first_line:
        return f"{first_line.replace('Additional config directory', '--config-dir:')}; give a folder that is there"
    if key and key not in first_line:
        return f"{key} cannot be worked out ({first_line}); give {key} another value"
    return f"{first_line}; {SEE_HELP}"


def _unknown_group(group: str) -> str:
    if group == "experiment":
        return "an experiment is added, not changed; write +experiment=NAME"
    return f"there is no group {group} to choose from{did_you_mean(group, known_keys())}; {SEE_HELP}"


def _unknown_key(key: str) -> str:
    """With the options that have the key where the one that was chosen has not, or the nearest key."""
    known = known_keys()
    if options := sorted(known.get(key, ())):
        return f"{key} is a key of {', '.join(options)} and not of what is chosen here; leave it out, or choose one of them"
    group, dot, tail = key.rpartition(".")
    beside = [one.removeprefix(group + dot) for one in known if one.startswith(group + dot)] if dot else []
    close = did_you_mean(tail, beside)
    if close:
        close = close.replace("mean ", f"mean {group}.")
    elif not beside:
        close = did_you_mean(key, known)
    return f"{key} is not a key of fedsim{close}; {SEE_HELP}"


def known_keys() -> dict[str, set[str]]:
    """Every dotted key of every file of the configuration, and the groups themselves: the options that have the key."""
    keys: dict[str, set[str]] = {key: set() for key in _dotted(OmegaConf.load(conf_dir() / "config.yaml"), "")}
    for path in sorted(conf_dir().glob("*/*.yaml")):
        group = path.parent.name
        if group == "experiment":
            continue
        keys.setdefault(group, set())
        for key in _dotted(OmegaConf.load(path), f"{group}."):
            keys.setdefault(key, set()).add(f"{group}={path.stem}")
    return {key: options for key, options in keys.items() if not key.endswith(("_target_", "_partial_"))}


def _dotted(config: object, prefix: str) -> Iterator[str]:
    value = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("defaults", "hydra"):
                yield f"{prefix}{key}"
                yield from _dotted(item, f"{prefix}{key}.")
