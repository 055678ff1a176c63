"""What a study has to do: teachers to train, caches to fill, runs to make.

Rows that need the same cache share it, and it has the views that the longest of them shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from student.recipe import StudentRecipe
from student.study.budget import changes_of
from student.study.rows import Row, Study, folder_name
from teacher_cache.errors import UserError
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import digest_of, load_recipe

_OF_CACHES = {"teacher", "topk", "storage", "views", "images.class_map", "images.class_order"}
_OF_BOTH = {"images", "loader"}
_OF_STUDENTS_VIEWS = "views.reuse"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study reads and writes."""

    data: str
    val: str
    out: Path
    """Runs and results."""
    shared: Path
    """Teachers and caches, which several studies may share."""
    device: str


@dataclass(frozen=True, slots=True)
class TeacherJob:
    """A teacher that is trained and exported before any cache that it fills."""

    recipe: StudentRecipe
    run: Path
    file: Path
    """Its weights, once it is trained."""
    train: tuple[str, ...]
    """What `cli.py` is asked, first to train it and then to export it."""
    export: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CacheJob:
    """A cache, with as many views as the longest of its rows shows."""

    recipe: CacheRecipe
    folder: Path
    views: int
    command: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `cli.py` is asked."""
        return (*self.command, "--views", str(self.views))


@dataclass(frozen=True, slots=True)
class RunJob:
    """One row with one seed."""

    row: str
    seed: int
    recipe: StudentRecipe
    folder: Path
    cache: Path
    arguments: tuple[str, ...]
    """What `cli.py` is asked."""


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """Everything that a study has to do, in an order in which it can be done."""

    teachers: tuple[TeacherJob, ...]
    caches: tuple[CacheJob, ...]
    runs: tuple[RunJob, ...]


def plan_study(
    study: Study,
    file: Path,
    place: Place,
    *,
    budget: float = 1.0,
    seeds: int | None = None,
    rows: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> WorkPlan:
    """Work out every job of a study.

    Args:
        study: its rows.
        file: from where it was read: recipes are looked for beside it first.
        place: where it reads and writes.
        budget: see `student.study.budget`; teachers are trained in full.
        seeds: how many runs each row has; None: the study's.
        rows: the names of the rows to run, with those that they are compared with; empty: all.
        overrides: what the user passed with `--set`, for all rows.

    Raises:
        RecipeError: a recipe that cannot be read, or a change that it does not take.
        UserError: rows that do not exist.
    """
    if unknown := sorted(set(rows) - {row.name for row in study.rows}):
        known = ", ".join(row.name for row in study.rows)
        raise UserError(f"no row {', '.join(unknown)} in this study, expected some of: {known}")
    chosen = _with_bases(study, rows or [row.name for row in study.rows])
    wanted = [row for row in study.rows if row.name in chosen]
    named = {row.teacher or study.teacher for row in wanted} - {None}
    teachers = {
        name: _teacher_job(study, str(name), file, place)
        for name in study.teachers
        if name in named
    }
    caches: dict[Path, CacheJob] = {}
    runs = []
    for seed in range(max(seeds_of(study, row, seeds) for row in wanted)):
        for row in wanted:
            if seed >= seeds_of(study, row, seeds):
                continue
            changes = [*study.set, *overrides, *row.set]
            teacher = teachers.get(row.teacher or study.teacher or "")
            run, cache = _row_jobs(study, row, seed, changes, teacher, file, place, budget)
            before = caches.get(cache.folder, cache)
            caches[cache.folder] = replace(cache, views=max(cache.views, before.views))
            runs.append(run)
    return WorkPlan(tuple(teachers.values()), tuple(caches.values()), tuple(runs))


def seeds_of(study: Study, row: Row, asked: int | None) -> int:
    """How many runs a row has: as asked for, as it says itself, or as the study says."""
    return asked or row.seeds or study.seeds


def _with_bases(study: Study, rows: Iterable[str]) -> set[str]:
    chosen = {row.name for row in study.rows if row.name in set(rows)}
    return chosen | {study.base_of(row).name for row in study.rows if row.name in chosen}


def _teacher_job(study: Study, name: str, file: Path, place: Place) -> TeacherJob:
    asked = study.teachers[name]
    path, changes = _beside(file, asked.student), [*asked.set, "distill.alpha=0"]
    recipe = load_recipe(path, StudentRecipe, overrides=changes, package="student")
    run = place.shared / "teachers" / folder_name(name)
    weights = run.with_name(run.name + ".safetensors")
    train = (
        "train-student", str(path), "--data", place.data, "--val", place.val, "--out", str(run),
        *_sets(changes), "--device", place.device,
    )  # fmt: skip
    return TeacherJob(recipe, run, weights, train, ("export", str(run), "--out", str(weights)))


def _row_jobs(
    study: Study,
    row: Row,
    seed: int,
    changes: Sequence[str],
    teacher: TeacherJob | None,
    file: Path,
    place: Place,
    budget: float,
) -> tuple[RunJob, CacheJob]:
    path = _beside(file, row.student or study.student)
    own = [change for change in changes if _is_for_students(change)]
    recipe = load_recipe(path, StudentRecipe, overrides=own, package="student")
    own += changes_of(recipe, budget)
    own.append(f"run.seed={recipe.run.seed + seed}")
    recipe = load_recipe(path, StudentRecipe, overrides=own, package="student")
    of_cache = [change for change in changes if _is_for_caches(change)]
    cache = _cache_job(study, of_cache, recipe, teacher, file, place)
    folder = place.out / "runs" / folder_name(row.name) / f"seed-{seed}"
    arguments = (
        "train-student", str(path), "--data", place.data, "--val", place.val,
        "--cache", str(cache.folder), "--follow", "--out", str(folder), *_sets(own),
        "--device", place.device,
    )  # fmt: skip
    return RunJob(row.name, seed, recipe, folder, cache.folder, arguments), cache


def _cache_job(
    study: Study,
    changes: list[str],
    student: StudentRecipe,
    teacher: TeacherJob | None,
    file: Path,
    place: Place,
) -> CacheJob:
    path = _beside(file, study.cache)
    if teacher is not None:
        weights = ["teacher.pretrained=none", f"teacher.checkpoint={teacher.file}"]
        changes = [*changes, f"teacher.model={teacher.recipe.student.model}", *weights]
    recipe = load_recipe(path, CacheRecipe, overrides=changes, package="teacher_cache")
    views = student.schedule.epochs
    made_of = [recipe.data_settings(), recipe.teacher.model_dump(mode="json")]
    if teacher is not None:  # its weights are the recipe's, wherever they lie
        made_of[1] = teacher.recipe.identity()
    if student.views.reuse and recipe.views.count < views:  # how many there are decides the order
        views = recipe.views.count
        made_of.append({"views": views})
    folder = (
        place.shared / "caches" / f"{folder_name(recipe.teacher.name)}-{digest_of(made_of)[:10]}"
    )
    command = ("cache-teacher", str(path), "--data", place.data, "--out", str(folder))
    return CacheJob(recipe, folder, views, (*command, *_sets(changes), "--device", place.device))


def _is_for_caches(change: str) -> bool:
    names = _names_in(change)
    return _OF_STUDENTS_VIEWS not in names and not names.isdisjoint(_OF_CACHES | _OF_BOTH)


def _is_for_students(change: str) -> bool:
    names = _names_in(change)
    return _OF_STUDENTS_VIEWS in names or names.isdisjoint(_OF_CACHES)


def _names_in(change: str) -> set[str]:
    """A change's key, and its section."""
    key = change.partition("=")[0].strip()
    return {key, key.partition(".")[0]}


def _beside(file: Path, recipe: str) -> Path:
    near = file.parent / recipe
    return near if near.is_file() else Path(recipe)


def _sets(changes: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for change in changes for part in ("--set", change))
