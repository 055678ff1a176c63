"""How a user asks a job to stop: the first SIGINT or SIGTERM, heeded between two steps."""

import signal
from types import FrameType
from typing import Any


class StopSignal:
    """The first SIGINT or SIGTERM asks for a stop; the second one has its usual effect.

    A context manager: outside it signals are what they were.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        """Take the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
