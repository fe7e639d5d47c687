// The HTTP API, as the page uses it.

const KEY = "fcos-api-key"; // in sessionStorage: this tab only, forgotten with it
const RETRIES = 3; // of an answer that says "come back later"
const NOT_THE_SERVICE = "Something other than the service answered, perhaps a proxy: look at its log.";

const OURS = "urn:fcos-detect:problem:"; // what the types of the service's own problems begin with

/** What the service says of headers and bodies, for somebody who has a page instead. */
const AT_THE_PAGE = {
  empty_body: () => "The file is empty: choose another one.",
  unauthorized: () =>
    apiKey.get()
      ? "This key is not valid for this service: check it under “API key”."
      : "This service requires a key: enter it under “API key”.",
};

/** A refusal of the service, or its silence. `status` is 0 if there was no answer. */
export class Problem extends Error {
  /** @param code of the service's own problems, whose details say all that their titles do */
  constructor(status, title, detail, code = "") {
    super(code ? (AT_THE_PAGE[code]?.() ?? detail) : `${title}. ${detail}`);
    this.status = status;
    this.title = title;
  }

  /** Whether the same request may be answered another time; many a refusal is for good. */
  get mayPass() {
    return this.status < 400 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

let heldKey = ""; // if the browser stores nothing, the key lasts as long as the page

export const apiKey = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? heldKey;
    } catch {
      return heldKey;
    }
  },
  set(key) {
    heldKey = key;
    try {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    } catch {
      // held above
    }
  },
};

export const addressOf = (path) => new URL(path, document.baseURI);

/** What browsers call a file may be anything, or nothing. */
export const contentTypeOf = ({ type }) => (type.startsWith("image/") ? type : "application/octet-stream");

/** GET /model. */
export const model = async () => answerWith("classes", await send("model"));

/**
 * POST /detect.
 * @param {Blob} picture
 * @param {Record<string, string | number> | URLSearchParams} query
 * @param {(seconds: number) => void} options.onWait told of the time until the next attempt, if the service is busy
 * @param {AbortSignal} options.signal ends the request, and the wait for the next, with its reason
 */
export const detect = async (picture, query, options) => answerWith("detections", await post(picture, query, options));

/** POST /detect with `draw`. @returns {Promise<Blob>} The picture, with the boxes of what the query leaves. */
export async function drawing(picture, query, options) {
  const drawn = await post(picture, [["draw", "png"], ...new URLSearchParams(query)], options);
  if (drawn.type !== "image/png") throw unknownAnswer();
  return drawn;
}

async function post(picture, query, { onWait = () => {}, signal } = {}) {
  const address = addressOf("detect");
  address.search = new URLSearchParams(query);
  for (let attempt = 0; ; attempt++) {
    try {
      return await send(address, {
        method: "POST",
        body: picture,
        headers: { "Content-Type": contentTypeOf(picture) },
        signal,
      });
    } catch (problem) {
      if (attempt === RETRIES || !(problem.retryAfter > 0)) throw problem;
      onWait(problem.retryAfter);
      await wait(problem.retryAfter, signal);
    }
  }
}

function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
    setTimeout(resolve, seconds * 1000);
  });
}

/** @returns {Promise<Blob>} The answer's body, all of it: a connection can break in it too. */
async function send(address, { headers = {}, ...options } = {}) {
  const key = apiKey.get();
  let response, body;
  await requireReadable(options.body);
  try {
    response = await fetch(address, {
      ...options,
      headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers,
    });
    body = await response.blob();
  } catch {
    options.signal?.throwIfAborted();
    throw new Problem(
      0,
      "No answer",
      "The service cannot be reached, or it broke off because the picture is larger than it accepts. " +
        "Check that it is running, and try again or with a smaller picture.",
    );
  }
  if (response.ok) return body;
  const document = await json(body);
  const problem = new Problem(
    response.status,
    typeof document?.title === "string" ? document.title : `Status ${response.status}`,
    typeof document?.detail === "string" ? document.detail : NOT_THE_SERVICE,
    document?.type === OURS + document?.code ? document.code : "",
  );
  if ([429, 503].includes(response.status)) {
    problem.retryAfter = Math.min(secondsOf(response.headers.get("Retry-After")), 30);
  }
  throw problem;
}

/** Of a Retry-After: the service gives seconds; what stands before it may give a date. */
function secondsOf(retryAfter) {
  const seconds = Number(retryAfter ?? 0);
  return (Number.isNaN(seconds) ? Math.ceil((Date.parse(retryAfter) - Date.now()) / 1000) : seconds) || 0;
}

/** A file that changed on disk breaks a request off just as a lost service does; in WebKit it never sends its body. */
async function requireReadable(picture) {
  try {
    await picture?.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem(0, "No picture", "The file can no longer be read: choose it again.");
  }
}

/** @returns {Promise<object>} The answer. What lacks the list that each of the service's has is no such answer. */
async function answerWith(list, body) {
  const answer = await json(body);
  if (!Array.isArray(answer?.[list])) throw unknownAnswer();
  return answer;
}

const unknownAnswer = () => new Problem(200, "An unknown answer", NOT_THE_SERVICE);

const json = (body) => body.text().then(JSON.parse).catch(() => null);
