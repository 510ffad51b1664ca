"""From one part of the configuration to the object that it names, or one sentence that says why not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fedsim.checks import did_you_mean, shown
from fedsim.types import FedsimError


def make(part: Any, key: str) -> Any:
    """Instantiate one part. Raises FedsimError: in the constructor's own words where it has some, with the key otherwise."""
    target = str(part["_target_"])
    check_keys(part, key)
    try:
        return instantiate(part, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while not isinstance(cause, FedsimError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise not_made(key, target, cause) from error


def check_keys(part: Mapping[str, Any], key: str) -> None:
    """Refuse a key that the part's `_target_` does not take, in it or in a part inside of it."""
    for name, value in part.items():
        if isinstance(value, Mapping) and "_target_" in value:
            check_keys(value, f"{key}.{name}")
    from hydra._internal.utils import (
        _locate,  # hydra.utils.get_object does the same, and logs a paragraph where it fails
    )

    target = part["_target_"]
    if not isinstance(target, str):
        raise FedsimError(f"{key}._target_={shown(target)} is not the name of a class or a function; give module.name")
    try:
        taken = inspect.signature(_locate(target)).parameters
    except Exception as error:  # whatever a user's own module raises when it is imported
        if isinstance(error, ValueError) and "signature" in str(error):  # some built-in callables have none
            return
        raise not_imported(key, target, error) from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    unknown = [str(name) for name in part if not str(name).startswith("_") and name not in taken]
    if unknown:
        close = did_you_mean(unknown[0], taken)
        raise FedsimError(
            f"{key}.{unknown[0]} is not a key of {target}{close}; leave it out, or choose another {key}=..."
        )


def not_imported(key: str, target: str, error: BaseException) -> FedsimError:
    """The error for a `_target_` that is not there, or whose module raises."""
    if isinstance(error, FedsimError):
        return error
    while error.__cause__ is not None:
        error = error.__cause__
    reason = first_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {first_line(error)}"
    return FedsimError(
        f"{key}._target_={target} cannot be imported ({reason}); give module.name of something in the working folder or installed"
    )


def not_made(key: str, target: str, error: BaseException) -> FedsimError:
    """The error for a part whose constructor raised; a FedsimError stays as it is."""
    if isinstance(error, FedsimError):
        return error
    text = first_line(error)
    if match := re.search(r"missing \d+ required .*?: '(\w+)'", text):
        return FedsimError(f"{key}._target_={target} needs {match[1]}; give +{key}.{match[1]}=...")
    return FedsimError(
        f"{key}._target_={target} cannot be made ({type(error).__name__}: {text}); check the keys of {key}"
    )


def first_line(error: BaseException) -> str:
    """Of the error's message; empty where it has none."""
    return (str(error).strip().splitlines() or [""])[0]
