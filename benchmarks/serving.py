"""The service beside the bare pipeline and beside other servers: same pictures, same code, one run.

    python benchmarks/serving.py                            the pipeline, the service and FastAPI, about half an hour
    python benchmarks/serving.py --systems bare service fastapi --models tiny --levels --open   only the ratios
    python benchmarks/serving.py --provider cuda            on a machine with a GPU
    python benchmarks/serving.py ... --changed max_batch=4  a second service in the windows, with other settings

Ratios: all systems are up at once, but only one runs at a time, the others are stopped: windows of a second, in turn,
with 8 clients, each sending its next request as soon as it has an answer. Machines slow down and speed up by a third
within minutes; neighbouring windows share that, so the ratio of two systems is the median over pairs of neighbours. The
clients are wrk's if it is installed, which takes half the processor time that load.py does.

Loads: every server alone, in closed loop with 1, 8 and 64 clients, and in open loop, which sends whether or not there
are answers, at 0.5, 1, 2 and 5 times what the first server answered in closed loop: the same load for all. Only answers
that came during the load are counted. It lasts several deadlines, as servers that let none wait too long and those that
let all wait differ only after the first. Writes serving.csv (a row per request), prints a table.

The other servers have the same deadline, and accept 32 requests at a time (LitServe has no such bound), which two cores
answer in time. Ours needs no such figure.

With `--peers`, a Python that has them, LitServe, BentoML and Ray Serve are measured, too:

    uv venv peers && uv pip install --python peers litserve bentoml "ray[serve]" onnxruntime numpy pillow uvloop
    python benchmarks/serving.py --peers peers/bin/python
"""

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
from app.cores import core_count
from app.settings import DEFAULT_MODEL
from benchmarks.command import as_command
from benchmarks.load import Row, load, read_rows
from benchmarks.systems import OWN, PEERS, Running, family, photograph, running, settings_from, tell

CLIENTS = 8  # in the windows
CLOSED_LEVELS = (1, 8, 64)
OPEN_LEVELS = (0.5, 1, 2, 5)
FORM_FIELDS = {"bentoml": "image"}  # where a server takes the picture; the others take it as the body


@dataclass
class Result:
    """One system alone, one load, one round."""

    model: str
    system: str
    loop: str
    level: float
    round: int
    seconds: float
    rows: list[Row] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)

    def latencies(self, kind: str = "request") -> list[float]:
        """Returns: Those of the answered requests, ascending, in ms."""
        return sorted(row.latency_ms for row in self.rows if row.kind == kind and row.status == 200)

    def rate(self, within_ms: float = float("inf")) -> float:
        """Returns: Answers per second, counting those that came in time and while requests were being sent."""
        answered = [row for row in self.rows if row.kind == "request" and row.status == 200]
        good = [row for row in answered if row.latency_ms <= within_ms and row.ended_ms <= self.seconds * 1000]
        return len(good) / self.seconds

    def client_cores(self) -> float:
        """Returns: How many cores the client took."""
        return sum(row.latency_ms for row in self.rows if row.kind == "client_cpu") / 1000 / self.seconds

    def errors(self) -> list[int]:
        """Returns: The statuses of the requests that got no answer."""
        return [row.status for row in self.rows if row.kind == "request" and row.status != 200]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=("bare", *OWN, *PEERS),
        help="(default: bare, service, fastapi; with --peers all)",
    )
    parser.add_argument("--models", nargs="+", default=["default", "tiny"], choices=("default", "tiny"))
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="the default model's file")
    parser.add_argument("--picture", type=Path, help="a JPEG (default: a photograph of 640 x 480)")
    parser.add_argument("--levels", nargs="*", type=float, default=CLOSED_LEVELS, help="clients in closed loop")
    parser.add_argument("--open", nargs="*", type=float, default=OPEN_LEVELS, help="times the capacity, in open loop")
    parser.add_argument("--windows", type=int, default=15, help="per system, for the ratios")
    parser.add_argument("--window-s", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="of the loads")
    parser.add_argument("--seconds", type=float, default=8, help="of one load")
    parser.add_argument("--deadline-s", type=float, default=2)
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", help="a Python with LitServe, BentoML and Ray Serve")
    parser.add_argument(
        "--changed",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="FCOS_* variables of a second service",
    )
    parser.add_argument("--output", type=Path, default=Path("serving.csv"))
    options = parser.parse_args()
    systems = options.systems or ["bare", *OWN, *(PEERS if options.peers else ())]
    if options.peers and not shutil.which(options.peers):
        parser.error(f"--peers: there is no program {options.peers}")
    if not options.peers and set(systems) & set(PEERS):
        parser.error(f"{', '.join(sorted(set(systems) & set(PEERS)))}: give a Python that has them with --peers")
    if options.rounds and options.open and not options.levels:
        parser.error("--open is in multiples of what is answered in closed loop: give --levels, too")
    options.changed = settings_from(options.changed, parser)
    given = photograph() if options.picture is None else options.picture.read_bytes()

    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(given)
        for name in options.models:
            model = options.model
            if name == "tiny":
                from benchmarks.tiny_model import write_tiny_model  # needs onnx

                model = write_tiny_model(Path(folder) / "tiny.onnx")
            if options.windows:
                _print_ratios(name, _windows(systems, model, picture, options))
            for number in range(options.rounds):
                capacity = 0.0
                for system in systems:
                    if system != "bare" and options.levels:
                        capacity = _serve(results, system, name, model, picture, number, capacity, options)
                        _write(results, options.output)  # so that nothing is lost if the time runs out
    if results:
        _print_table(results, options.deadline_s * 1000)
    return 0


