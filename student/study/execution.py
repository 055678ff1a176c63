"""The commands of a study that are still to be run, by this process and by others beside it.

A process locks each teacher and each run while it trains it, and any number of processes fill a
cache together. So processes and hosts that share the study's folder work on it side by side: what
another one trains is left to it, and what is finished is not run again. Under torchrun all ranks
train one run after the other, and no other process should work on the study meanwhile.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from student.runs.run import Run, RunError, open_run
from student.study.work_plan import CacheJob, RunJob, TeacherJob, WorkPlan
from teacher_cache.cache.blocks import missing_blocks
from teacher_cache.cache.cache import open_cache
from teacher_cache.errors import CacheError, UserError
from teacher_cache.storage.disk import Disk

POLL_S = 2.0
"""How often it is looked whether a teacher that another process trains is there."""

Call = Callable[[tuple[str, ...]], object]
Say = Callable[[str], object]


def execute(plan: WorkPlan, call: Call, say: Say) -> dict[tuple[str, int], str]:
    """Run what is not finished yet; a run that fails leaves the others as they are.

    Args:
        plan: the study's jobs.
        call: runs `cli.py` with these arguments in this process; it raises what the command
            raises, and `SystemExit` where that was stopped.
        say: shows a line.

    Returns:
        Why runs failed, by row and seed.

    Raises:
        UserError: a teacher or a cache that fails: nothing can be trained without it.
        RunError: a run's folder holds another run than the study asks for.
    """
    for teacher in plan.teachers:
        _require_teacher(teacher, call, say)
    for cache in plan.caches:
        if not _is_filled(cache):
            _shown(cache.arguments, call, say)
    failed: dict[tuple[str, int], str] = {}
    for job in plan.runs:
        if _ended(job):
            continue
        with _claimed(job.folder) as is_mine:
            if not is_mine:
                say(f"row {job.row}, seed {job.seed} is left to the process that trains it")
                continue
            try:
                _shown(job.arguments, call, say)
            except UserError as error:
                failed[job.row, job.seed] = str(error)
                say(f"row {job.row}, seed {job.seed} has failed: {error}")
    return failed


def top1_of(runs: Sequence[RunJob]) -> dict[str, dict[int, float]]:
    """Row -> seed -> top-1 in percent of the runs that have ended, with the weights of an export.

    Raises:
        RunError: runs on other images than each other's, or another run than was planned.
    """
    found: dict[str, dict[int, float]] = {}
    data: dict[str, str] = {}
    for job in runs:
        found.setdefault(job.row, {})
        run = _ended(job)
        if run is None:
            continue
        for name in ("images", "validation images"):
            if data.setdefault(name, run.data_digest[name]) != run.data_digest[name]:
                raise RunError(
                    f"{job.folder} has other {name} than the study's other runs: they cannot be "
                    "compared; remove it, and it is trained again"
                )
        summary = json.loads(run.summary.read_text())
        found[job.row][job.seed] = float(summary.get("ema_top1", summary["top1"]))
    return found


def _ended(job: RunJob) -> Run | None:
    """The run of a job, if it has ended.

    Raises:
        RunError: its folder holds a run with another recipe.
    """
    if not (job.folder / "summary.json").exists():
        return None
    run = open_run(job.folder)
    if run.recipe.identity() != job.recipe.with_tail_of(run.recipe).identity():
        raise RunError(
            f"{job.folder} was trained with other settings than row {job.row!r} has now: choose "
            "another --out, or remove the folder, and it is trained again"
        )
    return run


def _require_teacher(job: TeacherJob, call: Call, say: Say) -> None:
    """Train and export a teacher, or wait for the process that does so."""
    waits = False
    while not job.file.exists():
        with _claimed(job.run) as is_mine:
            if is_mine and not job.file.exists():
                _shown(job.train, call, say)
                if _is_first_rank():
                    _shown(job.export, call, say)
                while not job.file.exists():  # the first rank is exporting it
                    time.sleep(POLL_S)
        if not job.file.exists():
            if not waits:
                say(f"waiting for the process that trains the teacher in {job.run}")
            waits = True
            time.sleep(POLL_S)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Keep a run to this process of the study's; False where another one has it."""
    if not _is_first_rank():  # torchrun's: what the first rank claims, all ranks train
        yield True
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = True
        except (BlockingIOError, PermissionError):
            is_mine = False
        yield is_mine


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _is_filled(job: CacheJob) -> bool:
    """Whether a cache of this recipe holds all views that its rows show."""
    place = Disk(job.folder)
    if not place.exists("zarr.json"):
        return False
    try:
        cache = open_cache(place)
    except CacheError:
        return False  # the command itself says what is wrong with it
    is_same = cache.manifest.recipe_digest == job.recipe.digest()
    return is_same and cache.view_count >= job.views and not missing_blocks(cache)


def _shown(arguments: tuple[str, ...], call: Call, say: Say) -> None:
    say(" ".join(("\n$ cli.py", *arguments)))
    call(arguments)
