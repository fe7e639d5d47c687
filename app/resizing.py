"""A picture in another size: bilinear over all the pixels that a new one covers, as Pillow does it."""

import PIL
from PIL import Image

from app.artifact import Size

try:
    import cykooz_resizer as simd
except ImportError:  # there is no wheel for this system, such as Linux on ARM
    simd = None
# It reads Pillow's pictures where they lie in memory, which another version might arrange otherwise.
if not PIL.__version__.startswith("13."):
    simd = None

Box = tuple[float, float, float, float]

# From twice this reduction on, Pillow averages whole pixels first, and interpolates the result: far faster on
# photographs of many megapixels, and hardly distinguishable from interpolating over everything.
REDUCING_GAP = 2.0
# With SIMD instructions nothing is averaged first, and each row and column takes 16 bytes for its weights: pictures of
# longer sides are left to Pillow, or a line of 50 megapixels would take 1 GB, and 3 s.
LONGEST = 2**16
_BILINEAR = None if simd is None else simd.ResizeAlg.convolution(simd.FilterType.bilinear)


def resized(picture: Image.Image, size: Size, box: Box | None = None) -> Image.Image:
    """A picture of mode RGB in another size; the picture itself if it has that size.

    With SIMD instructions this takes a fifth of the time that Pillow takes, pixel by pixel. Both round in between, so
    that values may differ by 2 of 255; by more where Pillow averages whole pixels first.

    Args:
        size: The new size.
        box: What is to fill it: left, top, right, bottom in the picture's pixels, which may be cut through. If None,
            all of the picture.
    """
    whole = (0.0, 0.0, *picture.size)
    left, top, right, bottom = box = box or whole
    if box == whole and picture.size == (size.width, size.height):
        return picture
    if simd is None or max(picture.size) > LONGEST:
        return picture.resize((size.width, size.height), Image.Resampling.BILINEAR, box, REDUCING_GAP)
    result = Image.new("RGB", (size.width, size.height), None)
    # A box computed in floats may end a hair beyond the picture.
    crop = simd.CropBox(left, top, min(right, picture.width) - left, min(bottom, picture.height) - top)
    simd.Resizer().resize_pil(picture, result, simd.ResizeOptions(_BILINEAR, crop_box=crop))
    return result
