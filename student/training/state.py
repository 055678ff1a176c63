"""How far a run is: saved with its weights, and read again by the process that continues it."""

import time
from dataclasses import dataclass, field

from student.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from student.runs.run import Run
from student.training.trainee import Trainee


@dataclass(slots=True)
class RunState:
    """How far a run is, its best evaluation, and the wall time it took."""

    step: int = 0
    best_top1: float = -1.0
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall time over all starts of this run."""
        return self.seconds_before + time.monotonic() - self.started

    def is_due(self, every_s: float) -> bool:
        """Whether the last save is longer ago than `every_s`."""
        return time.monotonic() - self.saved > every_s

    def save(self, run: Run, trainee: Trainee) -> None:
        """Save what the run continues from."""
        save_checkpoint(run.last, self._checkpoint(trainee, with_optimizer=True))

    def save_best(self, run: Run, trainee: Trainee) -> None:
        """Save the weights, as those of the best evaluation."""
        save_checkpoint(run.best, self._checkpoint(trainee, with_optimizer=False))

    def _checkpoint(self, trainee: Trainee, *, with_optimizer: bool) -> Checkpoint:
        return Checkpoint(
            step=self.step,
            model=trainee.network.state_dict(),
            ema=trainee.ema.module.state_dict() if trainee.ema else None,
            optimizer=trainee.optimizer.state_dict() if with_optimizer else None,
            best_top1=self.best_top1,
            seconds=self.seconds,
        )


def resume(run: Run, trainee: Trainee) -> RunState:
    """Load what a run saved last into the trainee, and return how far it was: 0 steps if new.

    Raises:
        WeightsError: a damaged checkpoint.
    """
    if not run.last.exists():
        return RunState()
    saved = load_checkpoint(run.last)
    trainee.network.load_state_dict(saved.model)
    if trainee.ema is not None and saved.ema is not None:
        trainee.ema.module.load_state_dict(saved.ema)
    if saved.optimizer is not None:
        trainee.optimizer.load_state_dict(saved.optimizer)
    return RunState(saved.step, saved.best_top1, saved.seconds)
