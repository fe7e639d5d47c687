"""How much of something is in use at a time, and no more."""

import threading


class Budget:
    """A bound on what is held together: pixels, say.

    One holder always gets its share, however large: what can never fit is refused elsewhere, with its own reason.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._used = 0

    @property
    def used(self) -> int:
        return self._used

    def take(self, amount: int) -> "Share | None":
        """Returns: The share; None where the budget has not that much left."""
        with self._lock:
            if self._used and self._used + amount > self.limit:
                return None
            self._used += amount
        return Share(self, amount)

    def _give_back(self, amount: int) -> None:
        with self._lock:
            self._used -= amount


class Share:
    """A part of a budget. One thread at a time holds it."""

    def __init__(self, budget: Budget, amount: int) -> None:
        self._budget = budget
        self._amount = amount

    def shrink(self, amount: int) -> None:
        """Keeps at most `amount`."""
        if amount < self._amount:
            self._budget._give_back(self._amount - amount)
            self._amount = amount
