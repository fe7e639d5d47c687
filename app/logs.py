"""Log lines for people, or as JSON for machines."""

import ctypes
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and what the line was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, form: str) -> None:
    """Sends the log to stderr, as `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    # Warnings about damaged pictures and bodies, of which clients may send any number; the answer says what is wrong.
    warnings.filterwarnings("ignore", module="PIL")
    for library in ("PIL", "python_multipart"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    _silence_libtiff()
    # "Invalid HTTP request received" does not say who sent it, and anybody can cause any number of them.
    logging.getLogger("uvicorn.error").addFilter(lambda line: line.msg != "Invalid HTTP request received.")


def _silence_libtiff() -> None:
    """Keeps libtiff from writing what is wrong with a picture to stderr, past the log, in thousands of lines."""
    from PIL import _imaging  # noqa: F401  # which loads it

    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    files = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "libtiff" in line}
    for file in files:
        set_handler = ctypes.CDLL(file).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)
