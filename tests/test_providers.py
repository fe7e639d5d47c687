"""What ONNX Runtime is asked for on a GPU, and that it takes it, where there is one."""

from pathlib import Path

import numpy as np
import pytest

from app.providers import CUDA, CudaOptions, reason_of, why_no_cuda
from app.session import BATCH_SIZES, OnnxRunner


def test_options_are_onnxruntimes_own() -> None:
    assert CudaOptions().provider_options() == {
        "device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "1", "enable_cuda_graph": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    chosen = CudaOptions(1, 2**30, "exhaustive", tf32=False, graphs=True).provider_options()
    assert chosen == {
        "device_id": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0", "enable_cuda_graph": "1",
        "arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": "1073741824",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "/onnxruntime_src/x/info.cc:63 static Info Info::From(const Options&) [ONNXRuntimeError] : 1 : FAIL : "
            'provider_options_utils.h:187 Parse Failed to parse provider option "device_id": info.cc:71 operator() '
            "Invalid device ID: 3, must be between 0 (inclusive) and 1 (exclusive).\n",
            "Invalid device ID: 3, must be between 0 (inclusive) and 1 (exclusive)",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'a' Status "
            "Message: /onnxruntime_src/x/bfc_arena.cc:360 void* BFCArena::AllocateRawInternal(size_t, bool, Stream*) "
            "Failed to allocate memory for requested buffer of size 402653184",
            "Failed to allocate memory for requested buffer of size 402653184",
        ),
        (
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : It (m.onnx) is none",
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : It (m.onnx) is none",
        ),
    ],
)
def test_what_onnxruntime_says_is_shown_without_the_place_in_its_sources(said: str, reason: str) -> None:
    assert reason_of(RuntimeError(said)) == reason


@pytest.mark.skipif(why_no_cuda() is not None, reason="there is no GPU here")
@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_gives_what_the_cpu_gives(model_file: Path, graphs: bool) -> None:
    cpu = OnnxRunner.load(model_file, "cpu")
    cuda = OnnxRunner.load(model_file, "cuda", cuda=CudaOptions(tf32=False, graphs=graphs))
    assert cuda.provider == CUDA
    random = np.random.default_rng(0)
    for canvas in cpu.metadata.canvases:
        for count in (1, 3, BATCH_SIZES[-1]):
            canvases = list(random.integers(0, 256, (count, *canvas, 3), np.uint8))
            one, other = cuda.run_batch(canvases), cpu.run_batch(canvases)
            for index in range(count):
                for mine, theirs in zip(one.of(index), other.of(index), strict=True):
                    np.testing.assert_allclose(mine, theirs, atol=1e-3)
