"""The student's recipe: every default is the paper's (GhostNetV3, arXiv 2404.11202, sec. 5)."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from student.losses.criterion import Criterion, mismatch
from teacher_cache.networks.reparam import ReparamSpec
from teacher_cache.recipes.cache_recipe import UnreadableImages
from teacher_cache.recipes.document import PositiveInt, Section, Seed, Temperature
from teacher_cache.recipes.model_arguments import ModelName, PlainArguments, StudentArguments
from teacher_cache.record import Tail
from teacher_cache.views.policy import ViewPolicy

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StudentSection(Section):
    """Which network is trained."""

    model: ModelName
    """A timm model name, or `torchvision/NAME`."""
    size: PositiveInt | None = None
    """Pixels a side; None: the cache's views.size. Another size shows the same crops."""
    kwargs: StudentArguments = Field(default_factory=dict)
    """Passed through to the model's constructor, but for what loads code or weights from elsewhere;
    `pretrained = true` starts from timm's own weights."""
    checkpoint: Path | None = None
    """Weights to start from, in whatever form trainers save them; a classifier of another class
    count begins anew. Read when the run is started, and never again."""
    use_ema: bool = True
    """Of a checkpoint that holds both, take the moving average; false: the weights as trained."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.checkpoint is not None and self.kwargs.get("pretrained"):
            raise ValueError(
                "got kwargs.pretrained = true and a checkpoint, expected one start: drop one"
            )
        return self


class DistillSection(Section):
    """L = (1 - alpha) CE + alpha tau^2 KL (eq. 3 and 4), or another criterion in KL's place."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Temperature = 1.0
    tail: Tail = Tail.UNIFORM
    """What stands for the classes that a record leaves out. It was `bucket` in earlier versions: a
    run that was started then keeps it, unless this key is given."""
    loss: Criterion = Criterion.KL

    @model_validator(mode="after")
    def _a_tail_that_the_loss_takes(self) -> Self:
        if wrong := mismatch(self.loss, self.tail, self.temperature):
            raise ValueError(wrong)
        return self


class OptimizerSection(Section):
    """timm's optimizer and the batch it sees."""

    name: str = "lamb"
    lr: Positive = 0.005
    weight_decay: NotNegative = 0.05
    batch_size: PositiveInt = 2048
    micro_batch: PositiveInt | None = None
    """Images per forward pass; None: the whole batch. Gradients are accumulated over the batch."""
    kwargs: PlainArguments = Field(default_factory=dict)
    """Passed through to `timm.optim.create_optimizer_v2`."""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"got micro_batch = {self.micro_batch}, expected a divisor of batch_size = "
                f"{self.batch_size}"
            )
        return self


class ScheduleSection(Section):
    """A linear warm-up, then a cosine per step, or steps."""

    name: Literal["cosine", "step"] = "cosine"
    epochs: PositiveInt = 600
    min_lr: NotNegative = 0.0
    """Where the cosine ends."""
    warmup_epochs: NotNegative = 0.0
    decay_epochs: Positive = 2.4
    """Of `step`: after so many epochs each the rate is multiplied by `decay_rate`. The paper's
    table 6 gives neither; these are those of timm's recipes for EfficientNet and its like."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.97

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        default = ScheduleSection.model_fields
        odd = [
            key
            for key in ("decay_epochs", "decay_rate")
            if getattr(self, key) != default[key].default
        ]
        if self.name == "cosine" and odd:
            raise ValueError(f'{odd[0]} belongs to name = "step": set it, or leave {odd[0]} out')
        if self.name == "step" and self.min_lr:
            raise ValueError('min_lr belongs to name = "cosine", where it ends: leave it out')
        return self

    def later(self) -> set[str]:
        """Keys that came later, and are not part of the identity of a run with a cosine."""
        return {"name", "decay_epochs", "decay_rate"} if self.name == "cosine" else set()


class EmaSection(Section):
    """Exponential moving average of the weights and of BatchNorm's statistics."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.9999
    """None, in TOML 0: no average is kept."""
    warmup: bool = False
    """Grow the decay as 1 - (1 + step)^(-2/3) up to `decay`: for runs of few steps."""

    @field_validator("decay", mode="before")
    @classmethod
    def _zero_is_none(cls, decay: Any) -> Any:
        return None if decay == 0 and decay is not False else decay


