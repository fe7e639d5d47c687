"""Keys, places and deadlines, decided before a body is read; and what every response says of itself."""

import hashlib
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app import gate
from app.addresses import KEYED, MODEL
from app.api import create_app
from app.errors import KINDS
from app.gate import MOST_PARAMETERS, UPLOADS_PER_PLACE
from app.metrics import STAGES
from app.service import Service
from app.settings import Settings
from tests.held import Held
from tests.serving import Served
from tests.serving import served as serving
from tests.support import PICTURE, metadata, ready, value_of, write_model

KEY, OTHER_KEY = "correct-horse", "battery-staple"


@contextmanager
def client_of(model: Path, **settings: Any) -> Generator[TestClient]:
    with TestClient(
        create_app(Settings(model=model, provider="cpu", threads=1, sessions=1, decode_threads=2, **settings))
    ) as client:
        yield ready(client)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def metric(client: TestClient, series: str) -> float:
    return value_of(client.get("/metrics").text, series)


def test_a_query_of_countless_parameters_is_not_read(model_file: Path) -> None:
    """To read it and say what is wrong takes longer the more there are, and nobody else is answered meanwhile."""
    with client_of(model_file) as client:
        for address in sorted(KEYED - {MODEL}):
            most = client.post(f"{address}?{'&'.join(['zzz=1'] * MOST_PARAMETERS)}", files={"images": PICTURE})
            assert "zzz is not a parameter" in most.text or "takes no parameters" in most.text
            more = client.post(f"{address}?{'&'.join(['zzz=1'] * (MOST_PARAMETERS + 1))}", files={"images": PICTURE})
            assert (more.status_code, more.json()["code"]) == (422, "invalid_parameter")
            assert "more than 2000 parameters" in more.text


