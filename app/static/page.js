// The playground: pictures in, boxes on them, filters that need no new request.

import { takePicture } from "./camera.js";
import { classColour, css, paint } from "./paint.js";
import { Problem, addressOf, apiKey, contentTypeOf, detect, drawing, model } from "./service.js";
import { classesOf, count, curlCommand, inWords, jsonText, queryOf, visible } from "./view.js";

const $ = (id) => document.getElementById(id);
const MOST_DETECTIONS = 1000; // what the service allows
const THUMBNAIL_PX = 96;
const TALLEST = 0.72; // of the window's height: the picture leaves room for what is around it
const LARGEST_ZOOM = 4; // of small pictures

let served = null; // GET /model
let pictures = []; // in the order they came
let current = null;
let chosen = null; // the detection that is brought out
let working = false;
const filter = { threshold: Number($("threshold").value), hidden: new Set(), limit: MOST_DETECTIONS };

// ---- pictures come in ------------------------------------------------------------------------------------------

function add(files) {
  const added = [...files].map((file) => ({
    name: file.name || "pasted.png", file, bitmap: null, answer: null, problem: null, state: "waiting",
    size: null, cleared: new AbortController(), entry: document.createElement("li"), thumbnail: document.createElement("canvas"),
  }));
  if (added.length === 0) return;
  pictures.push(...added);
  for (const picture of added) $("strip").append(stripEntry(picture));
  select(added[0]);
  void work();
}

/** One picture after another: a page is one client, and the service has others. */
async function work() {
  if (working) return;
  working = true;
  const begun = [];
  try {
    for (let next; (next = pictures.find((one) => one.state === "waiting")); ) {
      begun.push(next);
      await process(next);
    }
  } finally {
    working = false;
  }
  const ended = begun.filter((one) => pictures.includes(one)); // not cleared
  const failed = ended.filter((one) => one.state === "failed").length;
  if (ended.length > 1) tell(`${count(ended.length - failed, "picture")} done, ${failed} failed.`);
}

async function process(picture) {
  picture.state = "detecting";
  const { signal } = picture.cleared;
  const lowest = Math.min(Number($("threshold").min), served?.defaults.score_threshold ?? 1);
  try {
    update(picture);
    await loadThumbnail(picture);
    update(picture);
    const query = { score_threshold: lowest, max_detections: MOST_DETECTIONS };
    const onWait = (seconds) =>
      picture === current && say(`The service is busy. Trying again in ${count(seconds, "second")}.`);
    const answer = await detect(picture.file, query, { onWait, signal });
    if (!agree(picture.size, answer.image) || (await mayBeTurned(picture.file))) await loadFromService(picture);
    [picture.state, picture.problem, picture.answer] = ["done", null, answer];
    if (answer.model.version !== served?.version) void loadModel(); // not known yet, or reloaded
    update(picture);
  } catch (error) {
    if (signal.aborted) return;
    [picture.state, picture.problem, picture.answer] = ["failed", asProblem(error), null];
    if (picture.problem.status === 401 || picture.problem.status === 403) askForKey();
    update(picture);
  }
}

async function loadThumbnail(picture) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(picture.shown ?? picture.file);
  } catch {
    return; // a TIFF, mostly
  }
  picture.size = { width: bitmap.width, height: bitmap.height };
  const scale = THUMBNAIL_PX / Math.max(bitmap.width, bitmap.height);
  picture.thumbnail.width = Math.max(1, Math.round(bitmap.width * scale));
  picture.thumbnail.height = Math.max(1, Math.round(bitmap.height * scale));
  picture.thumbnail.getContext("2d").drawImage(bitmap, 0, 0, picture.thumbnail.width, picture.thumbnail.height);
  if (picture === current) hold(picture, bitmap);
  else bitmap.close();
}

/** Browsers do not turn each format by its EXIF orientation, and some they do not decode: then there is no size. */
const agree = (size, upright) => size?.width === upright.width && size.height === upright.height;

// The EXIF entry of an orientation other than upright, in either byte order.
const TURNED = /\x12\x01\x03\0\x01\0\0\0[\x02-\x08]|\x01\x12\0\x03\0\0\0\x01\0[\x02-\x08]/;

