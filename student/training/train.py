"""The training loop of GhostNetV3 (arXiv 2404.11202, sec. 5): LAMB, cosine, EMA, KD.

for each step:  lr <- cosine(step);  L = (1 - alpha) CE + alpha tau^2 KL over micro-batches;
                optimizer step;  EMA
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from student.data.batches import Batches, batches
from student.data.prefetch import on_device
from student.data.run_plan import Plan, plan_run
from student.data.training_data import TrainingData
from student.ranks import ALONE, Ranks
from student.recipe import StudentRecipe
from student.runs.metrics import append_metrics, best_evaluation, forget_after, last_evaluation
from student.runs.run import Run, locked
from student.schedule import learning_rate, stepped_rate
from student.training.evaluation import Evaluation, evaluate, evaluation_of, require_ready
from student.training.log_interval import Interval
from student.training.start import accept_validation_set
from student.training.state import RunState, resume
from student.training.summary import write_summary
from student.training.trainee import Trainee
from teacher_cache.errors import StoppedTogether
from teacher_cache.images.index import ImageIndex
from teacher_cache.loading.loader import LoaderSettings
from teacher_cache.progress import Job, Progress
from teacher_cache.stopwatch import Stopwatch
from teacher_cache.verification.fidelity import LEAST_COSINE

logger = logging.getLogger(__name__)

EPOCH_SHARES = ("evaluation", "checkpoint")
"""What of an epoch's wall time is not training."""


