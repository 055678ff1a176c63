"""A file that a disk does not give until it is let go: by a lease, which open(2) waits for."""

import fcntl
import os
import signal


class SlowFile:
    """Whoever opens the file waits, for 45 s at most, until `release`."""

    def __init__(self, path):
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # the holder is told that somebody waits
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def release(self):
        fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def close(self):
        os.close(self.descriptor)  # ends the lease, too
