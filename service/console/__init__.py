"""Jobs on the command line.

commands       `cli.py jobs ...`
job_source     where those commands read: a service, or the database
stored_jobs    the database, in the words of the service
job_text       jobs as tables and pages of text
housekeeping   old jobs removed, jobs written out
watch          one job, followed to its end
runner         a job that is run: shown, recorded, stopped
terminal       its progress on a terminal
stop           signals, turned into an orderly end
"""
