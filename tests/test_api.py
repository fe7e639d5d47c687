import asyncio
import encodings
import gzip
import io
import time
import unicodedata
from collections.abc import AsyncIterator, Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.formparsers import MultiPartException

from app import schemas
from app.api import create_app
from app.artifact import file_version
from app.detect_route import _read_query_once
from app.errors import KINDS, Refusal
from app.service import Service
from app.settings import Settings
from app.uploads import _with_few_boundaries
from tests.support import PICTURE, encoded, metadata, problem, ready, rectangle_picture, value_of, write_model

CURLS = "application/x-www-form-urlencoded"


def test_codes_have_the_status_that_clients_know() -> None:
    by_status = {
        400: {"empty_body", "malformed_request"}, 401: {"unauthorized"}, 403: {"forbidden"}, 404: {"not_found"},
        405: {"method_not_allowed"}, 406: {"not_acceptable"}, 408: {"request_timeout"}, 409: {"reload_running"},
        413: {"picture_too_large", "body_too_large"}, 415: {"unsupported_media_type", "not_a_picture"},
        422: {"corrupt_picture", "invalid_parameter", "unknown_class", "model_refused"}, 429: {"too_many_requests"},
        500: {"internal_error"}, 503: {"not_ready", "overloaded"}, 504: {"deadline_exceeded"},
    }  # fmt: skip
    assert {code: kind.status for code, kind in KINDS.items()} == {
        code: status for status, codes in by_status.items() for code in codes
    }


