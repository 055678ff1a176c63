"""A job that is drained into its record, and stopped between two of its steps."""

import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.console.runner import run_job
from service.jobs import JobRecord, State
from service.recording.recorder import Recorder
from service.records.events import EventKind
from service.records.job_store import JobStore, open_store


@dataclass(frozen=True)
class At:
    """Progress of a job of ten steps."""

    done: int
    total: int = 10
    unit: str = "steps"
    resumed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    own: int | None = None
    saved: int | None = None


class StoppedTogetherError(Exception):
    """Another process of the job was stopped."""


def steps(asked: Callable[[int], None], resumed: int = 0) -> Generator[At, None, At | None]:
    """Ten steps of which two make a block: a job that is closed finishes its block."""
    for done in range(resumed, 11):
        try:
            yield At(done, resumed=resumed)
        except GeneratorExit:
            whole = done + done % 2
            return At(whole, resumed=resumed, saved=whole)
        asked(done)
    return None


def nobody(_: int) -> None:
    """Ask for nothing."""


def run(job: Generator[At, None, At | None], recorder: Recorder) -> int | None:
    return run_job(job, recorder, {}, shown=True, stopped_together=StoppedTogetherError)


def test_a_job_that_reaches_its_end_succeeds(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    recorder = record(url)
    assert run(steps(nobody, resumed=4), recorder) is None
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason, end.done, end.resumed) == (State.SUCCEEDED, None, 10, 4)


def test_a_job_without_work_says_that_it_had_none(
    url: str,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder = record(url)
    assert run(steps(nobody, resumed=10), recorder) is None
    end = read_surely(url, recorder.job_id)
    reason = "nothing to do: all 10 steps were done before"
    assert (end.state, end.reason, end.done) == (State.SUCCEEDED, reason, 10)
    assert f"{reason}\n" in capsys.readouterr().err


def test_a_job_that_leaves_work_to_others_says_how_much(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    def job() -> Generator[At, None, None]:
        yield At(0)
        yield At(4)

    recorder = record(url)
    assert run(job(), recorder) is None
    end = read_surely(url, recorder.job_id)
    reason = "6 of 10 steps were still with other processes"
    assert (end.state, end.reason, end.done) == (State.SUCCEEDED, reason, 4)


def test_a_signal_stops_a_job_and_the_record_holds_what_it_saved_then(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    def interrupt(done: int) -> None:
        if done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    recorder = record(url)
    assert run(steps(interrupt), recorder) == 128 + signal.SIGTERM
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason) == (State.CANCELLED, "stopped by SIGTERM; saved")
    assert end.done == 6
    found = open_store(url).events(recorder.job_id)
    assert found is not None
    saved = [event.text for event in found.events if event.kind is EventKind.CHECKPOINT]
    assert saved == ["saved at 6 of 10 steps"]


@pytest.mark.parametrize(
    ("torchrun", "code"),
    [({}, 12), ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "0"}, 0)],
)
def test_a_request_stops_a_job_and_nobody_shall_start_it_again(
    torchrun: dict[str, str],
    code: int,
    url: str,
    store: JobStore,
    eventually: Callable[..., None],
    record: Callable[..., Recorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    recorder = record(url)

    def state() -> State | None:
        found = store.get(recorder.job_id)
        return None if found is None else found.record.state

    def cancel(done: int) -> None:
        if done == 2:
            eventually(lambda: state() is State.RUNNING)
            store.request_cancel(recorder.job_id)
            eventually(lambda: recorder.cancel_requested)

    assert run(steps(cancel), recorder) == code
    found = store.get(recorder.job_id)
    assert found is not None
    end = found.record
    assert (end.state, end.reason) == (State.CANCELLED, "stopped by request; saved")
    assert end.done == 4


def test_a_job_stopped_by_its_other_process_is_cancelled(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    def stopped(done: int) -> None:
        if done == 3:
            raise StoppedTogetherError

    recorder = record(url)
    assert run(steps(stopped), recorder) == 12
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason) == (State.CANCELLED, "stopped by another rank; saved")


def test_what_a_job_leaves_behind_is_recorded(
    url: str,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    tmp_path: Path,
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    recorder = record(url)
    files = {name: tmp_path / name for name in ("last.pt", "best.pt")}
    run_job(steps(nobody), recorder, files, shown=False, stopped_together=StoppedTogetherError)
    (artifact,) = read_surely(url, recorder.job_id).artifacts
    assert (artifact["name"], artifact["size"]) == ("last.pt", 7)
