import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.launch import end_at_once, raise_again, require_processor
from app.providers import nvidia_is_here
from app.server import _listen
from tests.serving import free_port, wait_until_ready
from tests.support import rectangle_picture, write_model

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [["model/train.py"], ["model/evaluate.py"], ["-m", "export"], ["-m", "model.average"]]
"""That need torch."""


def environment(**settings: object) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FCOS_")}
    return clean | {name: str(value) for name, value in settings.items()}


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *map(str, arguments)],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_one_sentence(result: subprocess.CompletedProcess[str], text: str) -> None:
    """Exit code 2, and one line on stderr that says what is wrong."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert text in lines[0]


def test_a_missing_model(tmp_path: Path) -> None:
    assert_one_sentence(run(FCOS_MODEL=tmp_path / "gone.onnx", FCOS_PORT=0), "gone.onnx")


def test_a_foreign_model(tmp_path: Path) -> None:
    foreign = write_model(tmp_path / "foreign.onnx", metadata_text="")
    assert_one_sentence(run(FCOS_MODEL=foreign, FCOS_PORT=0, FCOS_PROVIDER="cpu"), "holds no metadata")
    (tmp_path / "text.onnx").write_text("hello")
    assert_one_sentence(
        run("detect", "a.jpg", FCOS_MODEL=tmp_path / "text.onnx", FCOS_PROVIDER="cpu"), "not an ONNX model"
    )


@pytest.mark.parametrize("arguments", [["settings"], ["detect", *["app/static/sample.jpg"] * 400]], ids=lambda a: a[0])
def test_a_reader_that_has_enough_is_no_failure(model_file: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "app", *arguments]
    settings = environment(FCOS_MODEL=model_file, FCOS_PROVIDER="cpu")
    with subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) == 0


def test_a_bad_setting(model_file: Path) -> None:
    assert_one_sentence(run(FCOS_MODEL=model_file, FCOS_PROVIDER="gpu"), "FCOS_PROVIDER has value 'gpu'")


def test_a_port_in_use(model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_sentence(run(FCOS_MODEL=model_file, FCOS_PORT=port), f"port {port}")


def test_of_two_started_at_once_one_says_that_the_port_is_in_use(model_file: Path) -> None:
    with contextlib.closing(_listen("127.0.0.1", 0)) as first:  # as the other one does before it loads its model
        port = first.getsockname()[1]
        assert_one_sentence(run(FCOS_MODEL=model_file, FCOS_PORT=port), f"port {port}")


@pytest.mark.parametrize("started", [1, 3])  # with two cores, one of the workers; the workers and the drawer
def test_where_no_more_threads_are_allowed_it_says_so_and_ends(model_file: Path, started: int) -> None:
    limited = f"""
import sys, threading
start, left = threading.Thread.start, [None] * {started}

def limited(thread):
    if not left:
        raise RuntimeError("can't start new thread")
    left.pop()
    start(thread)