def test_the_work_for_a_wrong_key_does_not_grow_with_the_number_of_keys(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing 60,000 characters with each of 5,000 keys kept everybody waiting for 0.4 s."""
    keys = [f"key-number-{number}" for number in range(1000)]
    with client_of(model_file, api_keys=",".join(keys)) as client:
        digested: list[bytes] = []
        monkeypatch.setattr(gate, "_digest", lambda key: digested.append(key) or hashlib.sha256(key).digest())  # type: ignore[func-returns-value]
        wrong = client.get("/model", headers={"X-API-Key": "x" * 60_000, **bearer("wrong")})
        assert wrong.status_code == 401 and len(digested) == 2
        assert all(client.get("/model", headers=bearer(key)).status_code == 200 for key in (keys[0], keys[-1]))


def test_a_key_is_needed_where_keys_are_set(model_file: Path) -> None:
    with client_of(model_file, api_keys=f"{KEY}, {OTHER_KEY}") as client:
        for address in ("/healthz", "/readyz", "/metrics", "/docs"):
            assert client.get(address).status_code == 200
        for headers in ({}, bearer("wrong"), bearer(KEY + "x"), bearer(""), {"Authorization": f"Basic {KEY}"}):
            for response in (
                client.post("/detect", content=PICTURE, headers=headers),
                client.post("/detect/batch", files={"images": PICTURE}, headers=headers),
                client.get("/model", headers=headers),
                client.post("/admin/reload", headers=headers),
            ):
                assert response.status_code == 401
                assert response.json()["code"] == "unauthorized"
                assert response.headers["www-authenticate"] == "Bearer"
        beside = bearer("a.gateways.own") | {"X-API-Key": KEY}
        in_small_letters = {"Authorization": f"bearer {KEY}"}
        for headers in (bearer(KEY), bearer(OTHER_KEY), {"X-API-Key": KEY}, beside, in_small_letters):
            assert client.post("/detect", content=PICTURE, headers=headers).status_code == 200


def test_no_address_is_asked_past_the_gate(model_file: Path) -> None:
    with client_of(model_file, api_keys=KEY) as client:
        for path in KEYED:
            for end in ("%0a", "%0A%0a", "%0d%0a", "%00", "/", "%e2%80%a8"):
                for response in (client.get(path + end), client.post(path + end, files={"images": PICTURE})):
                    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_under_a_path_keys_and_places_are_asked_for_as_well(model_file: Path) -> None:
    """In somebody's application, behind `uvicorn --root-path` or Ray's `route_prefix`: there anyone could reload."""
    detector = create_app(Settings(model=model_file, provider="cpu", api_keys=frozenset({KEY})))

    @asynccontextmanager
    async def lifespan(whole: FastAPI) -> AsyncGenerator[None]:
        async with detector.router.lifespan_context(detector):
            yield

    whole = FastAPI(lifespan=lifespan)
    whole.mount("/vision", detector)
    with TestClient(whole) as client:
        wait_for(lambda: client.get("/vision/readyz").status_code == 200)
        for headers, status in (({}, 401), (bearer(KEY), 200)):
            for response in (
                client.post("/vision/detect", content=PICTURE, headers=headers),
                client.post("/vision/detect/batch", files={"images": PICTURE}, headers=headers),
                client.get("/vision/model", headers=headers),
                client.post("/vision/admin/reload", headers=headers),
            ):
                assert response.status_code == status, response.request.url
        late = client.post("/vision/detect", content=PICTURE, headers=bearer(KEY) | {"X-Deadline-Ms": "soon"})
        assert late.json()["code"] == "invalid_parameter"
        assert value_of(client.get("/vision/metrics").text, 'fcos_responses_total{path="/detect",status="2xx"}') == 1


def test_without_keys_everybody_may_ask_but_not_reload(model_file: Path) -> None:
    with client_of(model_file) as client:
        assert client.post("/detect", content=PICTURE).status_code == 200
        response = client.post("/admin/reload")
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")


def test_reload_over_http(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    with client_of(model, api_keys=KEY) as client:
        before = client.get("/model", headers=bearer(KEY)).json()
        model.write_bytes(b"broken")
        response = client.post("/admin/reload", headers=bearer(KEY))
        assert (response.status_code, response.json()["code"]) == (422, "model_refused")
        write_model(model, metadata(classes=["crimson", "green", "blue"]).to_json())
        after = client.post("/admin/reload", headers=bearer(KEY)).json()
        assert after["version"] != before["version"]
        answer = client.post("/detect", content=PICTURE, headers=bearer(KEY)).json()
        assert answer["model"]["version"] == after["version"]
        assert answer["detections"][0]["label"] == "crimson"


def test_a_reload_does_not_take_a_file_from_the_request(model_file: Path) -> None:
    with client_of(model_file, api_keys=KEY) as client:
        response = client.post("/admin/reload?model=/models/other.onnx", headers=bearer(KEY))
        assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
        assert "FCOS_MODEL says which" in response.json()["detail"]


def test_a_key_has_its_share(model_file: Path, held: Held) -> None:
    with client_of(model_file, api_keys=f"{KEY},{OTHER_KEY}", max_per_key=1) as client, ThreadPoolExecutor(4) as pool:
        held.install()
        for _ in range(2):  # it has no more, and no less, for what has ended
            held.open.clear()
            before = len(held.batches)
            first = pool.submit(client.post, "/detect", content=PICTURE, headers=bearer(KEY))
            wait_for(lambda before=before: len(held.batches) == before + 1)
            refused = client.post("/detect", content=PICTURE, headers=bearer(KEY))
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
            assert refused.headers["retry-after"]
            other = pool.submit(client.post, "/detect", content=PICTURE, headers=bearer(OTHER_KEY))
            held.open.set()
            assert first.result().status_code == other.result().status_code == 200
        assert client.post("/detect", content=PICTURE, headers=bearer(KEY)).status_code == 200


def test_a_full_service_refuses_before_the_body_is_read(model_file: Path, held: Held) -> None:
    with client_of(model_file, max_queue=2) as client, ThreadPoolExecutor(4) as pool:
        held.install()
        accepted = [pool.submit(client.post, "/detect", content=PICTURE) for _ in range(2)]
        wait_for(lambda: metric(client, "fcos_in_flight_pictures") == 2)
        for address in ("/detect", "/detect/batch"):
            refused = client.post(address, content=b"x" * 2_000_000)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["connection"] == "close"
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        held.open.set()
        assert [request.result().status_code for request in accepted] == [200, 200]
        assert metric(client, 'fcos_refusals_total{reason="overloaded"}') == 2
        assert metric(client, "fcos_pictures_inferred_total") == 2
        for _ in range(3):  # the places are free again
            assert client.post("/detect", content=PICTURE).status_code == 200


def test_where_there_is_an_admin_key_no_other_reloads(model_file: Path) -> None:
    with client_of(model_file, api_keys=KEY, admin_key=OTHER_KEY) as client:
        refused = client.post("/admin/reload", headers=bearer(KEY))
        assert (refused.status_code, refused.json()["detail"]) == (401, "The key is not valid for reloading.")
        assert client.post("/admin/reload", headers=bearer(OTHER_KEY)).status_code == 200
        assert client.get("/model", headers=bearer(OTHER_KEY)).status_code == 401
    with client_of(model_file, admin_key=OTHER_KEY) as client:
        assert client.get("/model").status_code == 200
        assert client.post("/admin/reload").status_code == 401


def test_the_documentation_says_which_addresses_want_a_key(model_file: Path) -> None:
    def locked(client: TestClient) -> set[str]:
        paths = client.get("/openapi.json").json()["paths"]
        return {path for path, methods in paths.items() if any("security" in one for one in methods.values())}

    with client_of(model_file, api_keys=KEY) as client:
        assert locked(client) == {"/detect", "/detect/batch", "/model", "/admin/reload"}
    with client_of(model_file, admin_key=KEY) as client:
        assert locked(client) == {"/admin/reload"}
    with client_of(model_file) as client:
        assert not locked(client)


def test_bodies_that_are_held_together_have_a_bound_and_one_alone_has_room(model_file: Path, held: Held) -> None:
    def in_pieces() -> Iterator[bytes]:
        yield from (PICTURE[:10], PICTURE[10:])

    with client_of(model_file, max_queue_bytes=len(PICTURE) // 2) as client, ThreadPoolExecutor(1) as pool:
        held.install()
        first = pool.submit(client.post, "/detect", content=PICTURE)
        wait_for(lambda: len(held.batches) == 1)
        for content in (PICTURE, in_pieces()):
            refused = client.post("/detect", content=content)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"]
        held.open.set()
        assert first.result().status_code == 200
        assert client.post("/detect", content=PICTURE).status_code == 200


def test_a_form_is_never_written_to_a_disk(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", full)
    with client_of(model_file) as client:
        response = client.post("/detect", files={"image": bytes(4 * 2**20)})
        assert (response.status_code, response.json()["code"]) == (415, "not_a_picture")


@contextmanager
def begun(service: Served, length: int, count: int = 1) -> Generator[socket.socket]:
    """Requests that announce a body, of which only a byte has come. Yields: The last one's connection."""
    host, port = urlsplit(service.address).netloc.split(":")
    with ExitStack() as uploads:
        for _ in range(count):
            client = uploads.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nx" % length)
        time.sleep(0.2)
        yield client


def test_who_has_left_is_no_failure_in_the_log(model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(model=model_file, access_log=True, log_level="info") as service:
        with begun(service, 1000):
            pass
        time.sleep(0.2)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "POST /detect" in line]
    assert "POST /detect 499 in" in line


def test_what_is_announced_and_does_not_come_takes_no_room(model_file: Path) -> None:
    with (
        serving(model=model_file, max_queue_bytes=len(PICTURE) + 1) as service,
        begun(service, len(PICTURE)) as silent,
    ):
        assert httpx.post(f"{service.address}/detect", content=PICTURE).status_code == 200
        silent.sendall(b"x")  # what does come, does
        time.sleep(0.2)
        assert httpx.post(f"{service.address}/detect", content=PICTURE).status_code == 503


def test_requests_that_are_being_sent_keep_no_others_out(model_file: Path) -> None:
    with serving(model=model_file, max_queue=1) as service, begun(service, len(PICTURE)) as slow:
        with begun(service, 1000, count=2):
            assert httpx.post(f"{service.address}/detect", content=PICTURE).status_code == 200
        slow.sendall(PICTURE[1:])
        assert slow.recv(1000).startswith(b"HTTP/1.1 415 "), "its first byte was an x"


def test_requests_that_are_being_sent_have_a_bound(model_file: Path) -> None:
    with serving(model=model_file, max_queue=1) as service:
        with begun(service, 1000, count=UPLOADS_PER_PLACE):
            refused = httpx.post(f"{service.address}/detect", content=PICTURE)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert f"Requests being sent: {UPLOADS_PER_PLACE}" in refused.json()["detail"]
        time.sleep(0.2)
        assert httpx.post(f"{service.address}/detect", content=PICTURE).status_code == 200


def test_a_line_in_the_access_log_cannot_be_forged(model_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "app.access")
    with client_of(model_file, access_log=True) as client:
        client.get("/nowhere%0aGET%20/admin/reload")
    (line,) = [record.getMessage() for record in caplog.records if "nowhere" in record.getMessage()]
    assert line.startswith("GET /nowhere%0aGET%20/admin/reload 404 not_found in ")


def test_the_access_log_says_who_was_refused_and_why(model_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "app.access")
    with client_of(model_file, access_log=True, api_keys=f"{KEY},{OTHER_KEY}") as client:
        for key, content in (("wrong", PICTURE), (KEY, b"no picture"), (OTHER_KEY, PICTURE)):
            client.post("/detect", content=content, headers=bearer(key))
        for path, status, count in (("/detect", 2, 1), ("/detect", 4, 2), ("other", 4, 0)):
            assert metric(client, f'fcos_responses_total{{path="{path}",status="{status}xx"}}') == count
        client.get("/nowhere")
        assert metric(client, 'fcos_responses_total{path="other",status="4xx"}') == 1
    lines = [record for record in caplog.records if "/detect" in record.getMessage()]
    said = [(vars(line)["status"], vars(line)["code"], vars(line)["key"]) for line in lines]
    names = [hashlib.sha256(key.encode()).hexdigest()[:8] for key in (KEY, OTHER_KEY)]
    assert said == [(401, "unauthorized", ""), (415, "not_a_picture", names[0]), (200, "", names[1])]
    assert lines[1].getMessage().startswith("POST /detect 415 not_a_picture in ")
    assert lines[1].getMessage().endswith(" from testclient")
    assert not any(KEY in line.getMessage() for line in lines)
    more = [{name: vars(line)[name] for name in ("method", "path", "client")} for line in lines]
    assert more == [{"method": "POST", "path": "/detect", "client": "testclient"}] * 3
    assert vars(lines[2])["timing_ms"].keys() == {"read", "decode", "queue", "inference", "postprocess", "total"}
    assert f", request {vars(lines[0])['request_id']} from " in lines[0].getMessage()


def test_a_body_that_does_not_come_in_time_is_the_clients_fault(model_file: Path) -> None:
    def slowly() -> Iterator[bytes]:
        yield PICTURE[:10]
        time.sleep(0.3)
        yield PICTURE[10:]

    with serving(model=model_file) as service:
        response = httpx.post(f"{service.address}/detect", content=slowly(), headers={"X-Deadline-Ms": "100"})
    assert (response.status_code, response.json()["code"]) == (408, "request_timeout")


def test_a_requests_own_deadline(model_file: Path, held: Held) -> None:
    with client_of(model_file) as client, ThreadPoolExecutor(1) as pool:
        held.install()
        first = pool.submit(client.post, "/detect", content=PICTURE)
        wait_for(lambda: len(held.batches) == 1)
        late = client.post("/detect", content=PICTURE, headers={"X-Deadline-Ms": "20"})
        assert (late.status_code, late.json()["code"]) in ((504, "deadline_exceeded"), (503, "overloaded"))
        held.open.set()
        assert first.result().status_code == 200
        for value in ("0", "soon", "-5", "1.5", "²"):
            bad = client.post("/detect", content=PICTURE, headers=[(b"X-Deadline-Ms", value.encode())])
            assert (bad.status_code, bad.json()["code"]) == (422, "invalid_parameter")
            assert "a whole number of ms above 0" in bad.json()["detail"]  # as 0 is a whole number, too
        for value in ("60000 ", "00000000000000060000"):
            assert client.post("/detect", content=PICTURE, headers={"X-Deadline-Ms": value}).status_code == 200


def test_a_client_cannot_ask_for_more_time_than_the_service_gives(model_file: Path, held: Held) -> None:
    with client_of(model_file, deadline_s=0.2) as client:
        held.install()
        late = client.post("/detect", content=PICTURE, headers={"X-Deadline-Ms": "60000"})
        held.open.set()
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")


def test_a_refused_client_keeps_its_connection_unless_it_is_sending_much(model_file: Path) -> None:
    with client_of(model_file, api_keys=KEY) as client:
        assert "connection" not in client.get("/model").headers
        assert "connection" not in client.post("/detect", content=PICTURE).headers
        assert client.post("/detect", content=b"x" * 2_000_000).headers["connection"] == "close"
        assert client.post("/detect", content=iter([PICTURE])).headers["connection"] == "close"


def test_a_length_may_begin_with_any_number_of_zeros(model_file: Path) -> None:
    headers = {"Content-Length": str(len(PICTURE)).zfill(5000)}
    with client_of(model_file) as client:
        assert client.post("/detect", content=PICTURE, headers=headers).status_code == 200
    with client_of(model_file, api_keys=KEY) as client:
        assert client.post("/detect", content=PICTURE, headers=headers).status_code == 401


def test_every_response_has_an_id_and_its_time(model_file: Path) -> None:
    with client_of(model_file) as client:
        responses = [
            client.get("/healthz"), client.get("/nowhere"), client.post("/detect"),
            client.post("/detect", content=PICTURE), client.get("/metrics"),
        ]  # fmt: skip
        ids = {response.headers["x-request-id"] for response in responses}
        assert len(ids) == len(responses)
        for response in responses:
            assert re.search(r"\btotal;dur=\d", response.headers["server-timing"])
        detected = responses[3].headers["server-timing"]
        took_ms = {name: float(value) for name, value in re.findall(r"(\w+);dur=([\d.]+)", detected)}
        assert list(took_ms) == ["read", "decode", "queue", "inference", "postprocess", "total"]
        assert sum(took_ms.values()) <= 2 * took_ms["total"] + 0.01, "all are in milliseconds, rounded"
        for fit, given in ((True, "mine-1.a_Z"), (True, "x" * 64), (False, "x" * 65), (False, 'a" b')):
            assert (client.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"] == given) is fit


def test_metrics_count_what_happened(model_file: Path) -> None:
    with client_of(model_file) as client:
        for _ in range(3):
            assert client.post("/detect", content=PICTURE).status_code == 200
        client.post("/detect", content=b"no picture")
        client.post("/detect?score_threshold=2", content=PICTURE)
        text = client.get("/metrics").text
        for stage in ("read", "decode", "queue", "inference", "postprocess", "total"):
            assert f'fcos_stage_seconds_count{{stage="{stage}"}} 3.0' in text
        took_s = {stage: value_of(text, f'fcos_stage_seconds_sum{{stage="{stage}"}}') for stage in STAGES}
        assert sum(took_s.values()) <= 2 * took_s["total"], "all are in seconds"
        assert "fcos_batch_size_count 3.0" in text
        assert 'fcos_refusals_total{reason="not_a_picture"} 1.0' in text
        assert 'fcos_refusals_total{reason="invalid_parameter"} 1.0' in text
        assert set(re.findall(r'reason="(\w+)"', text)) == set(KINDS)
        assert "fcos_in_flight_pictures 0.0" in text
        assert "fcos_ready 1.0" in text
        assert re.search(
            r'fcos_model_info{name="colours",precision="fp32",provider="CPU\w+",version="\w{8}"} 1.0', text
        )


def test_what_is_found_is_counted(model_file: Path) -> None:
    with client_of(model_file) as client:
        found = client.post("/detect", content=PICTURE).json()["detections"]
        assert found
        assert client.post("/detect?classes=green", content=PICTURE).json()["detections"] == []
        assert metric(client, "fcos_detections_sum") == len(found)
        assert metric(client, "fcos_detections_count") == 2
        assert metric(client, 'fcos_detections_bucket{le="0.0"}') == 1, "pictures with nothing in them"


def wait_for(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(60_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it did not come about")


def test_pages_of_the_origins_that_are_set_may_ask(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, other = {"Origin": "https://shop.example"}, {"Origin": "https://other.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with client_of(model_file, api_keys=KEY, cors_origins="https://shop.example, http://localhost:3000") as client:
        assert client.options("/detect", headers=page | asked).status_code == 200
        assert client.options("/detect", headers=other | asked).status_code == 400
        answer = client.post("/detect", content=PICTURE, headers=page | {"Authorization": f"Bearer {KEY}"})
        assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        refusal = client.post("/detect", content=PICTURE, headers=page)
        assert refusal.status_code == 401
        assert refusal.headers["Access-Control-Allow-Origin"] == "https://shop.example", "else its reason is not shown"
        assert "Access-Control-Allow-Origin" not in client.get("/model", headers=other).headers

        def fail(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(Service, "info", fail)
        failure = client.get("/model", headers=page | {"Authorization": f"Bearer {KEY}"})
        assert failure.status_code == 500 and failure.headers["X-Request-Id"]
        assert failure.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    with client_of(model_file) as client:
        assert "Access-Control-Allow-Origin" not in client.get("/model", headers=page).headers
