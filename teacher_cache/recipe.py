"""Recipes: frozen, typed settings read from TOML; the edge where bad input is named and refused."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from teacher_cache.encodings import Encoding
from teacher_cache.model_arguments import ModelArguments, ModelName
from teacher_cache.recipe_text import RecipeError as RecipeError
from teacher_cache.recipe_text import explain, override, read_toml
from teacher_cache.views import ViewPolicy

PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """One table of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


Precision = Literal["fp32", "bf16"]
"""In which the teacher's features are computed; its head always is in float32."""


class TeacherMember(Section):
    """A network that gives targets, and from where its weights come."""

    model: ModelName
    """Any timm model name."""
    pretrained: bool = True
    """Fetch timm's weights; false: random weights from `seed`, one class per data class."""
    checkpoint: Path | None = None
    """Local weights instead: safetensors, or a state dict readable with `weights_only=True`."""
    seed: int = 0
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
    seed: int = 0
    size: PositiveInt = 224
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class TopKSection(Section):
    """What is kept of the teacher's logits."""

    k: PositiveInt = 20
    temperatures: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1.0, 2.0, 4.0)
    """The temperatures at which the tail's log-mass is stored; training may use any of them."""

    @model_validator(mode="after")
    def _temperatures_differ(self) -> Self:
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


class ImagesSection(Section):
    """How the data folder is read."""

    skip_unreadable: bool = False
    """Leave unreadable images out (their rows are marked absent) instead of stopping."""
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The largest share of images that may be left out; one image may be in any case."""
    class_map: Path | None = None
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
        storage = {"rows_per_shard"}
        if self.storage.encoding is not Encoding.DEFAULT:  # absent, as in caches without the key
            storage |= {"encoding"}
        return self.model_dump(
            mode="json",
            include={
                "teacher": teacher,
                "views": set(ViewsSection.model_fields) - {"count"},
                "topk": True,
                "storage": storage,
            },
        )

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of `data_settings`: two caches with equal digests agree."""
        return digest_of(self.data_settings())


def digest_of(value: object) -> str:
    """SHA-256, in hexadecimal, of a JSON value in its canonical spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


Recipe = TypeVar("Recipe", bound=Section)


def load_recipe(
    path: Path, kind: type[Recipe], *, overrides: Iterable[str] = (), package: str
) -> Recipe:
    """Read a TOML recipe and apply `section.key=value` overrides.

    Args:
        path: a file, or the name of a recipe that ships with `package` (with or without `.toml`).
        kind: `CacheRecipe` or `StudentRecipe`.
        overrides: what the user passed with `--set`; values are TOML, or else plain strings.
        package: where shipped recipes lie, such as `teacher_cache`.

    Raises:
        RecipeError: naming the file, the key, what it got and what it expected.
    """
    document = read_toml(path, package)
    for change in overrides:
        override(document, change)
    return parse_recipe(document, kind, source=str(path))


def parse_recipe(document: Mapping[str, Any], kind: type[Recipe], *, source: str) -> Recipe:
    """Validate a recipe that was read already; `source` names it in errors."""
    _require_kind(document, kind, source)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        problems = error.errors()
        lines = [explain(problem, kind) for problem in problems[:_MOST_PROBLEMS]]
        if len(problems) > _MOST_PROBLEMS:
            lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
        raise RecipeError(f"{source}: " + "; ".join(lines)) from None


_MOST_PROBLEMS = 8
"""So many mistakes are told at once; a recipe out of a stranger's cache may hold thousands."""

_PURPOSE = {
    "teacher": "a cache recipe, for cache-teacher and plan-cache",
    "student": "a student recipe, for train-student",
}
"""What a recipe is for, by the one section that only this kind has."""


def _require_kind(document: Mapping[str, Any], kind: type[Section], source: str) -> None:
    """One sentence for a recipe of the other job, instead of an error for each of its keys."""
    own = [section for section in _PURPOSE if section in kind.model_fields]
    others = [section for section in _PURPOSE if section in document and section not in own]
    if own and others and not any(section in document for section in own):
        raise RecipeError(
            f"{source}: this is {_PURPOSE[others[0]]} (it has [{others[0]}] and no [{own[0]}]), "
            f"expected {_PURPOSE[own[0]]}"
        )