threading.Thread.start = limited
from app.__main__ import main
sys.exit(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", limited],
        cwd=ROOT,
        env=environment(FCOS_MODEL=model_file, FCOS_PORT=0, FCOS_PROVIDER="cpu", FCOS_DECODE_THREADS=2),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "allows no more threads" in result.stderr.splitlines()[-1]


def test_a_host_that_is_no_name(model_file: Path) -> None:
    assert_one_sentence(run(FCOS_MODEL=model_file, FCOS_HOST="ü..x"), "Cannot listen on")


def test_detect_answers_every_picture_and_fails_where_one_does(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rectangle_picture().save(folder / "a.png")
    rectangle_picture(colour="blue").save(folder / "b.jpg")
    (folder / "notes.txt").write_text("no picture")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    out, drawings = tmp_path / "out.json", tmp_path / "drawings"

    result = run(
        "detect", tmp_path / "broken.jpg", folder, tmp_path / "gone.jpg", folder / "a.png", "--json", out,
        "--draw", drawings, FCOS_MODEL=model_file, FCOS_PROVIDER="cpu",
    )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" not in result.stderr

    answers = json.loads(out.read_text())
    names = [Path(answer["file"]).name for answer in answers]
    assert names == ["broken.jpg", "a.png", "b.jpg", "gone.jpg", "a.png"]
    assert [answer.get("problem", {}).get("code") for answer in answers] == [
        "not_a_picture", None, None, "not_found", None
    ]  # fmt: skip
    assert set(answers[1]) == {"file", "detections", "image", "model", "timing_ms"}
    assert answers[1]["detections"][0]["label"] == "red"
    assert answers[2]["detections"][0]["label"] == "blue"
    assert answers[1]["detections"] == answers[4]["detections"]
    assert sorted(path.name for path in drawings.iterdir()) == ["a-2.png", "a.png", "b.png"]
    with Image.open(drawings / "a.png") as drawing:
        assert drawing.size == (160, 120)


def test_detect_takes_what_a_request_takes(model_file: Path, tmp_path: Path) -> None:
    rectangle_picture().save(tmp_path / "a.png")
    common = ("detect", tmp_path / "a.png", "--model", model_file)
    assert "nothing found" in run(*common, "--classes", "green", "blue", FCOS_PROVIDER="cpu").stdout
    one = run(*common, "--max-detections", 1, "--score-threshold", 0.5, FCOS_PROVIDER="cpu").stdout
    assert len(one.splitlines()) == 1
    assert_one_sentence(run(*common, "--iou-threshold", 2, FCOS_PROVIDER="cpu"), "--iou-threshold 2")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "command", [["settings"], ["detect", "PICTURE"], ["detect", "PICTURE", "--json", "-"]], ids=" ".join
)
def test_a_full_disk_is_one_sentence(model_file: Path, tmp_path: Path, command: list[str]) -> None:
    picture = tmp_path / "a.png"
    rectangle_picture().save(picture)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "app", *(str(picture) if word == "PICTURE" else word for word in command)],
            cwd=ROOT, env=environment(FCOS_MODEL=model_file, FCOS_PROVIDER="cpu"), stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: The output cannot be written: No space left on device."


