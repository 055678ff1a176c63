"""A study as users write it: base recipes, and rows that change some of their keys."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from teacher_cache.recipes.document import PositiveInt, Section, parse_recipe, read_toml

Change = Annotated[str, Field(pattern=r"^[^=]+=")]
"""`section.key=value`, as in `--set`."""


class TeacherRun(Section):
    """A teacher that is trained first, on the same images, and exported."""

    student: str
    """The student recipe that trains it; its `distill.alpha` is 0."""
    set: tuple[Change, ...] = ()


class Row(Section):
    """One line of the study's table: a student, and what is claimed of it."""

    name: str
    set: tuple[Change, ...] = ()
    """What differs from the base recipes, of the student and of its cache alike."""
    student: str | None = None
    """Another student recipe than the study's."""
    teacher: str | None = None
    """Another of the study's teachers."""
    seeds: PositiveInt | None = None
    """Another number of runs than the study's."""
    base: str | None = None
    """The row that this one is compared with; None: the study's."""
    published: float | None = None
    """Top-1 in percent, as printed in the study's source."""
    claim: Literal["higher", "lower", "alike"] | None = None
    """What its top-1 is said to be beside its base's; None: what the published figures say."""


class Study(Section):
    """A title, base recipes, and rows."""

    title: str
    cache: str
    """The base cache recipe: a shipped name, or a file beside the study's."""
    student: str
    """The base student recipe."""
    set: tuple[Change, ...] = ()
    """What holds for all rows."""
    teachers: dict[str, TeacherRun] = Field(default_factory=dict)
    teacher: str | None = None
    """Which of `teachers` fills the caches; None: the one that the cache recipe names."""
    base: str | None = None
    """The row with which the others are compared; None: the first."""
    alike: Annotated[float, Field(gt=0)] = 0.5
    """Points of top-1 within which two rows are called alike."""
    seeds: PositiveInt = 1
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_that_exist(self) -> Self:
        names = [row.name for row in self.rows]
        folders = [folder_name(name) for name in names]
        if twice := sorted({name for name in names if folders.count(folder_name(name)) > 1}):
            raise ValueError(f"rows share a folder: {', '.join(twice)}; expected other names")
        for base in (self.base, *(row.base for row in self.rows)):
            if base is not None and base not in names:
                raise ValueError(f"base {base!r} is no row, expected one of {', '.join(names)}")
        for teacher in (self.teacher, *(row.teacher for row in self.rows)):
            if teacher is not None and teacher not in self.teachers:
                known = ", ".join(self.teachers) or "none"
                raise ValueError(f"teacher {teacher!r} is not among [teachers] ({known})")
        return self

    def base_of(self, row: Row) -> Row:
        """The row with which one is compared; the study's base is compared with itself."""
        name = row.base or self.base or self.rows[0].name
        return next(each for each in self.rows if each.name == name)


def folder_name(name: str) -> str:
    """A row's name as that of a folder: `tau 2, alpha 0.5` is `tau-2-alpha-0.5`."""
    return re.sub(r"[^A-Za-z0-9.+_]+", "-", name).strip("-.") or "row"


def load_study(path: Path) -> Study:
    """Read a study: a file, or one that ships with Retort.

    Raises:
        RecipeError: naming the file, the key, what it got and what it expected.
    """
    document = read_toml(path, "student", folder="studies")
    return parse_recipe(document, Study, source=str(path))
