"""The end of a job's log and the traceback of its failure, as its record may show them."""

import logging
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from service.recording.outbox import LINES_KEPT, Outbox
from service.recording.redaction import public_text

LINE_CHARACTERS = 1000
"""A line of the log or of a traceback is cut to so many."""


class LogTail(logging.Handler):
    """Keeps the last lines that a process logs, whatever logger they come from."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record: its message, and the traceback that comes with it."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += "\n" + public_traceback(record.exc_info[1])
            self.keep(text, record.levelname)
        except Exception:  # noqa: BLE001 - a record of the wrong form is the logger's to tell
            self.handleError(record)

    def keep(self, text: str, level: str = "INFO") -> None:
        """Keep the lines of a text, the time before each."""
        now = time.strftime("%H:%M:%S")
        for line in text.splitlines()[-LINES_KEPT:]:
            self._outbox.lines.append(f"{now} {level} {public_text(line, LINE_CHARACTERS)}")
            self._outbox.lines_said += 1


def public_traceback(error: BaseException) -> str:
    """Return the traceback of an error, without folders, and of a long one the end."""
    told = traceback.TracebackException.from_exception(error, limit=-50)
    lines = "".join(told.format()).splitlines()
    for root in sorted(_roots(), key=len, reverse=True):
        lines = [line.replace(root, "") for line in lines]
    return "\n".join(public_text(line, LINE_CHARACTERS) for line in lines[-LINES_KEPT:])


def _roots() -> Iterable[str]:
    """The folders that modules come from: a file's path below one says which module it is."""
    return {f"{Path(entry).absolute()}/" for entry in sys.path}
