"""`make` sets up what is needed, once, and `make up` deploys the model that was named; tried without pip and Docker."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.serving import free_port

ROOT = Path(__file__).resolve().parents[1]

# `python -m venv FOLDER`; whatever else it is asked to do, it has done.
PYTHON = """#!/bin/sh
[ "$2" != venv ] || { mkdir -p "$3/bin" && ln -s "$0" "$3/bin/python" && echo "venv" >>log; }
"""
# `install -r FILE`, one at a time.
INSTALL = """#!/bin/sh
mkdir installing && echo "$2" >>log && sleep 0.05 && rmdir installing
"""

# Docker with compose as plugin, or with docker-compose 1 beside it. What runs stands in the file `running`, and if that
# fails, its last words in `fails`; what was asked for, in `asked`.
DOCKER = """
import os, re, sys
from pathlib import Path
import yaml

standalone = Path("standalone").exists()
name, *words = sys.argv[1:]
if name == "docker" and words[0] == "compose":
    if standalone:
        sys.exit(1)
    words = words[1:]
words = words[2:] if words[0] == "--profile" else words
running = Path("running")
with Path("asked").open("a") as asked:
    print(*words, file=asked)

def config():
    given = dict(line.split("=", 1) for line in Path(".env").read_text().split()) if Path(".env").exists() else {}
    given |= os.environ
    text = Path("docker-compose.yml").read_text()
    services = yaml.safe_load(re.sub(r"[$][{](\\w+):-([^}]*)[}]", lambda m: given.get(m[1]) or m[2], text))["services"]
    for service in (services["detector"], services["detector-cpu"]):
        mount = service["volumes"][0]
        service["volumes"] = [mount | {"source": str(Path(mount["source"]).absolute())}]
        address, published, target = service["ports"][0].split(":")
        port = {"mode": "ingress", "host_ip": address, "target": int(target), "published": published, "protocol": "tcp"}
        service["ports"] = [f"{address}:{published}:{target}/tcp" if standalone else port]
        service["environment"] |= dict(line.split("=", 1) for line in Path(service["env_file"]).read_text().split())
    return services

if words[0] == "info":
    print("runc io.containerd.runc.v2")
elif words[0] == "config":
    width = 80 if standalone else float("inf")
    print(yaml.safe_dump({"services": config()}, sort_keys=standalone, width=width, default_flow_style=False))
elif words[0] == "ps" and running.exists():
    print("the-container")
elif words[0] == "run":
    service = config()["detector-cpu"]
    sys.exit("broken" in service["environment"]["FCOS_MODEL"])
elif words[0] == "up":
    service = config()["detector-cpu"]
    environment = [f"{name}={value}" for name, value in service["environment"].items()]
    port = service["ports"][0].split(":")[1] if standalone else service["ports"][0]["published"]
    running.write_text("\\n".join([service["volumes"][0]["source"], port, *environment]))
elif words[0] == "inspect":
    assert "{{range .}}" not in words[2]  # Podman, which may go by Docker's name, would loop over containers there
    source, port, *environment = running.read_text().split("\\n")
    asked = {"Mounts": source, "Ports": port, "RestartCount": "running 0 healthy"}
    if Path("fails").exists():
        exit_code = 137 if Path("fails").read_text() == "Killed" else 1
        asked |= {"RestartCount": "restarting 1 starting", "Health.Status": "starting", "ExitCode": exit_code}
    asked["Config.Env"] = "\\n".join(environment)
    print(next((value for key, value in asked.items() if key in words[2]), "healthy"))
elif words[0] == "logs":
    print(Path("fails").read_text())
elif words[0] == "rm":
    Path("removed").touch()
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[str]]:
    """Returns: `make` in a copy of the project. It answers with the environments and files that it installed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    python = executable(tmp_path / "bin/python", PYTHON)
    install = executable(tmp_path / "bin/install", INSTALL)
    for tool in ("ruff", "mypy"):
        executable(tmp_path / "bin" / tool, "#!/bin/sh\n")

    def run(*words: str) -> list[str]:
        command = ["make", *words, f"PYTHON={python}", f"INSTALL={install}", "SERVE=requirements/gpu.txt"]
        subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True)
        log = tmp_path / "log"
        lines = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.removeprefix("requirements/") for line in lines]

    return run


def change(project: Path, requirements: str) -> None:
    """As if all had been set up a while ago, and that file had changed since."""
    now = time.time()
    for path in [*project.glob(".venv/.[a-z]*"), *project.glob("requirements/*")]:
        os.utime(path, (now - (100 if path.name == requirements else 200),) * 2)


def test_an_environment_is_set_up_once(make: Callable[..., list[str]]) -> None:
    assert make("serve") == ["venv", "gpu.txt"]
    assert make("serve") == []
    assert make("test") == ["dev.txt"]
    assert make("test", "serve") == []


@pytest.mark.parametrize(("version", "fits"), [((3, 10, 9), False), ((3, 14, 8), True), ((3, 15, 0), False)], ids=str)
def test_a_python_that_the_packages_lack_is_refused(version: tuple[int, ...], fits: bool, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    said = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    python = executable(
        tmp_path / "bin/python", f'#!/bin/sh\n[ "$1" != -c ] || exec "{sys.executable}" -c "{said}" "$2"\necho asked\n'
    )
    done = subprocess.run(
        ["make", "environment", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if fits else 2), done.stderr
    assert ("Python 3.11 to 3.14 is needed" in done.stdout) is not fits


def test_the_development_environment_is_enough_to_serve(make: Callable[..., list[str]], tmp_path: Path) -> None:
    """gpu.txt would bring CUDA's libraries in versions that torch does not want."""
    assert make("test") == ["venv", "dev.txt"]
    assert make("serve") == []
    change(tmp_path, "gpu.txt")
    assert make("serve") == []
    change(tmp_path, "dev.txt")
    assert make("serve") == ["dev.txt"]
    assert make("serve", "test") == []


