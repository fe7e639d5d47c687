"""The addresses that are more than pages."""

DETECT = "/detect"
BATCH = "/detect/batch"
MODEL = "/model"
RELOAD = "/admin/reload"

PICTURES = frozenset({DETECT, BATCH})
"""Those that take pictures, and so a place."""
KEYED = PICTURES | {MODEL, RELOAD}
"""Those that want a key, where there are keys."""
