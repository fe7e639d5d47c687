"""Fixtures that several test modules share."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.held import Held
from tests.support import write_model

# A busy machine is no failure of the property.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that finds coloured rectangles (see `support.py`)."""
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks and pictures as small as a test's only get slower with more threads of torch."""
    import torch  # most tests need none

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.open.set()