def test_changed_requirements_are_installed(make: Callable[..., list[str]], tmp_path: Path) -> None:
    make("loadtest")
    change(tmp_path, "gpu.txt")
    assert make("loadtest") == ["gpu.txt"]
    assert make("loadtest") == []
    change(tmp_path, "load.txt")
    assert make("loadtest") == ["load.txt"]


def test_the_load_test_needs_no_more_than_what_make_installs_for_it() -> None:
    """It starts the service as other tests do, by a module that they share."""
    code = "import sys; before = {*sys.modules}; import tests.load.__main__; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = packages_distributions()
    needed = {package for name in done.stdout.split() for package in packages.get(name.partition(".")[0], ())}
    serve, load, dev = (
        set(re.findall(r"^([\w.-]+)==", (ROOT / f"requirements/{name}.txt").read_text(), re.M))
        for name in ("serve", "load", "dev")
    )
    assert "uvicorn" in needed
    assert {canonicalize_name(package) for package in needed} & dev <= serve | load


@pytest.mark.parametrize("left", ["nothing", "a link to nowhere"])
def test_an_environment_without_its_python_is_made_anew(
    make: Callable[..., list[str]], tmp_path: Path, left: str
) -> None:
    assert make("test", "loadtest") == ["venv", "dev.txt", "load.txt"]
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    if left != "nothing":
        python.symlink_to(tmp_path / "python3.9")
    assert make("loadtest") == ["venv", "gpu.txt", "load.txt"]
    assert make("test") == ["dev.txt"]


@pytest.mark.parametrize("words", [["help"], ["--dry-run", "test"], ["--dry-run", "up"]])
def test_nothing_is_deleted_where_nothing_is_set_up(
    make: Callable[..., list[str]], tmp_path: Path, words: list[str]
) -> None:
    kept = tmp_path / ".venv/kept"
    kept.parent.mkdir()
    kept.touch()
    assert make(*words) == []
    assert kept.exists()


def test_parallel_targets_install_one_after_the_other(make: Callable[..., list[str]]) -> None:
    assert make("--jobs=4", "test", "loadtest") == ["venv", "dev.txt", "load.txt"]


