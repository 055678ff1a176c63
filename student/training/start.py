"""A run is started, or continued by the same command."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from student.data.training_data import TrainingData
from student.ranks import Ranks
from student.recipe import StudentRecipe
from student.runs.metrics import CHANGED, append_metrics
from student.runs.run import Run, RunError, open_run
from teacher_cache.durable import write_atomic
from teacher_cache.images.index import ImageIndex

VALIDATION = "validation images"
"""The one digest of a run's data on which no weight depends."""

_log = logging.getLogger(__name__)


def start_or_continue(
    folder: Path, recipe: StudentRecipe, data: TrainingData, validation: ImageIndex
) -> Run:
    """Create the run's folder, or check that it holds a run of the same recipe and data.

    A run that never saved a state may start over with another recipe: nothing is lost by it. One
    that did keeps its tail where the recipe names none: the default was another once.

    Raises:
        RunError: the folder holds another run, or something else.
    """
    there = open_run(folder) if (folder / "last.pt").exists() else None
    recipe = recipe.with_tail_of(there.recipe) if there else recipe
    run = Run(
        folder=folder,
        recipe=recipe,
        data_digest=data.digest() | {VALIDATION: validation.digest()},
        class_ids=dict(data.index.class_ids),
        class_count=data.class_count,
        size=data.renderer.size,
        interpolation=data.renderer.interpolation,
        steps=len(data.rows) // recipe.optimizer.batch_size * recipe.schedule.epochs,
    )
    if there:
        if differing := [*_differences(there, run).values()]:
            raise RunError(
                f"{folder} holds another run: " + "; ".join(differing) + ": start the same command "
                "to continue it, choose another --out, or `evaluate` what it trained"
            )
        return run
    started = (folder / "run.json").exists()
    if folder.exists() and any(folder.iterdir()) and not started:
        raise RunError(f"{folder} is not empty and holds no run: choose another --out, or empty it")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "run.json", json.dumps(run.to_json(), indent=1).encode())
    return run


def start_together(
    folder: Path, recipe: StudentRecipe, data: TrainingData, validation: ImageIndex, ranks: Ranks
) -> Run:
    """`start_or_continue` on the first rank; the others open what it started.

    Raises:
        RunError: as there, or a rank that sees other data or not the first rank's folder.
        RankLost: another rank has ended.
    """
    own = data.digest() | {VALIDATION: validation.digest()}
    if ranks.is_first:
        run = start_or_continue(folder, recipe, data, validation)
        ranks.gather(own)
        return run
    first = ranks.gather(own)[0]
    there = open_run(folder)
    run = replace(there, data_digest=first, recipe=recipe.with_tail_of(there.recipe))
    if first != own or _differences(there, run):
        raise RunError(
            f"rank {ranks.number} sees another recipe, other data or another run in {folder} than "
            "rank 0: give all ranks the same command, and folders that all hosts share"
        )
    return run


def accept_validation_set(run: Run, step: int) -> None:
    """Let a run go on with other validation images than before: they change no weight.

    It is warned of and logged at the step, and the best evaluation is looked for anew. To be called
    by who holds the run.
    """
    there = open_run(run.folder)
    if there.data_digest.get(VALIDATION) == run.data_digest[VALIDATION]:
        return
    _log.warning(
        "%s: other validation images than up to step %d: evaluations before and after it cannot be "
        "compared, and the best is looked for anew",
        run.folder,
        step,
    )
    append_metrics(run.metrics, {"step": step, CHANGED: 1.0})
    now = replace(there, data_digest=run.data_digest)
    write_atomic(run.folder / "run.json", json.dumps(now.to_json(), indent=1).encode())


def _differences(there: Run, here: Run) -> dict[str, str]:
    """The settings that decide the weights and differ between both."""
    mine, theirs = _flat(there), _flat(here)
    return {
        name: f"{name}: {mine.get(name)} there, {theirs.get(name)} asked for"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name) and name != VALIDATION
    }


def _flat(run: Run) -> dict[str, Any]:
    settings = {
        f"{section}.{key}": value
        for section, table in run.recipe.identity().items()
        for key, value in table.items()
    }
    return settings | {name: digest[:16] for name, digest in run.data_digest.items()}
