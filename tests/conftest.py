"""Fixtures that several test modules share."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path

import hypothesis
import pytest

from app.providers import CPU
from tests.held import Held
from tests.support import write_model

# A busy machine is no failure of the property.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# What a shell starts in the background ignores it, and so would the programs that the tests start and send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A proxy that the environment names has no way to this machine, and the tests go nowhere else.
os.environ["no_proxy"] = "*"

# Torch's threads wait for each other without spinning: else a tiny network, all of whose steps are short, takes up to a
# hundred times as long beside any other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session", autouse=True)
def thawed() -> Iterator[None]:
    """What a service froze (`forget_garbage`) is freed at the exit, or triton lists all it has as leaked."""
    yield
    gc.unfreeze()


@pytest.fixture
def anyio_backend() -> str:
    """The loop that asynchronous tests run in, of which each has its own."""
    return "asyncio"


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that finds coloured rectangles (see `support.py`)."""
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@contextmanager
def single_threaded() -> Generator[None]:
    """Networks and pictures as small as a test's only get slower with more threads of torch."""
    import torch  # most tests need none

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture(scope="session")
def torch_server() -> Iterator[BaseContext]:
    """Starts processes that come from one which has imported torch: each would take 10 s for it. Windows has no such
    way, there they do."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield multiprocessing.get_context("spawn")
        return
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["model.recipes"])
        process = context.Process()  # which does nothing, but starts the server
        process.start()
        process.join()
    yield context


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight toy pictures, only to be read: the json, and their folder."""
    from tests.toy import write_coco

    return write_coco(tmp_path_factory.mktemp("toy"), 8)


@pytest.fixture(scope="session")
def uninterrupted(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, only to be read, of a run with `EVERYTHING` that came to its end."""
    from model.training import train
    from tests.toy import ALONE, EVERYTHING, QUIET, settings

    folder = tmp_path_factory.mktemp("runs") / "whole"
    with single_threaded():
        assert train(settings(data, folder, **EVERYTHING), ALONE, QUIET)
    return folder


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Holds nothing before its `install`."""
    held = Held(monkeypatch)
    yield held
    held.open.set()


@pytest.fixture(params=[False, True], ids=["on a worker", "on its own thread"])
def session_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions as on the CPU, and as on CUDA."""
    if request.param:
        monkeypatch.setattr("app.engine.OWN_THREAD", frozenset({CPU}))
