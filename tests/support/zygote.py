"""A process that has imported the heavy libraries, and forks itself for each command of a test.

Importing torch takes 3 s of a processor, and what tests look at is the command after that. The
forked process is as real as any: it has its own id, environment, folder, files and group, imports
Retort's own modules itself, runs `cli.py` as `__main__`, and dies of real signals.

    python zygote.py CONTROL_FD

A request is one message: JSON, with the descriptors of stdin, stdout, stderr and of a pipe into
which the end of the process is written, as four bytes of `waitpid`'s status. The answer is its id.
"""

import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from pathlib import Path

LARGEST = 1 << 20


def main():
    import zarr.storage  # noqa: F401  (imported for those who are forked)

    control = socket.socket(fileno=int(sys.argv[1]))
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    ends = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            reap(ends)
        if control in ready:
            message, descriptors, _, _ = socket.recv_fds(control, LARGEST, 4)
            if not message:  # whoever asks is gone
                return None
            request = json.loads(message)
            if (child := os.fork()) == 0:
                return request, descriptors
            control.send(struct.pack("<i", child))
            *files, ends[child] = descriptors
            for file in files:
                os.close(file)


def reap(ends):
    while ends:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        with os.fdopen(ends.pop(child), "wb") as end:
            end.write(struct.pack("<i", status))


def become(request, descriptors):
    """What the new process is, before its first line of Python."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request["start_new_session"]:
        os.setsid()
    for number, file in enumerate(descriptors[:3]):
        os.dup2(file, number)
    os.closerange(3, 4096)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


if __name__ == "__main__" and (asked := main()) is not None:
    become(*asked)
    runpy.run_path(sys.argv[0], run_name="__main__")