/** Upside down or mirrored, a picture has the size that it has upright. JPEGs are turned by all of today's browsers. */
const mayBeTurned = async (file) =>
  file.type !== "image/jpeg" && TURNED.test(new TextDecoder("latin1").decode(await file.arrayBuffer()));

/** The picture as the service decodes it, without boxes: no score is above 1. */
async function loadFromService(picture) {
  picture.shown = await drawing(picture.file, { score_threshold: 1 }, { signal: picture.cleared.signal });
  await loadThumbnail(picture);
}

/** A decoded picture is large: only the current one is held. */
function hold(picture, bitmap) {
  picture.bitmap?.close();
  picture.bitmap = bitmap;
}

async function select(picture) {
  if (current !== picture && current?.bitmap) hold(current, null);
  [current, chosen] = [picture, null];
  for (const one of pictures) one.entry.firstChild.setAttribute("aria-current", String(one === picture));
  if (picture !== null && !picture.bitmap && picture.state !== "waiting") await loadThumbnail(picture);
  if (picture !== current) return;
  show();
  picture?.entry.scrollIntoView({ block: "nearest", inline: "nearest" });
}

const asProblem = (error) =>
  error instanceof Problem ? error : new Problem(0, "The page failed", `${error.message}. Load it again.`);

// ---- what is seen ----------------------------------------------------------------------------------------------

function show() {
  const answer = current?.answer ?? null;
  $("empty").hidden = current !== null;
  $("shown").hidden = !current?.bitmap; // the canvas still has the one before
  $("strip").hidden = pictures.length < 2;
  $("clear").hidden = pictures.length === 0;
  $("save").hidden = $("copies").hidden = $("found").hidden = answer === null;
  $("busy").hidden = current?.state !== "detecting";
  notify(current?.problem ?? null);
  showClasses(answer);
  showTimings(answer);
  showFiltered();
}

/** Everything that the filters change. */
function showFiltered() {
  $("threshold-value").value = filter.threshold.toFixed(2);
  draw();
  const answer = current?.answer ?? null;
  if (answer === null) {
    $("canvas").setAttribute("aria-label", current === null ? "No picture" : `${current.name}: no answer`);
    const name = isolated(current?.name ?? "");
    const says = { waiting: ["Waiting."], detecting: ["Detecting in ", name, "."], failed: [name, " has no answer."] };
    say(...(says[current?.state] ?? ["No picture yet."]));
    return;
  }
  const detections = visible(answer, filter);
  $("rows").replaceChildren(...detections.map(row));
  const type = contentTypeOf(current.file);
  $("curl").textContent = curlCommand(addressOf("detect"), current.name, type, filter, answer, apiKey.get() !== "");
  $("json").textContent = jsonText(answer, detections);
  $("canvas").setAttribute("aria-label", `${current.name}: ${inWords(detections)}`);
  const most = detections.length === filter.limit ? " (no more are shown)" : "";
  say(isolated(current.name), `: ${count(detections.length, "object")} above ${filter.threshold.toFixed(2)}${most}.`);
}

