"""Connections that cost nothing for long: limits in time and number that uvicorn does not have.

A connection that sends no request, half a request or a body that nobody reads is closed after
`REQUEST_TIMEOUT_S`, however slowly it goes on sending. Beyond `most_connections` the one that has
waited for its request for the longest makes room.
"""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S = 10.0
"""From the connection, or the end of the answer before, to a whole request's head."""
ANSWER_TIMEOUT_S = 60.0
"""From a request's head to the end of its answer, read by whoever asked."""
CONNECTIONS = 512


def most_connections() -> int:
    """Return how many connections are kept: files are needed for the records, too."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if allowed < 0 else max(1, min(CONNECTIONS, allowed // 2))


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 over one connection, whose every wait ends."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._stage: tuple[int, bool] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether it holds no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def since_s(self) -> float:
        """When its present wait ends, by the loop's clock: the least has waited for longest."""
        return self._timer.when() if self._timer else 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; make room for it."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > most_connections():
            idle = [each for each in self.connections if each.waits and each is not self]  # type: ignore[union-attr]
            min(idle, key=lambda each: each.since_s, default=self).give_up()  # type: ignore[union-attr]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what was sent, which prolongs nothing unless it completes a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._watch()
        super().on_response_complete()
        self._watch()  # the next one may have been there already

    def give_up(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def _watch(self) -> None:
        """Start the clock anew where the connection has come to another stage."""
        stage = (id(self.cycle), self.waits)
        if stage == self._stage:
            return
        self._stage = stage
        if self._timer is not None:
            self._timer.cancel()
        limit_s = REQUEST_TIMEOUT_S if self.waits else ANSWER_TIMEOUT_S
        self._timer = self.loop.call_later(limit_s, self.give_up)
