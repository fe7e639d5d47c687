"""No server: threads that take a picture through the pipeline, again and again.

For each line of its input, a number of seconds, it prints the pictures per second that it did in them.
"""

import sys
import threading
import time

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
    counts = [0] * threads
    began = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() < began + seconds:
            pipeline(data)
            counts[number] += 1

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
