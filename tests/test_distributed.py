"""A batch shared out among processes, or done in parts, teaches what it teaches as a whole."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint as checkpoints
from model.training import train
from tests.serving import ROOT, free_port
from tests.toy import ALONE, QUIET, Data, difference, rows, settings, words
from tests.two_processes import gradients, share

pytestmark = pytest.mark.usefixtures("one_thread")


def test_parts_of_a_batch_have_the_gradient_of_the_whole(data: Data) -> None:
    whole, in_parts = gradients(data, ALONE), gradients(data, ALONE, accumulate=4)
    assert max(float((in_parts[key] - whole[key]).abs().max()) for key in whole) < 1e-5


@pytest.fixture(scope="module")
def of_two_processes(data: Data, torch_server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("two") / "out.pt"
    same = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [torch_server.Process(target=share, args=(data, out, same | {"RANK": rank})) for rank in ("0", "1")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


def test_two_processes_have_the_gradient_of_one(data: Data, of_two_processes: dict[str, Any]) -> None:
    alone, shared = gradients(data, ALONE), of_two_processes["gradients"]
    assert shared.keys() == alone.keys()
    assert max(float((shared[key] - alone[key]).abs().max()) for key in alone) < 1e-5


def test_the_averaged_statistics_of_all_processes_are_the_firsts(of_two_processes: dict[str, Any]) -> None:
    (own, averaged), (others_own, others_averaged) = of_two_processes["statistics"]
    assert not own.equal(others_own)
    assert averaged.equal(own) and others_averaged.equal(own)


def test_what_is_drawn_inside_the_network_differs_between_processes(of_two_processes: dict[str, Any]) -> None:
    first, second = of_two_processes["drawn"]
    assert not first.equal(second)


def test_a_signal_to_one_process_stops_all_at_the_same_iteration(of_two_processes: dict[str, Any]) -> None:
    assert of_two_processes["stops"] == [True, True]


def test_torchrun_trains_what_one_process_does(data: Data, tmp_path: Path) -> None:
    alone = settings(
        data, tmp_path / "alone", epochs=2, lr=0.01, optimizer="sgd", backbone_norm="frozen", ema_decay=0.0
    )
    shared = dataclasses.replace(alone, output=tmp_path / "shared")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--log-dir", str(tmp_path / "log"), "model/train.py", *words(shared)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pictures of val are trained on") == 1, "one process speaks for both"
    assert train(alone, ALONE, QUIET)
    one, other = (checkpoints.load(tmp_path / run / "last.pt") for run in ("shared", "alone"))
    assert difference(one, other) < 1e-4
    for mine, theirs in zip(rows(tmp_path / "shared"), rows(tmp_path / "alone"), strict=True):
        assert float(mine["class_loss"]) == pytest.approx(float(theirs["class_loss"]), rel=1e-3)
        assert float(mine["AP"]) == pytest.approx(float(theirs["AP"]), abs=1e-3)
