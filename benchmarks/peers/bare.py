"""No server: threads that take a picture through the pipeline, again and again.

For each line of its input, a number of seconds, it prints the pictures per second that it processed in that time.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline import Pipeline, options

from app.memory import keep_freed_memory


def main() -> None:
    chosen = options(__doc__)
    keep_freed_memory()  # as the service does
    pipeline, data = Pipeline(chosen.model, chosen.session_threads, chosen.provider), chosen.picture.read_bytes()
    for line in sys.stdin:
        print(_rate(pipeline, data, chosen.threads, float(line)), flush=True)


def _rate(pipeline: Pipeline, data: bytes, threads: int, seconds: float) -> float:
    """Returns: Pictures per second of some threads together."""
    began = time.perf_counter()

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < began + seconds:
            pipeline(data)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(work, range(threads)))
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
