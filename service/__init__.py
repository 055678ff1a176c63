"""Jobs: recorded by whoever runs them, shown over HTTP, on a page and on the command line.

The folders stand on floors; each imports only from the floors below it. No torch, no numpy.

    console     the commands `jobs`, and a job on a terminal
    web         the HTTP service and its page
    recording   a running job writes its record
    records     the records in SQLite or PostgreSQL
    jobs        what a job is, what states it has, when it counts as stale; pure
"""

VERSION = "0.1.0"
"""Retort's; the service runs where Retort itself is not installed."""
