"""Refuses pictures whose files would cost the reader far more than their sender.

Not only pixels cost time. Pillow's parsers go from piece to piece, in Python, and some copy all earlier pieces.
"""

import io
import re

import numpy as np
from PIL import ImageFile, TiffTags
from PIL import TiffImagePlugin as _tiff

from app.errors import Refusal

# Pieces are markers, chunks, blocks, strips. Pictures have about a hundred before their pixels, and some ten thousand.
MOST_READS_TO_OPEN = 50_000
MOST_READS = 500_000
MOST_COPIED = 64  # a JPEG's Exif pieces, each of which copies all before it; a PNG's profiles, each unpacked
# Bytes that are searched at a time: a search holds Python's lock, and nobody is answered before it ends.
SEARCHED = 2**18
MOST_STRIPS = 2**16  # strips or tiles of a TIFF
MOST_OVERLAP = 2  # how many times the file's size all strips may have together
MOST_VALUES = 200_000  # of one tag of a TIFF, which is read as a whole; a table of 16-bit colours has 196,608

JPEGS = frozenset(("JPEG", "MPO"))  # an MPO is a JPEG followed by others
# A progressive JPEG has about ten scans. Each costs the sender a few bytes, and the reader a pass over all pixels.
MOST_SCANS = 100
MOST_SCANNED_PIXELS = 10**9  # in all scans together, if there are more than
USUAL_SCANS = 20
MOST_MARKERS = 10_000
LONGEST_FRAME = 8 + 3 * 4  # bytes of a frame's head; a longer one declares more than four colours
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # 00 and the restarts D0 to D7 occur among a scan's pixels
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITH_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_BIG_TIFF = 43  # the version in the header
# Types that are kept as they are.
_TIFF_BYTES = (TiffTags.BYTE, TiffTags.ASCII, TiffTags.SIGNED_BYTE, TiffTags.UNDEFINED)
_SLOW = "bmp_rle"  # a BMP decoder in Python that fills lines pixel by pixel
_FAXES = ("tiff_ccitt", "group3", "group4", "tiff_raw_16")  # libtiff writes a line to stderr for every damaged one
_YCBCR = 6  # unless they are JPEGs, libtiff reads such colours past any damage, and does not say so


class BoundedFile(io.BytesIO):
    """A picture's bytes, for Pillow, with a limit on the number of reads.

    Attributes:
        scans: The number of a JPEG's scans.

    Raises:
        Refusal: `corrupt_picture`, also from `read`.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)
        self._reads_left = MOST_READS_TO_OPEN
        self._copied_left = MOST_COPIED
        _require_few_values(data)
        self.scans = _scans(data) if data.startswith(b"\xff\xd8") else 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise _too_many("pieces")
        piece = super().read(size)
        # Pillow reads the one as a whole, and of the other the length and the name first.
        if piece.startswith(b"Exif\0\0") or (len(piece) == 8 and piece.endswith(b"iCCP")):
            self._copied_left -= 1
            if self._copied_left < 0:
                raise _too_many("pieces")
        return piece

    def allow_decoding(self, picture: ImageFile.ImageFile) -> None:
        """Lets the pixels be read. Raises: Refusal: `corrupt_picture` or `not_a_picture`: Reading would take long."""
        self._reads_left = MOST_READS
        if self.scans > USUAL_SCANS and self.scans * picture.height * picture.width > MOST_SCANNED_PIXELS:
            raise _too_many("scans")
        if isinstance(picture, _tiff.TiffImageFile):
            tags = picture.tag_v2
            places = tags.get(_tiff.TILEOFFSETS, tags.get(_tiff.STRIPOFFSETS, ()))
            sizes = tags.get(_tiff.TILEBYTECOUNTS, tags.get(_tiff.STRIPBYTECOUNTS, ()))
            if len(places) > MOST_STRIPS or sum(sizes) > MOST_OVERLAP * self._size:
                raise _too_many("strips or tiles")
            compression = picture.info.get("compression")
            if compression in _FAXES:
                raise Refusal("not_a_picture", "The TIFF is compressed as a fax. Use another compression, or PNG.")
            if tags.get(_tiff.PHOTOMETRIC_INTERPRETATION) == _YCBCR and compression not in ("raw", "jpeg"):
                raise Refusal("not_a_picture", "The TIFF's YCbCr colours are not compressed as JPEG. Save it as RGB.")
        elif any(tile.codec_name == _SLOW for tile in picture.tile):
            raise Refusal("not_a_picture", "The BMP is run-length encoded. Send it uncompressed, or as PNG.")


def occurrences(what: bytes, data: bytes) -> int:
    """Returns: How often some bytes, whose end never looks like their beginning, occur in a file."""
    return sum(data.count(what, start, start + SEARCHED + len(what) - 1) for start in range(0, len(data), SEARCHED))


def _require_few_values(data: bytes) -> None:
    """Raises: Refusal: The bytes are a TIFF whose first directory has a tag of too many numbers: all would be read."""
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


def _scans(jpeg: bytes) -> int:
    """Looks no further than a JPEG's end: a phone may have put a film after it, whose bytes can look like anything.

    Returns:
        The number of the JPEG's scans.

    Raises:
        Refusal: It has so many scans, markers or colours that reading it would take long.
    """
    position, scans = 2, 0
    for _ in range(MOST_MARKERS):
        found = _next_marker(jpeg, position)
        if found is None:
            return scans
        marker = found[1][0]
        if marker == _END_OF_IMAGE and scans:  # Pillow ignores one before any scan
            return scans
        scans += marker == _START_OF_SCAN
        if scans > MOST_SCANS:
            raise _too_many("scans")
        position = found.end()
        if marker in _WITH_LENGTH:  # libjpeg skips what follows too, whatever it looks like
            length = int.from_bytes(jpeg[position : position + 2], "big")
            if marker in _FRAMES and length > LONGEST_FRAME:
                raise _too_many("colours")
            position += max(2, length)
    raise _too_many("markers")


def _next_marker(jpeg: bytes, position: int) -> re.Match[bytes] | None:
    for start in range(position, len(jpeg), SEARCHED):
        if (found := _MARKER.search(jpeg, start, start + SEARCHED + 1)) is not None:
            return found
    return None


def _too_many(pieces: str) -> Refusal:
    return Refusal("corrupt_picture", f"The picture's file has too many {pieces}. Save it again.")
