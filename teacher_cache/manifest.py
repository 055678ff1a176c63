"""The manifest: what a cache was made from. It decides whether a replay is legal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from teacher_cache.errors import CacheError, ReplayRefused
from teacher_cache.recipe import CacheRecipe, digest_of, parse_recipe

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """Written once, when the cache is created; every field is JSON."""

    recipe: Mapping[str, Any]
    """The whole cache recipe."""
    recipe_digest: str
    index_digest: str
    teacher_weights_sha256: str
    class_count: int
    pixel_engine: str
    pixel_libraries: Mapping[str, str]
    """Name -> version of every library that touches pixels."""
    versions: Mapping[str, str]
    """Name -> version of the libraries that computed the logits, for the record."""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The group's attributes: the manifest, and the digest that shows damage to it."""
        document = asdict(self)
        return {"retort": document, "retort_sha256": digest_of(document)}

    @classmethod
    def from_json(cls, attributes: Mapping[str, Any], *, source: str) -> Self:
        """Read the group's attributes; `source` names the cache in errors.

        Raises:
            CacheError: no Retort cache, one of another format version, or a damaged manifest.
        """
        document = attributes.get("retort")
        if not isinstance(document, dict):
            raise CacheError(f"{source} is a Zarr group, but not a cache of Retort's")
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{source} has cache format {version}, this release reads {FORMAT_VERSION}: "
                "use the release that wrote it, or fill a new cache"
            )
        if digest_of(document) != attributes.get("retort_sha256"):
            raise CacheError(f"{source}/zarr.json: the manifest is damaged: restore it from a copy")
        return cls(**document)

    def parsed_recipe(self) -> CacheRecipe:
        """The recipe as the typed object it was written from."""
        return parse_recipe(self.recipe, CacheRecipe, source="the cache's manifest")

    def require_same_pixels(self, engine: str, libraries: Mapping[str, str]) -> None:
        """Refuse an environment whose pixels may differ from those the teacher saw.

        Raises:
            ReplayRefused: naming each library that differs, with both versions.
        """
        here = {"pixel_engine": engine, **libraries}
        there = {"pixel_engine": self.pixel_engine, **self.pixel_libraries}
        differing = [
            f"{name} {there.get(name, 'absent')} in the cache, {here.get(name, 'absent')} here"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
        if differing:
            raise ReplayRefused(
                "the cache was filled with other pixel libraries: "
                + "; ".join(differing)
                + ": install the cache's versions, or fill a new cache; "
                "--accept-pixel-libraries goes on if a sample of the pixels is the same"
            )

    def differences(self, other: Self) -> list[str]:
        """What makes `other` another cache: one line a setting, `name: mine, theirs`."""
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
        return {
            **flat,
            "storage.encoding": recipe.storage.encoding.value,
            "image index": self.index_digest[:16],
            "teacher weights": self.teacher_weights_sha256[:16],
            "classes": self.class_count,
        }
