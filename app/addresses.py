"""The addresses that several modules share."""

DETECT = "/detect"
BATCH = "/detect/batch"
MODEL = "/model"
RELOAD = "/admin/reload"

PICTURES = frozenset({DETECT, BATCH})
"""Those that take pictures, and so need a place in the queue."""
KEYED = PICTURES | {MODEL, RELOAD}
"""Those that require a key, if any keys are set."""
