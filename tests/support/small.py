"""Recipes and caches small enough for tests, and real."""

import json
from pathlib import Path

import pytest
import torch

from service.records.job_store import open_store
from teacher_cache.cache.cache import open_cache
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.images.index import index_images
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import seal
from teacher_cache.teacher.networks import load_teacher

CPU = torch.device("cpu")
TEACHER = "test_resnet"  # timm's own tiny network for tests: 0.3 M parameters


def cache_document(**changes):
    """A small cache recipe: 90 rows in shards of 32, 3 views; changes as section__key=value."""
    document = {
        "teacher": {"model": TEACHER, "pretrained": False, "batch_size": 16},
        "views": {"count": 3, "size": 32},
        "topk": {"k": 2, "temperatures": [1.0, 2.0]},
        "storage": {"rows_per_shard": 32, "views_per_tile": 2},
        "loader": {"workers": 0},
    }
    return changed(document, changes)


def student_document(**changes):
    """A small student recipe: 3 epochs of 5 steps of 16 images."""
    document = {
        "student": {"model": "test_efficientnet"},
        "optimizer": {"batch_size": 16, "lr": 0.01},
        "schedule": {"epochs": 3},
        "ema": {"decay": 0.9, "warmup": True},
        "evaluation": {"crop_ratio": 1.0, "batch_size": 16},
        "loader": {"workers": 0},
        "run": {"threads": 1, "log_every_steps": 2},
    }
    return changed(document, changes)


def changed(document, changes):
    for name, value in changes.items():
        section, _, key = name.partition("__")
        document.setdefault(section, {})[key] = value
    return document


def cache_recipe(**changes):
    return parse_recipe(cache_document(**changes), CacheRecipe, source="test")


def build_teacher(recipe, index, device=CPU):
    return load_teacher(
        recipe.teacher,
        class_count=index.class_count,
        has_class_map=recipe.images.class_map is not None,
        size=recipe.views.size,
        device=device,
    )


def fill_cache(place, data, recipe, device=CPU):
    """Fill a cache in a folder, or in another place, to the end in this process."""
    place = Disk(place) if isinstance(place, Path) else place
    index = index_images(data)
    teacher = build_teacher(recipe, index, device)
    cache = open_or_create(place, recipe, index, teacher)
    for _ in fill(cache, index, teacher, recipe):
        pass
    return cache


def rewrite_manifest(root, **changes):
    """Let a cache have been filled by other libraries: its manifest and every entry say so."""
    from dataclasses import replace

    cache = open_cache(Disk(root))
    manifest = replace(cache.manifest, **changes)
    (root / "zarr.json").write_text(json.dumps(manifest.to_json()))
    for path in (root / "ledger").rglob("*.json"):
        document = json.loads(path.read_bytes())
        content = {
            name: value
            for name, value in document.items()
            if name not in ("kind", "cache", "manifest", "entry_sha256")
        }
        path.write_bytes(seal(document["kind"], manifest.owner, content))


def to_toml(document):
    """A recipe document as TOML text."""

    def value(item):
        if isinstance(item, bool):
            return str(item).lower()
        if isinstance(item, str):
            return f'"{item}"'
        if isinstance(item, list | tuple):
            return "[" + ", ".join(map(value, item)) + "]"
        return str(item)

    lines = []
    for section, table in document.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {value(item)}" for key, item in table.items()]
    return "\n".join(lines) + "\n"


def newest_job(folder):
    """The record of the job that began last, with `cli_environment`."""
    store = open_store(f"sqlite:///{folder}/jobs.db")
    return store.get(store.list(limit=1).jobs[0].record.id).record


def closed(job):
    """Close a job; what it returns."""
    with pytest.raises(StopIteration) as end:
        job.throw(GeneratorExit)
    return end.value.value
