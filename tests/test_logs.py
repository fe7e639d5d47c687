"""What a log line for machines holds."""

import json
import logging
import os
import sys
import time
from pathlib import Path

import pytest

from app.logs import JsonFormatter


@pytest.mark.skipif(os.name == "nt", reason="its time zone cannot be set")
def test_a_line_says_when_in_utc_and_all_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("app.access", logging.WARNING, "", 1, "%s is late", ("猫",), None)
    record.created, record.msecs = 86_400.007, 7.9
    vars(record).update(key="0a1b2c3d", file=Path("a.jpg"))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "EST5")
        time.tzset()
        line = JsonFormatter().format(record)
    time.tzset()
    assert "猫 is late" in line
    assert json.loads(line) == {
        "time": "1970-01-02T00:00:00.007Z", "level": "warning", "logger": "app.access", "message": "猫 is late",
        "key": "0a1b2c3d", "file": "a.jpg",
    }  # fmt: skip


def test_a_failure_has_its_traceback_on_the_line() -> None:
    try:
        raise RuntimeError("out of memory")
    except RuntimeError:
        record = logging.LogRecord("app", logging.ERROR, "", 1, "The model failed.", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("RuntimeError: out of memory")