@pytest.fixture(scope="module")
def settings(model_file: Path) -> Settings:
    return Settings(model=model_file, provider="cpu", threads=1, max_upload_bytes=200_000, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield ready(client)


def test_an_answer_is_what_the_design_says(client: TestClient, model_file: Path) -> None:
    answer = client.post("/detect", content=PICTURE, headers={"Content-Type": "image/png"}).json()
    assert set(answer) == {"detections", "image", "model", "timing_ms"}
    assert answer["image"] == {"width": 160, "height": 120}
    assert answer["model"] == {
        "name": "colours", "version": file_version(model_file.read_bytes()), "provider": "CPUExecutionProvider"
    }  # fmt: skip
    assert set(answer["timing_ms"]) == {"decode", "queue", "inference", "postprocess"}
    assert all(value >= 0 for value in answer["timing_ms"].values())
    best = answer["detections"][0]
    assert set(best) == {"label", "class_id", "score", "box"}
    assert (best["label"], best["class_id"]) == ("red", 0)
    assert 0.3 < best["score"] <= 1
    box = best["box"]
    assert 0 <= box["xmin"] < box["xmax"] <= 160
    assert 0 <= box["ymin"] < box["ymax"] <= 120
    scores = [one["score"] for one in answer["detections"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", ["", "image/jpeg", "application/octet-stream", CURLS])
def test_every_way_to_send_a_picture_gives_the_same(client: TestClient, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    raw = client.post("/detect", content=PICTURE, headers=headers).json()
    form = client.post("/detect", files={"image": ("any name.txt", PICTURE, "text/plain")}).json()
    part = (
        b'--B\r\nContent-Disposition: form-data; name="image"\r\nContent-Type: image/png\r\n\r\n%s\r\n--B--\r\n'
        % PICTURE
    )
    unnamed = client.post("/detect", content=part, headers={"Content-Type": "multipart/form-data; boundary=B"}).json()
    assert raw["detections"] == form["detections"] == unnamed["detections"]


def test_an_accent_may_be_written_behind_its_letter(tmp_path: Path) -> None:
    for name in ("\u00e9toile", "e\u0301toile"):
        model = write_model(tmp_path / "m.onnx", metadata(classes=["red", name, "blue"]).to_json())
        with TestClient(create_app(Settings(model=model, provider="cpu", threads=1))) as client:
            ready(client)
            for asked in ("\u00e9toile", "e\u0301toile"):
                assert client.post("/detect", content=PICTURE, params={"classes": asked}).status_code == 200


def test_many_classes_are_looked_up_without_going_through_all_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    normalised: list[str] = []

    def noted(form: Literal["NFC"], text: str) -> str:
        normalised.append(text)
        return unicodedata.normalize(form, text)

    monkeypatch.setattr(schemas, "normalize", noted)
    model = metadata(classes=[f"\u00e9toile {number}" for number in range(100)])
    asked = schemas.DetectQuery(classes=[f"e\u0301toile {number}" for number in reversed(range(100))])
    assert asked.parameters(model).class_ids == tuple(reversed(range(100)))
    assert len(normalised) == len(model.classes) + 100


def test_classes_are_not_looked_for_one_by_one() -> None:
    """1,200 of 1,200 took 9 ms, twice for each request."""

    class Unsearched(tuple[str, ...]):
        def __contains__(self, _: object) -> bool:
            raise AssertionError

        def index(self, *_: object) -> int:
            raise AssertionError

    known = Unsearched(f"kind {number}" for number in range(100))
    assert list(schemas._class_ids(["kind 99", "kind 0"], known)) == [99, 0]


def test_generated_clients_have_short_names(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {operation["operationId"] for one in paths.values() for operation in one.values()} == {
        "detect", "detect_batch", "model", "healthz", "readyz", "metrics", "reload"
    }  # fmt: skip


def test_generators_can_read_what_is_described(client: TestClient) -> None:
    """openapi-generator 7.26: a union without a tag fails in Kotlin, Rust, TypeScript and Java, a bounded list of files
    in Go, a list without `items` in Ruby."""
    schema = client.get("/openapi.json").json()
    schemas = schema["components"]["schemas"]
    assert schemas["BatchAnswer"]["properties"]["results"]["items"] == {"$ref": "#/components/schemas/BatchResult"}
    members = schemas["BatchResult"]["properties"]
    assert members.keys() == schemas["Answer"]["properties"].keys() | {"problem"}
    assert "required" not in schemas["BatchResult"]
    body = schema["paths"]["/detect/batch"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["properties"]["images"].keys() == {"type", "items", "description"}
    assert schemas["ModelInfo"]["properties"]["canvases"]["items"]["items"] == {"type": "integer"}


def test_rotating_the_exif_tag_does_not_move_a_box(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(rectangle_picture().transpose(Image.Transpose.ROTATE_90), exif=exif)
    one, other = (client.post("/detect", content=content).json() for content in (PICTURE, lying))
    assert one["image"] == other["image"] == {"width": 160, "height": 120}
    assert one["detections"] == other["detections"]


def test_parameters_are_obeyed(client: TestClient) -> None:
    def detections(**query: Any) -> list[dict[str, Any]]:
        response = client.post("/detect", params=query, content=PICTURE)
        assert response.status_code == 200, response.text
        return response.json()["detections"]

    everything = detections()
    assert len(everything) > 2
    assert len(detections(max_detections=2)) == 2
    assert detections(score_threshold=1) == []
    assert detections(classes="green") == []
    assert detections(classes=["red", "green"]) == everything
    assert len(detections(iou_threshold=0)) < len(everything)
    assert all(one["score"] > 0.9 for one in detections(score_threshold=0.9))


@pytest.mark.parametrize(
    ("request_", "status", "code", "hint"),
    [
        ({"content": b""}, 400, "empty_body", "no body"),
        ({"files": {"image": ("a.jpg", b"")}}, 400, "empty_body", "no bytes"),
        ({"content": b"not a picture"}, 415, "not_a_picture", "JPEG"),
        ({"content": encoded(rectangle_picture(), "JPEG")[:-200]}, 422, "corrupt_picture", "truncated"),
        ({"content": PICTURE, "params": {"classes": "rad"}}, 422, "unknown_class", "red"),
        ({"content": PICTURE, "params": {"classes": ""}}, 422, "unknown_class", "red"),
        ({"content": PICTURE, "params": {"score_threshold": 2}}, 422, "invalid_parameter", "score_threshold"),
        ({"content": PICTURE, "params": {"score_threshold": "nan"}}, 422, "invalid_parameter", "score_threshold"),
        ({"content": PICTURE, "params": {"iou_threshold": "x"}}, 422, "invalid_parameter", "iou_threshold"),
        ({"content": PICTURE, "params": {"max_detections": 0}}, 422, "invalid_parameter", "max_detections"),
        ({"content": PICTURE, "params": {"conf": 0.5}}, 422, "invalid_parameter", "It takes score_threshold, "),
        ({"content": PICTURE, "params": {"zzz": 1}}, 422, "invalid_parameter", "zzz is not a parameter"),
        ({"content": b"hi", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type", "text/plain"),
        (
            {"content": gzip.compress(PICTURE), "headers": {"Content-Encoding": "gzip"}},
            415,
            "unsupported_media_type",
            "content encoding gzip",
        ),
        (
            {"content": PICTURE, "headers": [("Content-Encoding", "gzip"), ("Content-Encoding", "identity")]},
            415,
            "unsupported_media_type",
            "content encoding gzip, identity",
        ),
        ({"data": {"image": "text"}}, 415, "not_a_picture", "--data-binary @cat.jpg, or -F image=@cat.jpg"),
        ({"content": b"\0", "headers": {"Content-Type": CURLS}}, 415, "not_a_picture", "known format"),
        ({"content": b"", "headers": {"Content-Type": CURLS}}, 400, "empty_body", "no body"),
        ({"files": {"image": (None, PICTURE)}}, 400, "malformed_request", "neither a file name nor a content type"),
        ({"files": {"picture": ("a.png", PICTURE)}}, 400, "malformed_request", "'picture'"),
        (
            {"files": {"image": PICTURE}, "data": {"score_threshold": "0.5", "classes": ["red", "green"]}},
            400,
            "malformed_request",
            "parameters go into the query",
        ),
        ({"files": [("image", PICTURE), ("image", PICTURE)]}, 400, "malformed_request", "Too many files"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed_request", "boundary"),
        (
            {
                "content": b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n--B--\r\n',
                "headers": {"Content-Type": "multipart/form-data; boundary=B; charset=undefined"},
            },
            400,
            "malformed_request",
            "charset",
        ),
        (
            {"content": b"--B--", "headers": {"Content-Type": "multipart/form-data; boundary=B" + ";" * 1000}},
            400,
            "malformed_request",
            "more than 1000 characters",
        ),
        ({"content": PICTURE, "headers": {"Accept": "text/html"}}, 406, "not_acceptable", "application/json"),
        ({"content": encoded(Image.new("L", (1001, 1000)))}, 413, "picture_too_large", "1001 x 1000"),
        ({"content": bytes(200_001)}, 413, "body_too_large", "200000"),
        ({"content": iter([bytes(150_000), bytes(150_000)])}, 413, "body_too_large", "200000"),
        ({"files": {"image": bytes(200_001)}}, 413, "body_too_large", "200000"),
    ],
)
def test_bad_requests_are_problems_that_say_what_is_wrong(
    client: TestClient, request_: dict[str, Any], status: int, code: str, hint: str
) -> None:
    assert hint in problem(client.post("/detect", **request_), status, code)


def test_what_is_no_charset_is_not_remembered(client: TestClient) -> None:
    """Python keeps the name of every charset that it was asked for and does not have."""
    known = len(encodings._cache)
    for number in range(20):
        kind = f"multipart/form-data; boundary=B; charset=none-{number}"
        problem(client.post("/detect", content=b"--B--\r\n", headers={"Content-Type": kind}), 400, "malformed_request")
    assert len(encodings._cache) == known


def test_a_request_of_a_thousand_faults_is_answered_shortly(client: TestClient) -> None:
    response = client.post("/detect?" + "&".join(f"{number}=x" for number in range(1000)), content=PICTURE)
    assert len(problem(response, 422, "invalid_parameter")) < 1000
    accept = {"Accept": "image/png," * 1000}
    assert "more than" in problem(client.post("/detect", content=PICTURE, headers=accept), 406, "not_acceptable")


def test_long_queries_are_not_kept(client: TestClient) -> None:
    kept = _read_query_once.cache_info().currsize
    long = client.post("/detect?classes=red" + "&classes=red" * 200, content=PICTURE)
    assert long.status_code == 200
    assert _read_query_once.cache_info().currsize == kept


def test_an_unknown_class_names_the_nearest(client: TestClient) -> None:
    for name in ("grean", "GREEN"):
        response = client.post("/detect", params={"classes": name}, content=PICTURE)
        assert response.json()["nearest"][0] == "green"
        assert response.json()["detail"].endswith("green. GET /model lists all.")


def test_an_unknown_class_is_compared_with_few_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing it with each of 1,200 kept everybody waiting for up to 0.1 s."""
    compared: list[int] = []

    def noted(name: str, names: Collection[str], n: int) -> list[str]:
        compared.append(len(names))
        return get_close_matches(name, names, n)

    monkeypatch.setattr(schemas.difflib, "get_close_matches", noted)  # type: ignore[attr-defined]
    model = metadata(classes=[f"{word} number {number}" for word in ("Cat", "dog", "bird") for number in range(400)])
    with pytest.raises(Refusal) as caught:
        schemas.DetectQuery(classes=["cat numbr 123"]).parameters(model)
    assert caught.value.members["nearest"][0] == "Cat number 123"
    assert compared == [schemas.MOST_COMPARED]


def test_classes_in_one_value_are_told_to_be_given_each(client: TestClient) -> None:
    detail = client.post("/detect", params={"classes": "green, red"}, content=PICTURE).json()["detail"]
    assert "no class 'green, red'. Give each name as a value of its own: green, red." in detail
    assert "The nearest" in client.post("/detect", params={"classes": "green,"}, content=PICTURE).json()["detail"]


def test_unknown_addresses_and_methods_are_problems(client: TestClient) -> None:
    problem(client.get("/detections"), 404, "not_found")
    problem(client.post("/detect/", content=PICTURE, follow_redirects=False), 404, "not_found")
    response = client.get("/detect")
    assert "POST" in problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert client.post("/healthz").headers["allow"] == "GET, HEAD"
    assert client.post("/static/page.js").headers["allow"] == "GET, HEAD"


def test_the_description_is_made_before_anybody_could_have_to_wait_for_it(model_file: Path) -> None:
    app = create_app(Settings(model=model_file, provider="cpu"))
    with TestClient(app):
        assert app.openapi_schema is not None


def test_the_description_offers_no_null_in_a_query(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/detect"]["post"]
    kinds = {one["name"]: one["schema"].get("type") for one in operation["parameters"] if one["in"] == "query"}
    assert kinds["score_threshold"] == "number" and kinds["max_detections"] == "integer" and kinds["classes"] == "array"
    assert all(kinds.values())


@pytest.mark.parametrize("value", [{"x" * 3000: "1"}, {"max_detections": "x" * 3000}], ids=["name", "value"])
def test_of_a_long_parameter_only_its_beginning_is_quoted(client: TestClient, value: dict[str, str]) -> None:
    detail = problem(client.post("/detect", params=value, content=PICTURE), 422, "invalid_parameter")
    assert "x" * 80 in detail and len(detail) < 300


@pytest.mark.parametrize("address", ["/healthz", "/readyz", "/metrics", "/model"])
def test_probes_may_ask_for_the_head_alone(client: TestClient, address: str) -> None:
    response = client.head(address)
    assert response.status_code == 200
    assert not response.content


def test_a_form_that_ends_before_its_end_is_a_problem(client: TestClient) -> None:
    form = client.build_request("POST", "/detect", files={"image": PICTURE})
    headers = {"Content-Type": form.headers["content-type"]}
    detail = problem(client.post("/detect", content=form.read()[:-80], headers=headers), 400, "malformed_request")
    assert "no complete field `image`" in detail


@pytest.mark.parametrize("junk", [b"\r\n--bx" * 20_000, b"\r\n--b" + b" " * 100_000], ids=["boundaries", "padding"])
@pytest.mark.parametrize("size", [50, 1000, 65_536])
def test_a_form_that_is_read_byte_by_byte_is_refused(client: TestClient, junk: bytes, size: int) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + junk + b"\r\n--b--\r\n"
    pieces = [form[place : place + size] for place in range(0, len(form), size)]

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def read() -> int:
        return len([piece async for piece in _with_few_boundaries(stream(), b"b")])

    with pytest.raises(MultiPartException):
        asyncio.run(read())
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert "too many boundaries" in problem(
        client.post("/detect", content=form, headers=headers), 400, "malformed_request"
    )


@pytest.mark.parametrize("size", [1, 2, 9, 10_000])
def test_what_looks_like_boundaries_passes_in_pieces_of_any_size(size: int) -> None:
    form = b"--b" + b"\r\n--b \t\r\n--\r\n" * 600 + b" " * 1000
    pieces = [form[place : place + size] for place in range(0, len(form), size)]

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def read(boundary: bytes) -> list[bytes]:
        return [piece async for piece in _with_few_boundaries(stream(), boundary)]

    assert asyncio.run(read(b"b")) == pieces
    with pytest.raises(MultiPartException):
        asyncio.run(read(b""))  # of these, there are twice as many


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("application/json;q=0.1, image/png", "image/png"),
        ("text/html, */*;q=0.8", "application/json"),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "application/json"),  # what Java's URLConnection says
        ("text/html, image/png", "image/png"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("image/jpeg;q=0.9, image/png;q=1.0", "image/png"),
        ("image/jpeg;q=much, image/png;q=0.1", "image/png"),
        ("IMAGE/PNG;Q=1.0, application/json;q=0.9", "image/png"),
        ("image/png, application/json;q=0.9", "image/png"),
        ("image/*;q=0.9, */*;q=0.1", "image/jpeg"),
        ("image/png;q=0.9, */*;q=0.1", "image/png"),
        ("application/json;q=0.1, image/png;q=0.5, */*;q=0.9", "image/jpeg"),
    ],
)
def test_the_accept_header_chooses_the_answer(client: TestClient, accept: str, media_type: str) -> None:
    response = client.post("/detect", content=PICTURE, headers={"Accept": accept})
    assert response.headers["content-type"] == media_type
    if media_type.startswith("image/"):
        picture = Image.open(io.BytesIO(response.content))
        assert picture.size == (160, 120)
        assert picture.convert("RGB").tobytes() != rectangle_picture().tobytes()


def test_a_query_asks_for_the_drawing_too(client: TestClient) -> None:
    response = client.post("/detect", params={"draw": "jpeg"}, content=PICTURE, headers={"Accept": "text/html"})
    assert response.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(response.content)).size == (160, 120)
    assert value_of(client.get("/metrics").text, "fcos_in_flight_pixels") == 0, "it has been taken"
    problem(client.post("/detect", params={"draw": "gif"}, content=PICTURE), 422, "invalid_parameter")


def test_the_model_describes_itself(client: TestClient, model_file: Path) -> None:
    model = client.get("/model").json()
    assert model["classes"] == ["red", "green", "blue"]
    assert model["version"] == file_version(model_file.read_bytes())
    assert model["provider"] == "CPUExecutionProvider"
    assert model["canvases"] == [[128, 160], [160, 128], [160, 160]]
    assert model["metrics"] == {"AP": 0.5}
    assert model["precision"] == "fp32"


def test_probes(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    answer = client.get("/readyz").json()
    assert answer["status"] == "ready"
    assert answer["model"]["provider"] == "CPUExecutionProvider"


def test_a_service_that_shuts_down_wants_no_more_but_answers(settings: Settings) -> None:
    service = Service.load(settings)
    with TestClient(create_app(settings, service)) as client:
        ready(client)
        service.draining = True
        assert "shutting down" in problem(client.get("/readyz"), 503, "not_ready")
        assert value_of(client.get("/metrics").text, "fcos_ready") == 0
        assert client.post("/detect", content=PICTURE).status_code == 200


def test_nothing_is_answered_before_the_model_is_warm(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never_warm(self: Service) -> None:
        pass

    monkeypatch.setattr(Service, "warm_up", never_warm)
    with TestClient(create_app(settings)) as cold:
        assert cold.get("/healthz").status_code == 200
        for response in (cold.get("/readyz"), cold.post("/detect", content=PICTURE)):
            problem(response, 503, "not_ready")
            assert response.headers["retry-after"]


def test_a_model_that_fails_its_canary_never_gets_ready(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service.load(settings)

    def broken(*_: object) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(service.runner), "__call__", broken)
    with TestClient(create_app(settings, service)) as client:
        while "warmed up" in (detail := problem(client.get("/readyz"), 503, "not_ready")):
            time.sleep(0.01)
        assert "failed on its first pictures" in detail
    assert "out of memory" in caplog.text


def test_a_failure_of_ours_shows_nothing_of_the_inside(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(create_app(settings)) as client:
        ready(client)

        def counted() -> float:
            return value_of(client.get("/metrics").text, 'fcos_responses_total{path="/detect",status="5xx"}')

        before = counted()

        async def fail(*_: object, **__: object) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(Service, "detect", fail)
        response = client.post("/detect", content=PICTURE)
        problem(response, 500, "internal_error")
        assert "secret" not in response.text
        assert response.headers["x-request-id"] in caplog.text
        assert "secret" in caplog.text
        assert counted() == before + 1


def test_the_documentation_shows_both_ways_to_send_and_every_problem(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    detect = schema["paths"]["/detect"]["post"]
    assert set(detect["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/octet-stream"}
    assert {"application/json", "image/png", "image/jpeg"} == set(detect["responses"]["200"]["content"])
    for status, response in detect["responses"].items():
        if status != "200":
            assert set(response["content"]) == {"application/problem+json"}
    assert {parameter["name"] for parameter in detect["parameters"]} == {
        "score_threshold", "iou_threshold", "max_detections", "classes", "class_agnostic", "draw", "x-deadline-ms"
    }  # fmt: skip
    text = str(schema)
    of_no_address = ["not_found", "method_not_allowed"]
    assert [code for code in KINDS if f"`{code}`: " not in text] == of_no_address, "`problem_docs` says which has it"
    for reference in {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schema["components"]["schemas"]


@pytest.mark.parametrize(
    ("first", "status", "code"),
    [
        ("multipart/form-data; boundary=x; charset=undefined", 400, "malformed_request"),
        ("text/plain", 415, "unsupported_media_type"),
    ],
)
def test_of_two_content_types_one_is_checked_and_read(client: TestClient, first: str, status: int, code: str) -> None:
    form = client.build_request("POST", "/detect", files={"image": PICTURE})
    headers = [("Content-Type", first), ("Content-Type", form.headers["content-type"])]
    assert client.post("/detect", content=form.read(), headers=headers).status_code == 200
    problem(client.post("/detect", content=form.read(), headers=headers[::-1]), status, code)


@pytest.mark.parametrize(
    ("lines", "media_type"),
    [
        (["application/json", "text/html"], "application/json"),
        (["image/png", "application/json;q=0.1"], "image/png"),
    ],
)
def test_an_accept_header_in_several_lines_is_one_list(client: TestClient, lines: list[str], media_type: str) -> None:
    response = client.post("/detect", content=PICTURE, headers=[("Accept", line) for line in lines])
    assert response.headers["content-type"] == media_type


def test_a_file_whose_name_is_beyond_ascii_is_a_file(client: TestClient) -> None:
    head = b"--x\r\nContent-Disposition: form-data; name=\"image\"; filename*=utf-8''%E7%8C%AB.png\r\n\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/detect", content=head + PICTURE + b"\r\n--x--\r\n", headers=headers).status_code == 200
