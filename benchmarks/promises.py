"""What the service promises under load, seen from outside: a real process, the shipped model, HTTP.

    python benchmarks/promises.py                                        a minute
    python benchmarks/promises.py --settings max_batch=8 sessions=1      batches on a CPU too

Prints a line per promise, with what was counted. Exits with 1 if one was broken.

alone      pictures of mixed sizes, sent many at a time, get the same answers as one by one; on a GPU, which computes
           batches of another size another way, nearly the same
corrupt    seven good pictures and a corrupt one at a time: seven answers and one refusal
left       200 clients that leave the queue cost at most the batches that had begun
busy       five times as many requests as it can answer, each with a deadline of 2 s: it answers as before, and in time
swap       the model file is replaced under load: no request fails, and the new model answers
end        SIGTERM while pictures wait: each of them is answered, and the process exits with 0
"""

import argparse
import asyncio
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import uvloop
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.errors import first_line
from app.providers import CPU, CUDA
from app.settings import DEFAULT_MODEL, Settings
from app.sharing import session_count
from benchmarks.command import as_command
from benchmarks.load import Load, request_bytes
from benchmarks.systems import Running, photograph, running, settings_from

QUEUE = 300
DEADLINE_S = 300
CLIENTS = 8
AT_ONCE = 32
LONGEST_S = 600  # of one promise
BUSY_S = 6.0  # three deadlines
BUSY_DEADLINE_MS = 2000
BUSY_SHARE = 0.7  # at least; the client takes its part of the machine
LOW_SCORE = 0.1  # so that there are more objects to differ in
# On a GPU: which of two boxes is kept, and whether an object reaches the least score, may hang on a last digit.
NEARLY_ALL = 0.9  # of two answers' objects
NEAR_PX, NEAR_SHARE, NEAR_SCORE = 2.0, 0.05, 0.03  # a side of the box, as pixels or of the box's size; the score
INFERRED, IN_FLIGHT = "fcos_pictures_inferred_total", "fcos_in_flight_pictures"


class Seen(NamedTuple):
    """A promise's outcome."""

    kept: bool
    counted: str


class Service:
    """The running service, to send requests to.

    Attributes:
        model: The file that it serves.
    """

    def __init__(self, running: Running, settings: Settings, options: argparse.Namespace) -> None:
        self.port, self.process = running
        self.model = settings.model
        self.on_gpu = settings.provider == "cuda"
        self._sessions = session_count(settings, CUDA if self.on_gpu else CPU)
        self.options = options
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", timeout=DEADLINE_S, limits=httpx.Limits(max_connections=None),
            trust_env=False,  # past proxies
        )  # fmt: skip

    async def detect(self, picture: bytes, **query: float) -> httpx.Response:
        return await self.http.post("/detect", content=picture, params=query)

    def slow_picture(self) -> bytes:
        """One of which some hundred keep it busy while the last of them is read."""
        if not self.on_gpu:
            return photograph()
        out = io.BytesIO()  # some ten kilobytes that take a core as many milliseconds, however fast the model is
        Image.new("RGB", (2000, 1500), "grey").save(out, "PNG")
        return out.getvalue()

    async def most_begun(self) -> int:
        """How many pictures its sessions may have begun at a time."""
        return self._sessions * int(await self.metric("fcos_largest_batch"))

    async def metric(self, name: str) -> float:
        text = (await self.http.get("/metrics")).text
        (value,) = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(value)


async def alone(service: Service) -> Seen:
    pictures = list(mixed_pictures(service.options.pictures))

    async def objects_in(picture: bytes) -> list[Any]:
        response = await service.detect(picture, score_threshold=LOW_SCORE)
        response.raise_for_status()
        found: list[Any] = response.json()["detections"]
        return found

    expected = [await objects_in(picture) for picture in pictures]
    places = asyncio.Semaphore(AT_ONCE)

    async def among_others(picture: bytes) -> list[Any]:
        async with places:
            return await objects_in(picture)

    answers = await asyncio.gather(*(among_others(picture) for picture in pictures))
    shares = [
        agreement(answer, before) if service.on_gpu else float(answer == before)
        for answer, before in zip(answers, expected, strict=True)
    ]
    others = sum(share < (NEARLY_ALL if service.on_gpu else 1) for share in shares)
    text = f"{others} of {len(pictures)} differ; {sum(map(len, expected))} objects, {AT_ONCE} at a time"
    return Seen(not others, text + (f"; at least {min(shares):.0%} of a picture's agree" if service.on_gpu else ""))