class StudentViews(ViewPolicy):
    """Views without a cache; with one, the cache's hold, and a key given here must agree."""

    reuse: bool = False
    """Let epoch e show view e mod V of a cache that holds V views."""
    seed: Seed = 0
    size: PositiveInt = 224
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class EvaluationSection(Section):
    """The centre crop on which top-1 is measured."""

    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Size over the shorter side of the resized image."""
    batch_size: PositiveInt = 256
    every_epochs: PositiveInt = 1


class LoaderSection(Section):
    """Processes that decode and render; they change speed, never a weight."""

    workers: Annotated[int, Field(ge=0)] = 2
    memory_mb: PositiveInt = 1024
    """Rendered pixels that may wait or be read, in 10^6 bytes: how far decoding runs ahead."""


class RunSection(Section):
    """What else decides the bytes of the weights, and how often the run reports and saves."""

    seed: Seed = 0
    threads: PositiveInt | None = None
    """CPU threads of an operation (it changes rounding); None: torch's choice."""
    channels_last: bool = False
    """Memory format on the device (it changes rounding); which is faster differs by model."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the student's forward pass; bf16 is autocast, and weights, loss and optimizer stay
    float32. None: bf16 on CUDA, fp32 on the CPU."""
    compile: bool = False
    """Run the student through torch.compile (it changes rounding); minutes at every start."""
    sync_batchnorm: bool = False
    """Under torchrun on GPUs: BatchNorm's statistics of all ranks' images, not of a rank's own."""
    log_every_steps: PositiveInt = 50
    checkpoint_every_s: Positive = 600.0
    """Save this often within an epoch, too; each epoch's end saves in any case."""

    def changed(self) -> set[str]:
        """The keys that are not at their defaults."""
        return set(self.model_dump(exclude_defaults=True))


class StudentRecipe(Section):
    """Everything that `train-student` needs to know besides where cache and data lie."""

    student: StudentSection
    distill: DistillSection = DistillSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    ema: EmaSection = EmaSection()
    reparam: ReparamSpec = ReparamSpec()
    views: StudentViews = StudentViews()
    evaluation: EvaluationSection = EvaluationSection()
    images: UnreadableImages = UnreadableImages()
    loader: LoaderSection = LoaderSection()
    run: RunSection = RunSection()

    @model_validator(mode="after")
    def _a_schedule_that_falls(self) -> Self:
        if self.schedule.warmup_epochs >= self.schedule.epochs:
            raise ValueError(
                f"got schedule.warmup_epochs = {self.schedule.warmup_epochs}, expected less than "
                f"schedule.epochs = {self.schedule.epochs}"
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"got schedule.min_lr = {self.schedule.min_lr}, expected at most optimizer.lr = "
                f"{self.optimizer.lr}"
            )
        return self

    def with_tail_of(self, other: Self) -> Self:
        """This recipe with another's tail where it names none itself: defaults change."""
        if "tail" in self.distill.model_fields_set:
            return self
        distill = self.distill.model_copy(update={"tail": other.distill.tail})
        return self.model_copy(update={"distill": distill})

    def identity(self) -> dict[str, Any]:
        """Every setting that decides the weights: what a resumed run must agree in."""
        # a setting that came later is absent at its default, so that earlier runs keep their digest
        started = self.student.model_dump(exclude_defaults=True)
        later = {"precision", "compile", "sync_batchnorm"} - self.run.changed()
        same_loss = {"loss"} if self.distill.loss is Criterion.KL else set()
        return self.model_dump(
            mode="json",
            exclude={
                "distill": same_loss,
                "schedule": self.schedule.later(),
                "images": True,  # it changes nothing where all images can be read
                "loader": True,
                "student": {"checkpoint", "use_ema"} - set(started),
                "run": {"log_every_steps", "checkpoint_every_s", *later},
                "evaluation": {"batch_size"},
            },
        )