def test_a_start_that_fails_is_a_json_line_where_the_log_is_json() -> None:
    done = run(FCOS_MODEL="gone.onnx", FCOS_LOG_FORMAT="json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["level"] == "error" and "gone.onnx" in json.loads(line)["message"]


def test_detect_succeeds_where_all_do(model_file: Path, tmp_path: Path) -> None:
    rectangle_picture().save(tmp_path / "a.png")
    result = run("detect", tmp_path / "a.png", FCOS_MODEL=model_file, FCOS_PROVIDER="cpu")
    assert result.returncode == 0, result.stderr
    assert "red 0.9" in result.stdout
    assert "Serving" not in result.stderr


@pytest.mark.parametrize("option", ["--json", "--json-lines", "--coco", "--labels"])
def test_a_dash_is_standard_output_which_holds_nothing_else(model_file: Path, tmp_path: Path, option: str) -> None:
    rectangle_picture().save(tmp_path / "a.png")
    pictures = (tmp_path / "a.png", tmp_path / "gone.png")
    common: tuple[object, ...] = (
        "detect",
        *pictures,
        "--json",
        tmp_path / "a.json",
        "--json-lines",
        tmp_path / "a.jsonl",
    )
    common += ("--coco", tmp_path / "a.coco", "--labels", tmp_path / "a.labels")
    result = run(*common, option, "-", FCOS_MODEL=model_file, FCOS_PROVIDER="cpu")
    assert result.returncode == 1, result.stderr
    answers = [json.loads(text) for text in (result.stdout.splitlines() if "lines" in option else [result.stdout])]
    assert "a.png" in str(answers) or option == "--coco", answers
    assert "red 0.9" in result.stderr and "gone.png" in result.stderr
    assert len(list(tmp_path.iterdir())) == 4, "the picture and the three other outputs"


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_without_stderr_the_pictures_are_answered_and_only_that_is_on_stdout(model_file: Path, tmp_path: Path) -> None:
    rectangle_picture().save(tmp_path / "a.png")
    command = f"{shlex.quote(sys.executable)} -m app detect {tmp_path}/gone.png {tmp_path}/a.png 2>&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environment(FCOS_MODEL=model_file, FCOS_PROVIDER="cpu"),
        stdout=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, "as of one picture"
    assert done.stdout.startswith(f"{tmp_path}/a.png: red 0.9") and "gone.png" not in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("lines", [False, True])
def test_ctrl_c_says_what_was_not_written_and_what_would_be(model_file: Path, tmp_path: Path, lines: bool) -> None:
    rectangle_picture().save(tmp_path / "a.png")
    names = ["--json", "a.json", *(["--json-lines", "a.lines"] if lines else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "detect", *["a.png"] * 100_000, *names],
        cwd=tmp_path, env=environment(FCOS_MODEL=model_file, FCOS_PROVIDER="cpu", PYTHONPATH=ROOT),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = "has what was done" if lines else "keeps what is done"
    assert said.splitlines()[-1] == f"error: Stopped: nothing was written to a.json; --json-lines {kept}."
    assert not (tmp_path / "a.json").exists()


def test_pictures_that_became_classes_are_asked_for_before_them() -> None:
    result = run("detect", "--classes", "cat", "a.jpg")
    assert result.returncode == 2
    assert "PICTURE. Put the pictures first: --classes takes all the names that follow it" in result.stderr


@pytest.mark.skipif(nvidia_is_here(), reason="there is a driver, or a GPU")
def test_where_there_is_no_gpu_the_cpu_is_no_cause_for_a_warning(model_file: Path, tmp_path: Path) -> None:
    rectangle_picture().save(tmp_path / "a.png")
    result = run("detect", tmp_path / "a.png", FCOS_MODEL=model_file)
    said = "INFO There is no NVIDIA driver or GPU: the model runs on the CPU."
    assert re.search(rf"(?m)^[\d-]{{10}} [\d:,]{{12}} {said}$", result.stderr), result.stderr
    assert "WARNING" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_service_gets_ready_answers_and_ends_well(model_file: Path) -> None:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "app"],
        cwd=ROOT,
        env=environment(FCOS_MODEL=model_file, FCOS_PORT=port, FCOS_PROVIDER="cpu"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(f"{address}/readyz", server)
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0, log
    assert f"{address}" in log
    assert "colours" in log
    assert "CPUExecutionProvider" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_what_needs_torch_says_so_where_the_service_alone_is_set_up(command: list[str]) -> None:
    # -S: without site-packages
    done = subprocess.run(
        [sys.executable, "-S", *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "torch" in done.stderr and "`pip install -r requirements/dev.txt`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_wrong_option_is_refused_before_torch_is_imported(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--no-such-option"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "app.launch" in imported and not {"torch", "timm", "onnxruntime"} & imported


def test_without_the_environment_the_service_names_it() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "app"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert_one_sentence(done, "run `source .venv/bin/activate` first, or `make serve`")
    assert "numpy, PIL, " in done.stderr and "`pip install -r requirements/serve.txt`" in done.stderr


def test_a_processor_on_which_numpy_would_crash_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = tmp_path / "cpuinfo"
    newer = "processor\t: 0\nflags\t\t: fpu sse2 pni ssse3 sse4_1 sse4_2 popcnt avx\n"
    for able in (newer, "processor\t: 0\nFeatures\t: fp asimd\n"):  # of ARM
        description.write_text(able)
        require_processor(description)
    require_processor(tmp_path / "gone")  # on other systems
    description.write_text("processor\t: 0\nflags\t\t: fpu sse2 pni cx16\n")  # QEMU's kvm64
    with pytest.raises(SystemExit) as end:
        require_processor(description)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "lacks popcnt, sse4_1, sse4_2, ssse3" in said and "set its CPU type to `host`" in said


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("-m app", "pydantic"), ("-m app detect a.jpg", "pydantic"),
        ("model/train.py --train-annotations a --train-images b --output c", "torch"),
        ("model/evaluate.py a.onnx --annotations a --images b", "torch"), ("-m export a.pt --output b.onnx", "onnx"),
        ("-m model.average a.pt --data b --output c.pt", "torch"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("ignored", "code"), [(False, 130), (True, 7)])
def test_ctrl_c_during_the_imports_ends_quietly_unless_it_is_ignored(
    command: str, package: str, ignored: bool, code: int, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(
        "import os, signal, sys, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.1)\n"
        "except BaseException:\n    pass\n"  # some packages go on without what cannot be imported
        "sys.exit(7)\n"
    )
    program = [sys.executable, *command.split()]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *program] if ignored else program,
        cwd=ROOT, env=environment(PYTHONPATH=tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")


def test_ctrl_c_that_is_ignored_stays_so_after_the_imports() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_at_once()
        raise_again()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
