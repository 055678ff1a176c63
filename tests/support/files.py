"""Files of a small folder or bucket, below the meaning of a cache."""

import os
import socket

from teacher_cache.storage.ledger import (
    BlockEntry,
    BlockId,
    Owner,
    StoredFile,
    block_key,
    encode_block,
)

BLOCK = BlockId(3, 7)


KEY = block_key(BLOCK)


FILES = {"ids/c.3.7.0": b"ids of 32 rows", "check/c.3.7": b"checks"}


FIRST = {
    "labels/c.0": b"\0\1",
    "labels/zarr.json": b'{"labels": 1}',
    "ids/zarr.json": b'{"ids": 1}',
    "zarr.json": b'{"manifest": 1}',
}


def entry_of(files, host="a"):
    named = tuple(StoredFile.of(key, data) for key, data in files.items())
    return encode_block(BlockEntry(Owner("1", "2"), BLOCK, named, "3", {"host": host}, {}))


def files_in(root):
    """The bytes of every file but the workbench's."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "staging" not in path.parts
    }


def odd_file(path, kind):
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a symbolic link":
        path.symlink_to("/etc/hostname")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        folder = os.open(path.parent, os.O_RDONLY)  # a socket's own path is at most 108 bytes long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
