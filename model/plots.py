"""Pictures for the run's folder: what the network sees, what it finds, and how good that is."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image

from app.draw import draw
from app.schemas import Box, Detection
from model.coco import Document
from model.data import Batch
from model.files import replaced
from model.pictures import open_picture
from model.scoring import RECALLS, Evaluation, Found

TILES = 16
TILE_PX = 416
MOST_NAMES = 150
"""Along a side of the confusion matrix; more would overlap, so only every second, third ... class is named then."""


def draw_batch(batch: Batch, classes: Sequence[str], path: Path) -> None:
    """The first pictures of a batch as the network gets them, with the boxes that it learns."""
    tiles = []
    for image, boxes, labels in list(zip(batch.images, batch.boxes, batch.labels, strict=True))[:TILES]:
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
        tiles.append(_drawn(picture, boxes.numpy(), labels.numpy(), np.ones(len(boxes)), classes))
    _save_sheet(tiles, path)


def draw_results(
    evaluation: Evaluation, found: Found, document: Document, images: Path, classes: Sequence[str], folder: Path
) -> None:
    """Precision-recall curves, the confusion matrix, and detections on pictures spread over the set."""
    _save_figure(_precision_recall(evaluation), folder / "precision_recall.png")
    _save_figure(_confusion(evaluation), folder / "confusion.png")
    above = found.take(found.scores > evaluation.score_threshold)
    tiles = []
    count = len(document["images"])
    for position in np.unique(np.linspace(0, count - 1, min(count, TILES)).round().astype(int)).tolist():
        picture = open_picture(images / document["images"][position]["file_name"])
        one = above.take(above.pictures == position)
        tiles.append(_drawn(picture, one.boxes, one.class_ids, one.scores, classes))
    _save_sheet(tiles, folder / "predictions.jpg")


def _drawn(
    picture: Image.Image,
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    scores: NDArray[np.floating],
    classes: Sequence[str],
) -> Image.Image:
    """A tile of the sheet: resized first, so that labels are equally large on all and do not cover a small picture."""
    scale = (TILE_PX - 4) / max(picture.size)
    tile = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    detections = [
        Detection(label=classes[label], class_id=label, score=score, box=Box(xmin=x1, ymin=y1, xmax=x2, ymax=y2))
        for (x1, y1, x2, y2), label, score in zip(
            (boxes * scale).tolist(), labels.tolist(), scores.tolist(), strict=True
        )
    ]
    draw(tile, detections)
    return tile


def _save_sheet(tiles: Sequence[Image.Image], path: Path) -> None:
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * TILE_PX, rows * TILE_PX), (32, 32, 32))
    for position, tile in enumerate(tiles):
        sheet.paste(tile, (position % columns * TILE_PX, position // columns * TILE_PX))
    with replaced(path) as temporary:
        sheet.save(temporary, "JPEG", quality=85)


def _precision_recall(evaluation: Evaluation) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for position, (name, curve) in enumerate(evaluation.curves.items()):
        if (curve >= 0).any():
            ap50 = evaluation.per_class[name]["AP50"]
            style = ("-", "--", ":")[position // 10 % 3]
            axes.plot(RECALLS, curve, style, color=f"C{position % 10}", label=f"{_literal(name)} {ap50:.2f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"IoU 0.5; AP50 {evaluation.metrics['AP50']:.3f}")
    if axes.lines and len(evaluation.curves) <= 40:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure


def _confusion(evaluation: Evaluation) -> Figure:
    """Each row adds up to 1: what the boxes of a class are detected as."""
    names = [_literal(name) for name in evaluation.curves]
    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(4 + 0.35 * len(names), 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    named = range(len(names), -1, -(1 + len(names) // MOST_NAMES))  # counted from the last, which is no class
    axes.set_xticks(named, [[*names, "missed"][place] for place in named], rotation=90)
    axes.set_yticks(named, [[*names, "nothing there"][place] for place in named])
    axes.set(xlabel=f"detected as (score above {evaluation.score_threshold:.2f})", ylabel="truth")
    if len(names) <= 30:
        for row, column in np.argwhere(counts > 0).tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(shown, shrink=0.6)
    return figure


def _literal(name: str) -> str:
    """A class name for matplotlib, which reads text between two dollars as a formula. Letters that its font lacks are
    written as their numbers: these tell names apart, the font's empty boxes would not."""
    known = _font().get_charmap()
    written = (x if ord(x) in known else x.encode("ascii", "backslashreplace").decode() for x in name)
    return "".join(written).replace("$", r"\$")


@cache
def _font() -> FT2Font:
    return FT2Font(findfont("DejaVu Sans"))


def _save_figure(figure: Figure, path: Path) -> None:
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
