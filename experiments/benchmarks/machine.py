"""The machine that figures are of."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "flwr", "ray", "opacus", "hydra-core")


def describe(device: str) -> dict[str, Any]:
    """What a reader has to know to judge the figures; `busy` is the load when they were begun, 0 on a quiet machine."""
    return {
        "cpu": cpu(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
        "busy": round(os.getloadavg()[0], 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", __package__, *without_folder(sys.argv[1:])]),
    }


def without_folder(arguments: list[str]) -> list[str]:
    """The command's arguments, less where its results went, which is a path of this machine."""
    places = [place for place, word in enumerate(arguments) if word == "--out"]
    gone = {*places, *(place + 1 for place in places)}
    return [w for place, w in enumerate(arguments) if place not in gone and not w.startswith("--out=")]


def sentence(machine: dict[str, Any]) -> str:
    """The same for people."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:g} GB{gpu}, {machine['system']}, "
        f"Python {machine['python']}, {versions}; {machine['date']}, load {machine['busy']:g} at the start."
    )


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """Its model's name."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of the code that was measured, where it is in a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
