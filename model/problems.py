"""What is wrong with a data set, in words: every problem with its id, and what to do about each kind."""

import dataclasses
from collections import Counter

from app.images import FORMATS_TEXT

SHOWN = 10

ADVICE = {
    "duplicate id": "give each image and each category its own id and its own name",
    "missing picture": "put the files into the pictures' folder, or correct file_name",
    "unreadable picture": f"save it again ({FORMATS_TEXT} can be read), or remove the picture",
    "wrong size": "write the upright picture's size; an EXIF tag may turn a picture and so swap width and height",
    "unknown image id": "remove these annotations, or add their images",
    "unknown category id": "remove these annotations, or add their categories",
    "degenerate box": "remove boxes without width or height",
    "box outside": "COCO's bbox is [x, y, width, height], not [x1, y1, x2, y2]; with VOC and YOLO, check that the "
    "box belongs to this picture in its upright position",
    "duplicate box": "nothing to do: one of them is kept",
    "box under 1 px": "nothing to do, but it is not learnt if it stays under 1 px on the canvas",
    "fractions": "a bbox is in pixels of the upright picture, not in fractions of it",
    "class without boxes": "nothing to do, but the class is neither learnt nor measured",
    "class names alike": "give them one name if they mean the same: otherwise they are learnt as different classes",
    "name in another writing": "nothing to do, if these are the pictures that are meant",
    "unknown class": "train and val need the same class names",
}
UNREADABLE = {
    "COCO": "give every image id, file_name, width and height, every category id and name (1 to 200 characters), every "
    "annotation image_id, category_id, bbox [x, y, width, height] and iscrowd 0 or 1, or none",
    "VOC": "give every picture its size, and every object its name (1 to 200 characters) and bndbox",
    "YOLO": "a line is `class cx cy w h` or a polygon `class x1 y1 x2 y2 x3 y3 ...`, and a class name has 1 to 200 "
    "characters",
}
"""What to do about an unreadable entry, by the annotations' format."""
LOSING = {"unreadable entry", "duplicate id", "unknown category id", "degenerate box", "box outside", "fractions"}
"""Kinds that may cost a picture the box of an object."""
WARNINGS = {"duplicate box", "box under 1 px", "class without boxes", "class names alike", "name in another writing"}


@dataclasses.dataclass
class Problems:
    """Everything found wrong with one data set.

    Attributes:
        source: where its annotations lie, for the message.
        form: their format.
        errors: (kind, where) of problems that would train a wrong detector.
        warnings: (kind, where) of problems that would not.
    """

    source: str
    form: str = "COCO"
    errors: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    warnings: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def add(self, kind: str, where: str) -> None:
        (self.warnings if kind in WARNINGS else self.errors).append((kind, where))

    @property
    def objects_lost(self) -> bool:
        """Whether there are errors in which a picture stays, but not the box of something it shows."""
        return any(kind in LOSING and not where.startswith("image ") for kind, where in self.errors)

    def describe(self, found: list[tuple[str, str]]) -> str:
        """Some problems in words: how many of each kind, the first ten, and what to do."""
        kinds = Counter(kind for kind, _ in found)
        lines = [f"{self.source} has {', '.join(f'{number} x {kind}' for kind, number in kinds.items())}"]
        lines += [f"  {kind}: {where}" for kind, where in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  ... and {len(found) - SHOWN} more")
        return "\n".join(lines + [f"  what to do ({kind}): {self._advice(kind)}" for kind in kinds])

    def _advice(self, kind: str) -> str:
        return UNREADABLE[self.form] if kind == "unreadable entry" else ADVICE[kind]
