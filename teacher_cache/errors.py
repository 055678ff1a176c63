"""The errors that a user can act on: each message says what was got, expected, and what to do."""


class UserError(ValueError):
    """A mistake or mishap outside the code: the command line prints its message, no traceback."""

    exit_code = 1


class CacheError(UserError):
    """A cache that cannot be used as asked."""


class MissingRecords(CacheError):
    """Records that the ledger does not name: not filled yet, or never asked for."""


class DamagedRecords(CacheError):
    """Records whose bytes are not those that the ledger committed."""


class ReplayRefused(CacheError):
    """A replay that would not show the student what the teacher saw."""


class StoreError(CacheError):
    """An object store that refuses, or that did not answer for as long as was agreed."""


class LocationError(CacheError):
    """A path or URL that no cache can have."""

    exit_code = 2


class StoppedTogether(UserError):
    """Another process of the job was asked to stop, so this one stopped after the same step."""
