"""Freed memory is kept, but once, not for each thread."""

import subprocess
import sys
from pathlib import Path

import pytest

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
