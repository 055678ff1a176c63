"""From what a user types to a path on this machine."""

import re
from pathlib import Path

from teacher_cache.errors import LocationError, printable

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")


def local_path(text: str | Path) -> Path:
    """A file or folder of this machine; a leading `~` is the home folder, as in a shell.

    A shell leaves `~` alone in quotes and in `--out=~/run`, and TOML knows no shell.

    Raises:
        LocationError: an empty name, a URL, or a URL that lost a slash. A folder that is really
            called so is written with `./` before it.
    """
    name = str(text)
    shown = printable(name)
    if not name or "\0" in name:
        raise LocationError(f"got {name!r} as a path, expected the name of a file or folder")
    if found := _URL.match(name):
        scheme = found[1]
        raise LocationError(
            f"got {shown}, expected a path on this machine: only a cache may lie at a URL "
            f"({scheme}://BUCKET/PREFIX); write ./{shown} if a folder is called so"
        )
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise LocationError(
            f"got {shown}, expected a path ({error}): write ./{shown} if a folder is called so"
        ) from None
