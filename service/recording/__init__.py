"""A running job writes its record.

recorder        `record_job`
outbox          what a process has to say
tally           figures of a process, from its steps
outbox_writer   when an outbox is stored, and what happens where that fails
record_writer   what is stored: the whole record, or a rank's row
environment     commit and library versions
redaction       what a record must not hold
log_tail        the end of its log, and why it failed
"""
