"""What kind of answer a request wants: JSON, or the picture with its boxes."""

from functools import lru_cache

from app.errors import Refusal

JSON, JPEG, PNG = "application/json", "image/jpeg", "image/png"
ANSWERS = (JSON, JPEG, PNG)  # if an Accept header prefers several equally, the first of these
LONGEST = 2048  # characters of an Accept header; a browser's has about a hundred


@lru_cache(maxsize=256)
def answer_type(accept: str) -> str:
    """Returns: The one of `ANSWERS` that an Accept header prefers. Raises: Refusal: `not_acceptable`."""
    if len(accept) > LONGEST:
        raise Refusal("not_acceptable", f"The header Accept has more than {LONGEST} characters.")
    liked = {answer: _preference(answer, accept) for answer in ANSWERS}
    if liked[JSON] > 0 and "text/html" in accept.lower():
        return JSON  # what a library says unless told otherwise: Java's URLConnection prefers pictures to all but pages
    best = max(ANSWERS, key=lambda answer: liked[answer])
    if liked[best] <= 0:
        raise Refusal("not_acceptable", f"Accept: {accept[:100]} allows none of {', '.join(ANSWERS)}.")
    return best


def _preference(media_type: str, accept: str) -> float:
    """Returns: The quality, 0 to 1, that an Accept header gives a media type (RFC 9110, section 12.5.1)."""
    if not accept.strip():
        return 1.0
    names = ("*/*", media_type.partition("/")[0] + "/*", media_type)  # the most specific range decides
    found = (-1, 0.0)
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name not in names:
            continue
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        found = max(found, (names.index(name), quality))
    return found[1]
