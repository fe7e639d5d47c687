"""Threads for a picture's work: decoding, post-processing and, on the CPU, the model in between."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)

Task = Callable[[], None]


class Workers:
    """A pool with two queues: a picture's last steps are done first, so that pictures are finished, not piled up.

    Leaner than `ThreadPoolExecutor`, whose futures nobody here would wait for. Tasks handle their own errors.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._urgent: deque[Task] = deque()
        self._others: deque[Task] = deque()
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # one True per task; a False ends one thread
        self._threads = [  # daemons: if one of them cannot be started, the process must not wait for the others
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task, *, urgent: bool = False) -> None:
        (self._urgent if urgent else self._others).append(task)
        self._tokens.put(True)

    def close(self) -> None:
        """Finishes what was submitted, then ends the threads."""
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._tokens.get():
            try:
                task = self._urgent.popleft()
            except IndexError:
                task = self._others.popleft()
            try:
                task()
            except Exception:
                log.exception("A task failed that should handle its own errors.")
            del task  # it holds a picture, which must not live on while the thread waits