function draw() {
  if (!current?.bitmap) return;
  const canvas = $("canvas");
  const { bitmap, answer } = current;
  const { width, height } = bitmap;
  const zoom = Math.min($("shown").clientWidth / width, (innerHeight * TALLEST) / height, LARGEST_ZOOM);
  canvas.width = Math.max(1, Math.round(width * zoom * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(height * zoom * devicePixelRatio));
  canvas.style.width = `${width * zoom}px`;
  paint(canvas, bitmap, answer?.image ?? bitmap, answer ? visible(answer, filter) : [], devicePixelRatio, chosen);
}

/** Of a hundred rows one is in the order of the Tab key; arrow keys go to the others. */
function row(detection, index) {
  const tabIndex = index === 0 ? 0 : -1;
  const button = element("button", { type: "button", tabIndex }, swatch(detection.class_id), detection.label);
  button.setAttribute("aria-pressed", String(detection === chosen));
  button.setAttribute("aria-describedby", `score-${index}`);
  button.addEventListener("click", () => {
    chosen = detection === chosen ? null : detection;
    for (const other of $("rows").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(detection === chosen));
    draw();
    if (chosen) $("canvas").scrollIntoView({ block: "nearest" }); // on a phone the table is far below it
  });
  const { xmin, ymin, xmax, ymax } = detection.box;
  const [left, top, right, bottom] = [xmin, ymin, xmax, ymax].map(Math.round);
  return element("tr", {}, element("td", {}, button), element("td", { id: `score-${index}` }, detection.score.toFixed(2)),
    element("td", {}, `${left},\xa0${top}\xa0→ ${right},\xa0${bottom}`));
}

function showClasses(answer) {
  const found = answer === null ? new Map() : classesOf(answer, filter.threshold);
  $("classes").hidden = found.size === 0;
  $("class-list").replaceChildren(...[...found].map(([label, { classId, count: number }]) => {
    const box = element("input", { type: "checkbox", checked: !filter.hidden.has(label) });
    box.addEventListener("change", () => {
      if (box.checked) filter.hidden.delete(label);
      else filter.hidden.add(label);
      showFiltered();
    });
    return element("label", {}, box, swatch(classId), element("span", {}, isolated(label), ` (${number})`));
  }));
}

function showTimings(answer) {
  const stages = Object.entries(answer?.timing_ms ?? {});
  $("timings").replaceChildren(...stages.map(([stage, value]) =>
    element("div", {}, element("dt", {}, stage), element("dd", {}, `${value.toFixed(1)} ms`))));
}

function stripEntry(picture) {
  const button = element("button", { type: "button", title: picture.name }, picture.thumbnail,
    element("span", {}, picture.name), element("span", {}));
  picture.thumbnail.width = picture.thumbnail.height = THUMBNAIL_PX / 2;
  picture.thumbnail.setAttribute("aria-hidden", "true");
  button.addEventListener("click", () => void select(picture));
  picture.entry.replaceChildren(button);
  return picture.entry;
}

function update(picture) {
  const state = picture.entry.querySelector("span:last-of-type");
  state.className = picture.state === "failed" ? "failed" : "quiet";
  state.textContent = picture.state;
  if (picture === current) show();
}

function notify(problem) {
  const again = Boolean(current?.problem?.mayPass);
  // What is hidden cannot keep the focus.
  if (!again && document.activeElement === $("again")) $("main").focus({ preventScroll: true });
  $("notice").hidden = problem === null;
  $("again").hidden = !again;
  const trying = problem !== null && problem === current?.problem && current.state !== "failed";
  const text = trying ? "Trying again …" : problem?.message ?? ""; // between the two, or the second is not told
  if ($("notice-text").textContent !== text) $("notice-text").textContent = text;
  if (text) $("notice").scrollIntoView({ block: "nearest" });
}

let saying = 0;

/** Tells sighted and screen reader users alike; a moving slider speaks once it rests. */
function say(...parts) {
  clearTimeout(saying);
  const said = element("span", {}, ...parts);
  saying = setTimeout(() => {
    if ($("status").textContent !== said.textContent) $("status").replaceChildren(said);
  }, 150);
}

/** Tells screen readers what others see where it happened. */
const tell = (text) => ($("told").textContent = text);

/** A name that is written from right to left, or says that it is, does not turn what follows. */
const isolated = (name) => element("bdi", {}, name);

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function swatch(classId) {
  const made = element("span", { className: "swatch" });
  made.style.backgroundColor = css(classColour(classId));
  return made;
}

// ---- controls --------------------------------------------------------------------------------------------------

$("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});

let taking = false; // a picture: there is one dialog

$("camera").addEventListener("click", async () => {
  if (taking) return;
  taking = true;
  try {
    const blob = await takePicture();
    if (blob !== null) add([new File([blob], `camera-${pictures.length + 1}.jpg`, { type: blob.type })]);
  } catch (error) {
    notify(asProblem(error));
  } finally {
    taking = false;
  }
});

$("sample").addEventListener("click", async () => {
  const blob = await fetch("static/sample.jpg").then((response) => (response.ok ? response.blob() : null)).catch(() => null);
  if (blob === null) notify(new Problem(0, "No sample", "The service cannot be reached: check that it is running."));
  else add([new File([blob], "sample.jpg", { type: "image/jpeg" })]);
});

$("clear").addEventListener("click", () => {
  if (current?.bitmap) hold(current, null);
  for (const picture of pictures) picture.cleared.abort();
  pictures = [];
  $("strip").replaceChildren();
  tell("");
  void select(null);
  $("files").focus();
});

$("save").addEventListener("click", async () => {
  const { bitmap, file, name, answer } = current;
  if (answer === null) return; // chosen a moment ago: the button was another picture's
  const query = queryOf(filter, answer); // as it is now: the slider may move before the drawing is there
  const own = await new Promise((resolve) => {
    const canvas = element("canvas", { width: bitmap.width, height: bitmap.height });
    const scale = Math.max(0.8, Math.sqrt(bitmap.width * bitmap.height) / 600); // labels grow with the picture
    paint(canvas, bitmap, answer.image, visible(answer, filter), scale);
    canvas.toBlob(resolve);
  }).catch(() => null); // no blob, or an error: the picture, or its canvas, is too large for this browser
  try {
    const blob = own ?? (await drawing(file, query));
    const link = element("a", { href: URL.createObjectURL(blob), download: `${name.replace(/\.[^.]*$/, "")}-boxes.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    notify(asProblem(error));
  }
});

// What one picture met, such as a restart, those after it met too.
$("again").addEventListener("click", () => retry((picture) => picture.problem?.mayPass));

$("rows").addEventListener("keydown", (event) => {
  const buttons = [...$("rows").querySelectorAll("button")];
  const here = buttons.indexOf(event.target);
  const there = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (here < 0 || !buttons[there]) return;
  event.preventDefault();
  for (const button of buttons) button.tabIndex = button === buttons[there] ? 0 : -1; // the mouse may have been elsewhere
  buttons[there].focus();
});

function retry(which) {
  for (const picture of pictures.filter((one) => one.state === "failed" && which(one))) {
    picture.state = "waiting";
    update(picture);
  }
  void work();
}

$("threshold").addEventListener("input", (event) => {
  filter.threshold = Number(event.target.value);
  showClasses(current?.answer ?? null);
  showFiltered();
});

for (const what of ["curl", "json"]) {
  const button = $(`copy-${what}`);
  const label = button.textContent;
  button.addEventListener("click", async () => {
    button.textContent = tell((await copy($(what))) ? "Copied" : "Selected: press Ctrl C");
    setTimeout(() => {
      button.textContent = label;
      tell("");
    }, 2000);
  });
}

async function copy(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch { // only https and localhost pages may write there
    getSelection().selectAllChildren(source);
    return document.execCommand("copy");
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[\x20-\x7e]*$/.test(key)) { // a header cannot hold it
    askForKey();
    return notify(new Problem(0, "No key", "A key has only ASCII letters, digits and symbols."));
  }
  apiKey.set(key);
  $("key").removeAttribute("aria-invalid");
  notify(current?.problem ?? null);
  void loadModel({ aloud: true });
  retry((picture) => picture.problem?.status === 401 || picture.problem?.status === 403);
});

function askForKey() {
  $("key-box").open = true;
  $("key").setAttribute("aria-invalid", "true");
}

for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    if (event.dataTransfer.types.includes("Files")) document.body.classList.add("dragging"); // no link, no text
  });
}
for (const kind of ["dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop" || event.relatedTarget === null) document.body.classList.remove("dragging");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}
addEventListener("paste", (event) => add(event.clipboardData.files));
new ResizeObserver(draw).observe($("shown"));

// ---- start -----------------------------------------------------------------------------------------------------

/** @param aloud whether somebody waits for the outcome, and is to be told of a problem */
async function loadModel({ aloud = false } = {}) {
  try {
    served = await model();
  } catch (error) {
    const problem = asProblem(error);
    $("model").textContent = problem.status === 401 ? "The service requires an API key." : `${problem.title}.`;
    if (problem.status === 401 || problem.status === 403) askForKey();
    if (aloud) notify(problem);
    return;
  }
  const ap = served.metrics.AP === undefined ? "" : `, AP ${served.metrics.AP.toFixed(3)}`;
  $("model").replaceChildren(isolated(served.name), ` ${served.version}, ${count(served.classes.length, "class", "classes")}${ap}, on ${served.provider.replace("ExecutionProvider", "")}`);
  filter.limit = served.defaults.max_detections;
  if (!$("threshold").dataset.touched) {
    $("threshold").value = served.defaults.score_threshold;
    filter.threshold = Number($("threshold").value);
    $("threshold-value").value = filter.threshold.toFixed(2);
  }
  if (current) show();
}

$("key").value = apiKey.get();
$("threshold").addEventListener("input", () => ($("threshold").dataset.touched = "yes"), { once: true });
void loadModel();
