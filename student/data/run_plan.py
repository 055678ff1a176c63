"""How many steps a run has, and which rows a rank shows in each.

B rows of a whole batch, W ranks.
"""

from dataclasses import dataclass

import numpy as np

from student.data.shuffle import epoch_order
from student.data.training_data import TrainingData
from student.ranks import ALONE, Ranks
from student.recipe import StudentRecipe
from teacher_cache.images.index import ImagesError


@dataclass(frozen=True, slots=True)
class Plan:
    """How many steps there are, and which rows each shows."""

    epochs: int
    steps_per_epoch: int
    batch_size: int
    micro_batch: int
    seed: int
    ranks: Ranks = ALONE
    """This process among those that train together: it shows its own share of every batch."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def micro_batches_per_step(self) -> int:
        """This rank's forward passes of one optimizer step."""
        return self.batch_size // (self.micro_batch * self.ranks.count)

    def own_rows(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """The rows that this rank shows in an epoch, step by step: int64 [steps, B / W].

        Args:
            rows: int64 [N] all rows that are trained on.
            epoch: from 0.
        """
        order = epoch_order(len(rows), seed=self.seed, epoch=epoch)
        shown = order[: self.steps_per_epoch * self.batch_size]
        batches = shown.reshape(self.steps_per_epoch, self.batch_size)
        own: np.ndarray = rows[self.ranks.share(batches)]
        return own


def plan_run(recipe: StudentRecipe, data: TrainingData, ranks: Ranks = ALONE) -> Plan:
    """Cut every epoch into whole batches; which rows are left out differs from epoch to epoch.

    Raises:
        ImagesError: fewer images than one batch, or one class.
        RanksError: a batch that the ranks cannot share.
    """
    batch_size = recipe.optimizer.batch_size
    if data.class_count < 2:
        raise ImagesError(
            f"{data.index.root} holds 1 class, expected 2 or more, a folder each: of one class "
            "there is nothing to learn"
        )
    if len(data.rows) < batch_size:
        raise ImagesError(
            f"optimizer.batch_size is {batch_size}, the data holds {len(data.rows)} images: "
            f"set it to {len(data.rows)} or less"
        )
    return Plan(
        epochs=recipe.schedule.epochs,
        steps_per_epoch=len(data.rows) // batch_size,
        batch_size=batch_size,
        micro_batch=ranks.micro_batch(
            batch_size=batch_size, micro_batch=recipe.optimizer.micro_batch
        ),
        seed=recipe.run.seed,
        ranks=ranks,
    )