def agreement(one: list[Any], other: list[Any]) -> float:
    """Returns: The share of two answers' objects that the other has nearly the same; 1 if there are none."""
    if not one or not other:
        return float(len(one) == len(other))
    (classes, scores, boxes), (others_classes, others_scores, others_boxes) = map(_arrays, (one, other))
    apart = np.abs(boxes[:, None] - others_boxes).max(2)
    sizes = (boxes[:, 2:] - boxes[:, :2]).max(1)
    near = apart <= np.maximum(NEAR_PX, NEAR_SHARE * sizes)[:, None]
    near &= np.abs(scores[:, None] - others_scores) <= NEAR_SCORE
    near &= classes[:, None] == others_classes
    return float(near.any(1).sum() + near.any(0).sum()) / (len(one) + len(other))


def _arrays(objects: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = [[one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for one in objects]
    classes, scores = ([one[key] for one in objects] for key in ("class_id", "score"))
    return np.array(classes), np.array(scores), np.array(boxes)


async def corrupt(service: Service) -> Seen:
    good = photograph()
    broken = good[: len(good) // 2]
    statuses: Counter[int] = Counter()
    refused_wrongly = 0
    for place in range(CLIENTS):
        bodies = [broken if number == place else good for number in range(CLIENTS)]
        responses = await asyncio.gather(*map(service.detect, bodies))
        statuses.update(response.status_code for response in responses)
        refused_wrongly += any(
            (response.status_code == 200) == (number == place) for number, response in enumerate(responses)
        )
    kept = not refused_wrongly and all(status == 200 or 400 <= status < 500 for status in statuses)
    return Seen(kept, ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())))


async def left(service: Service) -> Seen:
    count = service.options.leaving
    request = request_bytes(service.port, "/detect", service.slow_picture())
    writers = [(await asyncio.open_connection("127.0.0.1", service.port))[1] for _ in range(count)]
    earlier = await service.metric(INFERRED)
    for writer in writers:
        writer.write(request)
    waiting = before = 0.0
    while waiting + before - earlier < count:  # until the last of them has been read
        waiting, before = await service.metric(IN_FLIGHT), await service.metric(INFERRED)
    os.kill(service.process.pid, signal.SIGSTOP)  # nothing is computed while they leave
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.1)
    os.kill(service.process.pid, signal.SIGCONT)
    while await service.metric(IN_FLIGHT):  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.01)
    await service.detect(photograph())  # which comes after everything that was queued
    computed, begun = int(await service.metric(INFERRED) - before) - 1, await service.most_begun()
    return Seen(
        waiting > 2 * begun >= computed,  # a batch may have ended, and another begun, since they were counted
        f"{waiting:.0f} left, {computed} computed after that; {begun} may have begun",
    )


async def busy(service: Service) -> Seen:
    request = request_bytes(service.port, "/detect", photograph(), headers=f"X-Deadline-Ms: {BUSY_DEADLINE_MS}\r\n")
    before = Load(service.port, request)
    await before.closed(CLIENTS, BUSY_S)
    able = sum(row.status == 200 for row in before.rows) / BUSY_S
    load = Load(service.port, request)
    await load.open(5 * able, BUSY_S)
    answered = [row for row in load.rows if row.status == 200]
    share = sum(row.ended_ms <= BUSY_S * 1000 for row in answered) / BUSY_S / able
    late = sum(row.status not in (200, 503) for row in load.rows)
    return Seen(
        share >= BUSY_SHARE and late <= len(answered) / 20,
        f"{able:.1f} answers per second before, {share:.0%} of that under load; {late} late, {len(answered)} answered",
    )


