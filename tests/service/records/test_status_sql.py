"""What a job reads as is the same in the database's words and in the record's."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from service.jobs import Periods, State, Status
from service.records.job_store import JobStore
from service.records.schema import jobs_table
from service.records.status_sql import status_column

AGES_S = (0, 900, 1100, 3900, 4100, 10**6)


@pytest.mark.parametrize("periods", [Periods(1000, 4000), Periods(4000, 1000)])
def test_the_databases_status_is_the_records(
    any_store: JobStore, create: Callable[..., str], periods: Periods
) -> None:
    expected = {}
    for state in State:
        for age_s in AGES_S:
            job = create(any_store)
            found = any_store.get(job)
            assert found is not None
            heartbeat = found.now - timedelta(seconds=age_s)
            with any_store._database.writing() as connection:
                connection.execute(
                    update(jobs_table)
                    .where(jobs_table.c.id == job)
                    .values(state=state, heartbeat=heartbeat)
                )
            expected[job] = periods.status(state, age_s)
    with any_store._database.reading() as connection:
        assert connection is not None
        rows = connection.execute(select(jobs_table.c.id, status_column(periods).label("status")))
        assert {row.id: Status(row.status) for row in rows} == expected
    for status in Status:
        page = any_store.list(status=status, periods=periods, limit=200)
        assert {job.record.id for job in page.jobs} == {
            job for job, word in expected.items() if word is status
        }
        assert {job.status(periods) for job in page.jobs} <= {status}
    (summary,) = any_store.summary(periods)
    words = list(expected.values())
    assert dict(summary.jobs) == {word: words.count(word) for word in set(words)}
