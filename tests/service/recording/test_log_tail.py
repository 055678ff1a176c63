"""Why a job failed: the traceback and the end of its log stay with the record."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from service.recording.outbox import LINES_KEPT
from service.recording.recorder import Recorder, recorded_if_it_fails
from service.records.job_store import open_store


def fail(text: str) -> None:
    raise ValueError(text)


def test_a_failed_job_keeps_its_traceback_and_the_end_of_its_log(
    url: str, record: Callable[..., Recorder], tmp_path: Path
) -> None:
    secret = f"cannot open {tmp_path}/deep/file.jpg"
    log = logging.getLogger("somebody.else")
    with pytest.raises(ValueError, match="cannot open"), record(url) as recorder:
        for number in range(300):
            log.warning("line %d of %s", number, tmp_path / "folder" / "x")
        recorder.log("3/10 steps  loss 0.5")
        fail(secret)
    found = open_store(url).log(recorder.job_id)
    assert found is not None
    assert len(found.lines) == LINES_KEPT
    assert found.lines[-1].endswith("INFO 3/10 steps  loss 0.5")
    assert found.lines[-2].endswith("WARNING line 299 of x")
    told = (found.traceback or "").splitlines()
    assert told[0] == "Traceback (most recent call last):"
    assert told[-1] == "ValueError: cannot open file.jpg"
    assert "in fail" in told[-3]
    assert str(tmp_path) not in "\n".join((*found.lines, *told))
    assert str(Path(__file__).parent) not in "\n".join(told)


def test_the_log_of_a_job_that_lives_is_stored_with_its_heartbeat(
    url: str, record: Callable[..., Recorder], eventually: Callable[..., None]
) -> None:
    with record(url) as recorder:
        recorder.log("about to begin")

        def stored() -> bool:
            found = open_store(url).log(recorder.job_id)
            return found is not None and len(found.lines) == 1

        eventually(stored, 60)


def test_the_log_of_another_job_of_the_process_is_not_kept(
    url: str, record: Callable[..., Recorder]
) -> None:
    with record(url) as recorder:
        pass
    logging.getLogger("later").warning("after the end")
    found = open_store(url).log(recorder.job_id)
    assert found is not None
    assert found.lines == ()


def test_a_job_that_fails_before_it_begins_is_recorded(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_DB", url)
    early = {"kind": "train-student", "unit": "steps", "out": "run"}
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ValueError, match="holds views"), recorded_if_it_fails(**early):
            fail("cache holds views 0-5, epoch 6 asks for view 6")
    (job,) = open_store(url).list().jobs
    assert job.record.state == "failed"
    assert job.record.reason == "ValueError: cache holds views 0-5, epoch 6 asks for view 6"
