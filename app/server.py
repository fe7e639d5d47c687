"""The process: its port, and what signals do to it.

SIGTERM   /readyz says 503 for `drain_s`, so that load balancers send no more; then the port closes, accepted requests
          are finished, and the process exits with 0. A second one closes the port at once. If a picture or the model
          hangs, it exits with 1 without finishing it.
SIGINT    the same without the wait. Another one: the process ends at once, with 130
SIGHUP    the model file is loaded again. As SIGTERM if it comes because the terminal was closed, except under nohup
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn

from app import tracing
from app.api import create_app
from app.connection import Connection
from app.errors import Refusal, StartError
from app.launch import closed_terminals
from app.memory import keep_freed_memory
from app.open_files import allow_files
from app.service import Service
from app.settings import Settings

log = logging.getLogger("app")

FINISH_S = 30  # accepted requests may take this long, or their deadline if that is longer
LAST_S = 5  # and then work that nobody waits for
BACKLOG = 2048  # connections that have not been accepted yet: as many as uvicorn lets wait
MOST_FILES = 10_240  # who connects beyond that is cut off without a word; an idle one holds 12 KB
_SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none


def serve(settings: Settings) -> int:
    """Answers requests until a signal. Returns: The exit code. Raises: StartError."""
    keep_freed_memory()
    allow_files(MOST_FILES)
    tracing.configure()
    # Until uvicorn handles signals, and again after it: it raises the signal that ended it once more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if _SIGHUP is not None and not _is_ignored(_SIGHUP):
        signal.signal(_SIGHUP, lambda *_: closed_terminals() and sys.exit(0))  # the file is being read anyway
    with (
        contextlib.closing(tracing),
        contextlib.closing(_listen(settings.host, settings.port)) as listener,
        contextlib.closing(Service.load(settings)) as service,
    ):
        host, port = listener.getsockname()[:2]
        canvases = ", ".join(f"{canvas.width}x{canvas.height}" for canvas in service.runner.metadata.canvases)
        log.info(
            "Serving %s, version %s, on %s, canvases %s (width x height), at http://%s:%d",
            service.model.name, service.model.version, service.model.provider, canvases,
            f"[{host}]" if ":" in host else host, port,
        )  # fmt: skip
        config = uvicorn.Config(
            create_app(settings, service),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            http=Connection,
            ws="none",
            proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,  # uvicorn would trust this machine without being told
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=max(FINISH_S, int(settings.deadline_s) + 1),
        )
        with contextlib.suppress(KeyboardInterrupt):
            Server(config, service).run(sockets=[listener])
    return 0


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_s = service.settings.drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reloading: set[asyncio.Task[None]] = set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assert self.config.timeout_graceful_shutdown is not None
        last = threading.Timer(
            self.config.timeout_graceful_shutdown + LAST_S, _leave, (1, "Something hangs: the process ends without it.")
        )
        last.daemon = True
        last.start()
        await super().shutdown(sockets)  # which closes the service, and waits for its threads
        last.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if _SIGHUP is not None:
            by_nohup = _is_ignored(_SIGHUP)
            self._loop.add_signal_handler(_SIGHUP, self._begin_reload if by_nohup else self._hang_up)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            _leave(130, "The process ends at once: Ctrl-C was pressed again.")
        if sig != signal.SIGTERM or self._service.draining or self._loop is None or not self._drain_s:
            self._service.draining = True
            super().handle_exit(sig, frame)
            return
        self._service.draining = True
        log.info("Shutting down: /readyz says so for %g s, then the port closes.", self._drain_s)
        ending = super().handle_exit
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_s, ending, sig, None)

    def _hang_up(self) -> None:
        if closed_terminals():
            self.handle_exit(signal.SIGTERM, None)
        else:
            self._begin_reload()

    def _begin_reload(self) -> None:
        if len(self._reloading) > 1:
            return  # one waits already, and will read the file as it is then
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload(self) -> None:
        try:
            await self._service.reload(wait=True)
        except Refusal:
            pass  # the log says why
        except Exception:
            log.exception("The model was not reloaded.")


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _leave(code: int, reason: str) -> None:
    log.error("%s", reason)
    os._exit(code)  # anything milder would wait for the threads


def _listen(host: str, port: int) -> socket.socket:
    """Returns: A socket that listens before the model is loaded, which shows at once if the port is taken. Two may be
    bound to one port, but only one can listen; that the other cannot, uvloop does not say."""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            if sys.platform != "win32":  # where it would share a port that is taken
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except (OSError, TypeError) as error:  # the latter if the host cannot be a name
            raise StartError(
                f"Cannot listen on {host} port {port} ({getattr(error, 'strerror', error)}): set FCOS_HOST and "
                "FCOS_PORT to an address of this machine and a free port."
            ) from None
        stack.pop_all()
        return listener
