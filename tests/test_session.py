import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from app.artifact import file_version, grids
from app.cuda_graphs import CudaGraphs
from app.errors import ArtifactError, ProviderError, StartError
from app.providers import CPU, CUDA, CudaOptions, open_session, why_no_cuda
from app.service import open_runner
from app.session import OnnxRunner, widths
from app.settings import Settings
from tests.serving import ROOT
from tests.support import METADATA, metadata, write_model


def test_heads_have_the_contracts_shapes(model_file: Path) -> None:
    runner = OnnxRunner.load(model_file)
    assert runner.version == file_version(model_file.read_bytes())
    for canvas in runner.metadata.canvases:
        points = sum(grid.height * grid.width for grid in grids(runner.metadata.strides, canvas))
        heads = runner(np.zeros((2, *canvas, 3), np.uint8))
        assert [head.shape for head in heads] == [(2, points, 3), (2, points, 4), (2, points)]
        assert all(head.dtype == np.float32 for head in heads)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no model file .*gone\.onnx"):
        OnnxRunner.load(tmp_path / "gone.onnx")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000)])
def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        OnnxRunner.load(tmp_path / "m.onnx")


def test_a_checkpoint_is_to_be_exported_first(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"best\.pt is a checkpoint: export it first.* --output .*/best\.onnx`\.$"):
        OnnxRunner.load(tmp_path / "best.pt")


def test_a_model_without_metadata_is_foreign(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no metadata"):
        OnnxRunner.load(write_model(tmp_path / "m.onnx", metadata_text=""))


def test_a_model_with_other_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has inputs images"):
        OnnxRunner.load(write_model(tmp_path / "m.onnx", outputs=("class_logits", "distances")))


@pytest.mark.parametrize("change", [{"classes": ["a", "b"]}, {"strides": [8, 16, 32, 64]}])
def test_a_graph_that_contradicts_its_metadata_is_refused(tmp_path: Path, change: dict[str, list[str]]) -> None:
    text = metadata(**{**METADATA, **change}).to_json()
    with pytest.raises(ArtifactError, match="its metadata says"):
        OnnxRunner.load(write_model(tmp_path / "m.onnx", metadata_text=text))


def test_a_graph_that_gives_nan_is_refused(tmp_path: Path) -> None:
    model = onnx.load(write_model(tmp_path / "m.onnx"))
    for constant in model.graph.initializer:
        if constant.name == "class_logits8.bias":
            constant.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), constant.name))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="not finite in class_logits"):
        OnnxRunner.load(tmp_path / "m.onnx")


