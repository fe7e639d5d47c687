import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from app.draw import class_colour
from app.pages import STATIC
from tests.browser.conftest import FLAGS, chromium, opened
from tests.serving import Served, served
from tests.support import METADATA, encoded, metadata, rectangle_picture, write_model

RED = encoded(rectangle_picture(320, 240, (40, 40, 160, 160), "red"))
TWO_COLOURS = rectangle_picture(320, 240, (20, 20, 130, 130), "red")
TWO_COLOURS.paste("blue", (180, 90, 300, 220))


def file(name: str, content: bytes, kind: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": content}


def choose(page: Page, *files: FilePayload) -> None:
    total = page.locator("#strip li").count() + len(files)
    page.set_input_files("#files", list(files))
    expect(page.locator("#strip span").filter(has_text=re.compile("^(done|failed)$"))).to_have_count(total)


def found(*boxes: tuple[str, float, tuple[float, float, float, float]]) -> dict[str, Any]:
    """Returns: An answer to a picture of 320 x 240 pixels: label, score and xyxy box of each detection."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    detections = [
        {"label": label, "class_id": number, "score": score, "box": dict(zip(sides, box, strict=True))}
        for number, (label, score, box) in enumerate(boxes)
    ]
    return {
        "detections": detections,
        "image": {"width": 320, "height": 240},
        "model": {"name": "colours", "version": "00000000", "provider": "CPUExecutionProvider"},
        "timing_ms": {"decode": 1.0},
    }


def shown(page: Page) -> dict[str, Any]:
    """Returns: The answer in the page's JSON box."""
    document: dict[str, Any] = json.loads(page.inner_text("#json"))
    return document


def asked(page: Page) -> int:
    """Returns: How often the page asked the service for detections."""
    return sum("/detect" in url for url in page.requests)  # type: ignore[attr-defined]


def pixel(page: Page, x: int, y: int) -> list[int]:
    """Returns: The canvas's colour at a place of the picture, which is 320 pixels wide."""
    return page.evaluate(
        """([x, y]) => { const c = document.getElementById('canvas'); const k = c.width / 320;
           const one = new OffscreenCanvas(1, 1).getContext('2d'); // no second look at the same canvas: a warning
           one.drawImage(c, -Math.floor(x * k), -Math.floor(y * k));
           return [...one.getImageData(0, 0, 1, 1).data.slice(0, 3)]; }""",
        [x, y],
    )  # type: ignore[no-any-return]


def test_a_chosen_picture_is_shown_with_its_boxes(page: Page) -> None:
    choose(page, file("red.png", RED))
    expect(page.locator("#status")).to_contain_text(re.compile(r"red\.png: \d+ objects? above 0\.30"))
    answer = shown(page)
    assert answer["detections"]
    expect(page.locator("#rows tr")).to_have_count(len(answer["detections"]))
    box = answer["detections"][0]["box"]
    edge = pixel(page, round((box["xmin"] + box["xmax"]) / 2), round(box["ymax"]))
    assert edge == pytest.approx(class_colour(0), abs=40), "a box's edge has its class's colour"
    expect(page.locator("#timings dt")).to_have_text(["decode", "queue", "inference", "postprocess"])
    expect(page.get_by_role("img", name=re.compile("red.png: red 0"))).to_be_visible()


def test_the_slider_shows_what_the_service_would_answer_without_asking_it(page: Page, service: Served) -> None:
    choose(page, file("red.png", RED))
    assert asked(page) == 1
    slider = page.get_by_label("Lowest score")
    slider.focus()
    for key, times in (("ArrowRight", 40), ("ArrowLeft", 15), ("Home", 1)):
        for _ in range(times):
            page.keyboard.press(key)
        threshold = slider.input_value()
        expect(page.locator("#threshold-value")).to_have_text(f"{float(threshold):.2f}")
        request = urllib.request.Request(
            f"{service.address}/detect?score_threshold={threshold}", RED, {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request) as response:
            assert shown(page)["detections"] == json.load(response)["detections"]
    assert asked(page) == 1


def test_a_class_is_filtered_without_asking_again(page: Page) -> None:
    choose(page, file("two.png", encoded(TWO_COLOURS)))
    labels = {one["label"] for one in shown(page)["detections"]}
    assert labels == {"red", "blue"}
    box = page.get_by_role("checkbox", name=re.compile("^blue"))
    box.focus()
    page.keyboard.press("Space")
    assert {one["label"] for one in shown(page)["detections"]} == {"red"}
    expect(box).to_be_focused()
    assert "classes=red" in page.inner_text("#curl")
    page.get_by_role("checkbox", name=re.compile("^red")).uncheck()
    assert shown(page)["detections"] == []
    expect(page.locator("#status")).to_contain_text("0 objects")
    assert asked(page) == 1


def test_the_curl_command_gives_what_is_shown(page: Page, tmp_path: Path) -> None:
    name = "it's two; a picture.png"
    choose(page, file(name, encoded(TWO_COLOURS)))
    page.get_by_label("Lowest score").fill("0.5")
    page.get_by_role("checkbox", name=re.compile("^blue")).uncheck()
    (tmp_path / name).write_bytes(encoded(TWO_COLOURS))
    result = subprocess.run(["bash", "-c", page.inner_text("#curl")], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(result.stdout)["detections"] == shown(page)["detections"]


def test_copying_is_told(page: Page) -> None:
    choose(page, file("red.png", RED))
    page.get_by_role("button", name="Copy the command").press("Enter")
    expect(page.get_by_role("status").filter(has_text="Copied")).to_be_attached()


def test_a_screen_reader_is_told_when_all_pictures_are_done(page: Page) -> None:
    told = page.get_by_role("status").filter(has_text="done")
    choose(page, file("red.png", RED))
    expect(told).to_have_count(0)  # the status says what was found in it
    choose(page, file("1.png", RED), file("bad.png", b"no picture"), file("2.png", RED))
    expect(told).to_have_text("2 pictures done, 1 failed.")


def test_what_is_no_picture_is_an_alert_and_the_others_go_on(page: Page) -> None:
    choose(page, file("bad.png", b"no picture at all"), file("red.png", RED))
    expect(page.get_by_role("alert")).to_contain_text("not a picture")
    strip = page.get_by_role("list", name="Pictures so far").get_by_role("button")
    expect(strip).to_have_count(2)
    expect(strip.nth(0)).to_contain_text("failed")
    expect(strip.nth(1)).to_contain_text("done")
    strip.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert shown(page)["detections"]
    expect(strip.nth(1)).to_have_attribute("aria-current", "true")


def test_a_refusal_is_told_once_and_tried_again_only_where_that_can_help(page: Page) -> None:
    choose(page, file("bad.heic", b"\0\0\0\x18ftypheic" + bytes(100), "image/heic"))
    expect(page.get_by_role("alert")).to_have_text(re.compile(r"^The file is HEIC.*Convert it to JPEG\.$"))
    again = page.get_by_role("button", name="Try again")
    expect(again).to_be_hidden()
    choose(page, file("empty.png", b""))
    expect(page.get_by_role("alert")).to_have_text("The file is empty: choose another one.")
    expect(again).to_be_hidden()
    passing = (408, 429, 500, 504)
    for status in (400, 413, 415, 422, *passing):
        refusal = problem(status, "No", "Not now.")
        page.route("**/detect?*", lambda route: route.fulfill(**refusal))  # noqa: B023  it is called in this round
        choose(page, file("red.png", RED))
        expect(page.get_by_role("alert")).to_have_text("No. Not now.")
        expect(again).to_be_visible(visible=status in passing)
        page.unroute("**/detect?*")


def test_all_that_a_lost_service_left_is_tried_again_at_once(page: Page) -> None:
    page.route("**/detect?*", lambda route: route.abort())
    choose(page, file("1.png", RED), file("2.png", RED), file("bad.png", b"no picture"))
    page.unroute("**/detect?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#strip span:last-of-type")).to_have_text(["done", "done", "failed"])
    page.get_by_role("button", name="bad.png").click()
    expect(page.get_by_role("alert")).to_contain_text("not a picture")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()


def test_the_strip_shows_the_current_pictures_tile(page: Page) -> None:
    choose(page, *(file(f"{number}.png", RED) for number in range(20)))
    strip = page.locator("#strip")
    choose(page, file("last.png", RED))
    expect(strip.get_by_role("button", name="last.png")).to_be_in_viewport()
    choose(page, file("really-last.png", RED))
    expect(strip.get_by_role("button", name="really-last.png")).to_be_in_viewport()


def test_buttons_stay_where_they_are_and_tiles_names_are_in_line(page: Page) -> None:
    left = "(button) => button.getBoundingClientRect().left"
    choose(page, file("bad.png", b"no picture"))
    clear = page.get_by_role("button", name="Clear")
    before = clear.evaluate(left)
    choose(page, file("red.png", RED))
    page.get_by_role("button", name="red.png").click()
    expect(page.get_by_role("button", name="Save with boxes")).to_be_visible()
    assert clear.evaluate(left) == before
    names = page.locator("#strip span:first-of-type")
    assert len(set(names.evaluate_all("(names) => names.map((name) => name.getBoundingClientRect().top)"))) == 1


def test_pictures_are_dropped_and_pasted(page: Page) -> None:
    for kind, member in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """async ([kind, member, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
                const event = new Event(kind, { bubbles: true, cancelable: true });
                Object.defineProperty(event, member, { value: data });
                document.body.dispatchEvent(event);
            }""",
            [kind, member, list(RED)],
        )
        expect(page.locator("#status")).to_contain_text(f"{kind}.png: ")
        expect(page.locator("#status")).to_contain_text("above")


def test_only_files_are_asked_to_be_dropped(page: Page) -> None:
    body = page.locator("body")
    page.get_by_role("link", name="API").hover()
    page.mouse.down()
    page.mouse.move(300, 300)
    page.mouse.move(300, 310)
    expect(body).not_to_have_class("dragging")  # Firefox does not tell the page if Escape ends it
    page.mouse.up()
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["picture"], "red.png"));
            document.body.dispatchEvent(new DragEvent("dragover", { bubbles: true, cancelable: true, dataTransfer }));
        }"""
    )
    expect(body).to_have_class("dragging")


def test_a_picture_the_browser_cannot_decode_is_shown_through_the_service(page: Page) -> None:
    choose(page, file("red.tiff", encoded(rectangle_picture(320, 240), "TIFF"), "image/tiff"))
    expect(page.locator("#canvas")).to_be_visible()
    assert pixel(page, 300, 230) == [127, 127, 127]
    assert asked(page) == 2, "once for the boxes, once for the picture"


@pytest.mark.parametrize(
    ("orientation", "turn", "byte_order"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT, "<"),
        (3, Image.Transpose.ROTATE_180, ">"),
        (6, Image.Transpose.ROTATE_90, "<"),
    ],
    ids=["mirrored", "upside down", "on its side"],
)
def test_a_picture_that_the_browser_does_not_turn_is_shown_as_the_service_sees_it(
    page: Page, orientation: int, turn: Image.Transpose, byte_order: str
) -> None:
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x0112] = orientation
    stored = TWO_COLOURS.transpose(turn)
    choose(page, file("turned.webp", encoded(stored, "WEBP", lossless=True, exif=exif), "image/webp"))
    assert shown(page)["image"] == {"width": 320, "height": 240}
    blue = pixel(page, 290, 150)
    assert blue[2] - blue[0] > 200


def test_what_is_transparent_is_white(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    clear = Image.new("RGBA", (320, 240))
    clear.paste((255, 0, 0, 255), (20, 20, 130, 130))
    choose(page, file("clear.png", encoded(clear)))
    page.locator("#rows button").first.click()
    box = shown(page)["detections"][0]["box"]
    red = pixel(page, round((box["xmin"] + box["xmax"]) / 2), round((box["ymin"] + box["ymax"]) / 2))
    assert red[0] - red[2] > 200
    assert pixel(page, 300, 230) == pytest.approx([140] * 3, abs=2), "what is not chosen is darker, and no longer clear"


def test_a_picture_that_nobody_can_show_is_not_shown_as_the_one_before(page: Page) -> None:
    choose(page, file("red.png", RED))
    page.route("**/detect?draw=png*", lambda route: route.fulfill(**problem(504, "Too late", "Try again.")))
    choose(page, file("blue.tiff", encoded(TWO_COLOURS, "TIFF"), "image/tiff"))
    expect(page.get_by_role("alert")).to_contain_text("Too late")
    page.get_by_role("button", name="blue.tiff").click()
    expect(page.locator("#canvas")).to_be_hidden()
    expect(page.locator("#found")).to_be_hidden()
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "blue.tiff: no answer")


def test_without_storage_the_page_works(page: Page) -> None:
    page.add_init_script("Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('denied'); } })")
    page.reload()
    choose(page, file("red.png", RED))
    expect(page.locator("#status")).to_contain_text("red.png")


def test_the_camera_takes_a_picture_and_is_let_go(page: Page) -> None:
    page.get_by_role("button", name="Camera").click()
    dialog = page.get_by_role("dialog", name="Camera")
    expect(dialog).to_be_visible()
    expect(page.locator("#video")).to_have_js_property("readyState", 4)  # there is a frame
    dialog.get_by_role("button", name="Take the picture").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#status")).to_contain_text("camera-1.jpg: ")
    assert page.evaluate("document.getElementById('video').srcObject === null")


def test_the_camera_is_asked_for_once(page: Page) -> None:
    page.get_by_role("button", name="Camera").dblclick()
    dialog = page.get_by_role("dialog", name="Camera")
    expect(page.locator("#video")).to_have_js_property("readyState", 4)
    dialog.get_by_role("button", name="Take the picture").click()
    expect(page.locator("#status")).to_contain_text("camera-1.jpg: ")
    expect(page.locator("#strip li")).to_have_count(1)
    expect(page.get_by_role("button", name="Camera")).to_be_focused()
    page.get_by_role("button", name="Camera").click()
    expect(dialog).to_be_visible()


def test_the_camera_needs_no_service(page: Page) -> None:
    """Firefox remembers a module that it could not load, and never asks for it again."""
    page.route("**/*", lambda route: route.abort())
    page.get_by_role("button", name="Camera").click()
    expect(page.get_by_role("dialog", name="Camera")).to_be_visible()


def test_a_page_without_a_camera_says_why(page: Page) -> None:
    """What a browser does on an address that is neither https nor localhost."""
    page.add_init_script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.reload()
    page.get_by_role("button", name="Camera").click()
    expect(page.get_by_role("alert")).to_contain_text("https and localhost")


def problem(status: int, title: str, detail: str, **headers: str) -> dict[str, Any]:
    return {"status": status, "headers": headers, "json": {"title": title, "detail": detail, "status": status}}


@pytest.mark.parametrize("date", [False, True], ids=["seconds", "date"])
def test_a_busy_service_is_asked_again_when_it_says(page: Page, date: bool) -> None:
    after = formatdate(time.time() + 3, usegmt=True) if date else "1"
    busy = [problem(503, "Busy", "The queue is full.", **{"Retry-After": after})]

    def answer(route: Route) -> None:
        route.fulfill(**busy.pop()) if busy else route.continue_()

    page.route("**/detect?*", answer)
    page.set_input_files("#files", [file("red.png", RED)])
    expect(page.locator("#status")).to_have_text(re.compile(r"Trying again in (1 second|[23] seconds)\.$"))
    expect(page.locator("#status")).to_contain_text("red.png: ")
    assert asked(page) == 2


def test_a_wait_for_another_picture_is_not_the_current_ones_status(page: Page) -> None:
    busy = [problem(503, "Busy", "The queue is full.", **{"Retry-After": "1"})]

    def answer(route: Route) -> None:
        route.fulfill(**busy.pop()) if busy and asked(page) == 2 else route.continue_()

    page.route("**/detect?*", answer)
    choose(page, file("red.png", RED), file("two.png", encoded(TWO_COLOURS)))
    assert asked(page) == 3
    expect(page.locator("#status")).to_contain_text("red.png: ")


@pytest.mark.parametrize("busy", [True, False], ids=["waiting", "running"])
def test_clear_ends_what_is_under_way(page: Page, busy: bool) -> None:
    def answer(route: Route) -> None:
        if asked(page) > 1:
            route.continue_()
        elif busy:
            route.fulfill(**problem(503, "Busy", "The queue is full.", **{"Retry-After": "20"}))

    page.route("**/detect?*", answer)
    page.set_input_files("#files", [file("red.png", RED)])
    expect(page.locator("#status")).to_contain_text("Trying again in 20 seconds" if busy else "Detecting in red.png")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Sample").click()
    expect(page.locator("#status")).to_contain_text("sample.jpg: ")
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"message": "please log in"}', "other than the service"),
        ("<!doctype html><title>Please log in</title>", "other than the service"),
        ('{"detections": [{}]}', "The page failed"),
    ],
    ids=["json", "html", "detections"],
)
def test_an_answer_of_something_else_is_told_and_the_next_picture_goes_on(page: Page, body: str, says: str) -> None:
    page.route("**/detect?*", lambda route: route.fulfill(body=body))
    choose(page, file("red.png", RED))
    expect(page.get_by_role("alert")).to_contain_text(says)
    page.unroute("**/detect?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#status")).to_contain_text("red.png: ")


@pytest.mark.parametrize("document", [{"detail": [{"msg": "no"}]}, {"message": "no"}], ids=["FastAPI", "gateway"])
def test_a_refusal_of_something_else_is_told(page: Page, document: Any) -> None:
    page.route("**/detect?*", lambda route: route.fulfill(status=413, json=document))
    choose(page, file("red.png", RED))
    expect(page.get_by_role("alert")).to_contain_text("Status 413. Something other than the service answered")


def test_a_model_description_of_something_else_is_told(page: Page) -> None:
    page.route("**/model", lambda route: route.fulfill(json={"message": "please log in"}))
    page.reload()
    expect(page.locator("#model")).to_have_text("An unknown answer.")


def test_a_file_that_is_gone_is_not_the_services_fault(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(RED)
    page.route("**/detect?*", lambda route: route.abort())
    page.set_input_files("#files", path)
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute("**/detect?*")
    path.unlink()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("The file can no longer be read: choose it again.")
    assert asked(page) == 1, "WebKit would send the request's header, and no body"


def test_a_lost_service_says_so_and_the_picture_can_be_tried_again(page: Page) -> None:
    page.route("**/detect?*", lambda route: route.abort())
    choose(page, file("red.png", RED))
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute("**/detect?*")
    again = page.get_by_role("button", name="Try again")
    again.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("above")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#main")).to_be_focused()  # what had the focus is hidden


def test_what_fails_again_is_told_again(page: Page) -> None:
    """A screen reader says nothing of a text that stays as it was."""
    page.route("**/detect?*", lambda route: route.abort())
    choose(page, file("red.png", RED))
    page.evaluate(
        """() => {
            const alert = document.querySelector("[role=alert]");
            const texts = [];
            globalThis.told = new Promise((resolve) => {
                new MutationObserver(() => texts.push(alert.textContent) === 2 && resolve(texts))
                    .observe(alert, { childList: true });
                setTimeout(resolve, 20_000, texts);
            });
        }"""
    )
    again = page.get_by_role("button", name="Try again")
    again.press("Enter")
    first, second = page.evaluate("told")
    assert first == "Trying again …"
    assert "cannot be reached" in second
    expect(again).to_be_focused()


def test_a_key_that_cannot_be_right_is_told_before_any_picture(browser: Browser, model_file: Path) -> None:
    with served(model=model_file, api_keys="right-key-1") as service, opened(browser, service) as page:
        key = page.get_by_label("Key", exact=True)
        for text, says in (("schlüssel", "ASCII"), ("not-the-key", "not valid for this service")):
            key.fill(text)
            key.press("Enter")
            expect(page.get_by_role("alert")).to_contain_text(says)
            expect(key).to_have_css("border-top-color", "rgb(163, 22, 27)")


def test_a_service_with_keys_asks_for_one_and_goes_on_with_it(browser: Browser, model_file: Path) -> None:
    with served(model=model_file, api_keys="right-key-1") as service, opened(browser, service) as page:
        expect(page.locator("#model")).to_contain_text("requires an API key")
        choose(page, file("red.png", RED))
        expect(page.get_by_role("alert")).to_have_text("This service requires a key: enter it under “API key”.")
        expect(page.get_by_role("button", name="Try again")).to_be_hidden()
        key = page.get_by_label("Key", exact=True)
        expect(key).to_be_visible()
        key.fill("wrong-key")
        key.press("Enter")
        expect(page.get_by_role("alert")).to_have_text(
            "This key is not valid for this service: check it under “API key”."
        )
        expect(key).to_have_attribute("aria-invalid", "true")
        key.fill("schlüssel")
        key.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("ASCII")
        expect(page.get_by_role("button", name="Try again")).to_be_hidden()
        key.fill("right-key-1")
        key.press("Enter")
        expect(page.locator("#status")).to_contain_text("above")
        expect(page.locator("#model")).to_contain_text("colours")
        expect(page.get_by_role("alert")).to_be_hidden()
        assert "right-key-1" not in page.inner_text("#curl")
        assert "Authorization: Bearer $API_KEY" in page.inner_text("#curl")
        page.reload()
        expect(page.locator("#model")).to_contain_text("colours")
        with opened(browser, service) as other:
            assert other.evaluate("sessionStorage.length") == 0, "the key is forgotten with its tab"


def test_a_reloaded_model_is_seen_with_its_first_answer(browser: Browser, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx")
    defaults = METADATA["defaults"] | {"score_threshold": 0.5}
    newer = write_model(tmp_path / "newer.onnx", metadata(name="newer", defaults=defaults).to_json())
    with served(model=model) as service, opened(browser, service) as page:
        expect(page.locator("#model")).to_contain_text("colours")
        newer.replace(model)
        os.kill(service.pid, signal.SIGHUP)
        limit = time.monotonic() + 30
        while page.evaluate("fetch('model').then((answer) => answer.json()).then((model) => model.name)") != "newer":
            assert time.monotonic() < limit
        choose(page, file("red.png", RED))
        expect(page.locator("#model")).to_contain_text("newer")
        expect(page.locator("#status")).to_contain_text("above 0.50")


def test_everything_can_be_reached_by_keyboard(page: Page) -> None:
    choose(page, file("red.png", RED), file("two.png", encoded(TWO_COLOURS)))
    page.evaluate("document.body.focus()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    for expected in ("Skip to the pictures", "files", "camera", "sample", "save", "clear", "threshold", "copy-curl",
                     "copy-json", "API key"):  # fmt: skip
        assert expected in reached
    row = page.locator("#rows button").first
    row.focus()
    page.keyboard.press("ArrowDown")
    second = page.locator("#rows button").nth(1)
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    expect(second).to_have_attribute("aria-pressed", "true")


def test_a_row_that_has_the_focus_says_its_score_and_has_a_whole_ring(page: Page) -> None:
    choose(page, file("red.png", RED))
    row = page.locator("#rows button").nth(1)
    row.focus()
    expect(row).to_have_accessible_description(f"{shown(page)['detections'][1]['score']:.2f}")
    ring_px = row.evaluate(
        "(row) => { const s = getComputedStyle(row); return parseFloat(s.outlineWidth) + parseFloat(s.outlineOffset); }"
    )
    room = row.evaluate(
        "(row) => row.getBoundingClientRect().left - row.closest('.scroll').getBoundingClientRect().left"
    )
    assert room >= ring_px > 0


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_sideways_scrolling(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    choose(page, file("a-rather-long-name-" * 6 + ".png", RED))
    page.locator("#key-box summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for button in page.locator("button:visible").all():
        size = button.bounding_box()
        assert size is not None
        assert size["height"] >= 36
    canvas = page.locator("#canvas").bounding_box()
    assert canvas is not None
    assert canvas["width"] <= width


def test_a_phone_is_shown_the_box_that_was_chosen_and_what_is_wrong(browser: Browser, model_file: Path) -> None:
    with served(model=model_file, api_keys="right-key-1") as service, opened(browser, service) as page:
        page.set_viewport_size({"width": 360, "height": 640})
        choose(page, file("red.png", RED))
        for text in ("wrong-key", "wrong-key", "right-key-1"):
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            page.get_by_label("Key", exact=True).fill(text)
            page.get_by_role("button", name="Use it").click()
            if text == "wrong-key":
                expect(page.get_by_role("alert")).to_be_in_viewport()
        row = page.locator("#rows button").first
        row.evaluate("(row) => row.scrollIntoView({ block: 'start' })")
        expect(page.locator("#canvas")).not_to_be_in_viewport()
        row.click()
        expect(page.locator("#canvas")).to_be_in_viewport(ratio=0.9)


def test_a_chosen_box_is_not_covered(page: Page) -> None:
    below = ("red", 0.9, (100.0, 118.0, 200.0, 200.0))  # its label lies in the other's box
    page.route("**/detect?*", lambda route: route.fulfill(json=found(below, ("green", 0.8, (100, 100, 160, 118)))))
    choose(page, file("grey.png", encoded(rectangle_picture(320, 240, (0, 0, 1, 1)))))
    page.get_by_role("button", name="green").click()
    assert pixel(page, 110, 111) == [127, 127, 127]


def test_a_long_name_hides_no_score(page: Page) -> None:
    page.add_init_script(
        "globalThis.painted = []; const { fillText } = CanvasRenderingContext2D.prototype;"
        "CanvasRenderingContext2D.prototype.fillText = function (...given) { painted.push(given[0]); "
        "fillText.apply(this, given); };"
    )
    page.reload()
    page.set_viewport_size({"width": 360, "height": 640})
    name = "ASpeciesThatIsOneWordOf" + "Letters" * 15
    page.route("**/detect?*", lambda route: route.fulfill(json=found((name, 0.83, (20, 20, 60, 60)))))
    choose(page, file("red.png", RED))
    label = page.evaluate("painted.at(-1)")
    assert label.startswith("ASpeciesThatIsOneWord")
    assert label.endswith("… 0.83")
    assert page.locator(".scroll").evaluate("(table) => table.scrollWidth - table.clientWidth") <= 0


def test_letters_are_as_large_as_the_visitor_set_them(browser: Browser, service: Served) -> None:
    other = browser.browser_type.launch(
        executable_path=chromium(), args=[*FLAGS, "--blink-settings=defaultFontSize=26"]
    )
    page = other.new_page(viewport={"width": 360, "height": 640})
    page.goto(f"{service.address}/docs")
    page.wait_for_selector("#problem")
    assert page.evaluate("getComputedStyle(document.body).fontSize") == "26px"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    other.close()


def test_the_drawing_can_be_saved_in_full_size(page: Page) -> None:
    choose(page, file("red.png", RED))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save with boxes").click()
    assert download.value.suggested_filename == "red-boxes.png"
    assert b"IHDR" + (320).to_bytes(4, "big") + (240).to_bytes(4, "big") in download.value.path().read_bytes()


def test_a_drawing_too_large_for_the_browser_comes_from_the_service(page: Page) -> None:
    choose(page, file("long.png", encoded(rectangle_picture(70_000, 64))))  # a canvas ends at 65,535 pixels
    with page.expect_download() as download:
        page.get_by_role("button", name="Save with boxes").click()
    assert b"IHDR" + (70_000).to_bytes(4, "big") + (64).to_bytes(4, "big") in download.value.path().read_bytes()
    page.route("**/detect?draw=png*", lambda route: route.fulfill(**problem(504, "Too late", "Try again.")))
    page.get_by_role("button", name="Save with boxes").click()
    expect(page.get_by_role("alert")).to_contain_text("Too late")


def test_a_drawing_of_what_the_browser_cannot_show_comes_from_the_service(page: Page) -> None:
    """Firefox decodes no picture of more than 65,535 pixels a side."""
    page.add_init_script("globalThis.createImageBitmap = () => Promise.reject(new Error('too wide'))")
    page.reload()
    choose(page, file("red.png", RED))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save with boxes").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def lefts(page: Page, selector: str, text: str) -> list[float]:
    """Returns: The left edge of each of a text's letters, in pixels."""
    return page.evaluate(
        """([selector, text]) => {
            const walker = document.createTreeWalker(document.querySelector(selector), NodeFilter.SHOW_TEXT);
            while (walker.nextNode()?.data.includes(text) === false);
            const start = walker.currentNode.data.indexOf(text);
            return [...text].map((_, index) => {
                const range = document.createRange();
                range.setStart(walker.currentNode, start + index);
                range.setEnd(walker.currentNode, start + index + 1);
                return range.getBoundingClientRect().left;
            });
        }""",
        [selector, text],
    )  # type: ignore[no-any-return]


