"""The writer's figures, from reports whose instants are given: no test here waits for a clock."""

import pytest

from service.jobs import JobRecord, State
from service.recording.outbox import Change, JobIdentity, Outbox, Pace, Report
from service.recording.record_writer import RecordWriter
from service.records.job_store import open_store

JOB = JobIdentity("0" * 32, "cache-teacher", "records", "gpu-1", 7, {})


def stored(url: str, running_at_s: float, reports: list[Report], end: State | None) -> JobRecord:
    """Return what is stored of a job that made these reports."""
    outbox = Outbox()
    outbox.changes.append(Change(State.RUNNING, None, running_at_s))
    outbox.reports.extend(reports)
    if end is not None:
        outbox.changes.append(Change(end, None, reports[-1].at_s))
    outbox.closing.set()
    store = open_store(url)
    RecordWriter(store, JOB, outbox, Pace()).run()
    found = store.get(JOB.id)
    assert found is not None
    return found.record


def report(done: int, at_s: float, resumed: int = 0) -> Report:
    return Report(done, 10_000, resumed, {}, at_s)


def test_work_done_before_a_resume_is_left_out_of_the_rate(url: str) -> None:
    record = stored(url, 100.0, [report(5000, 110.0, 5000), report(5100, 120.0, 5000)], None)
    assert record.rate == pytest.approx(10.0)
    assert record.eta_s == pytest.approx(490.0)
    assert record.resumed == 5000


def test_a_job_that_reports_only_after_a_long_first_unit_has_a_rate_by_then(url: str) -> None:
    record = stored(url, 100.0, [report(5600, 160.0, 5000)], None)
    assert record.rate == pytest.approx(10.0)
    assert record.eta_s == pytest.approx(440.0)


def test_rate_and_eta_are_null_while_the_job_warms_up(url: str) -> None:
    record = stored(url, 100.0, [report(0, 101.0), report(900, 104.0)], None)
    assert (record.done, record.rate, record.eta_s) == (900, None, None)


def test_a_job_that_has_ended_keeps_its_rate_and_has_no_eta(url: str) -> None:
    record = stored(url, 0.0, [report(0, 0.0), report(9000, 90.0)], State.FAILED)
    assert record.rate == pytest.approx(100.0)
    assert record.eta_s is None
    assert record.state is State.FAILED
