"""The configuration that Hydra saved with a run, for runs whose summary.json does not hold it yet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fedsim.results.loggers.shared import without_credentials
from fedsim.types import FedsimError


def saved_config(folder: Path) -> dict[str, Any]:
    """Nested, resolved as far as a value is another key's (`${client.lr}`); empty where the run has none.

    Raises FedsimError where the file is corrupt.
    """
    import yaml

    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(without_credentials(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise FedsimError(f"{path} is corrupt ({type(error).__name__}); restore it, or leave its folder out") from error
    if not isinstance(config, dict):
        raise FedsimError(f"{path} is not the configuration of a run; restore it, or leave its folder out")
    return _resolved(config, config)


def _resolved(value: Any, config: dict[str, Any], depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {str(key): _resolved(item, config, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, config, depth) for item in value]
    if not isinstance(value, str) or depth > 10 or not (match := re.fullmatch(r"\$\{([\w.]+)\}", value)):
        return value
    found: Any = config
    for name in match[1].split("."):
        if not isinstance(found, dict) or name not in found:
            return value
        found = found[name]
    return _resolved(found, config, depth + 1)
