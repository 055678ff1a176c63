"""The manifest says what a cache was made from, and so decides whether a replay is allowed."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from teacher_cache.bounded_json import read_object
from teacher_cache.errors import CacheError, ReplayRefused, shortened
from teacher_cache.format.layout import Layout
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import RecipeError, digest_of, parse_recipe
from teacher_cache.storage.ledger import Owner

FORMAT_VERSION = 2
MOST_BYTES = 4 << 20
"""The most bytes of a manifest; one whose recipe has many ensemble members has some thousands."""
MOST_IMAGES = 2**31
MOST_BLOCKS = 100_000_000
MOST_CHARACTERS = 1000
"""The most characters of a digest, or of a library's version."""


def new_cache_id() -> str:
    """A random name that no other cache has."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Written once, when the cache is created, and never changed; every field is JSON."""

    recipe: Mapping[str, Any]
    """The whole cache recipe."""
    recipe_digest: str
    index_digest: str
    image_count: int
    class_count: int
    teacher: Mapping[str, Any]
    """The teacher as it was loaded: its weights' digest, precision and normalisation."""
    pixel_engine: str
    pixel_libraries: Mapping[str, str]
    """Name -> version of every library that touches pixels."""
    versions: Mapping[str, str]
    """Name -> version of the libraries that computed the logits."""
    cache_id: str = field(default_factory=new_cache_id)
    """A random id, which every entry of the ledger names, so that no other cache's is believed."""
    format_version: int = FORMAT_VERSION

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the manifest's canonical JSON."""
        return digest_of(asdict(self))

    @property
    def owner(self) -> Owner:
        """The id and digest by which the ledger's entries name this cache."""
        return Owner(self.cache_id, self.digest())

    @property
    def teacher_weights_sha256(self) -> str:
        """The digest of all parameters of the teacher."""
        return str(self.teacher["weights_sha256"])

    def to_json(self) -> dict[str, Any]:
        """The Zarr group's description; its attributes are the manifest and its digest."""
        attributes = {"retort": asdict(self), "retort_sha256": self.digest()}
        return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}

    @classmethod
    def from_json(cls, data: bytes, *, source: str) -> Self:
        """Read the Zarr group's description; `source` names the cache in errors.

        Raises:
            CacheError: it is no cache of Retort's, or one of another format version, or the
            manifest
                is damaged.
        """
        try:
            attributes = read_object(data, at_most=MOST_BYTES).get("attributes")
        except ValueError as error:
            raise CacheError(f"{source}/zarr.json cannot be read ({error}): {_RESTORE}") from None
        document = attributes.get("retort") if isinstance(attributes, dict) else None
        if not isinstance(document, dict):
            raise CacheError(f"{source} is a Zarr group, but not a cache of Retort's")
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{source} has cache format {shortened(version)}, this release reads format "
                f"{FORMAT_VERSION}: fill a new cache with cache-teacher and another --out, or use "
                "the release that wrote this one"
            )
        # Any other set of fields would not give a manifest; the digest finds every other damage.
        if set(document) != {each.name for each in fields(cls)} or digest_of(document) != (
            attributes or {}
        ).get("retort_sha256"):
            raise CacheError(f"{source}/zarr.json: the manifest is damaged: {_RESTORE}")
        manifest = cls(**document)
        manifest._require_sane(source)
        return manifest

    def parsed_recipe(self) -> CacheRecipe:
        """The recipe as the typed object that it was written from."""
        return parse_recipe(self.recipe, CacheRecipe, source="the cache's manifest")

    def layout(self) -> Layout:
        """The shape of one view's arrays."""
        recipe = self.parsed_recipe()
        return Layout(
            rows=self.image_count,
            rows_per_shard=recipe.storage.rows_per_shard,
            k=recipe.topk.k,
            temperatures=len(recipe.topk.temperatures),
            class_count=self.class_count,
            encoding=recipe.storage.encoding,
            moments=recipe.topk.keeps_moments,
        )

    def _require_sane(self, source: str) -> None:
        """Refuse what no real cache has, before anything is allocated for it.

        The manifest may come from a stranger, and its digest proves nothing then.

        Raises:
            CacheError: a field has another type, or a count is out of bounds.
        """
        tables = (self.recipe, self.teacher, self.pixel_libraries, self.versions)
        counts = (self.image_count, self.class_count)
        if not (
            all(isinstance(table, dict) for table in tables)
            and all(isinstance(t, str) and len(t) <= MOST_CHARACTERS for t in self._texts())
            # not isinstance: JSON's true is a bool, which Python counts as an int
            and all(type(count) is int and 0 < count <= MOST_IMAGES for count in counts)
        ):
            raise CacheError(f"{source}/zarr.json: the manifest is not one of format 2")
        try:
            layout, views = self.layout(), self.parsed_recipe().views.count
        except RecipeError as error:
            raise CacheError(f"{source}/zarr.json: {error}: {_RESTORE}") from None
        if (
            layout.k > self.class_count
            or layout.shards * views > MOST_BLOCKS
            or layout.rows_per_shard > MOST_IMAGES
        ):
            raise CacheError(
                f"{source}/zarr.json: the manifest describes {layout.shards * views} blocks of "
                f"{layout.rows_per_shard} records of {layout.k} among {self.class_count} classes, "
                "which no cache can have"
            )

    def _texts(self) -> list[object]:
        """The fields that must be text; messages repeat them, so their length is bounded."""
        digests = (self.recipe_digest, self.index_digest, self.teacher.get("weights_sha256"))
        libraries = (*self.pixel_libraries.values(), *self.versions.values())
        return [self.pixel_engine, self.cache_id, *digests, *libraries]

    def require_same_pixels(self, engine: str, libraries: Mapping[str, str]) -> None:
        """Refuse an environment whose pixels may differ from those that the teacher saw.

        Raises:
            ReplayRefused: a library differs; the message names each with both versions.
        """
        here = {"pixel_engine": engine, **libraries}
        there = {"pixel_engine": self.pixel_engine, **self.pixel_libraries}
        if differing := _differing(there, here):
            raise ReplayRefused(
                "the cache was filled with other pixel libraries: "
                + "; ".join(differing)
                + ": install the cache's versions, or fill a new cache; "
                "--accept-pixel-libraries goes on if a sample of the pixels is the same"
            )

    def other_teacher_libraries(self, versions: Mapping[str, str]) -> list[str]:
        """The libraries that compute logits and have another version here: one line for each."""
        return _differing(
            {name: self.versions.get(name, "absent") for name in ("torch", "timm")},
            {name: versions.get(name, "absent") for name in ("torch", "timm")},
        )

    def differences(self, other: Self) -> list[str]:
        """The settings in which another cache differs: one line for each, with both values."""
        mine, theirs = self._identity(), other._identity()
        return [
            f"{name}: {mine.get(name, 'none')} in the cache, {theirs.get(name, 'none')} asked for"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]

    def _identity(self) -> dict[str, Any]:
        recipe = self.parsed_recipe()
        settings = recipe.data_settings()
        flat = {
            f"{s}.{key}": value for s, table in settings.items() for key, value in table.items()
        }
        members = self.teacher.get("members", ())
        normalization = [[member.get("mean"), member.get("std")] for member in members]
        return {
            **flat,
            "teacher normalization (mean, std)": normalization,
            "storage.encoding": recipe.storage.encoding.value,
            # digests are shown to the user, for whom a beginning tells two of them apart
            "image index": self.index_digest[:16],
            "teacher weights": self.teacher_weights_sha256[:16],
            "classes": self.class_count,
        }


_RESTORE = "restore it from a copy of this cache"


def _differing(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {there.get(name, 'absent')} in the cache, {here.get(name, 'absent')} here"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
