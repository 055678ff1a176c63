"""Where a job's wall time goes, in shares that add up to at most one."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by name since the last look, on one thread.

    What other threads, processes and the device do meanwhile is not counted: a share says for what
    the job's loop itself was held up. Work that is hidden behind other work costs nothing here.
    """

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Count what happens inside under `name`; not to be nested."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] += time.perf_counter() - started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the time inside out of the wall time that shares are of."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - started

    def shares(self, *names: str) -> dict[str, float]:
        """Each name's share of the wall time since the last look, 0 to 1; the count starts anew.

        `names` are there even when nothing was counted under them.
        """
        now = time.perf_counter()
        wall_s = max(now - self._since, 1e-9)
        spent = dict.fromkeys(names, 0.0) | self._spent
        self._spent.clear()
        self._since = now
        return {f"{name}_share": round(seconds / wall_s, 4) for name, seconds in spent.items()}
