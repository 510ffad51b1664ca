"""The user's own modules on a machine that has not their files: their text travels, and is imported there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import decode_source, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class Source(NamedTuple):
    """A module's text, and whether it is a package."""

    text: str
    package: bool


class Carried(MetaPathFinder, InspectLoader):
    """Imports modules from their text; put it last into `sys.meta_path`, so that a file that is there comes first."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self.sources = sources

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See MetaPathFinder."""
        return spec_from_loader(name, self) if name in self.sources else None

    def get_source(self, name: str) -> str:
        """See InspectLoader."""
        return self.sources[name].text

    def is_package(self, name: str) -> bool:
        """See InspectLoader."""
        return self.sources[name].package


def own_modules(folder: Path | None = None) -> dict[str, Source]:
    """What was imported from the working folder, but for fedsim and what is installed there."""
    home, installed = (folder or Path.cwd()).resolve(), Path(sys.prefix).resolve()
    found: dict[str, Source] = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or not file.endswith(".py") or name.split(".")[0] in ("fedsim", "__main__", "__mp_main__"):
            continue
        path = Path(file).resolve()
        if (
            not path.is_relative_to(home)
            or path.is_relative_to(installed)
            or "site-packages" in path.parts
            or not path.is_file()
        ):
            continue
        found[name] = Source(decode_source(path.read_bytes()), path.name == "__init__.py")
        parents = name.split(".")[:-1]
        for depth in range(1, len(parents) + 1):  # a folder without __init__.py
            found.setdefault(".".join(parents[:depth]), Source("", True))
    return found
