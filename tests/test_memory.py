"""Freed memory is kept, but once, not for each thread; open files are allowed as far as the system goes."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from app.memory import allow_files
from tests.serving import ROOT

SCRIPT = """
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
from app.memory import keep_freed_memory
keep_freed_memory()
turn, done = threading.Lock(), threading.Barrier(8)
def hold():
    with turn:
        Image.new("RGB", (5000, 4000), "red")  # 80 MB
    done.wait()
with ThreadPoolExecutor(8) as threads:
    list(threads.map(lambda _: hold(), range(8)))
print(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux")
def test_threads_that_hold_a_picture_in_turn_leave_the_memory_of_one() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 80_000 < int(done.stdout) < 200_000, "kB"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
@pytest.mark.parametrize(("platform", "allowed"), [("linux", 2**20), ("darwin", 10_240)])
def test_an_unlimited_hard_limit_is_no_reason_to_ask_for_more_than_the_system_gives(
    platform: str, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS it ended training: current limit exceeds maximum limit."""
    import resource

    limits: list[tuple[float, float]] = [(256, math.inf)]

    def set_limits(_: int, new: tuple[float, float]) -> None:
        if new[0] > allowed:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(new)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "RLIM_INFINITY", math.inf)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    allow_files()
    assert limits[-1] == (allowed, math.inf)
    allow_files(4096)
    assert limits[-1] == (allowed, math.inf), "lowered"
