"""Which file system a file lies on, told from the kernel's table of mounts."""

import os
import re
from pathlib import Path

NETWORK = frozenset(
    word
    for line in (
        "9p afs beegfs ceph cifs coda fuse.cephfs fuse.gcsfuse fuse.glusterfs fuse.juicefs",
        "fuse.rclone fuse.s3fs fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs",
        "pvfs2 smb2 smb3 smbfs",
    )
    for word in line.split()
)
"""File systems that several hosts may write at once, where SQLite's WAL loses data."""


def network_mount(file: Path) -> str | None:
    """Return the network file system that `file` lies on; None on a local disk or where unknown."""
    try:
        table = Path("/proc/mounts").read_text(errors="surrogateescape")
    except OSError:  # not Linux
        return None
    kind = file_system(os.path.realpath(file), table)
    return kind if kind in NETWORK else None


def file_system(path: str, table: str) -> str | None:
    """Return the type of the file system of an absolute path, from the text of /proc/mounts.

    The deepest mount point wins, and of two at the same point the later one, which hides the other.
    """
    best, kind = -1, None
    for line in table.splitlines():
        columns = line.split(" ")
        if len(columns) < 3:
            continue
        # a space, tab, line feed or backslash in a name is spelled in octal
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), columns[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), columns[2]
    return kind
