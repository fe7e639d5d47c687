"""No server: threads that take a picture through the pipeline, again and again. Prints pictures per second as JSON."""

import json
import threading
import time

from pipeline import Pipeline, options

from app.memory import keep_freed_memory


def main() -> None:
    chosen = options(__doc__)
    keep_freed_memory()  # as the service does
    pipeline, data = Pipeline(chosen.model, chosen.session_threads, chosen.provider), chosen.picture.read_bytes()
    counts = [0] * chosen.threads
    pipeline(data)
    began = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() < began + chosen.seconds:
            pipeline(data)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(chosen.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"per_second": sum(counts) / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
