"""How many files a process may have open, sockets included."""

import sys


def allow_files(most: int = 2**20) -> None:
    """Raises the process's limit of open files to this number, or to the most that it may have: many shells and service
    managers set 1,024, macOS 256. It never lowers it."""
    if sys.platform == "win32":
        return
    import resource

    if sys.platform == "darwin":  # it refuses more, although its hard limit is mostly unlimited
        most = min(most, 10_240)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
