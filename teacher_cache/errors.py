"""The errors that a user can act on: each message says what was got, expected, and what to do."""

_MOST_SHOWN = 200
_LONGEST = 3000
"""Characters of a message that are shown: what a stranger's file makes longer says no more."""


def printable(name: str) -> str:
    """A name of a file with everything spelt out that a terminal would not show, or would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def shortened(value: object) -> str:
    """What a stranger wrote where something else was expected, as Python spells it, its begin."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"


def bounded(text: str) -> str:
    """A message, or its begin and its end, which says what to do, where it is too long to read."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 800]} ... ({len(text):,} characters) ... {text[-700:]}"


def reason_of(error: BaseException) -> str:
    """What an exception says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def printable_lines(text: str) -> str:
    """A message with every character spelt out that a terminal would obey; its lines stay lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def repair_advice(place: object) -> str:
    """What to do about something damaged in the cache at a place."""
    return (
        f"run `verify-cache {place} --repair`, then the same cache-teacher command, which puts "
        "back what is missing"
    )


class UserError(Exception):
    """A mistake or mishap outside the code: the command line prints its message, no traceback.

    It is no ValueError, so that whoever expects damaged bytes does not catch an advice instead.
    """

    exit_code = 1


class CacheError(UserError):
    """A cache that cannot be used as asked."""


class MissingRecords(CacheError):
    """Records that the ledger does not name: not filled yet, or never asked for."""


class DamagedRecords(CacheError):
    """Records whose bytes are not those that the ledger committed."""


class UnexpectedFile(CacheError):
    """Something that is not the regular file, or the folder, that a cache has in its place.

    A symbolic link, a pipe, a device, or a file that is longer than it can be: it is never read.
    """

    def __init__(self, place: str, key: str, found: str) -> None:
        super().__init__(place, key, found)  # so that it can be pickled
        self.key = key
        """Where it lies, below the cache."""
        self.found = found
        """What it is, as the end of a sentence that begins with its key."""

    def __str__(self) -> str:
        place, key, found = self.args
        return (
            f"{place}/{printable(key)} {found}: look at it and take it away, or run "
            f"`verify-cache {place} --repair`"
        )


class UnexpectedFolder(UnexpectedFile):
    """Something that is no folder where a cache has one; whole blocks may lie behind it."""

    def __str__(self) -> str:
        place, key, found = self.args
        return (
            f"{place}/{printable(key)} {found}: put the folder itself in its place; a link inside "
            "a cache is never followed, and no repair takes it away"
        )


class ReplayRefused(CacheError):
    """A replay that would not show the student what the teacher saw."""


class ImagesChanged(ReplayRefused):
    """Images whose bytes are not those that the teacher read."""


class StoreError(CacheError):
    """An object store that refuses, or that did not answer for as long as was agreed."""


class LocationError(CacheError):
    """A path or URL that no cache can have."""

    exit_code = 2


class StoppedTogether(UserError):
    """Another process of the job was asked to stop, so this one stopped after the same step."""
