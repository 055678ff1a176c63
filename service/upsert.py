"""INSERT ... ON CONFLICT, which SQLite and PostgreSQL spell alike and SQLAlchemy keeps apart."""

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_or_not(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert into `table` in the words of the connection's database."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
