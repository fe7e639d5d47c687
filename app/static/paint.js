// Boxes and labels on a canvas. The colours are those of app/draw.py.

const GOLDEN_RATIO = 0.618033988749895;
const LABEL_PX = 13; // of labels, and 2 of lines, before `scale`

/** @returns {[number, number, number]} The class's colour, RGB, 0 to 255. */
export function classColour(classId) {
  const hue = ((0.02 + classId * GOLDEN_RATIO) % 1) * 6;
  const [saturation, value] = [[0.9, 1], [0.95, 0.7], [0.55, 1]][classId % 3];
  return [5, 3, 1].map((offset) => {
    const k = (offset + hue) % 6;
    return Math.round(255 * value * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

export const css = (colour) => `rgb(${colour.join(" ")})`;

/** Black or white, which of them contrasts more (WCAG 2, relative luminance): always at least 4.5 to 1. */
function readableOn(colour) {
  const [red, green, blue] = colour.map((part) =>
    part <= 10 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

/**
 * Paints the picture and its detections so that they fill the canvas.
 * @param {HTMLCanvasElement} canvas
 * @param {CanvasImageSource} picture
 * @param {{width: number, height: number}} size the frame of the boxes
 * @param {object[]} detections best first; better ones lie on top
 * @param {number} scale canvas pixels per pixel of label text and line
 * @param {object | null} chosen a detection to bring out: the others are dim, without labels, which could cover it
 */
export function paint(canvas, picture, size, detections, scale, chosen = null) {
  const context = canvas.getContext("2d");
  const paintPicture = () => {
    context.fillStyle = "#fff"; // what is transparent is white, as to the service
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  };
  paintPicture();
  const toCanvas = [canvas.width / size.width, canvas.height / size.height];
  for (const one of [...detections].reverse()) paintBox(context, corners(one, toCanvas), one, scale);
  const alone = detections.includes(chosen); // the filters may have taken it
  if (alone) {
    context.fillStyle = "rgb(0 0 0 / 0.45)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const box = corners(chosen, toCanvas);
    const width = box.right - box.left;
    const height = box.bottom - box.top;
    context.save();
    context.beginPath();
    context.rect(box.left, box.top, width, height);
    context.clip();
    paintPicture();
    context.restore();
    paintBox(context, box, chosen, scale * 2);
  }

  context.font = `600 ${LABEL_PX * scale}px system-ui, sans-serif`;
  const labels = [];
  for (const one of alone ? [chosen] : detections) { // the best choose first, and are painted last
    const text = labelText(context, one, canvas.width - 8 * scale);
    const place = labelPlace(context, corners(one, toCanvas), text, scale, canvas, labels);
    labels.push({ ...place, text, colour: classColour(one.class_id) });
  }
  for (const label of labels.reverse()) paintLabel(context, label, scale);
}

function corners({ box }, [x, y]) {
  return { left: box.xmin * x, top: box.ymin * y, right: box.xmax * x, bottom: box.ymax * y };
}

function paintBox(context, { left, top, right, bottom }, detection, scale) {
  context.lineWidth = 4 * scale; // a dark rim, so that the line is seen on any picture
  context.strokeStyle = "rgb(0 0 0 / 0.5)";
  context.strokeRect(left, top, right - left, bottom - top);
  context.lineWidth = 2 * scale;
  context.strokeStyle = css(classColour(detection.class_id));
  context.strokeRect(left, top, right - left, bottom - top);
}

/** @returns {string} A name and its score; of a name that is too long, what leaves room for the score. */
function labelText(context, { label, score }, most) {
  const letters = [...label];
  let text = `${label} ${score.toFixed(2)}`;
  while (letters.length > 1 && context.measureText(text).width > most) {
    letters.pop();
    text = `${letters.join("")}… ${score.toFixed(2)}`;
  }
  return text;
}

/** @returns {{x: number, y: number, width: number, height: number}} Where a label lies: above its box, else in it, below
 * it or in it at the bottom; beyond no edge of the picture, and on no label that is taken, as far as that can be had. */
function labelPlace(context, box, text, scale, canvas, taken) {
  const width = context.measureText(text).width + 8 * scale;
  const height = 1.5 * LABEL_PX * scale;
  const x = Math.max(0, Math.min(box.left - scale, canvas.width - width));
  const wanted = [box.top - height, box.top, box.bottom, box.bottom - height];
  const possible = wanted.filter((y) => y >= 0 && y <= canvas.height - height);
  const places = (possible.length ? possible : [0]).map((y) => ({ x, y, width, height }));
  return places.find((place) => !taken.some((other) => overlap(place, other))) ?? places[0];
}

function overlap(one, other) {
  return one.x < other.x + other.width && other.x < one.x + one.width
    && one.y < other.y + other.height && other.y < one.y + one.height;
}

function paintLabel(context, { x, y, width, height, text, colour }, scale) {
  context.fillStyle = css(colour);
  context.fillRect(x, y, width, height);
  context.fillStyle = readableOn(colour);
  context.textBaseline = "middle";
  context.fillText(text, x + 4 * scale, y + height / 2);
}
