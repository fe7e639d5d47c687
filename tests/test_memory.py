"""Freed memory is kept, but once, not for each thread; and what lives for ever is not gone through again and again."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from app.memory import forget_garbage
from tests.serving import ROOT

SIZE = 'print(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])'
IN_TURN = """
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
"""
MANY_SMALL = """
from pathlib import Path
from app.memory import keep_freed_memory
keep_freed_memory()
blocks = [b"x" * 2**20 for _ in range(100)]
del blocks
"""


def size_kb(script: str) -> int:
    """Of a process's memory at a script's end."""
    done = subprocess.run([sys.executable, "-c", script + SIZE], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux")
def test_threads_that_hold_a_picture_in_turn_leave_the_memory_of_one() -> None:
    assert 80_000 < size_kb(IN_TURN) < 200_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux")
def test_what_was_freed_in_small_parts_is_kept() -> None:
    assert size_kb(MANY_SMALL) > 100_000


def test_garbage_goes_and_what_is_left_is_never_gone_through() -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self

    gone, before = weakref.ref(Ring()), gc.get_freeze_count()
    try:
        forget_garbage()
        assert gone() is None and gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