def train(
    run: Run,
    data: TrainingData,
    validation: ImageIndex,
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Job:
    """Train to the recipe's end, from the last checkpoint if there is one, one job a run.

    The same recipe on the same data gives the same bytes of weights on the CPU, whatever the
    number of loader workers and however often the run was killed; so do several ranks, among
    themselves. Closing the iterator saves after the step at hand, on all ranks.

    Raises:
        RunError: another process is training this run.
        TrainingError: a loss that is not finite; the last good state is kept.
        RanksError: ranks that cannot share a batch, or one that has ended or was stopped.
        CacheError, ImagesError: from the cache and the images.
        OSError: the run's folder cannot be written.
    """
    with locked(run) if ranks.is_first else nullcontext():
        ranks.agree()  # the others start once the run is locked
        job = _prepared(run, data, validation, device, ranks)
        try:
            yield from _train(job)
        except GeneratorExit:
            return job.progress()
    return None


@dataclass(slots=True)
class _Job:
    """Everything that the training loop uses and changes."""

    run: Run
    data: TrainingData
    plan: Plan
    trainee: Trainee
    evaluation: Evaluation
    device: torch.device
    ranks: Ranks
    state: RunState
    interval: Interval
    resumed: int
    epoch: Stopwatch = field(default_factory=Stopwatch)
    """Since the epoch began, or since the run was continued within it."""
    saved: int | None = None
    """At which step it was saved, until that has been told."""

    @property
    def place(self) -> dict[str, float]:
        """The fields with which every line of the metrics begins."""
        step = self.state.step
        return {"step": step, "epoch": (step - 1) // self.plan.steps_per_epoch}

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add a line to the metrics."""
        if self.ranks.is_first:
            append_metrics(self.run.metrics, {**self.place, **metrics})

    @contextmanager
    def interrupted(self, name: str) -> Iterator[None]:
        """Count what happens inside as the epoch's, not as training."""
        with self.interval.interrupted(), self.epoch.during(name):
            yield

    def progress(self, metrics: Mapping[str, float] | None = None) -> Progress:
        """Where the job is."""
        step, steps = self.state.step, self.plan.total_steps
        saved, self.saved = self.saved, None
        return Progress(step, steps, "steps", metrics or {}, self.resumed, saved=saved)

    def pause(self, metrics: Mapping[str, float]) -> Iterator[Progress]:
        """Yield where the job is; whoever closes it here stops all ranks after the same step."""
        try:
            yield self.progress(metrics)
        except GeneratorExit:
            if self.state.step < self.plan.total_steps:
                self.ranks.agree(stop=True)
            _save(self)
            raise


def _prepared(
    run: Run, data: TrainingData, validation: ImageIndex, device: torch.device, ranks: Ranks
) -> _Job:
    recipe = run.recipe
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    plan = plan_run(recipe, data, ranks)
    _warn_of_a_long_average(recipe, plan)
    _warn_of_another_loss(recipe, data)
    trainee = Trainee.build(
        recipe, data.class_count, run.size, device, ranks, continues=run.last.exists()
    )
    state = resume(run, trainee)
    if ranks.is_first:
        forget_after(run.metrics, state.step)
        accept_validation_set(run, state.step)
        state.best_top1 = best_evaluation(run.metrics, trainee.selection_metric, state.best_top1)
    state.best_top1 = ranks.gather(state.best_top1)[0]
    return _Job(
        run=run,
        data=data,
        plan=plan,
        trainee=trainee,
        evaluation=evaluation_of(
            recipe, validation, size=run.size, interpolation=run.interpolation
        ),
        device=device,
        ranks=ranks,
        state=state,
        interval=Interval(data.index.keys, ranks),
        resumed=state.step,
    )


def _train(job: _Job) -> Iterator[Progress]:
    plan, state, recipe = job.plan, job.state, job.run.recipe
    yield job.progress()
    if state.step < plan.total_steps:
        require_ready(job.evaluation, job.ranks)
    if _evaluation_is_owed(job):
        yield from job.pause({**job.place, **_evaluated(job)})
    settings = LoaderSettings(
        recipe.loader.workers, recipe.loader.memory_mb, pinned=job.device.type == "cuda"
    )
    with batches(job.data, plan, start_step=state.step, settings=settings) as stream:
        for step_batches in on_device(stream, job.device, job.interval.watch):
            if not step_batches:
                yield from _waiting(job, stream)
                continue
            _agree(job)
            lr = rate_at(recipe, plan, state.step)
            with job.interval.watch.during("compute"):
                losses = job.trainee.step(step_batches, lr=lr, step=state.step)
            state.step += 1
            job.interval.add(state.step, step_batches, losses)
            yield from job.pause(_closed_intervals(job, lr))
    if job.ranks.is_first:
        write_summary(job.run, job.data, plan, job.trainee, state, job.device.type)


def _waiting(job: _Job, stream: Batches) -> Iterator[Progress]:
    """Say that the view of the epoch at hand is still being filled, or that images are slow."""
    if stream.waiting_for == "view":
        view = job.data.view_of(job.state.step // job.plan.steps_per_epoch)
        yield from job.pause({"waiting_for_view": float(view)})
        job.interval.restart_clock()
    else:
        yield from job.pause({})


def _agree(job: _Job) -> None:
    """Before a step: whether to save first, or to stop, which the first rank's clock and any
    rank's signal decide for all.
    """
    due = job.ranks.is_first and job.state.is_due(job.run.recipe.run.checkpoint_every_s)
    with job.interval.watch.during("ranks" if job.ranks.count > 1 else "compute"):
        stopping, saving = job.ranks.agree(save=due)
    if stopping or saving:
        _save(job)
    if stopping:
        raise StoppedTogether(
            f"stopped after step {job.state.step}, as another rank was; saved: the same command "
            "continues"
        )


def _closed_intervals(job: _Job, lr: float) -> dict[str, float]:
    """The metrics that are due after a step; an epoch's end saves and evaluates the run first.

    Each line is written when its figures are known, so that a crash in what follows loses none;
    an evaluation that a saved state still lacks is made up for when the run is continued.
    """
    recipe, plan, step = job.run.recipe, job.plan, job.state.step
    metrics: dict[str, float] = {}
    epoch_ends = step % plan.steps_per_epoch == 0
    if step == 1 or step % recipe.run.log_every_steps == 0 or epoch_ends:
        metrics = {**job.interval.summarize(), "lr": lr}
        job.log(metrics)
    if epoch_ends:
        _save(job)
    if epoch_ends and _evaluation_is_due(recipe, plan, step):
        metrics |= _evaluated(job)
    if epoch_ends:
        shares = job.epoch.shares(*EPOCH_SHARES)
        job.log(shares)
        metrics |= shares
    return {**job.place, **metrics} if metrics else {}


def _save(job: _Job) -> None:
    job.interval.require_finite()
    if job.ranks.is_first:
        with job.interrupted("checkpoint"):
            job.state.save(job.run, job.trainee)
    job.state.saved, job.saved = time.monotonic(), job.state.step


def _evaluation_is_owed(job: _Job) -> bool:
    """Whether the run ended after an epoch's save but before its evaluation."""
    step = job.state.step
    if not step or step % job.plan.steps_per_epoch:
        return False
    if not _evaluation_is_due(job.run.recipe, job.plan, step):
        return False
    owed = job.ranks.is_first and not last_evaluation(job.run.metrics, step)
    return job.ranks.gather(owed)[0]


def _evaluated(job: _Job) -> dict[str, float]:
    """Evaluate, log, and keep the weights if they are the best."""
    with job.interrupted("evaluation"):
        accuracies = _evaluate(job)
    job.log(accuracies)
    _keep_if_best(job, accuracies)
    return accuracies


def _evaluate(job: _Job) -> dict[str, float]:
    trainee = job.trainee
    networks = [trainee.network] if trainee.ema is None else [trainee.network, trainee.ema.module]
    found = evaluate(networks, job.evaluation, trainee.normalization, job.ranks)
    names = ("", "ema_")
    return {
        f"{prefix}{name}": round(value, 4)
        for prefix, accuracy in zip(names, found, strict=False)
        for name, value in (("top1", accuracy.top1), ("top5", accuracy.top5))
    }


def _keep_if_best(job: _Job, accuracies: Mapping[str, float]) -> None:
    if accuracies[job.trainee.selection_metric] > job.state.best_top1:
        job.state.best_top1 = accuracies[job.trainee.selection_metric]
        if job.ranks.is_first:
            with job.interrupted("checkpoint"):
                job.state.save_best(job.run, job.trainee)
                job.state.save(job.run, job.trainee)  # it also restores the best accuracy so far


def rate_at(recipe: StudentRecipe, plan: Plan, step: int) -> float:
    """The learning rate of a step of the run."""
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    warmup = min(round(schedule.warmup_epochs * plan.steps_per_epoch), plan.total_steps - 1)
    if schedule.name == "step":
        return stepped_rate(
            step,
            warmup_steps=warmup,
            peak=peak,
            decay_steps=schedule.decay_epochs * plan.steps_per_epoch,
            decay_rate=schedule.decay_rate,
        )
    return learning_rate(
        step,
        total_steps=plan.total_steps,
        warmup_steps=warmup,
        peak=peak,
        minimum=schedule.min_lr,
    )


def _warn_of_a_long_average(recipe: StudentRecipe, plan: Plan) -> None:
    """Warn of an average over more steps than the run has: it is mostly the initial weights."""
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


def _warn_of_another_loss(recipe: StudentRecipe, data: TrainingData) -> None:
    """Warn if so few classes are kept that the tail, not the teacher, decides what is trained."""
    distill, found = recipe.distill, data.fidelity(recipe.distill)
    if data.cache is None or found is None:
        return
    worst = min(found, key=lambda student: found[student].mean)
    if found[worst].mean < LEAST_COSINE:
        logger.warning(
            "k = %d is few for distill.temperature = %g with distill.tail = %s: the gradient's "
            "cosine to that of the whole teacher is %.3f in the mean for a %s student (5%%: %.3f), "
            "expected %g or more; fill a cache with a larger topk.k, or take a lower temperature "
            "(docs/loss.md)",
            data.cache.layout.k,
            distill.temperature,
            distill.tail,
            found[worst].mean,
            worst,
            found[worst].low,
            LEAST_COSINE,
        )


def _evaluation_is_due(recipe: StudentRecipe, plan: Plan, step: int) -> bool:
    epochs_done = step // plan.steps_per_epoch
    return step == plan.total_steps or epochs_done % recipe.evaluation.every_epochs == 0
