"""How a process keeps its memory."""

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # malloc.h


def keep_freed_memory(
    block_bytes: int = 32 * 2**20, trim_bytes: int = 2**29, top_pad_bytes: int | None = None, heaps: int = 1
) -> None:
    """Makes glibc keep freed memory for what is allocated next. Without glibc, nothing happens.

    By default it hands every large block back to the kernel, which maps and clears the same pages again for the next
    one: in the service a sixth of all the time with a model of 2 ms.

    Args:
        block_bytes: Larger blocks are still handed back.
        trim_bytes: So is free memory beyond this at the heap's end.
        top_pad_bytes: Requested in addition whenever the heap grows; glibc's own choice if None.
        heaps: How many there are at most; 0: nearly one for each thread, of which each keeps the most that its thread
            ever had. With 16 threads, 40 pictures of 49 megapixels, one after the other, left 3.7 GB; with one heap,
            0.4 GB.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, heaps)
        mallopt(_M_MMAP_THRESHOLD, block_bytes)
        mallopt(_M_TRIM_THRESHOLD, trim_bytes)
        if top_pad_bytes is not None:
            mallopt(_M_TOP_PAD, top_pad_bytes)


def forget_garbage() -> None:
    """Collects garbage, and makes the collector ignore what is left from then on.

    What is left lives as long as the process: modules, models of requests, the session. Going through all of it takes
    0.1 s, in which no request is answered, and the collector would do so again and again. A reload leaves it at that:
    the model before is freed without the collector.
    """
    gc.collect()
    gc.freeze()