def test_a_name_from_right_to_left_does_not_turn_the_status(page: Page) -> None:
    choose(page, file("\u202egnp.red", RED))
    expect(page.locator("#status")).to_contain_text("above 0.30.")
    above = lefts(page, "#status", "above")
    assert above == sorted(above)


def test_a_models_and_a_classs_name_from_right_to_left_turn_nothing(page: Page, service: Served) -> None:
    with urllib.request.urlopen(f"{service.address}/model") as response:
        model = json.load(response) | {"name": "حصان", "version": "1234abcd"}
    page.route("**/model", lambda route: route.fulfill(json=model))
    page.reload()
    expect(page.locator("#model")).to_contain_text("1234abcd")
    assert max(lefts(page, "#model", "حصان")) < min(lefts(page, "#model", "1234"))
    page.route("**/detect?*", lambda route: route.fulfill(json=found(("حصان", 0.9, (20, 20, 60, 60)))))
    choose(page, file("red.png", RED))
    assert max(lefts(page, "#class-list", "حصان")) < min(lefts(page, "#class-list", "(1)"))


def test_the_sample_and_clearing(page: Page) -> None:
    page.get_by_role("button", name="Sample").click()
    expect(page.locator("#status")).to_contain_text("sample.jpg: ")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("No picture")
    assert page.evaluate("document.activeElement.id") == "files"


