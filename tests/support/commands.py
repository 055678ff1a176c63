"""`cli.py` in processes of their own, started as a user does or forked from a warm one."""

import atexit
import functools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from repository import REPOSITORY

CLI = str(REPOSITORY / "cli.py")


def command(*arguments):
    """The command line that runs `cli.py`."""
    return [sys.executable, CLI, *map(str, arguments)]


def cli_environment(folder):
    """Records in the test's folder, one thread, and the CPU, whose bits are compared."""
    return {
        **os.environ,
        "RETORT_DB": f"sqlite:///{folder}/jobs.db",
        "RETORT_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def start(folder, arguments, *, env=None, stderr=subprocess.PIPE, start_new_session=False):
    """Start `cli.py`, with pipes for its output: a real process, without 3 s of imports.

    Args:
        folder: where it works, and keeps its records.
        arguments: the command's.
        env: what is different from `cli_environment`.
        stderr: a pipe of its own, or `subprocess.STDOUT`.
        start_new_session: give it a process group of its own.
    """
    request = {
        "argv": [CLI, *map(str, arguments)],
        "cwd": str(folder),
        "env": cli_environment(folder) | (env or {}),
        "start_new_session": start_new_session,
    }
    return Forked(request, own_stderr=stderr == subprocess.PIPE)


class Forked:
    """A process of `zygote.py`'s, in `subprocess.Popen`'s words."""

    def __init__(self, request, *, own_stderr):
        output, stdout = os.pipe()
        errors, stderr = os.pipe() if own_stderr else (None, stdout)
        self._end, end = os.pipe()
        with Path(os.devnull).open() as stdin:
            self.pid = zygote().fork(request, [stdin.fileno(), stdout, stderr, end])
        for file in {stdout, stderr, end}:
            os.close(file)
        self.args = request["argv"]
        self.stdout = os.fdopen(output)  # the caller's to close, as Popen's
        self.stderr = os.fdopen(errors) if own_stderr else None
        self.returncode = None

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            status = os.read(self._end, 4)
            os.close(self._end)
            self.returncode = os.waitstatus_to_exitcode(struct.unpack("<i", status)[0])
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout=None):
        said = {}
        readers = [
            threading.Thread(target=lambda name=name, pipe=pipe: said.update({name: pipe.read()}))
            for name, pipe in (("stdout", self.stdout), ("stderr", self.stderr))
            if pipe is not None
        ]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for reader in readers:
                reader.join()
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        return said["stdout"], said.get("stderr")

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


class Zygote:
    """The warm process of this test process."""

    def __init__(self):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.control, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "tests/support/zygote.py"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def fork(self, request, descriptors):
        socket.send_fds(self.control, [json.dumps(request).encode()], descriptors)
        return struct.unpack("<i", self.control.recv(4))[0]

    def close(self):
        self.control.close()
        self.process.wait()


@functools.cache
def zygote():
    found = Zygote()
    atexit.register(found.close)
    return found


def sigkill(process):
    """End a process at once; its loader's orphans, which hold its pipes, are not waited for."""
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
