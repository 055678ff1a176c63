"""Job records in SQLite or PostgreSQL.

job_store      `JobStore`: records written
reader         records read
connections    engines and connections, and the way from an older schema
schema         the tables
status_sql     stale and crashed, worked out by the database
rank_rows      the processes of a job
series         metrics over steps
events         what happened to a job, and the end of its log
removal        a job's record taken out
kind_summary   all jobs in a few figures
"""
