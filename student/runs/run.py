"""A run's folder: what it was started with, its checkpoints, metrics and summary."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from student.recipe import StudentRecipe
from teacher_cache.errors import UserError
from teacher_cache.recipes.document import parse_recipe


class RunError(UserError):
    """A run's folder that cannot be used as asked."""


@dataclass(frozen=True, slots=True)
class Run:
    """A folder with `run.json`, `last.pt`, `best.pt`, `metrics.jsonl` and `summary.json`."""

    folder: Path
    recipe: StudentRecipe
    data_digest: Mapping[str, str]
    class_ids: Mapping[str, int]
    class_count: int
    size: int
    """Pixels a side of the student's input."""
    interpolation: str
    steps: int | None = None
    """Optimizer steps of the whole run; None in runs of versions that did not say."""

    @property
    def last(self) -> Path:
        """The state that the run continues from."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The weights of the best evaluation."""
        return self.folder / "best.pt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The result; it exists once the run has ended."""
        return self.folder / "summary.json"

    def to_json(self) -> dict[str, Any]:
        """The contents of `run.json`."""
        document = asdict(self)
        return {**document, "folder": None, "recipe": self.recipe.model_dump(mode="json")}

    @classmethod
    def from_json(cls, folder: Path, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        recipe = parse_recipe(document["recipe"], StudentRecipe, source=str(folder / "run.json"))
        return cls(**{**document, "folder": folder, "recipe": recipe})


def open_run(folder: Path) -> Run:
    """Open a run that was started earlier.

    Raises:
        RunError: there is none.
    """
    path = folder / "run.json"
    try:
        return Run.from_json(folder, json.loads(path.read_text()))
    except FileNotFoundError:
        raise RunError(f"{folder}: no run there; expected the --out of a train-student") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Lock a run for this process; the system unlocks it however the process ends.

    Raises:
        RunError: another process is training it.
    """
    with (run.folder / "lock").open("w") as file:
        try:
            # unlike flock's, this lock does not live on in the loader's forked workers
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise RunError(
                f"{run.folder} is being trained by another process: wait for it, stop it, or "
                "choose another --out"
            ) from None
        yield
