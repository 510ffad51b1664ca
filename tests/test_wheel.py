"""An installed wheel works from any folder: the configuration lies inside it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_runs_from_another_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("fedsim_flower-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere.mkdir()
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import fedsim.__main__ as m; print(m.__file__); m.main()"
    command = [sys.executable, "-c", code, "dataset=digits", "model=linear", "dry_run=true", "hydra.run.dir=plan"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True)
    assert str(site) in done.stdout.splitlines()[0]  # the wheel's code, not the checkout's
    assert (site / "fedsim" / "conf" / "config.yaml").is_file()
    assert (site / "fedsim" / "results" / "report.html.j2").is_file()
    assert (site / "fedsim" / "studies" / "explore" / "main.js").is_file()
    assert (site / "fedsim" / "studies" / "study.html.j2").is_file()
    assert json.loads((elsewhere / "plan" / "plan.json").read_text())["num_clients"] == 100
