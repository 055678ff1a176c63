"""Connections to the database of job records.

database     `Database`: lends connections, and knows which database it is
engines      SQLite and PostgreSQL as SQLAlchemy's engines
mounts       file systems that SQLite cannot trust
migrations   numbered steps from an older schema
"""
