// What is shown of an answer, and its text forms. Nothing here touches the page.

/**
 * The service is asked once, for everything above the slider's lowest value. Boxes below a threshold never suppress
 * boxes above it, so what is left here is what the service would answer with these parameters.
 * @param {{threshold: number, hidden: Set<string>, limit: number}} filter
 */
export function visible(answer, { threshold, hidden, limit }) {
  return answer.detections.filter((one) => one.score > threshold && !hidden.has(one.label)).slice(0, limit);
}

/** @returns {Map<string, {classId: number, count: number}>} The classes above the threshold, most frequent first. */
export function classesOf(answer, threshold) {
  const counts = new Map();
  for (const { label, class_id: classId, score } of answer.detections) {
    if (score > threshold) counts.set(label, { classId, count: (counts.get(label)?.count ?? 0) + 1 });
  }
  return new Map([...counts].sort(([, a], [, b]) => b.count - a.count));
}

export const jsonText = (answer, detections) => JSON.stringify({ ...answer, detections }, null, 1);

const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;

/** @returns {URLSearchParams} What asks the service for the detections which are shown. */
export function queryOf({ threshold, hidden }, answer) {
  const query = new URLSearchParams({ score_threshold: threshold });
  const labels = [...classesOf(answer, threshold).keys()];
  if (labels.some((label) => hidden.has(label))) {
    for (const label of labels) if (!hidden.has(label)) query.append("classes", label);
    if (!query.has("classes")) query.set("score_threshold", "1"); // every class is hidden: nothing is asked for
  }
  return query;
}

/** @returns {string} A command that gives the detections which are shown. The key is never part of it. */
export function curlCommand(address, name, type, filter, answer, withKey) {
  const lines = [
    `curl ${quoted(`${address}?${queryOf(filter, answer)}`)}`,
    `-H ${quoted(`Content-Type: ${type}`)}`,
    `--data-binary ${quoted(`@${name}`)}`,
  ];
  if (withKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  return lines.join(" \\\n  ");
}

/** @returns {string} For a screen reader: "cat 0.93, dog 0.41 and 3 more". */
export function inWords(detections) {
  if (detections.length === 0) return "nothing found";
  const named = detections.slice(0, 8).map((one) => `${one.label} ${one.score.toFixed(2)}`);
  const more = detections.length - named.length;
  return named.join(", ") + (more > 0 ? ` and ${more} more` : "");
}

export const count = (number, noun, plural = `${noun}s`) => `${number} ${number === 1 ? noun : plural}`;
