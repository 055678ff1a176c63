"""A run's folder: what it was started with, its checkpoints, metrics and summary."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from torch import nn

from student.checkpoint import Checkpoint, load_checkpoint
from student.data import TrainingData
from student.models import build_student
from student.ranks import Ranks
from student.recipe import StudentRecipe
from teacher_cache.durable import write_atomic
from teacher_cache.errors import UserError
from teacher_cache.images import ImageIndex
from teacher_cache.recipe import parse_recipe
from teacher_cache.weights import load_weights


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
        """What `run.json` holds."""
        document = asdict(self)
        return {**document, "folder": None, "recipe": self.recipe.model_dump(mode="json")}

    @classmethod
    def from_json(cls, folder: Path, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        recipe = parse_recipe(document["recipe"], StudentRecipe, source=str(folder / "run.json"))
        return cls(**{**document, "folder": folder, "recipe": recipe})


def start_or_continue(
    folder: Path, recipe: StudentRecipe, data: TrainingData, validation: ImageIndex
) -> Run:
    """Create the run's folder, or check that it holds a run of the same recipe and data.

    A run that never saved a state may start over with another recipe: nothing is lost by it.

    Raises:
        RunError: the folder holds another run, or something else.
    """
    run = Run(
        folder=folder,
        recipe=recipe,
        data_digest=data.digest() | {"validation images": validation.digest()},
        class_ids=dict(data.index.class_ids),
        class_count=data.class_count,
        size=data.renderer.size,
        interpolation=data.renderer.interpolation,
        steps=len(data.rows) // recipe.optimizer.batch_size * recipe.schedule.epochs,
    )
    if run.last.exists():
        differing = _differences(open_run(folder), run)
        if differing:
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
    if ranks.is_first:
        run = start_or_continue(folder, recipe, data, validation)
        ranks.agree()
        return run
    ranks.agree()
    run = open_run(folder)
    own = data.digest() | {"validation images": validation.digest()}
    if run.data_digest != own or run.recipe != recipe:
        raise RunError(
            f"rank {ranks.number} sees another recipe, other data or another run in {folder} than "
            "rank 0: give all ranks the same command, and folders that all hosts share"
        )
    return run


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


class Weights(StrEnum):
    """Which of a run's sets of weights."""

    AVERAGED = "averaged"
    """The moving average; a run that keeps none has only the other."""
    TRAINED = "trained"
    """Those that the optimizer moved last."""
    BEST = "best"
    """Of the best evaluation: averaged where an average is kept."""


def saved_state(run: Run, weights: Weights = Weights.AVERAGED) -> Checkpoint:
    """The checkpoint that holds a set of weights.

    Raises:
        WeightsError: there is none, or a damaged one.
    """
    return load_checkpoint(run.best if weights is Weights.BEST else run.last)


def kept(run: Run, weights: Weights) -> Weights:
    """What a run has under this name: without an average, the averaged weights are the trained."""
    none = weights is Weights.AVERAGED and run.recipe.ema.decay is None
    return Weights.TRAINED if none else weights


def standing(run: Run, saved: Checkpoint) -> str:
    """How far a run was when a state was saved: `step 10 of 15, unfinished`."""
    steps = f" of {run.steps:,}" if run.steps else ""
    ended = "" if run.summary.exists() else ", unfinished: the run has not ended"
    return f"step {saved.step:,}{steps}{ended}"


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Keep a run to this process; the system lets go of it however the process ends.

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


def load_network(run: Run, weights: Weights = Weights.AVERAGED) -> nn.Module:
    """A run's network as trained so far: the averaged weights where an average is kept.

    Raises:
        WeightsError: no checkpoint, or a damaged one.
    """
    return network_of(run, saved_state(run, weights), weights)


def network_of(run: Run, saved: Checkpoint, weights: Weights) -> nn.Module:
    """The network of a state that was read already, in evaluation mode.

    Raises:
        WeightsError: the weights are not those of the run's network.
    """
    averaged = None if weights is Weights.TRAINED else saved.ema
    network = build_student(
        run.recipe.student.model,
        num_classes=run.class_count,
        image_size=run.size,
        reparam=run.recipe.reparam,
        kwargs=run.recipe.student.kwargs,
    )
    load_weights(network, averaged or saved.model, source=str(run.folder))
    return network.eval()


def _differences(there: Run, here: Run) -> list[str]:
    mine, theirs = _flat(there), _flat(here)
    return [
        f"{name}: {mine.get(name)} there, {theirs.get(name)} asked for"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]


def _flat(run: Run) -> dict[str, Any]:
    settings = {
        f"{section}.{key}": value
        for section, table in run.recipe.identity().items()
        for key, value in table.items()
    }
    return settings | {name: digest[:16] for name, digest in run.data_digest.items()}
