"""The README's own lines run as they stand."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", README, flags=re.DOTALL))


def own_parts_command() -> list[str]:
    """The README's command that uses the three own parts."""
    (command,) = re.findall(r"```bash\n(python -m fedsim dataset=custom.*?)```", README, flags=re.DOTALL)
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.parametrize("name", sorted(PARTS))
def test_own_parts_take_less_than_20_lines(name: str) -> None:
    assert len([line for line in PARTS[name].splitlines() if line.strip()]) < 20


def test_own_dataset_model_and_strategy_train(tmp_path: Path) -> None:
    assert sorted(PARTS) == ["my_data.py", "my_model.py", "my_strategy.py"]
    for name, lines in PARTS.items():
        (tmp_path / name).write_text(lines, encoding="utf-8")
    python, *arguments = own_parts_command()
    assert python == "python"
    subprocess.run([sys.executable, *arguments, "hydra.run.dir=run"], cwd=tmp_path, check=True, capture_output=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["dataset"]["name"], summary["model"], summary["strategy"]) == ("wine", "Net", "PartWay")
    assert summary["accuracy"] > 0.9  # 178 wines of three growers are easily told apart


def test_the_groups_table_names_every_option() -> None:
    conf = Path(__file__).resolve().parent.parent / "conf"
    for group in (
        path
        for path in conf.iterdir()
        if path.is_dir() and path.name not in ("experiment", "evaluation", "hydra", "population")
    ):
        (row,) = re.findall(rf"^\| `{group.name}` \|(.*)\|$", README, flags=re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row)) == {path.stem for path in group.glob("*.yaml")}, group.name
