"""How long pictures take at the moment, which shows whether a deadline can be kept."""

_WEIGHT = 0.1  # of the newest batch in the running means
_OUTLIER = 10  # times the mean; a longer batch counts as this: the machine slept, and will not in the next one


class Pace:
    """Running means over batches, which any number of threads note.

    Args:
        sessions: How many run batches at a time.

    Attributes:
        batch_s: How long a batch takes; 0 if unknown.
        picture_s: How long a picture takes while others wait behind it: over all sessions together, and with all that
            is done meanwhile, such as decoding them and refusing others; 0 if unknown.
    """

    def __init__(self, sessions: int) -> None:
        self.batch_s = 0.0
        self.picture_s = 0.0
        self._sessions = sessions
        self._last_ended = 0.0

    def expect(self, seconds: float, pictures: int = 1) -> None:
        """Before anything is known: how long a picture took, on one core, in a batch of `pictures`."""
        self.batch_s = seconds * pictures
        self.picture_s = seconds / self._sessions

    def note(self, begun: float, ended: float, pictures: int, cores: int, arrived: float) -> None:
        """Args: begun, ended: When the batch was run; arrived: when the last of its pictures came. All on one clock."""
        waited_throughout = arrived <= self._last_ended < ended
        # If they did, all the time since the last batch was theirs; else the sessions may have idled, and this is what
        # they would have taken if not.
        seconds = ended - self._last_ended if waited_throughout else (ended - begun) * cores / self._sessions
        self._last_ended = ended
        self.batch_s = _mean(self.batch_s, ended - begun)
        self.picture_s = _mean(self.picture_s, seconds / pictures)


def _mean(mean: float, newest: float) -> float:
    return mean + _WEIGHT * (min(newest, _OUTLIER * mean) - mean) if mean else newest
