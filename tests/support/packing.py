"""Tar files written member by member, the strange ones too."""

import io
import tarfile


def write_tar(path, *members, **options):
    """Members are (name, bytes), a TarInfo, or (TarInfo, bytes), in that order."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            name, data = member if isinstance(member, tuple) else (member, b"")
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def folder(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def pack(root, path):
    """A folder as tar, its own name left out, in no particular order."""
    files = sorted(root.rglob("*"), key=lambda file: file.name[::-1])
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, f"./{file.relative_to(root).as_posix()}", recursive=False)
    return path
