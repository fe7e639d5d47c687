"""How many cores this process may use: in a container often only a few of the machine's."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def core_count(cgroup: Path = CGROUP) -> int:
    """Returns: How many cores the process may run on, at most its control group's quota, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(allowed, _quota(cgroup)))


def _quota(cgroup: Path) -> float:
    """Returns: In cores; infinite if there is none. Docker and Kubernetes show a process its own group's files."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        cores = int(quota) / int(period)
    except ValueError:  # "max"
        return math.inf
    return cores if cores > 0 else math.inf  # version 1 says -1
