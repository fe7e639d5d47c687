"""Pictures whose files cost a reader far more than their sender: refused before they do.

What costs is not only pixels. Pillow's parsers go from piece to piece, in Python, and some copy what came before.
"""

import io
import re

import numpy as np
from PIL import ImageFile

from app.artifact import Size
from app.errors import Refusal

# Pieces are markers, chunks, blocks, strips. Pictures have some hundred before their pixels, and some ten thousand.
MOST_READS_TO_OPEN = 10_000
MOST_READS = 200_000
MOST_EXIFS = 64  # pieces of a JPEG's; all that came before are copied with each
MOST_STRIPS = 2**16  # of a TIFF, or tiles
MOST_VALUES = 200_000  # of one of a TIFF's tags, which is read as a whole; a table of 16-bit colours has 196,608

JPEGS = frozenset(("JPEG", "MPO"))  # an MPO is a JPEG with further ones behind it
# A progressive JPEG has about ten scans. One costs a sender some bytes, and its reader a pass over all pixels.
MOST_SCANS = 100
MOST_SCANNED_PIXELS = 10**9  # in all scans together, where there are more than
USUAL_SCANS = 20
MOST_MARKERS = 10_000
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # 00 and the restarts D0 to D7 stand among a scan's pixels
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITH_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE))

_EXIF = b"Exif\0\0"
_BIG_TIFF = 43  # the version in the header
_TIFF_BYTES = (1, 2, 6, 7)  # types that are kept as they are
_SLOW = "bmp_rle"  # a BMP's decoder in Python, which fills up lines pixel by pixel


class BoundedFile(io.BytesIO):
    """A picture's bytes, for Pillow, which can read them only so many times.

    Raises:
        Refusal: `corrupt_picture`, also from `read`.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = MOST_READS_TO_OPEN
        _require_few_values(data)
        if data.count(_EXIF) > MOST_EXIFS:
            raise _too_many("pieces")

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise _too_many("pieces")
        return super().read(size)

    def allow_decoding(self, picture: ImageFile.ImageFile) -> None:
        """Lets the pixels be read. Raises: Refusal: `corrupt_picture` or `not_a_picture`: They would take long."""
        self._reads_left = MOST_READS
        if picture.format in JPEGS:
            _require_few_scans(self.getvalue(), Size(picture.height, picture.width))
        elif picture.format == "TIFF" and len(picture.tile) > MOST_STRIPS:
            raise _too_many("strips or tiles")
        elif any(tile.codec_name == _SLOW for tile in picture.tile):
            raise Refusal("not_a_picture", "The BMP is run-length encoded. Send it uncompressed, or as PNG.")


def _require_few_values(data: bytes) -> None:
    """Raises: Refusal: The bytes are a TIFF, and a tag of its first directory has countless numbers: all are read."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return
    place_kind, count_kind = ("u8", "u8") if data[2] == _BIG_TIFF else ("u4", "u2")
    kinds = {"tag": "u2", "type": "u2", "count": place_kind, "value": place_kind}
    entry = np.dtype([(name, order + kind) for name, kind in kinds.items()])
    place = int(np.frombuffer(data, order + place_kind, 1, offset=int(place_kind[1]))[0])
    end = place + int(count_kind[1])
    if end > len(data):
        return
    count = int(np.frombuffer(data, order + count_kind, 1, offset=place)[0])
    entries = np.frombuffer(data, entry, min(count, MOST_READS_TO_OPEN, (len(data) - end) // entry.itemsize), end)
    if (entries["count"][~np.isin(entries["type"], _TIFF_BYTES)] > MOST_VALUES).any():
        raise _too_many("values in a tag")


def _require_few_scans(jpeg: bytes, size: Size) -> None:
    """Looks no further than a JPEG's end: behind it a telephone may have put a film, whose bytes look like anything.

    Raises:
        Refusal: It has so many scans that decoding it would take long.
    """
    position, scans = 2, 0
    for _ in range(MOST_MARKERS):
        found = _MARKER.search(jpeg, position)
        if found is None:
            return
        marker = found[1][0]
        if marker == _END_OF_IMAGE:
            return
        scans += marker == _START_OF_SCAN
        long = scans > USUAL_SCANS and scans * size.height * size.width > MOST_SCANNED_PIXELS
        if scans > MOST_SCANS or long:
            raise _too_many("scans")
        position = found.end()
        if marker in _WITH_LENGTH:  # what follows is skipped by libjpeg too, whatever it looks like
            position += max(2, int.from_bytes(jpeg[position : position + 2], "big"))
    raise _too_many("markers")


def _too_many(pieces: str) -> Refusal:
    return Refusal("corrupt_picture", f"The picture's file has too many {pieces}. Save it anew.")
