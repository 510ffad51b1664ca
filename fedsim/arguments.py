"""The command line before Hydra reads it: what Hydra would accept in silence, or refuse in a page."""

from __future__ import annotations

from argparse import Namespace
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from fedsim.checks import did_you_mean, require_choice, require_name
from fedsim.paths import conf_dir
from fedsim.resolvers import SIZES
from fedsim.resume import refuse_taken, with_resume
from fedsim.types import FedsimError

MANY_ALLOWED = "experiment"  # the one group of which several options can be meant: each changes what the last one left


def for_hydra(arguments: list[str]) -> list[str]:
    """The command line for Hydra: overrides first, then options, and `resume` as Hydra's own keys.

    Raises FedsimError or Hydra's OverrideParseException where it cannot be meant.
    """
    known = _parse(arguments)
    if known.shell_completion or known.help or known.hydra_help:
        return arguments
    if known.experimental_rerun is not None:
        raise FedsimError("--experimental-rerun reads a pickle, which can run code; use resume=RUN_DIR instead")
    overrides = OverridesParser.create().parse_overrides(known.overrides)
    for override in overrides:
        _check(override)
    rest, options = list(known.overrides), []
    for argument in arguments:  # an override between two options is refused by Hydra's parser, after them it is not
        if rest and argument == rest[0]:
            rest.pop(0)
        else:
            options.append(argument)
    resumed = with_resume(overrides, sweep=known.multirun)
    if resumed is None:
        refuse_taken(overrides)
    return [*(known.overrides if resumed is None else resumed), *options]


def _parse(arguments: list[str]) -> Namespace:
    from hydra._internal.utils import get_args_parser  # Hydra has no public name for it

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)


def _refuse(message: str) -> NoReturn:
    raise FedsimError(f"{message}; the options are listed by python -m fedsim --hydra-help")


def _check(override: Override) -> None:
    """Refuse an override without a key, and what cannot be the name of a group's option."""
    line, key = override.input_line, override.key_or_group
    if not key:
        raise FedsimError(f"{line} names no key; write key=value")
    if key == "size":
        _check_size(override)
    if key == "name" and not override.is_delete() and not override.is_sweep_override():
        require_name(override.value())  # Hydra makes the folder before any of our code runs
    folder = conf_dir() / key
    if "." in key or not folder.is_dir() or override.is_delete() or override.is_sweep_override():
        return
    value = override.value()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        raise FedsimError(f"{line} is not known{did_you_mean(str(value), options)}; choose from {', '.join(options)}")
    if len(names) != 1 and key != MANY_ALLOWED:
        swept = ",".join(str(name) for name in names) or "a,b"
        raise FedsimError(f"{line} must name one option; choose one, or sweep over them with -m {key}={swept}")


def _check_size(override: Override) -> None:
    """Studies have a size, and nothing else has."""
    if override.is_add() or override.is_delete():
        raise FedsimError(
            f"{override.input_line}: size is a key of studies, and not to be added or taken away; write size=small"
        )
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    for value in values:
        require_choice("size", value, SIZES)
