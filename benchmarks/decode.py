"""Large JPEGs: what decoding at a fraction of the size saves, and that it costs no accuracy.

    python benchmarks/decode.py                                           the times, on a photograph of 12 megapixels
    python benchmarks/decode.py --annotations val.json --images val       and AP, on pictures enlarged --scale times

AP is that of the same enlarged JPEGs, decoded whole and as the service does. It needs what evaluation needs.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.artifact import Size
from app.canvas import resized_size
from app.detector import Detector
from app.images import MOST_PIXELS, Decoded, decode
from app.session import OnnxRunner
from app.settings import DEFAULT_MODEL
from benchmarks.command import as_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--scale", type=float, default=6)
    parser.add_argument("--limit", type=int, help="at most this many pictures")
    options = parser.parse_args()
    if (options.annotations is None) != (options.images is None):
        parser.error("--annotations and --images go together")
    runner = OnnxRunner.load(options.model)
    detector = Detector(runner.metadata, runner)
    print_times(detector)
    if options.annotations:
        print_ap(detector, options)


def whole(data: bytes) -> Decoded:
    return decode(data, MOST_PIXELS)


def jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue()


def print_times(detector: Detector) -> None:
    from skimage import data

    photograph = Image.fromarray(data.astronaut()).resize((4000, 3000), Image.Resampling.BICUBIC)
    # As a camera's; without it there is little to decode.
    noise = np.random.default_rng(0).normal(0, 6, (3000, 4000, 3))
    content = jpeg(Image.fromarray((np.asarray(photograph) + noise).clip(0, 255).astype(np.uint8)))
    print(f"decode + fit, 4000 x 3000, {len(content) / 1e6:.1f} MB, milliseconds (median, lowest of 15)")

    def naive() -> Image.Image:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        size = resized_size(Size(picture.height, picture.width), detector.metadata.resize)
        return picture.resize((size.width, size.height), Image.Resampling.BILINEAR)

    ways: dict[str, Callable[[], object]] = {
        "whole, then resized over all pixels": naive,
        "whole": lambda: detector.fit(whole(content)),
        "as served": lambda: detector.fit(detector.decode(content)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(15):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - began) * 1000)
    for name, values in times.items():
        print(f"  {name:38} {statistics.median(values):6.1f} {min(values):6.1f}")


def print_ap(detector: Detector, options: argparse.Namespace) -> None:
    from model.coco import with_images
    from model.data import read_usable
    from model.evaluation import parameters_for
    from model.scoring import Found, score

    document = read_usable(options.annotations, options.images, detector.metadata.classes, print)
    document = with_images(document, document["images"][: options.limit])
    parameters = parameters_for(detector.metadata)
    ways: dict[str, Callable[[bytes], Decoded]] = {"whole": whole, "as served": detector.decode}
    found: dict[str, list[Found]] = {name: [] for name in ways}
    for position, image in enumerate(document["images"]):
        small = Image.open(options.images / image["file_name"]).convert("RGB")
        size = (round(small.width * options.scale), round(small.height * options.scale))
        content = jpeg(small.resize(size, Image.Resampling.BICUBIC))
        for name, way in ways.items():
            one = detector.detect(way(content), parameters)
            found[name].append(Found.of(position, replace(one, boxes=one.boxes * np.float32(small.width / size[0]))))
    for name, parts in found.items():
        evaluation = score(Found.join(parts), document, detector.metadata.classes)
        print(f"{name:10} {json.dumps({key: round(value, 4) for key, value in evaluation.metrics.items()})}")


if __name__ == "__main__":
    as_command(main)