@pytest.mark.skipif(why_no_cuda() is None, reason="CUDA's libraries are here")
class TestWithoutCuda:
    @pytest.mark.parametrize("here", [True, False])
    def test_auto_falls_back_and_warns_only_where_there_is_what_it_could_have_taken(
        self, here: bool, model_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.service.nvidia_is_here", lambda: here)
        caplog.set_level("INFO")
        runner = open_runner(Settings(model=model_file, provider="auto"))
        assert runner.provider == CPU
        assert runner.fallback
        (line,) = caplog.records
        assert "runs on the CPU" in line.getMessage()
        assert (line.levelname, runner.fallback in line.getMessage()) == ("WARNING" if here else "INFO", here)

    def test_cuda_is_refused_and_the_reason_named(self, model_file: Path) -> None:
        reason = why_no_cuda()
        assert reason is not None
        with pytest.raises(ProviderError, match="CUDA was asked for") as caught:
            OnnxRunner.load(model_file, "cuda")
        assert reason in str(caught.value)


def test_a_pictures_heads_do_not_depend_on_its_batch_mates(model_file: Path) -> None:
    runner = OnnxRunner.load(model_file)
    random = np.random.default_rng(0)
    canvases = list(random.integers(0, 256, (5, *runner.metadata.canvases[0], 3), np.uint8))
    together = runner.run_batch(canvases)
    for index, canvas in enumerate(canvases):
        for one, alone in zip(together.of(index), runner.run_batch([canvas]).of(0), strict=True):
            np.testing.assert_allclose(one, alone, atol=1e-5)


@pytest.mark.parametrize(("largest", "sizes", "cores", "other"), [(8, (1, 2, 4, 8), 1, 2), (1, (1,), 2, 1)])
def test_every_canvas_is_warmed_in_every_batch_size(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, largest: int, sizes: tuple[int, ...], cores: int, other: int
) -> None:
    runner = OnnxRunner.load(model_file, widest=2)
    run, shapes = OnnxRunner.__call__, []

    def watched(self: OnnxRunner, canvases: np.ndarray, cores: int) -> object:
        shapes.append((cores, *canvases.shape))
        return run(self, canvases, cores)

    monkeypatch.setattr(OnnxRunner, "__call__", watched)
    runner.warm_up(largest)
    canvases = runner.metadata.canvases
    needed = [math.prod(shape) for threads, *shape in shapes if threads == cores]
    assert needed == sorted(needed, reverse=True), "a GPU needs least memory if the largest comes first"
    of_others = {(other, 1, *max(canvases, key=math.prod), 3)}
    assert set(shapes) == {(cores, size, *canvas, 3) for size in sizes for canvas in canvases} | of_others


@pytest.mark.parametrize(("provider", "ran"), [(CPU, 5), (CUDA, 8)])
def test_only_a_gpu_runs_padding(model_file: Path, provider: str, ran: int) -> None:
    runner = replace(OnnxRunner.load(model_file), provider=provider)
    canvas = np.zeros((*runner.metadata.canvases[0], 3), np.uint8)
    assert len(runner.run_batch([canvas] * 5).class_logits) == ran


@pytest.mark.parametrize(
    ("widest", "numbers"), [(1, []), (2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (8, [2, 4, 8])]
)
def test_there_is_a_session_for_every_share_of_the_cores(widest: int, numbers: list[int]) -> None:
    assert widths(widest) == numbers


def test_a_run_has_as_many_threads_as_it_has_cores_and_gives_the_same(model_file: Path) -> None:
    runner = OnnxRunner.load(model_file, threads=1, widest=4)
    sessions = {1: runner.session, **runner.wider}
    assert {count: one.get_session_options().intra_op_num_threads for count, one in sessions.items()} == {
        1: 1, 2: 2, 4: 4
    }  # fmt: skip
    ran: list[int] = []

    class Session:
        def __init__(self, threads: int) -> None:
            self.threads = threads

        def run(self, *arguments: Any) -> Any:
            ran.append(self.threads)
            return sessions[self.threads].run(*arguments)

    watched = replace(runner, session=Session(1), wider={count: Session(count) for count in runner.wider})
    canvas = np.random.default_rng(0).integers(0, 256, (*runner.metadata.canvases[0], 3), np.uint8)
    heads = [watched.run_batch([canvas], cores) for cores in (1, 2, 3, 4, 9)]
    assert ran == [1, 2, 2, 4, 4]
    for other in heads[1:]:
        for one, same in zip(heads[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


def test_a_gpu_without_room_is_not_the_files_fault(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = "Available memory of 0 is smaller than requested bytes of 9437184"
    _fail_on_cuda(monkeypatch, full)
    runner = OnnxRunner.load(model_file, "auto")
    assert (runner.provider, runner.fallback) == (CPU, full)
    with pytest.raises(ProviderError, match=full):
        OnnxRunner.load(model_file, "cuda")


def test_a_gpu_without_room_for_the_largest_batch_is_said_in_a_sentence_with_what_to_do(model_file: Path) -> None:
    class Session:
        def run(self, *_: Any) -> Any:
            raise RuntimeException("Failed to allocate memory for requested buffer of size 402653184")

    runner = replace(OnnxRunner.load(model_file), provider=CUDA, session=Session())
    with pytest.raises(ProviderError, match=r"batches of 16 at .* \(Failed to allocate .*\): .* lower FCOS_MAX_BATCH"):
        runner.warm_up(16)


def test_a_limit_of_threads_is_not_the_files_fault(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(*_: object) -> None:
        raise RuntimeException("PosixThread pthread_create failed, error code: 11 error msg: Resource unavailable")

    monkeypatch.setattr("app.session.open_session", limited)
    with pytest.raises(StartError, match="no more threads"):
        OnnxRunner.load(model_file)


def test_cuda_graphs_are_not_recorded_by_the_thread_that_opens_the_file(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, graph_ids = [], []

    class Session:
        """Notes the graph id of each run: without one, ONNX Runtime records it as graph 0."""

        def __init__(self, session: ort.InferenceSession) -> None:
            self.session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, names: Any, feed: Any, options: ort.RunOptions | None = None) -> Any:
            graph_ids.append(options and options.get_run_config_entry("gpu_graph_id"))
            return self.session.run(names, feed, options)

    class Graphs(CudaGraphs):
        def _record(self, images: np.ndarray) -> None:
            recorded.append(images.shape)

    monkeypatch.setattr("app.session.CudaGraphs", Graphs)
    monkeypatch.setattr("app.session.CUDA", CPU)
    monkeypatch.setattr("app.session.open_session", lambda *arguments: Session(open_session(*arguments)))
    runner = OnnxRunner.load(model_file, cuda=CudaOptions(graphs=True))
    assert not recorded
    assert graph_ids == ["-1"]
    canvas = runner.metadata.canvases[0]
    runner.check(canvas)
    assert recorded == [(1, *canvas, 3)]


def test_a_model_that_cannot_be_recorded_runs_without_cuda_graphs(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = "This session cannot use the graph capture feature as requested by the user"

    def open_session_(file: bytes, provider: str, threads: int, cuda: CudaOptions) -> ort.InferenceSession:
        if cuda.graphs:
            raise RuntimeException(words)
        return open_session(file, provider, threads, cuda)

    monkeypatch.setattr("app.session.CUDA", CPU)
    monkeypatch.setattr("app.session.open_session", open_session_)
    runner = OnnxRunner.load(model_file, cuda=CudaOptions(graphs=True))
    assert f"runs without CUDA graphs, and slowly: {words}" in caplog.text
    runner.warm_up()
    assert len(caplog.records) == 1, "nothing else was tried"


def test_of_a_failure_of_cuda_the_reason_is_told_and_nothing_of_the_host(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As ONNX Runtime 1.31 says it where there is a driver, but no GPU.
    _fail_on_cuda(
        monkeypatch,
        "/onnxruntime_src/cuda_execution_provider_info.cc:63 static onnxruntime::CUDAExecutionProviderInfo "
        'onnxruntime::FromProviderOptions() [ONNXRuntimeError] : 1 : FAIL : Failed to parse option "device_id": CUDA '
        "failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=secret ; file=/onnxruntime_src/x.cc ; "
        "line=70 ; expr=cudaGetDeviceCount(&num_devices);",
    )
    assert OnnxRunner.load(model_file, "auto").fallback == "CUDA failure 100: no CUDA-capable device is detected"


def _fail_on_cuda(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Lets CUDA's libraries be here, and no session begin with them."""

    def open_session_(file: bytes, provider: str, *rest: Any) -> ort.InferenceSession:
        if provider == CUDA:
            raise RuntimeException(words)
        return open_session(file, provider, *rest)

    monkeypatch.setattr("app.session.why_no_cuda", lambda: None)
    monkeypatch.setattr("app.session.open_session", open_session_)


def test_a_file_that_cannot_be_reached_is_refused_as_one_that_cannot_be_read(tmp_path: Path) -> None:
    """Which a folder above it that may not be entered makes of it, too, though not for root."""
    with pytest.raises(ArtifactError, match="cannot be read \\(File name too long\\)"):
        OnnxRunner.load(tmp_path / f"{'x' * 300}.onnx")


def test_serving_a_model_leaves_no_trace_of_a_telemetry_client(model_file: Path, tmp_path: Path) -> None:
    """Where ONNX Runtime reports to its maker, it keeps an identifier and a queue under the home directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    code = "import sys, pathlib, app.session as s; s.OnnxRunner.load(pathlib.Path(sys.argv[1]), 'cpu')"
    subprocess.run([sys.executable, "-c", code, str(model_file)], cwd=ROOT, env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
