"""Worker processes that render parts of requests into shared memory.

Each worker has a pipe of its own and shares no lock with another, so nobody waits for a worker that
is killed, whenever that is. No worker outlives the process that started it. torch is not imported
here, so that a spawned worker starts fast.

G views, B rows.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.loading.renderers import Marks, Renderer, Request
from teacher_cache.loading.shared_memory import SharedBytes

logger = logging.getLogger(__name__)

MOST_UNANSWERED = 32
"""Parts that a worker may have at once: so many messages fit into a pipe, so `give` never waits."""
ORPHAN_CHECK_S = 1.0
"""How often a worker looks whether its parent lives. The end of its pipe does not tell a forked
worker, because its siblings have copies of the pipe's other end."""
PATIENCE_S = 0.5
"""How long workers may take to end before they are killed; nothing is lost with them."""


class WorkerDied(UserError):
    """A worker process was killed, ran out of memory, or crashed in a library."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some rows of one request, and the place of their pixels in the shared memory."""

    sequence: int
    """The number of the request."""
    number: int
    """The number of the part within its request."""
    request: Request
    start: int
    """First byte of the whole request's pixels in the shared memory."""
    shape: tuple[int, int, int, int, int]
    """(G, B, H, W, 3) of the whole request."""
    first: int
    """Which of the request's B rows is the first of this part."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A worker's answer to a part: its marks, or the error that prevented them."""

    sequence: int
    number: int
    marks: Marks | None
    error: UserError | str | None = None


class Workers:
    """The worker processes, and the parts that each has been given and has not answered yet."""

    def __init__(
        self,
        renderer: Renderer,
        memory: SharedBytes,
        processes: Sequence[BaseProcess],
        connections: Sequence[Connection],
    ) -> None:
        self.renderer = renderer
        self.memory = memory
        self.processes = processes
        self.connections = connections
        self.unanswered: list[deque[Part]] = [deque() for _ in processes]
        # It also runs when nothing refers to this object any more, and at exit, before
        # multiprocessing joins its processes.
        self._end = util.Finalize(self, _end, (processes, connections), exitpriority=20)

    def give(self, part: Part) -> bool:
        """Send a part to the worker with the fewest; False if each has as many as it may have."""
        number = min(range(len(self.unanswered)), key=lambda n: len(self.unanswered[n]))
        if len(self.unanswered[number]) == MOST_UNANSWERED:
            return False
        try:
            self.connections[number].send(part)
        except OSError:
            raise self._died(number) from None
        self.unanswered[number].append(part)
        return True

    def answers(self, timeout_s: float | None) -> list[Answer]:
        """Wait for at least one answer and return all there are; none once the time is over.

        Raises:
            WorkerDied: a worker's process has ended.
            UserError: a worker met a mistake that the user can mend.
            RuntimeError: any other error in a worker, with its traceback.
        """
        numbers: dict[Any, int] = {c: n for n, c in enumerate(self.connections)}
        numbers |= {process.sentinel: n for n, process in enumerate(self.processes)}
        found = []
        for ready in wait(list(numbers), timeout_s):
            number = numbers[ready]
            if not isinstance(ready, Connection):
                raise self._died(number)  # what became ready is the sentinel: the process has ended
            try:
                answer: Answer = self.connections[number].recv()
            except (EOFError, OSError):
                raise self._died(number) from None
            self.unanswered[number].popleft()
            if isinstance(answer.error, UserError):
                raise answer.error
            if answer.error is not None:
                raise RuntimeError(f"in loader worker {number}:\n{answer.error}")
            found.append(answer)
        return found

    def close(self) -> None:
        """End all workers now, whatever they are doing."""
        self._end()

    def _died(self, number: int) -> WorkerDied:
        process, parts = self.processes[number], self.unanswered[number]
        process.join(PATIENCE_S)
        rows = [row for part in list(parts)[:1] for row in part.request.rows.tolist()]
        images = ""
        if rows:
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            images = f" while it had {self.renderer.name_of(rows[0])}{more} at hand"
        return WorkerDied(
            f"loader worker {number} of {len(self.processes)} (process {process.pid}) "
            f"{_how_it_ended(process.exitcode)}{images}: {_advice(process.exitcode)}; "
            "what was saved last is kept, and the same command continues from it"
        )


def start_workers(
    renderer: Renderer, memory: SharedBytes, *, workers: int, start_method: str | None
) -> Workers:
    """Start processes that render into `memory`.

    Args:
        renderer: inherited where processes are forked, pickled elsewhere.
        memory: where the pixels go.
        workers: how many.
        start_method: fork, forkserver or spawn; None: this Python's default.
    """
    context: Any = multiprocessing.get_context(start_method)
    forked = context.get_start_method() == "fork"
    processes: list[BaseProcess] = []
    ours: list[Connection] = []
    try:
        for number in range(workers):
            here, there = context.Pipe()
            ours.append(here)
            inherited = tuple(ours) if forked else ()
            process = context.Process(
                target=_work,
                args=(renderer, memory, there, inherited),
                name=f"retort-loader-{number}",
                daemon=True,
            )
            process.start()
            there.close()
            processes.append(process)
    except BaseException:
        _end(processes, ours)
        raise
    return Workers(renderer, memory, processes, ours)


def _work(
    renderer: Renderer, memory: SharedBytes, connection: Connection, inherited: Sequence[Connection]
) -> None:
    """Receive parts and send answers, until the pipe is closed or the parent is gone."""
    for parents_end in inherited:
        parents_end.close()
    # Ctrl-C and batch systems signal the whole process group. The parent finishes its step first
    # and needs the workers for it, so they ignore the signals and end with their pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()
    try:
        while True:
            connection.send(_answer(renderer, memory, connection.recv()))
    except (EOFError, OSError):
        return  # the parent is gone, or has closed the pipe


def _end_with_the_parent(parent: int) -> None:
    """End this process once its parent has ended, even if the main thread hangs in a read."""
    starter = multiprocessing.parent_process()
    ends = [starter.sentinel] if starter is not None else []
    while not wait(ends, ORPHAN_CHECK_S) and os.getppid() == parent:
        pass
    os._exit(1)


def _answer(renderer: Renderer, memory: SharedBytes, part: Part) -> Answer:
    whole = np.ndarray(part.shape, np.uint8, memory.memory, part.start)
    rows = slice(part.first, part.first + len(part.request.rows))
    try:
        marks = renderer.render_into(part.request, whole[:, rows])
    except UserError as error:
        return Answer(part.sequence, part.number, None, error)
    except Exception:  # noqa: BLE001 - it is raised again, in the parent
        return Answer(part.sequence, part.number, None, traceback.format_exc())
    return Answer(part.sequence, part.number, marks)


def _end(processes: Sequence[BaseProcess], connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        if process.is_alive():
            process.kill()
    for process in processes:
        # not for ever: a process that waits for a dead disk cannot be killed
        process.join(PATIENCE_S)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is None:
        return "closed its pipe"
    if exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _advice(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return (
            "most often the system ran out of memory (dmesg tells): lower loader.workers or "
            "loader.memory_mb"
        )
    if exitcode in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL):
        return "a library crashed, perhaps on one of these images: look at them"
    return "run it again, with loader.workers = 0 if it happens again"
