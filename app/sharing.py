"""How the cores are shared out: sessions, threads, batches. The model's pace decides what the settings leave open."""

import sys
from time import perf_counter, thread_time

import numpy as np

from app.cores import core_count
from app.providers import CUDA
from app.session import BATCH_SIZES, OnnxRunner
from app.settings import Settings

MOST_THREADS = 8  # of one run on the CPU; more add little
QUICK_S = 0.01  # per picture on one core: a quicker model is not worth several cores, but batches


def largest_batch(provider: str) -> int:
    """Returns: The largest batch that pays off; on the CPU only with quick models.

    A batch shares the fixed cost of a run: models of 2, 6 and 9 ms take 15, 17 and 10 % less for a picture in batches
    of 4, and hardly less in larger ones. But the features of several pictures push one another out of the caches, from
    which slower models lose: the shipped one, a twentieth.
    """
    return BATCH_SIZES[-1] if provider == CUDA else 4


def session_count(settings: Settings, provider: str) -> int:
    """Returns: How many batches may run at a time. On CUDA one: a second would wait for the first, and hold memory.

    On the CPU one for each core: concurrent pictures waste less than one picture's operators shared out over cores,
    each of which waits for the slowest.
    """
    return 1 if provider == CUDA else settings.sessions or core_count()


def worker_count(settings: Settings) -> int:
    """Returns: How many threads take pictures through. Unless that is set, no more than there may be pictures.

    A machine with GPUs may have hundreds of cores, and a container a limit of threads.
    """
    return settings.decode_threads or min(max(core_count(), settings.sessions), settings.max_queue)


def drawer_count(settings: Settings) -> int:
    """Returns: How many threads draw."""
    return min(max(1, core_count() // 4), settings.max_queue)


def most_threads(settings: Settings) -> int:
    """Returns: The most threads that a batch has on the CPU while others leave their cores to it."""
    return 1 if settings.threads or settings.sessions else min(core_count(), MOST_THREADS)


def session_threads(settings: Settings) -> int:
    """Returns: How many threads one batch has on the CPU when all cores are busy."""
    cores = core_count()
    return settings.threads or max(1, cores // (settings.sessions or cores))


def seconds_per_picture(runner: OnnxRunner, size: int = 1, times: int = 1) -> float:
    """Returns: How long a picture takes in a batch of this size, on one core, in the least disturbed of some runs. On
    the CPU, what others do meanwhile does not count: a service may reload its model under load."""
    coarse = sys.platform == "win32"  # there a thread's time rises in steps of 16 ms
    clock = perf_counter if runner.provider == CUDA or coarse else thread_time
    canvas = max(runner.metadata.canvases, key=lambda canvas: canvas.area)
    batch = [np.full((*canvas, 3), 127, np.uint8)] * size

    def seconds() -> float:
        begun = clock()
        runner.run_batch(batch)
        return clock() - begun

    return min(seconds() for _ in range(times)) / size
