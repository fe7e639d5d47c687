"""A signal asks a run to stop; Ctrl-C that is pressed again stops it at once."""

import contextlib
import os
import signal
from collections.abc import Generator

import pytest

from app.launch import closed_terminals
from model.stopping import stop_on_signals
from tests.toy import ALONE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_only_ctrl_c_after_a_signal_does_not_wait_for_the_save(first: int) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stop_on_signals(ALONE) as stop:
        assert not stop.requested()
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@contextlib.contextmanager
def stdin_on_a_terminal() -> Generator[int]:
    """Gives its other end, which the block closes."""
    other_end, terminal = os.openpty()
    before = os.dup(0)
    os.dup2(terminal, 0)
    os.close(terminal)
    try:
        yield other_end
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_after_the_terminal_was_closed_nothing_is_written_to_it() -> None:
    with stdin_on_a_terminal() as other_end, stop_on_signals(ALONE) as stop:
        signal.raise_signal(signal.SIGHUP)  # by hand
        assert os.isatty(0)
        os.close(other_end)
        assert closed_terminals() == [0]
        signal.raise_signal(signal.SIGHUP)
        assert not closed_terminals()
        os.write(0, b"stopped and saved")
    assert stop.requested()


def test_under_nohup_a_closed_terminal_does_not_stop_a_run() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(ALONE) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested()
    finally:
        signal.signal(signal.SIGHUP, before)
