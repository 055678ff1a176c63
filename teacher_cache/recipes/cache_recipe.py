"""The cache recipe: everything that decides a cache, and the digest of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from teacher_cache.recipes.document import (
    LocalPath,
    PositiveInt,
    Section,
    Seed,
    Temperature,
    digest_of,
)
from teacher_cache.recipes.model_arguments import ModelArguments, ModelName
from teacher_cache.record import Encoding
from teacher_cache.views.policy import ViewPolicy

Precision = Literal["fp32", "bf16"]
"""In which the teacher's features are computed; its head always is in float32."""


class TeacherMember(Section):
    """A network that gives targets, and from where its weights come."""

    model: ModelName
    """Any timm model name, or `torchvision/NAME`."""
    pretrained: bool = True
    """Fetch the library's weights; false: random weights from `seed`, one class per data class."""
    checkpoint: LocalPath | None = None
    """Local weights instead: safetensors, or a state dict readable with `weights_only=True`, in
    whatever form trainers save it (`teacher_cache/networks/checkpoints.py`)."""
    use_ema: bool = True
    """Of a checkpoint that holds both, take the moving average; false: the weights as trained."""
    seed: Seed = 0
    kwargs: ModelArguments = Field(default_factory=dict)
    """Passed through to `timm.create_model`: arguments of the architecture alone."""

    @model_validator(mode="before")
    @classmethod
    def _one_source_of_weights(cls, table: Any) -> Any:
        if isinstance(table, dict) and table.get("checkpoint") is not None:
            if table.get("pretrained"):
                raise ValueError(
                    "got pretrained = true and a checkpoint, expected one source: drop one of them"
                )
            return {**table, "pretrained": False}
        return table


class TeacherSection(TeacherMember):
    """The teacher: one network, or several whose log-probabilities are averaged."""

    batch_size: PositiveInt = 64
    """Images per forward pass; it can change the last bits of logits, so it is in the digest."""
    precision: Precision = "fp32"
    """Of the features; bf16 halves the teacher's time on GPUs and changes its records, so it is in
    the digest."""
    allow_poor: bool = False
    """Fill even if a trained teacher knows hardly any label of a sample."""
    ensemble: tuple[TeacherMember, ...] = ()
    """Further networks, each a `[[teacher.ensemble]]`: the target is the mean of all members'
    log-probabilities, normalised again."""

    @property
    def name(self) -> str:
        """The members' models."""
        return " + ".join(member.model for member in (self, *self.ensemble))


class ViewsSection(ViewPolicy):
    """How many views, from which seed, rendered how large; the rest is the views' distribution."""

    count: PositiveInt
    seed: Seed = 0
    size: PositiveInt = 224
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class TopKSection(Section):
    """What is kept of the teacher's logits."""

    k: PositiveInt = 20
    temperatures: tuple[Temperature, ...] = (1.0, 2.0, 4.0)
    """The temperatures at which the tail's log-mass is stored; training may use any of them."""
    extras: tuple[Literal["moments"], ...] = ()
    """What else is kept: `moments`, mean and standard deviation of all classes' log-probabilities,
    four bytes a record before compression, for `distill.loss = "standardized"`."""

    @property
    def keeps_moments(self) -> bool:
        """Whether mean and deviation are kept."""
        return "moments" in self.extras

    @model_validator(mode="after")
    def _temperatures_differ(self) -> Self:
        if len(set(self.extras)) != len(self.extras):
            raise ValueError(f"got extras {self.extras}, expected each once")
        if not self.temperatures or len(set(self.temperatures)) != len(self.temperatures):
            msg = f"got temperatures {self.temperatures}, expected one or more, each once"
            raise ValueError(msg)
        return self


class StorageSection(Section):
    """How records are cut into shards, and shards into units of work."""

    rows_per_shard: PositiveInt = 32_768
    views_per_tile: PositiveInt = 4
    """Views filled from one decode of an image; it changes no record."""
    encoding: Encoding = Encoding.DEFAULT
    """default; portable: standard Zarr v3 codecs alone; compact: the smallest, logp quantised."""

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        rows = self.rows_per_shard
        if rows % 32 or (rows > 4096 and rows % 4096):
            msg = f"got rows_per_shard = {rows}, expected a multiple of 32, and of 4096 above 4096"
            raise ValueError(msg)
        return self


class UnreadableImages(Section):
    """What becomes of images whose bytes are there, but do not decode."""

    skip_unreadable: bool = False
    """Leave unreadable images out instead of stopping; a cache marks their rows absent."""
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The largest share of images that may be left out; one image may be in any case."""


class ImagesSection(UnreadableImages):
    """How the data folder is read."""

    class_map: LocalPath | None = None
    """JSON object from class folder to the teacher's class id, where the two differ."""
    class_order: Literal["bytes", "timm"] | None = None
    """How class folders are numbered: by their names' bytes (torchvision's order, and the default),
    or naturally and case-blind (timm's: 2 before 10). A trained teacher expects the order that it
    was trained with."""


class LoaderSection(Section):
    """Processes that decode and render; they change speed, never a pixel."""

    workers: Annotated[int, Field(ge=0)] = 2
    memory_mb: PositiveInt = 1024
    """Rendered pixels that may wait or be read, in 10^6 bytes: how far decoding runs ahead."""


class CacheRecipe(Section):
    """Everything that `cache-teacher` needs to know besides where the data lies."""

    teacher: TeacherSection
    views: ViewsSection
    topk: TopKSection = TopKSection()
    storage: StorageSection = StorageSection()
    images: ImagesSection = ImagesSection()
    loader: LoaderSection = LoaderSection()

    def data_settings(self) -> dict[str, Any]:
        """Every setting that changes a record or its bytes: what the digest covers.

        Left out: how many views there are (they can be appended), tile and worker counts, what
        happens to unreadable images, and file paths (weights and labels have digests of their own).
        """
        member = {"model", "pretrained", "seed", "kwargs"}
        teacher: dict[str, Any] = dict.fromkeys([*member, "batch_size", "precision"], True)
        if self.teacher.ensemble:  # absent, not empty: the digests of single teachers stay
            teacher["ensemble"] = {"__all__": member}
        topk = {"k", "temperatures"} | ({"extras"} if self.topk.extras else set())
        storage = {"rows_per_shard"}
        if self.storage.encoding is not Encoding.DEFAULT:  # absent, as in caches without the key
            storage |= {"encoding"}
        return self.model_dump(
            mode="json",
            include={
                "teacher": teacher,
                "views": set(ViewsSection.model_fields) - {"count"},
                "topk": topk,
                "storage": storage,
            },
        )

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of `data_settings`: two caches with equal digests agree."""
        return digest_of(self.data_settings())
