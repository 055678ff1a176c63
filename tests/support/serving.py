"""`cli.py serve` in a process of its own."""

import subprocess
import sys
import time

import httpx
from commands import cli_environment
from repository import REPOSITORY


class serving:
    """`cli.py serve` in a process that cannot import torch or anything else of the jobs'."""

    BLOCKED = ("torch", "torchvision", "timm", "zarr", "numcodecs", "numpy", "PIL", "student")

    def __init__(self, folder, port=None):
        self.folder, self.port = folder, port or free_port()

    def __enter__(self):
        code = (
            f"import sys; sys.modules.update(dict.fromkeys({self.BLOCKED}, None)); "
            f"sys.path.insert(0, {str(REPOSITORY)!r}); "
            f"sys.argv = ['cli.py', 'serve', '--port', '{self.port}']; import cli; cli.main()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env=cli_environment(self.folder),
            stderr=subprocess.PIPE,
            text=True,
        )
        url = f"http://127.0.0.1:{self.port}"
        for _ in range(200):
            try:
                httpx.get(f"{url}/livez")
            except httpx.TransportError:
                assert self.process.poll() is None, self.process.stderr.read()
                time.sleep(0.05)
            else:
                return url
        raise TimeoutError(url)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=10)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
