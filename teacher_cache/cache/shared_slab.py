"""One slab a host: the first of its ranks reads a view into memory that the others map.

The memory is anonymous (Linux's memfd) and handed over a Unix socket without a file, so nothing has
to be cleaned up however a process ends, and the size of /dev/shm does not matter.
"""

import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from types import TracebackType
from typing import Any, Self

import numpy as np

from teacher_cache import errors
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.slab import Slab, read_slab, slab_of
from teacher_cache.errors import CacheError
from teacher_cache.format.layout import Memory, private_memory

Load = Callable[[Cache, int, Memory], Slab]
POLL_S = 0.2
_LONGEST_MESSAGE = 1 << 16


class SharedSlabs:
    """The slabs of one host's ranks, each of them in memory once.

    All ranks read the same views in the same order. A view is loaded when every living rank has
    asked for it, that is, when each is about to let go of the view before the last: a host holds
    two slabs, however many ranks it runs. With one rank, or without memfd, `read` just loads.
    """

    def __init__(
        self, name: str, *, local_rank: int, local_world_size: int, timeout_s: float = 600.0
    ) -> None:
        """Prepare; the ranks meet when they first read.

        Args:
            name: the same in all ranks of the host, and of no other job: a fresh random token.
            local_rank: this process among the host's, from 0; rank 0 reads the cache.
            local_world_size: how many they are.
            timeout_s: how long the ranks wait for each other to appear.
        """
        self._address = f"\0retort-slab-{name}"
        self._local_rank, self._followers = local_rank, local_world_size - 1
        self._timeout_s = timeout_s
        self._closed = Event()
        self._peers: list[socket.socket] | None = None
        self._is_shared = local_world_size > 1 and hasattr(os, "memfd_create")

    def read(self, cache: Cache, view: int, load: Load = read_slab) -> Slab:
        """A view's records; in shared memory they are read-only.

        Args:
            cache: the same in every rank.
            view: which view, the same in every rank.
            load: called in local rank 0 alone.

        Raises:
            CacheError: whatever `load` raised, in every rank; the ranks did not meet in time, ask
                for different views, or rank 0 died or was closed.
        """
        if not self._is_shared:
            return load(cache, view, private_memory)
        if self._peers is None:
            self._peers = self._meet()
        if self._local_rank:
            return self._receive(self._peers[0], cache, view)
        return self._load(self._peers, cache, view, load)

    def close(self) -> None:
        """Leave the others; a `read` that waits in another thread ends with CacheError soon."""
        self._closed.set()
        for peer in tuple(self._peers or ()):
            peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _meet(self) -> list[socket.socket]:
        deadline = time.monotonic() + self._timeout_s
        if self._local_rank:
            return [self._join(deadline)]
        peers: list[socket.socket] = []
        with _new_socket() as door:
            door.bind(self._address)
            door.listen(self._followers)
            while len(peers) < self._followers:
                self._require_open()
                try:
                    peer, _ = door.accept()
                except TimeoutError:
                    self._require_in_time(deadline, f"{len(peers) + 1} of {self._followers + 1}")
                    continue
                peer.settimeout(POLL_S)
                if _is_ours(peer):
                    peers.append(peer)
                else:
                    peer.close()
        return peers

    def _join(self, deadline: float) -> socket.socket:
        while True:
            self._require_open()
            peer = _new_socket()
            try:
                peer.connect(self._address)
            except (ConnectionRefusedError, TimeoutError, BlockingIOError):
                peer.close()
                self._require_in_time(deadline, "no rank 0")
                self._closed.wait(POLL_S)
                continue
            if not _is_ours(peer):
                peer.close()
                raise CacheError("the records' socket belongs to another user: start again")
            return peer

    def _load(self, peers: list[socket.socket], cache: Cache, view: int, load: Load) -> Slab:
        for peer in list(peers):
            request = self._message_of(peer)
            if request is None:  # it died, which is for its job to notice
                peers.remove(peer)
                peer.close()
            elif request["view"] != view:
                _send_all(peers, {"error": "CacheError", "text": _differing(view, request["view"])})
                raise CacheError(_differing(view, request["view"]))
        shared = _SharedMemory()
        try:
            slab = load(cache, view, shared.allocate)
            absent = np.array(sorted(slab.absent_rows), "<i8")
            shared.append(absent.tobytes())
            _send_all(peers, {"view": view, "absent": len(absent)}, shared.descriptor)
        except Exception as error:
            kind = type(error).__name__ if isinstance(error, CacheError) else "CacheError"
            _send_all(peers, {"error": kind, "text": str(error)[: _LONGEST_MESSAGE // 8]})
            raise
        finally:
            shared.close()
        for array in (slab.ids_NK, slab.logp_NK, slab.tail_NT, slab.check):
            array.flags.writeable = False
        return slab

    def _receive(self, leader: socket.socket, cache: Cache, view: int) -> Slab:
        with suppress(OSError):  # the answer, or its absence, will tell
            leader.send(json.dumps({"view": view}).encode())
        found: list[int] = []
        answer = self._message_of(leader, found)
        if answer is None:
            raise CacheError(
                "the process that reads the cache for this host's ranks has ended: see its "
                "message, and start the job again"
            )
        if "error" in answer:
            kind = getattr(errors, answer["error"], CacheError)
            raise kind(answer["text"])
        (descriptor,) = found
        layout = cache.layout
        try:
            mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        memory = np.frombuffer(mapped, np.uint8)
        arrays = layout.arrays_in(memory[: layout.nbytes])
        absent = memory[layout.nbytes :].view("<i8")[: answer["absent"]]
        return slab_of(layout, view, arrays, frozenset(absent.tolist()))

    def _message_of(
        self, peer: socket.socket, descriptors: list[int] | None = None
    ) -> dict[str, Any] | None:
        """The next message of a rank, and its descriptor; None where it has ended."""
        while True:
            self._require_open()
            try:
                data, found, _, _ = socket.recv_fds(peer, _LONGEST_MESSAGE, 1)
            except TimeoutError:
                continue
            except OSError:  # reset by its death, or closed by `close`
                self._require_open()
                return None
            if descriptors is not None:
                descriptors += found
            return json.loads(data) if data else None

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise CacheError("stopped while waiting for the records of a view")

    def _require_in_time(self, deadline: float, who: str) -> None:
        if time.monotonic() > deadline:
            raise CacheError(
                f"{who} of this host's ranks came for the cache's records within "
                f"{self._timeout_s:g} s: see the other ranks' messages, and start the job again"
            )


class _SharedMemory:
    """Anonymous memory behind a descriptor."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("retort-slab", os.MFD_CLOEXEC)
        self._size = 0

    def allocate(self, size: int) -> np.ndarray:
        """Zeros, in this process's arrays and behind the descriptor."""
        os.posix_fallocate(self.descriptor, 0, size)  # no memory: an OSError here, no SIGBUS later
        self._size = size
        return np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)

    def append(self, data: bytes) -> None:
        """Write behind what was allocated."""
        os.pwrite(self.descriptor, data, self._size)

    def close(self) -> None:
        """Let go of the descriptor; what is mapped stays."""
        os.close(self.descriptor)


def _new_socket() -> socket.socket:
    # a message is received whole or not at all, and the end of a process is received, too
    new = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new.settimeout(POLL_S)
    return new


def _is_ours(peer: socket.socket) -> bool:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.geteuid())


def _send_all(
    peers: list[socket.socket], message: dict[str, Any], descriptor: int | None = None
) -> None:
    for peer in peers:
        try:
            socket.send_fds(
                peer, [json.dumps(message).encode()], [] if descriptor is None else [descriptor]
            )
        except OSError:
            continue  # it died, which is for its job to notice


def _differing(mine: int, theirs: int) -> str:
    return f"the ranks of this host ask for different views, {mine} and {theirs}: start again"
