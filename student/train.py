"""The training loop of GhostNetV3 (arXiv 2404.11202, sec. 4.1): LAMB, cosine, EMA, KD.

for each step:  lr <- cosine(step);  L = (1 - alpha) CE + alpha tau^2 KL over micro-batches;
                optimizer step;  EMA
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import torch

from student.batches import Plan, batches, plan_run
from student.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from student.data import TrainingData
from student.evaluate import Evaluation, evaluate, evaluation_of
from student.interval import Interval
from student.metrics import append_metrics, forget_after, last_evaluation
from student.recipe import StudentRecipe
from student.reparam import fold
from student.run import Run, held
from student.schedule import learning_rate
from student.size import parameter_count
from student.trainee import Trainee
from teacher_cache.durable import write_atomic
from teacher_cache.images import ImageIndex
from teacher_cache.progress import Progress
from teacher_cache.recipe import digest_of

logger = logging.getLogger(__name__)


def train(
    run: Run, data: TrainingData, validation: ImageIndex, *, device: torch.device
) -> Iterator[Progress]:
    """Train to the recipe's end, from the last checkpoint if there is one, one process a run.

    The same recipe on the same data gives the same bytes of weights on the CPU, whatever the
    number of loader workers and however often the run was killed. Closing the iterator saves after
    the step at hand.

    Raises:
        RunError: another process is training this run.
        TrainingError: a loss that is not finite; the last good state is kept.
        CacheError, ImagesError: from the cache and the images.
        OSError: the run's folder cannot be written.
    """
    with held(run):
        yield from _train(run, data, validation, device)


def _train(
    run: Run, data: TrainingData, validation: ImageIndex, device: torch.device
) -> Iterator[Progress]:
    recipe = run.recipe
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    plan = plan_run(recipe, data)
    _warn_of_a_long_average(recipe, plan)
    trainee = Trainee.build(recipe, data.class_count, run.size, device)
    state = _resume(run, trainee)
    forget_after(run.metrics, state.step)
    evaluation = evaluation_of(recipe, validation, size=run.size, interpolation=run.interpolation)
    interval = Interval(data.index.keys)
    resumed = state.step
    yield Progress(resumed, plan.total_steps, "steps", resumed=resumed)
    for step_batches in batches(data, plan, start_step=state.step, workers=recipe.loader.workers):
        if not step_batches:
            yield from _waiting(run, data, plan, trainee, state, interval, resumed)
            continue
        lr = _learning_rate(recipe, plan, state.step)
        losses = trainee.step(step_batches, lr=lr, step=state.step)
        state.step += 1
        interval.add(state.step, step_batches, losses)
        place = {"step": state.step, "epoch": (state.step - 1) // plan.steps_per_epoch}
        epoch_ends = state.step % plan.steps_per_epoch == 0
        metrics: dict[str, float] = {}
        if state.step == 1 or state.step % recipe.run.log_every_steps == 0 or epoch_ends:
            metrics = {**place, **interval.summarize(), "lr": lr}
            append_metrics(run.metrics, metrics)
        if epoch_ends and _evaluation_is_due(recipe, plan, state.step):
            accuracies = _evaluate(trainee, evaluation)
            append_metrics(run.metrics, {**place, **accuracies})
            metrics |= accuracies
            _keep_if_best(run, state, trainee, accuracies)
            interval.restart_clock()
        saves = epoch_ends or state.is_due(recipe.run.checkpoint_every_s)
        if saves:
            _save(run, state, trainee, interval)
        try:
            yield Progress(state.step, plan.total_steps, "steps", metrics, resumed, saved=saves)
        except GeneratorExit:
            _save(run, state, trainee, interval)
            raise
    _write_summary(run, plan, trainee, state, device)


def _waiting(
    run: Run,
    data: TrainingData,
    plan: Plan,
    trainee: Trainee,
    state: "RunState",
    interval: Interval,
    resumed: int,
) -> Iterator[Progress]:
    """Say that the view of the epoch at hand is still being filled."""
    view = data.view_of(state.step // plan.steps_per_epoch)
    waiting = {"waiting_for_view": float(view)}
    try:
        yield Progress(state.step, plan.total_steps, "steps", waiting, resumed)
    except GeneratorExit:
        _save(run, state, trainee, interval)
        raise
    interval.restart_clock()


@dataclass(slots=True)
class RunState:
    """Where a run stands."""

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

    def checkpoint(self, trainee: Trainee, *, with_optimizer: bool) -> Checkpoint:
        """The state as it is saved."""
        return Checkpoint(
            step=self.step,
            model=trainee.network.state_dict(),
            ema=trainee.ema.module.state_dict() if trainee.ema else None,
            optimizer=trainee.optimizer.state_dict() if with_optimizer else None,
            best_top1=self.best_top1,
            seconds=self.seconds,
        )


def _resume(run: Run, trainee: Trainee) -> RunState:
    if not run.last.exists():
        return RunState()
    saved = load_checkpoint(run.last)
    trainee.network.load_state_dict(saved.model)
    if trainee.ema is not None and saved.ema is not None:
        trainee.ema.module.load_state_dict(saved.ema)
    if saved.optimizer is not None:
        trainee.optimizer.load_state_dict(saved.optimizer)
    return RunState(saved.step, saved.best_top1, saved.seconds)


def _save(run: Run, state: RunState, trainee: Trainee, interval: Interval) -> None:
    interval.require_finite()
    save_checkpoint(run.last, state.checkpoint(trainee, with_optimizer=True))
    state.saved = time.monotonic()


def _evaluate(trainee: Trainee, evaluation: Evaluation) -> dict[str, float]:
    networks = [trainee.network] if trainee.ema is None else [trainee.network, trainee.ema.module]
    found = evaluate(networks, evaluation, trainee.normalization)
    names = ("", "ema_")
    return {
        f"{prefix}{name}": round(value, 4)
        for prefix, accuracy in zip(names, found, strict=False)
        for name, value in (("top1", accuracy.top1), ("top5", accuracy.top5))
    }


def _keep_if_best(
    run: Run, state: RunState, trainee: Trainee, accuracies: Mapping[str, float]
) -> None:
    if accuracies[trainee.judged_by] > state.best_top1:
        state.best_top1 = accuracies[trainee.judged_by]
        save_checkpoint(run.best, state.checkpoint(trainee, with_optimizer=False))


def _write_summary(
    run: Run, plan: Plan, trainee: Trainee, state: RunState, device: torch.device
) -> None:
    if run.summary.exists():
        return
    summary = {
        "model": run.recipe.student.model,
        **last_evaluation(run.metrics, state.step),
        f"best_{trainee.judged_by}": state.best_top1,
        "epochs": plan.epochs,
        "images": state.step * plan.batch_size,
        "seconds": round(state.seconds, 1),
        "parameters": parameter_count(trainee.exported),
        "parameters_folded": parameter_count(fold(trainee.exported)),
        "alpha": run.recipe.distill.alpha,
        "recipe_digest": digest_of(run.recipe.identity()),
        "data": dict(run.data_digest),
        "device": device.type,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }
    write_atomic(run.summary, json.dumps(summary, indent=1).encode() + b"\n")


def _learning_rate(recipe: StudentRecipe, plan: Plan, step: int) -> float:
    return learning_rate(
        step,
        total_steps=plan.total_steps,
        warmup_steps=min(
            round(recipe.schedule.warmup_epochs * plan.steps_per_epoch), plan.total_steps - 1
        ),
        peak=recipe.optimizer.lr,
        minimum=recipe.schedule.min_lr,
    )


def _warn_of_a_long_average(recipe: StudentRecipe, plan: Plan) -> None:
    """An average over more steps than there are is mostly the initial weights."""
    decay = recipe.ema.decay
    if decay is not None and not recipe.ema.warmup and plan.total_steps * (1 - decay) < 2:
        logger.warning(
            "ema.decay = %s averages over about %d steps, this run has %d: the averaged weights, "
            "which are evaluated and exported, will lag far behind; set ema.warmup = true, a lower "
            "ema.decay, or ema.decay = 0 for none",
            decay,
            round(1 / (1 - decay)),
            plan.total_steps,
        )


def _evaluation_is_due(recipe: StudentRecipe, plan: Plan, step: int) -> bool:
    epochs_done = step // plan.steps_per_epoch
    return step == plan.total_steps or epochs_done % recipe.evaluation.every_epochs == 0
