// The HTTP API, as the page uses it.

const KEY = "fcos-api-key"; // in sessionStorage: this tab only, forgotten with it
const RETRIES = 3; // of an answer that says "come back later"

/** A refusal of the service, or its silence. `status` is 0 where there was no answer. */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail);
    this.status = status;
    this.title = title;
  }
}

let heldKey = ""; // where the browser stores nothing, the key lasts as long as the page

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

export async function model() {
  return (await send("model")).json();
}

/**
 * POST /detect.
 * @param {Blob} picture
 * @param {Record<string, string>} query
 * @param {(seconds: number) => void} onWait told of the time until the next attempt, where the service is busy
 */
export async function detect(picture, query, onWait = () => {}) {
  const address = addressOf("detect");
  address.search = new URLSearchParams(query);
  for (let attempt = 0; ; attempt++) {
    try {
      return await send(address, {
        method: "POST",
        body: picture,
        headers: { "Content-Type": picture.type.startsWith("image/") ? picture.type : "application/octet-stream" },
      });
    } catch (problem) {
      if (attempt === RETRIES || !(problem.retryAfter > 0)) throw problem;
      onWait(problem.retryAfter);
      await new Promise((resolve) => setTimeout(resolve, problem.retryAfter * 1000));
    }
  }
}

async function send(address, { headers = {}, ...options } = {}) {
  const key = apiKey.get();
  let response;
  try {
    response = await fetch(address, {
      ...options,
      headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers,
    });
  } catch {
    throw new Problem(
      0,
      "No answer",
      "The service cannot be reached, or it broke off because the picture is larger than it takes. " +
        "See that it runs, and try again or with a smaller picture.",
    );
  }
  if (response.ok) return response;
  const document = await response.json().catch(() => ({}));
  const problem = new Problem(
    response.status,
    document.title ?? `Status ${response.status}`,
    document.detail ?? "Whatever answered is not the service, a proxy perhaps: look at its log.",
  );
  if ([429, 503].includes(response.status)) {
    problem.retryAfter = Math.min(Number(response.headers.get("Retry-After")) || 0, 30);
  }
  throw problem;
}
