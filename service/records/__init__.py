"""Job records in SQLite or PostgreSQL.

job_store      `JobStore`: records written
reader         records read
database       engines and connections
mounts         file systems that SQLite cannot trust
schema         the tables
migrations     from an older schema to this one
rank_rows      the processes of a job
series         metrics over steps
events         what happened to a job, and the end of its log
kind_summary   all jobs in a few figures
"""