@pytest.fixture(params=["plugin", "standalone"])
def up(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., tuple[str, str]]:
    """Returns: `make up` in a folder with two models. It answers with the model that runs and what was written."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/up", tmp_path / "deploy")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / "deploy/detector.env").touch()
    for model in ("model/weights/fcos-everyday.onnx", "a folder of mine, whose name is as long as it is/mine.onnx"):
        (tmp_path / model).parent.mkdir(parents=True)
        (tmp_path / model).touch()
    (tmp_path / "docker.py").write_text(DOCKER)
    start = f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/docker.py" "${{0##*/}}" "$@"\n'
    docker = executable(tmp_path / "bin/docker", start)
    if request.param == "standalone":
        (tmp_path / "standalone").touch()
        shutil.copy(docker, tmp_path / "bin/docker-compose")

    def run(**variables: object) -> tuple[str, str]:
        environment = {name: str(value) for name, value in variables.items()}
        environment["PATH"] = f"{docker.parent}:{os.environ['PATH']}"
        done = subprocess.run(["deploy/up"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        running = tmp_path / "running"
        found = re.search("FCOS_MODEL=/models/(.+)", running.read_text()) if running.exists() else None
        return found[1] if found else "", done.stdout + done.stderr

    return run


def test_up_reads_dotenv_as_compose_does(up: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    mine = next(tmp_path.glob("a folder*"))
    mine.rename(tmp_path / "mine")
    (tmp_path / ".env").write_text(f"MODELS=./mine\nMODEL=mine.onnx\nPORT={port}\n")
    model, said = up()
    assert model == "mine.onnx"
    assert f"http://127.0.0.1:{port}\n" in said
    model, said = up(MODELS="model/weights", MODEL="fcos-everyday.onnx", PORT=other)
    assert model == "fcos-everyday.onnx"
    assert f"http://127.0.0.1:{other}\n" in said
    assert up()[0] == "mine.onnx", "which is named again, by the file"


@pytest.mark.parametrize(("address", "told"), [("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "127.0.0.1")])
def test_up_says_where_the_service_answers(up: Callable[..., tuple[str, str]], address: str, told: str) -> None:
    port = free_port()
    assert f"http://{told}:{port}\n" in up(ADDRESS=address, PORT=port)[1]
    with socket.create_server((told, other := free_port())):
        assert f"error: Port {other} is in use" in up(ADDRESS=address, PORT=other)[1]


def test_a_model_stays_until_another_is_named(up: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    mine = str(next(tmp_path.glob("a folder*")))
    port = free_port()
    assert up(PORT=port)[0] == "fcos-everyday.onnx"
    assert up(PORT=port, MODELS=mine, MODEL="mine.onnx")[0] == "mine.onnx"
    assert "up --detach --no-build detector-cpu\n" in (tmp_path / "asked").read_text()
    with socket.create_server(("127.0.0.1", port)):  # as the running service has it
        model, said = up(PORT=port, MONITORING="1")
    asked = (tmp_path / "asked").read_text()
    assert "build detector-cpu\n" in asked and "up --detach --no-build detector-cpu prometheus grafana\n" in asked
    assert model == "mine.onnx"
    assert f"{mine}/mine.onnx" in said
    assert up(PORT=port, MODEL="fcos-everyday.onnx")[0] == "fcos-everyday.onnx"
    assert not (tmp_path / "removed").exists(), "compose itself ends it, if it must"


def test_up_says_what_is_wrong_before_it_builds(up: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    assert f"error: There is no model file {tmp_path}/model/weights/none.onnx" in up(MODEL="none.onnx")[1]
    assert "error: VARIANT=gpu, but Docker has no NVIDIA runtime" in up(VARIANT="gpu")[1]
    assert "error: VARIANT is 'tpu', but must be gpu or cpu." in up(VARIANT="tpu")[1]
    assert "error: FCOS_PORT is set here, but the container takes settings from a file" in up(FCOS_PORT="8001")[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        model, said = up(PORT=port)
    assert f"error: Port {port} is in use" in said
    assert model == ""


def test_a_running_service_outlasts_a_successor_that_could_not_start(
    up: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    port = free_port()
    assert up(PORT=port)[0] == "fcos-everyday.onnx"
    (tmp_path / "model/weights/broken.onnx").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for variables, says in (
            ({"PORT": taken.getsockname()[1]}, "is in use"),
            ({"PORT": "99999"}, "PORT is '99999', but must be a number from 1 to 65535"),
            ({"PORT": "8000-8001"}, "must be a number from 1 to 65535"),
            ({"PORT": port, "MODEL": "broken.onnx"}, "the running one stays"),
        ):
            model, said = up(**variables)
            assert says in said
            assert "Ready" not in said and model == "fcos-everyday.onnx"
            assert (tmp_path / "running").read_text().split("\n")[1] == str(port)


def test_a_service_that_does_not_get_ready_has_its_reason_and_is_not_kept(
    up: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    port = free_port()
    for last_words, reason in (
        ("Killed", "was killed, probably for want of memory: raise MEMORY"),
        ("m.onnx: Permission denied", "may not read the model"),
        ("No such provider", "does not become ready; its last messages are above"),
    ):
        (tmp_path / "fails").write_text(last_words)
        said = up(PORT=port)[1]
        assert last_words in said and reason in said and "Ready" not in said
        assert (tmp_path / "removed").exists() == (last_words != "Killed"), "compose would go on with the one before"


def test_keys_are_not_dropped_without_a_word(up: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "keys.env").write_text("FCOS_API_KEYS=correct-horse\nFCOS_ADMIN_KEY=battery-staple\n")
    (tmp_path / "fewer.env").write_text("FCOS_API_KEYS=correct-horse\n")
    assert "Ready" in up(PORT=port, SETTINGS="keys.env")[1]
    assert "error: The running service has FCOS_API_KEYS, and the new one would not" in up(PORT=port)[1]
    assert "error: The running service has FCOS_ADMIN_KEY, and" in up(PORT=port, SETTINGS="fewer.env")[1]
    assert "FCOS_API_KEYS=correct-horse" in (tmp_path / "running").read_text()
    assert "Ready" in up(PORT=port, SETTINGS="keys.env")[1]