def _windows(systems: list[str], model: Path, picture: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Returns: Pictures per second of each system in each of its windows. The bare pipeline counts as
    several systems: one for each way to divide the cores, as threads x threads of the session."""
    cores = core_count()
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        run: dict[str, Callable[[], float]] = {}
        for system in systems:
            if system == "bare":
                for threads, session_threads in dict.fromkeys(((1, cores), (cores, 1), (cores, cores))):
                    bare = stack.enter_context(_bare(model, picture, threads, session_threads, options))
                    run[f"bare {threads}x{session_threads}"] = partial(_bare_window, bare, options.window_s)
            else:
                server = stack.enter_context(_running(system, model, options))
                run[system] = partial(_window, system, server, picture, options.window_s)
        if options.changed:
            server = stack.enter_context(_running("service", model, options, **options.changed))
            run["changed"] = partial(_window, "service", server, picture, options.window_s)
        for window in run.values():
            window()
        for number in range(options.windows):
            for system in list(run)[:: -1 if number % 2 else 1]:
                rates.setdefault(system, []).append(run[system]())
            print(
                f"window {number + 1}: " + ", ".join(f"{system} {rates[system][-1]:.1f}" for system in run)
                + f"; load average {os.getloadavg()[0]:.1f}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return rates


@contextmanager
def _bare(
    model: Path, picture: Path, threads: int, session_threads: int, options: argparse.Namespace
) -> Generator[subprocess.Popen[str]]:
    command = [
        sys.executable, str(HERE / "peers" / "bare.py"), str(model), "--picture", str(picture), "--threads",
        str(threads), "--session-threads", str(session_threads), "--provider", options.provider,
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def _bare_window(process: "subprocess.Popen[str]", seconds: float) -> float:
    assert process.stdin is not None and process.stdout is not None
    print(seconds, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def _window(system: str, server: Running, picture: Path, seconds: int) -> float:
    """Returns: Answers per second to `CLIENTS` clients. The server is stopped otherwise: some are busy without work."""
    tell(server.process.pid, signal.SIGCONT)
    try:
        return _answers_per_s(system, server.port, picture, seconds)
    finally:
        tell(server.process.pid, signal.SIGSTOP)


def _answers_per_s(system: str, port: int, picture: Path, seconds: int) -> float:
    if system not in FORM_FIELDS and (wrk := shutil.which("wrk")):
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(
                f'local file = io.open("{picture}", "rb")\nwrk.method, wrk.body = "POST", file:read("*all")\n'
                'wrk.headers["Content-Type"] = "image/jpeg"\n'
                "done = function(summary) local e = summary.errors\n"
                "  print((summary.requests - e.status) / (summary.duration / 1e6)) end\n"
            )
            script.flush()
            command = [wrk, "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "-s", script.name]
            done = subprocess.run(
                [*command, f"http://127.0.0.1:{port}/detect"], check=True, capture_output=True, text=True
            )
        return float(done.stdout.splitlines()[-1])
    rows = load("closed", *_load_options(system, port, picture), "--level", str(CLIENTS), "--seconds", str(seconds))
    return Result("", system, "closed", CLIENTS, 0, seconds, rows).rate()


def _load_options(system: str, port: int, picture: Path) -> list[str]:
    form = ["--multipart", FORM_FIELDS[system]] if system in FORM_FIELDS else []
    return ["--port", str(port), "--picture", str(picture), *form]


def _serve(
    results: list[Result],
    system: str,
    name: str,
    model: Path,
    picture: Path,
    number: int,
    capacity: float,
    options: argparse.Namespace,
) -> float:
    """Args: capacity: what the first server answers per second; 0 if this is the first. Returns: The same."""
    with _running(system, model, options) as (port, process):
        same = _load_options(system, port, picture)
        load("closed", *same, "--level", "8", "--seconds", "2")
        answered = 0.0
        runs = [("closed", level) for level in options.levels] + [("open", level) for level in options.open]
        for loop, level in runs:
            result = Result(name, system, loop, level, number, options.seconds)
            amount = level if loop == "closed" else max(1.0, level * (capacity or answered))
            with _rss_of(process.pid, result.rss_mb), _health_of(system, port, options.seconds, result.rows):
                result.rows += load(loop, *same, "--level", str(amount), "--seconds", str(options.seconds))
            if loop == "closed":
                answered = max(answered, result.rate())
            _note(results, result)
    return capacity or answered


def _running(system: str, model: Path, options: argparse.Namespace, **changed: str) -> AbstractContextManager[Running]:
    python = options.peers if system in PEERS else sys.executable
    settings = {"deadline_s": options.deadline_s, "drain_s": 0, **changed}
    return running(system, model, options.provider, python, **settings)


@contextmanager
def _health_of(system: str, port: int, seconds: float, into: list[Row]) -> Generator[None]:
    """Ask for a sign of life meanwhile, from a process that is not busy itself."""
    if system not in OWN:
        yield
        return
    probe = subprocess.Popen(
        [sys.executable, str(HERE / "load.py"), "health", "--port", str(port), "--path", "/healthz", "--seconds",
         str(seconds)], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield
    finally:
        rows, _ = probe.communicate()
        into += [row for row in read_rows(rows) if row.kind == "health"]


@contextmanager
def _rss_of(pid: int, into: list[float]) -> Generator[None]:
    """Note the memory of a process and its children five times a second. Linux only."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            into.append(sum(_rss_mb(one) for one in family(pid)))

    thread = threading.Thread(target=watch)
    if Path("/proc/self/statm").exists():
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()


def _rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def _note(results: list[Result], result: Result) -> None:
    results.append(result)
    print(
        f"round {result.round + 1}: {result.model}, {result.system}, {result.loop} {result.level:g}: "
        f"{result.rate():.1f} per second, load average {os.getloadavg()[0]:.1f}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _write(results: list[Result], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "system", "loop", "level", "round", *Row._fields))
        for one in results:
            key = (one.model, one.system, one.loop, f"{one.level:g}", one.round)
            writer.writerows((*key, *row) for row in one.rows)
            writer.writerows((*key, "rss_mb", "", f"{rss:.1f}", "") for rss in one.rss_mb)


def _print_table(results: list[Result], deadline_ms: float) -> None:
    """Medians over the rounds. `client` is the number of cores that the load itself took."""
    print(
        f"{'model':8} {'system':10} {'load':>10} {'per s':>8} {'good/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} "
        f"{'health99':>8} {'RSS MB':>13} {'client':>6}  errors"
    )
    for key in dict.fromkeys((one.model, one.system, one.loop, one.level) for one in results):
        own = [one for one in results if (one.model, one.system, one.loop, one.level) == key]
        model, system, loop, level = key
        errors = Counter(status for one in own for status in one.errors())
        rss = [value for one in own for value in one.rss_mb]
        print(
            f"{model:8} {system:10} {loop + f' {level:g}':>10} {median(one.rate() for one in own):8.1f} "
            f"{median(one.rate(deadline_ms) for one in own):8.1f} "
            + " ".join(f"{median(_percentile(one.latencies(), share) for one in own):8.1f}" for share in (50, 95, 99))
            + f" {median(_percentile(one.latencies('health'), 99) for one in own):8.1f} "
            + (f"{min(rss):6.0f}-{max(rss):6.0f}" if rss else f"{'':13}")
            + f" {median(one.client_cores() for one in own):6.2f}"
            + "  " + " ".join(f"{count}x{status}" for status, count in sorted(errors.items()))
        )  # fmt: skip


def _print_ratios(model: str, rates: dict[str, list[float]]) -> None:
    """Ratios of the service to each other system; only the best of the bare pipeline's ways counts."""
    ways = [system for system in rates if system.startswith("bare")]
    best = max(ways, key=lambda way: median(rates[way]), default=None)
    print(f"{model:8} {'system':10} {'per s':>8} {'service / it':>14}  (quarters of the windows)")
    for system, values in rates.items():
        text = f"{'':8} {system:10} {median(values):8.1f}"
        if "service" in rates and system != "service" and (system not in ways or system == best):
            pairs = [own / other for own, other in zip(rates["service"], values, strict=True)]
            low, middle, high = quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
            text += f" {middle:14.3f}  ({low:.3f}, {high:.3f})"
        print(text, flush=True)


def _percentile(values: list[float], share: int) -> float:
    return values[min(len(values) - 1, len(values) * share // 100)] if values else float("nan")


if __name__ == "__main__":
    as_command(main)