def test_rows_are_one_stop_of_the_tab_key(page: Page) -> None:
    choose(page, file("two.png", encoded(TWO_COLOURS)))
    page.get_by_label("Lowest score").fill("0.05")
    rows = page.locator("#rows button")
    assert rows.count() > 2
    rows.nth(1).click()
    page.keyboard.press("ArrowDown")
    expect(rows.nth(2)).to_be_focused()
    assert page.locator("#rows button[tabindex='0']").count() == 1


def test_a_row_that_is_scrolled_to_is_not_below_the_head(page: Page) -> None:
    choose(page, file("two.png", encoded(TWO_COLOURS)))
    row = page.locator("#rows button").nth(20)
    row.evaluate("(row) => row.scrollIntoView({ block: 'start' })")  # as Firefox does with what gets the focus
    place = row.bounding_box()
    head = page.locator("thead th").first.bounding_box()
    assert place is not None
    assert head is not None
    assert place["y"] >= head["y"] + head["height"]


def test_colours_are_those_of_drawn_pictures(page: Page) -> None:
    colours = page.evaluate(
        "import('./static/paint.js').then(m => Array.from({ length: 91 }, (_, i) => m.classColour(i)))"
    )
    for index, colour in enumerate(colours):
        assert colour == pytest.approx(class_colour(index), abs=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "docs"])
