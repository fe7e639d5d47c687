"""Load on a running service: pictures of several sizes, several parameters, every answer checked.

locust -f tests/load/locustfile.py --headless --host http://127.0.0.1:8000 --csv results/load --html results/load.html

Users go up by --steps, each for --step-s seconds, and ask again as soon as they are answered. At the end a table shows
what each step gave; it also goes into results/load_steps.csv, beside locust's own files. A refusal because the service
is full, or has no time left, is counted apart from a wrong answer: the first is what a service under load should say,
the second makes the run exit with 1. `make loadtest` runs this against a service that it starts.
"""

import csv
import io
import json
import os
import random
import time
from argparse import ArgumentTypeError
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from PIL import Image, ImageDraw

SIZES = {"small": (320, 240), "medium": (640, 480), "upright": (480, 640), "large": (1600, 1200)}
API_KEY = os.environ.get("API_KEY")
HEADERS = {"Authorization": f"Bearer {API_KEY}"} if API_KEY else {}
FULL = "the service is full"


def picture(width: int, height: int, seed: int) -> bytes:
    """Returns: A JPEG with edges and texture, about as large as a photograph of its size."""
    chance = random.Random(seed)
    noise = Image.effect_noise((width // 2, height // 2), 60).resize((width, height))
    made = Image.merge("RGB", [noise, noise.point(lambda value: value // 2 + 64), noise.rotate(180)])
    canvas = ImageDraw.Draw(made)
    for _ in range(12):
        x, y = chance.randrange(width), chance.randrange(height)
        colour = tuple(chance.randrange(256) for _ in range(3))
        canvas.rectangle((x, y, x + width // 6, y + height // 6), fill=colour)
    out = io.BytesIO()
    made.save(out, "JPEG", quality=85)
    return out.getvalue()


PICTURES = {name: picture(*size, seed) for seed, (name, size) in enumerate(SIZES.items())}  # once, for all users


class Wrong(Exception):
    """An answer that is not what was asked for."""


def check_answer(answer: dict[str, Any], size: tuple[int, int], threshold: float, most: int) -> None:
    """Raises: Wrong."""
    if (answer["image"]["width"], answer["image"]["height"]) != size:
        raise Wrong(f"the picture's size is {answer['image']}, not {size}")
    found = answer["detections"]
    scores = [one["score"] for one in found]
    if len(found) > most or scores != sorted(scores, reverse=True) or any(score <= threshold for score in scores):
        raise Wrong(f"{len(found)} detections, scores {scores[:3]} ..., for at most {most} above {threshold}")
    for one in found:
        box = one["box"]
        if not (0 <= box["xmin"] < box["xmax"] <= size[0] and 0 <= box["ymin"] < box["ymax"] <= size[1]):
            raise Wrong(f"the box {box} does not lie in the picture of {size}")


class Client(FastHttpUser):
    wait_time = constant(0)

    def post(self, name: str, path: str, body: bytes, headers: dict[str, str], check: Any, expected: int = 200) -> None:
        with self.client.post(
            path, data=body, headers={**HEADERS, **headers}, name=name, catch_response=True
        ) as response:
            if response.status_code in (408, 429, 503, 504):
                response.failure(FULL)
                time.sleep(min(float(response.headers.get("Retry-After", 1)), 5))
            elif response.status_code != expected:
                response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
            else:
                try:
                    check(response.content)
                except Exception as error:  # whatever a malformed answer causes
                    response.failure(f"wrong answer: {error!r}")
                else:
                    response.success()

    def detect(self, name: str, threshold: float = 0.3, most: int = 100) -> None:
        self.post(
            f"detect {name}",
            f"/detect?score_threshold={threshold}&max_detections={most}",
            PICTURES[name],
            {"Content-Type": "image/jpeg"},
            lambda content: check_answer(json.loads(content), SIZES[name], threshold, most),
        )

    @task(4)
    def small(self) -> None:
        self.detect("small")

    @task(8)
    def medium(self) -> None:
        self.detect("medium", threshold=random.choice((0.1, 0.3, 0.5)))

    @task(4)
    def upright(self) -> None:
        self.detect("upright", most=random.choice((1, 10, 100)))

    @task(2)
    def large(self) -> None:
        self.detect("large", threshold=0.05, most=300)

    @task(1)
    def drawn(self) -> None:
        def check(content: bytes) -> None:
            if Image.open(io.BytesIO(content)).size != SIZES["small"]:
                raise Wrong("the drawing has another size than the picture")

        headers = {"Content-Type": "image/jpeg", "Accept": "image/jpeg"}
        self.post("detect, drawn", "/detect", PICTURES["small"], headers, check)

    @task(1)
    def batch(self) -> None:
        names = ["small", "medium", "upright"]
        boundary = "----pictures"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}.jpg"\r\n\r\n'.encode()
            + PICTURES[name]
            for name in names
        ]
        body = b"\r\n".join(parts) + f"\r\n--{boundary}--\r\n".encode()

        def check(content: bytes) -> None:
            results = json.loads(content)["results"]
            for name, result in zip(names, results, strict=True):
                if "problem" not in result:  # one of them may come when the service is full
                    check_answer(result, SIZES[name], 0.3, 100)

        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        self.post("batch of 3", "/detect/batch?score_threshold=0.3", body, headers, check)

    @task(1)
    def no_picture(self) -> None:
        def check(content: bytes) -> None:
            if json.loads(content)["code"] != "not_a_picture":
                raise Wrong("the problem's code is not not_a_picture")

        self.post("no picture", "/detect", b"no picture", {"Content-Type": "image/jpeg"}, check, expected=415)


def _steps(text: str) -> list[int]:
    steps = text.split(",")
    if not all(users.isdecimal() and int(users) for users in steps):
        raise ArgumentTypeError(f"{text!r} is not a list of users, such as 1,4,16")
    return [int(users) for users in steps]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


@events.init_command_line_parser.add_listener
def _arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--steps", type=_steps, default="1,4,16", help="users of each step, separated by commas")
    parser.add_argument("--step-s", type=_seconds, default=20, help="seconds of each step")


class Steps(LoadTestShape):
    """Users by steps. Requests count for the step in which they ended."""

    rows: ClassVar[list[dict[str, Any]]] = []

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        steps = options.steps
        index = int(self.get_run_time() // options.step_s)
        if index >= len(steps):
            return None
        while len(self.rows) <= index:
            self.rows.append({"users": steps[len(self.rows)], "times_ms": [], "failures": Counter()})
        return steps[index], 100.0


@events.request.add_listener
def _count(response_time: float, exception: Exception | None, **_: object) -> None:
    row = Steps.rows[-1]
    if exception is None:
        row["times_ms"].append(response_time)
    else:
        row["failures"]["full" if FULL in str(exception) else "wrong"] += 1


@events.quitting.add_listener
def _report(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    assert options is not None
    table = []
    for row in Steps.rows:
        times_ms = sorted(row["times_ms"])
        quantiles = {
            f"p{q}_ms": round(times_ms[len(times_ms) * q // 100]) if times_ms else float("nan") for q in (50, 95, 99)
        }
        table.append(
            {
                "users": row["users"], "answers_per_s": round(len(times_ms) / options.step_s, 1), **quantiles,
                "full": row["failures"]["full"], "wrong": row["failures"]["wrong"],
            }
        )  # fmt: skip
    if not table:
        return
    print("\n" + "  ".join(f"{name:>13}" for name in table[0]))
    for line in table:
        print("  ".join(f"{value:>13}" for value in line.values()))
    best = max(table, key=lambda line: line["answers_per_s"])
    print(
        f"\nCapacity: {best['answers_per_s']} answers per second, with {best['users']} users; p95 {best['p95_ms']} ms."
    )
    if options.csv_prefix:
        with Path(f"{options.csv_prefix}_steps.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
    # Being full is not a failure of the service; a wrong answer is, and so is none at all.
    answered = sum(len(row["times_ms"]) for row in Steps.rows)
    environment.process_exit_code = 1 if answered == 0 or any(line["wrong"] for line in table) else 0
