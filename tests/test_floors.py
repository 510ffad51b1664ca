"""Imports go downwards only, and each foreign package has its floor."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedsim

ROOT = Path(fedsim.__file__).parent
FLOORS: list[set[str]] = [
    {"fedsim", "rng", "types", "checks", "paths"},
    {"training"},
    {"data", "models"},
    {"privacy", "audit", "results", "transforms", "fleet", "compression", "streams"},
    {"studies"},
    {
        "flower",
        "samplers",
        "exclusion",
        "algorithms",
        "grids",
        "client",
        "replies",
        "merging",
        "online",
        "comparators",
        "data_drift",
        "predicting",
        "evaluating",
        "traffic",
        "judging",
        "server",
        "rounds",
        "nodes",
        "interrupts",
        "parts",
        "subject",
        "summary",
        "plan",
        "session",
    },
    {
        "experiment",
        "build",
        "build_field",
        "build_population",
        "make",
        "resolvers",
        "pairs",
        "finished",
        "forgetting",
        "serving",
    },
    {
        "arguments",
        "command",
        "job",
        "sweeps",
        "errors",
        "resume",
        "undo",
        "unlearn",
        "report",
        "export",
        "explore",
        "__main__",
        "data.__main__",
    },
]
"""From the ground up. A name is a module of fedsim or a folder; imports stay on their floor or go down."""

SERVER_FLOOR = FLOORS[5]
READS_CONFIGURATION = FLOORS[6] | FLOORS[7]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "fedsim"


def unit(module: str) -> str:
    """The name in FLOORS that a module of fedsim belongs to."""
    return module if any(module in floor for floor in FLOORS) else module.split(".")[0]


def floor(module: str) -> int:
    (found,) = [number for number, floor in enumerate(FLOORS) if unit(module) in floor]
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, inside functions too; those for type checkers alone do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif is_type_checking(node):
            assert isinstance(node, ast.If)
            yield from (found for branch in node.orelse for found in imports(branch))
        else:
            yield from imports(node)


def broken_rules(module: str, source: str) -> list[str]:
    """What is wrong with the imports of one module."""
    wrong = []
    here = unit(module)
    for target, name in imports(ast.parse(source)):
        package = target.split(".")[0]
        if package == "fedsim":
            inner = target.partition(".")[2] or name or "fedsim"
            if not any(unit(inner) in one for one in FLOORS):
                inner = "fedsim"
            if floor(inner) > floor(module):
                wrong.append(f"{module} imports {inner}, which is above it")
        if package == "flwr":
            private = name.startswith("_") or target.startswith(
                ("flwr.supercore", "flwr.common", "flwr.server.", "flwr.client.")
            )
            if here not in SERVER_FLOOR | {"experiment", "build"}:
                wrong.append(f"{module} imports {target}: flwr is for the server's floor")
            elif private and module != "flower":
                wrong.append(f"{module} imports {target}.{name}: Flower's private names are for flower.py")
        if package == "hydra" and here not in READS_CONFIGURATION:
            wrong.append(f"{module} imports {target}: hydra is for experiment.py and the commands")
        if package == "omegaconf" and here not in READS_CONFIGURATION:
            wrong.append(f"{module} imports {target}: omegaconf is for experiment.py and the commands")
    return wrong


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def test_every_module_stands_on_one_floor() -> None:
    assert len(MODULES) > 40
    homeless = [module for module in MODULES if sum(unit(module) in one for one in FLOORS) != 1]
    assert homeless == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    assert broken_rules(module, MODULES[module].read_text()) == []


def test_only_flower_py_touches_flowers_private_attributes() -> None:
    for module, path in MODULES.items():
        if module != "flower":
            assert "_message_id" not in path.read_text() and "TaskIdentity" not in path.read_text(), module


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("training.trainer", "from fedsim.data.dataset import Dataset"),
        ("training.trainer", "def f():\n    import fedsim.server"),
        ("rng", "from fedsim.training import Trainer"),
        ("rng", "from fedsim import server"),
        ("data.population", "from fedsim.results.files import write_json"),
        ("results.run", "import flwr"),
        ("grids.base", "from flwr.supercore.run import Run"),
        ("client", "from flwr.app import _private"),
        ("server", "from omegaconf import DictConfig"),
        ("session", "import hydra"),
        ("experiment", "from fedsim.errors import sentence"),
        ("data.population", "from fedsim.data.__main__ import main"),
    ],
)
def test_a_wrong_import_would_be_found(module: str, line: str) -> None:
    assert broken_rules(module, line)


def test_right_imports_are_not_refused() -> None:
    assert not broken_rules(
        "data.population", "from fedsim import rng\nfrom fedsim.training.objectives import IGNORED_TARGET"
    )
    assert not broken_rules("results.run", "if TYPE_CHECKING:\n    from fedsim.server import Row")
    assert not broken_rules("flower", "from flwr.supercore.run import Run")
