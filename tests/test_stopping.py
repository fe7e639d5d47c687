"""A signal asks a run to stop; Ctrl-C that is pressed again stops it at once."""

import os
import signal

import pytest

from model.stopping import stop_on_signals
from tests.toy import ALONE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_only_ctrl_c_after_a_signal_does_not_wait_for_the_save(first: int) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals(ALONE) as stop:
        assert not stop.requested()
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