async def swap(service: Service) -> Seen:
    picture, stop = photograph(), False
    seen: Counter[tuple[int, str]] = Counter()

    async def client() -> None:
        while not stop:
            try:
                response = await service.detect(picture)
            except httpx.HTTPError:
                seen[0, "-"] += 1
                continue
            document = response.json() if response.is_success else {"model": {"version": "-"}}
            seen[response.status_code, document["model"]["version"]] += 1

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    for other in (service.options.other, service.options.model) * service.options.swaps:
        before = await version(service)
        await asyncio.sleep(0.3)
        shutil.copy(other, service.model.with_suffix(".new"))
        service.model.with_suffix(".new").replace(service.model)
        os.kill(service.process.pid, signal.SIGHUP)
        while await version(service) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    stop = True
    await asyncio.gather(*clients)
    failures = sum(count for (status, _), count in seen.items() if status != 200)
    versions = ", ".join(f"{count} by {name[:8]}" for (_, name), count in seen.items())
    return Seen(
        not failures and len(seen) == 2, f"{failures} failures, {2 * service.options.swaps} swaps; answers: {versions}"
    )


async def version(service: Service) -> str:
    return str((await service.http.get("/model")).json()["version"])


async def end(service: Service) -> Seen:
    count = service.options.waiting
    picture = service.slow_picture()
    requests = [asyncio.create_task(service.detect(picture)) for _ in range(count)]
    answered = waiting = 0
    while answered + waiting < count:  # until the last of them has been read
        waiting = int(await service.metric(IN_FLIGHT))
        answered = sum(request.done() for request in requests)
    service.process.terminate()
    responses = await asyncio.gather(*requests, return_exceptions=True)
    code = await asyncio.to_thread(service.process.wait, DEADLINE_S)
    good = sum(isinstance(response, httpx.Response) and response.status_code == 200 for response in responses)
    return Seen(
        good == count and waiting > 0 and code == 0,
        f"{waiting} of {count} waited at SIGTERM, {count - good} lost, exit code {code}",
    )


PROMISES = {promise.__name__: promise for promise in (alone, corrupt, left, busy, swap, end)}


def mixed_pictures(count: int) -> Iterator[bytes]:
    """Parts of photographs, from 40 to 1,600 pixels wide and high, in three formats; the same every time."""
    chance = random.Random(0)
    photographs = [Image.fromarray(array) for array in (data.astronaut(), data.cat(), data.coffee())]
    for number in range(count):
        whole = photographs[number % len(photographs)]
        left, top = (int(side * chance.uniform(0, 0.4)) for side in whole.size)
        width, height = (int(2 ** chance.uniform(5.4, 10.6)) for _ in range(2))
        out = io.BytesIO()
        part = whole.crop((left, top, *whole.size)).resize((width, height))
        part.save(out, chance.choice(("JPEG", "PNG", "WEBP")))
        yield out.getvalue()


async def check(running: Running, settings: Settings, options: argparse.Namespace) -> bool:
    service = Service(running, settings, options)
    kept = True
    async with service.http:
        for name, promise in PROMISES.items():
            if name not in options.promises:
                continue
            try:
                async with asyncio.timeout(LONGEST_S):
                    result = await promise(service)
            except TimeoutError:
                result = Seen(False, f"it was not over within {LONGEST_S} s")
            except Exception as error:  # such as those of a service that broke off
                result = Seen(False, f"{type(error).__name__}: {first_line(error)}")
            kept &= result.kept
            print(f"{name:8} {'kept' if result.kept else 'BROKEN':7} {result.counted}", flush=True)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promises", nargs="+", default=list(PROMISES), choices=PROMISES)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument(
        "--other",
        type=Path,
        default=DEFAULT_MODEL.with_stem(f"{DEFAULT_MODEL.stem}-int8"),
        help="the model file to swap to",
    )
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pictures", type=int, default=500, help="for `alone`")
    parser.add_argument("--leaving", type=int, default=200, help="clients, for `left`")
    parser.add_argument("--swaps", type=int, default=3, help="there and back, for `swap`")
    parser.add_argument("--waiting", type=int, default=40, help="pictures, for `end`")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="NAME=VALUE", help="FCOS_* variables, without that prefix"
    )
    options = parser.parse_args()
    for file in (options.model, options.other):
        if not file.is_file():
            parser.error(f"there is no file {file}")
    chosen = settings_from(options.settings, parser)
    settings: dict[str, Any] = {"max_queue": QUEUE, "deadline_s": DEADLINE_S, "drain_s": 0, **chosen}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(shutil.copy(options.model, Path(folder) / "model.onnx"))
        known = Settings(model=model, provider=options.provider, **settings)
        with running("service", model, options.provider, **settings) as server:
            return 0 if uvloop.run(check(server, known, options)) else 1


if __name__ == "__main__":
    as_command(main)
