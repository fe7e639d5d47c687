"""A limit on how much of something is in use at a time."""

import threading


class Budget:
    """A bound on what is held at once, such as pixels.

    A sole holder always gets its share, however large: what can never fit is refused elsewhere, with its own reason.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._used = 0

    @property
    def used(self) -> int:
        return self._used

    def _add(self, own: int, amount: int) -> bool:
        with self._lock:
            others = self._used - own
            if amount > 0 and others and self._used + amount > self.limit:
                return False
            self._used += amount
        return True


class Share:
    """A part of a budget, at first nothing; `amount` is for reading. One thread at a time holds it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.amount = 0

    def grow(self, amount: int) -> bool:
        """Returns: Whether the budget had that much more; if not, the share stays as it is."""
        fits = self.budget._add(self.amount, amount)
        self.amount += amount if fits else 0
        return fits

    def shrink(self, amount: int) -> None:
        """Keeps at most `amount`."""
        if amount < self.amount:
            self.budget._add(self.amount, amount - self.amount)
            self.amount = amount
