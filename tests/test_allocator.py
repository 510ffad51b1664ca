"""Memory that a step frees is there for the next step."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNTED = """
import resource, sys, torch
from fedsim.grids.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    held = [torch.ones(1 << 20), torch.ones(1 << 21)]  # 12 MiB in two blocks, beyond any default threshold
for _ in range(10):  # until blocks have found their places, which may take more than one
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    env = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc's, without its own adapting
    done = subprocess.run([sys.executable, "-c", COUNTED, how], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_freed_pages_are_not_mapped_anew() -> None:
    assert faults("given back") > 20 * 3000  # each step's 12 MiB, in pages of 4 KiB
    assert faults("kept") < 2 * 3000
