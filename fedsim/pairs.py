"""Sweeps over pairs of values rather than a grid: `-m 'pairs={KEY:VALUE,KEY:VALUE},{...}'`, a cell each."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from fedsim.checks import did_you_mean
from fedsim.paths import conf_dir
from fedsim.types import FedsimError


def with_pairs(cfg: DictConfig) -> DictConfig:
    """The configuration with the values of `pairs` in their places, and without pairs. Raises FedsimError for a key it lacks."""
    if cfg.get("pairs") is None:
        return cfg
    if not isinstance(cfg.pairs, DictConfig):
        raise FedsimError(f"pairs={cfg.pairs} holds no keys; write pairs={{KEY:VALUE,KEY:VALUE}}")
    own = cfg.copy()
    with open_dict(own):
        own.pairs = None
    missing = object()
    for key, value in ((str(key), value) for key, value in cfg.pairs.items()):
        if (conf_dir() / key).is_dir() or key in ("pairs", "resume"):
            raise FedsimError(f"pairs holds {key}, which is no single value; sweep over {key} itself")
        if OmegaConf.select(own, key, default=missing) is missing:
            close = did_you_mean(key, _keys(own))
            raise FedsimError(
                f"pairs holds {key}, which is not a key of this experiment{close}; see --help for those it has"
            )
        OmegaConf.update(own, key, value)
    return own


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key."""
    found = []
    for key in map(str, cfg):
        found.append(f"{prefix}{key}")
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            found += _keys(node, f"{prefix}{key}.")
    return found
