"""From one schema to the next: numbered steps of additive SQL, taken by writers alone.

A step adds tables, indexes or columns that may be absent, and takes nothing away, so that a job of
an older Retort, which began before, goes on writing. All steps are taken in one transaction. The
text of a step never changes once it is released: what it makes is compared with what a new
database has.
"""

from collections.abc import Mapping

from sqlalchemy import Connection, text, update

from service.records.schema import SCHEMA_VERSION, schema_table

OLDEST_VERSION = 2
"""The schema that the first step begins with."""

STEPS: Mapping[int, tuple[str, ...]] = {
    3: (
        "CREATE TABLE logs (job VARCHAR(32){bytewise} NOT NULL, traceback VARCHAR, "
        "lines VARCHAR NOT NULL, PRIMARY KEY (job))",
    ),
}
"""By the version that a step leads to, its statements."""


def migrate(connection: Connection, version: int) -> None:
    """Take the steps from `version` to this Retort's, in the caller's transaction."""
    bytewise = ' COLLATE "C"' if connection.dialect.name == "postgresql" else ""
    for step in range(version + 1, SCHEMA_VERSION + 1):
        for statement in STEPS[step]:
            connection.execute(text(statement.format(bytewise=bytewise)))
    if version < SCHEMA_VERSION:
        connection.execute(update(schema_table).values(version=SCHEMA_VERSION))
