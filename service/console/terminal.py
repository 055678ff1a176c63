"""Where a job is, for who started or watches it: a bar on a terminal, plain lines elsewhere.

On a terminal two lines are kept up to date, without colour where NO_COLOR is set. Elsewhere, as in
a log file, there is one line every 30 s, or as soon as another percent is done and 5 s have passed.
"""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SHOWN = ("loss", "ce", "kd", "lr", "images_per_s", "ema_top1", "top1", "waiting_for_view")
"""The metrics that have a place on the line, in this order."""
MUCH_WAITING = 0.1
"""The share of time spent waiting for images above which the line says so."""
_LISTED = 8
"""Of a table within a table so many entries are shown to people; JSON has all of them."""
_REFRESH_S = 0.1
_PERCENT_S, _LINE_S = 5.0, 30.0


class Progress(Protocol):
    """What a job says of itself."""

    @property
    def done(self) -> int:
        """How much of `total` is finished."""

    @property
    def total(self) -> int:
        """How much there is to do."""

    @property
    def unit(self) -> str:
        """What `done` counts."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last figures by name."""

    @property
    def resumed(self) -> int:
        """How much was done before this run."""


class ProgressDisplay:
    """Shows one job's progress on stderr, as often as it is worth reading: a context manager."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._started_s = self._shown_s = time.monotonic()
        self._percent = -1
        self._ended = False
        self._metrics: dict[str, float] = {}
        console = Console(stderr=True, highlight=False)
        moves = sys.stderr.isatty() and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False) if moves else None

    def show(self, progress: Progress) -> None:
        """Print where the job is, if it is time to, at the rate since this display was made."""
        done = progress.done - progress.resumed
        rate = done / max(time.monotonic() - self._started_s, 1e-9)
        left_s = (progress.total - progress.done) / rate if rate else 0.0
        self.show_at(progress, rate, left_s)

    def show_at(self, progress: Progress, rate: float | None, left_s: float | None) -> None:
        """Print where the job is, if it is time to, at a rate in units a second that is known."""
        starts_waiting = "waiting_for_view" in progress.metrics.keys() - self._metrics.keys()
        self._metrics.pop("waiting_for_view", None)
        self._metrics.update(progress.metrics)
        now_s, percent = time.monotonic(), 100 * progress.done // max(progress.total, 1)
        waited_s = now_s - self._shown_s
        if self._live is not None:
            due = waited_s > _REFRESH_S
        else:
            due = waited_s > (_PERCENT_S if percent > self._percent else _LINE_S)
        ends = progress.done == progress.total and not self._ended
        if not (due or starts_waiting or ends):
            return
        self._ended = self._ended or ends
        self._shown_s, self._percent = now_s, percent
        figures = spell({name: self._metrics[name] for name in SHOWN if name in self._metrics})
        if (waited := self._metrics.get("data_wait_share", 0.0)) > MUCH_WAITING:
            figures += f"  data_wait {waited:.0%}"
        with suppress(OSError):  # nobody reads it any more; the job goes on
            self._print(progress, _place(progress, rate, left_s), figures)

    def __enter__(self) -> Self:
        """Draw nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it was last drawn, and the cursor as it was."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def _print(self, progress: Progress, place: str, figures: str) -> None:
        if self._live is None:
            line = f"{self._kind} {place}  {figures}".rstrip()
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the one who prints
            return
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1, min_width=4)
        head.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=max(progress.total, 1), completed=progress.done)
        head.add_row(Text(self._kind, "bold"), bar, Text(place))
        rest = [Text(f"  {figures}", "dim")] if figures else []
        self._live.update(Group(head, *rest))
        if not self._live.is_started:
            self._live.start()
        self._live.refresh()


def _place(progress: Progress, rate: float | None, left_s: float | None) -> str:
    """Return percent, counts, rate and time left; what is not known is left out."""
    parts = [
        f"{100 * progress.done / max(progress.total, 1):3.0f}%",
        f"{progress.done:,}/{progress.total:,} {progress.unit}",
    ]
    if rate is not None:
        parts.append(f"{rate:,.1f}/s")
    if left_s is not None:
        parts.append(f"{clock(left_s)} left")
    return "  ".join(parts)


def spell(facts: Mapping[str, Any]) -> str:
    """Return `name value` pairs on one line, floats to four digits.

    None stands for a measured value that is not finite: JSON has no word for one.
    """
    return "  ".join(
        f"{name} {_short(value)}"
        for name, value in facts.items()
        if value is None or isinstance(value, str | int | float)
    )


def _short(value: float | str | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spell_lines(facts: Mapping[str, Any]) -> str:
    """Return a line a fact; of a table within the table only its first entries."""
    width = max(map(len, facts))
    return "\n".join(f"{name.ljust(width)}  {_spelled(value)}" for name, value in facts.items())


def _spelled(value: object) -> str:
    if isinstance(value, dict):
        items = [f"{key}: {item}" for key, item in value.items()]
        more = [f"... and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
        return "  ".join([*items[:_LISTED], *more]) or "none"
    return f"{value:,}" if type(value) is int else str(value)


def clock(seconds: float) -> str:
    """Return a span of time as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