def test_axe_finds_nothing(page: Page, service: Served, scheme: Any, path: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{service.address}/{path}")
    if path == "docs":
        page.wait_for_selector(".operation")
    else:
        choose(page, file("bad.png", b"x"), file("two.png", encoded(TWO_COLOURS)))
        page.get_by_role("list", name="Pictures so far").get_by_role("button").nth(1).click()
        page.wait_for_selector("#rows tr")
        page.locator("#key-box summary").click()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def test_forced_colours_tell_the_focus_from_what_is_chosen(page: Page) -> None:
    page.emulate_media(forced_colors="active")
    choose(page, file("red.png", RED), file("two.png", encoded(TWO_COLOURS)))
    page.locator("#rows button").first.click()
    page.locator("#threshold").focus()
    for chosen in ("#strip [aria-current=true]", "#rows [aria-pressed=true]"):
        expect(page.locator(chosen)).to_have_css("border-top-width", "3px")
        expect(page.locator(chosen)).to_have_css("outline-style", "none")  # so that the focus's is seen


def test_paper_has_all_rows_and_the_classes_colours(page: Page) -> None:
    choose(page, file("two.png", encoded(TWO_COLOURS)))
    table = page.locator(".scroll")
    hidden = "(table) => table.scrollHeight - table.clientHeight"
    assert table.evaluate(hidden) > 0
    page.emulate_media(media="print")
    assert table.evaluate(hidden) == 0
    expect(page.locator("#rows .swatch").first).to_have_css("print-color-adjust", "exact")


def test_forced_colours_leave_the_classes_theirs(page: Page) -> None:
    page.emulate_media(forced_colors="active")
    choose(page, file("red.png", RED))
    colour = page.locator("#rows .swatch").first.evaluate("(swatch) => getComputedStyle(swatch).backgroundColor")
    assert colour == "rgb({}, {}, {})".format(*class_colour(0))


def test_the_apis_description_shows_every_operation(page: Page, service: Served) -> None:
    page.goto(f"{service.address}/docs")
    with urllib.request.urlopen(f"{service.address}/openapi.json") as response:
        paths = json.load(response)["paths"]
    for path, item in paths.items():
        for method in item:
            expect(page.get_by_role("region", name=f"{method.upper()} {path}", exact=True)).to_be_visible()
    expect(page.locator("#post-detect")).to_contain_text("score_threshold")
    expect(page.locator("#post-detect-batch")).to_contain_text("BatchResult")
    expect(page.locator("#post-detect-batch")).to_contain_text("problem")


def test_the_first_view_is_light(page: Page, service: Served) -> None:
    loaded = [url.removeprefix(service.address) for url in page.requests]  # type: ignore[attr-defined]
    assert len(loaded) <= 9, loaded
    assert "/static/sample.jpg" not in loaded
    assert (STATIC / "sample.jpg").stat().st_size < 60_000
