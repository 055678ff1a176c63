"""Retort's commands: parse, load a recipe, wire a job to its record, print.

Imports are per command, so that `serve` runs in an environment without torch.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service import VERSION
from service.console.commands import CommandList, example, jobs_app
from teacher_cache.errors import StoppedTogether, UserError, bounded, printable_lines, reason_of
from teacher_cache.local_path import local_path

if TYPE_CHECKING:
    import torch

    from service.console.runner import Job
    from service.recording.recorder import Recorder
    from student.data.training_data import TrainingData
    from student.recipe import StudentRecipe
    from teacher_cache.cache.cache import Cache
    from teacher_cache.images.index import ImageIndex
    from teacher_cache.recipes.cache_recipe import CacheRecipe
    from teacher_cache.teacher.networks import Teacher

BLOCKS_LEFT = 3
"""Exit code of a cache-teacher that ended though blocks are missing that nobody has in work."""

app = typer.Typer(
    cls=CommandList,
    help="Distil a big image teacher into a compact student, and pay for the teacher once.",
    epilog=example("demo"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # names of options and brackets as they are, in any terminal
)
app.add_typer(jobs_app, name="jobs")

RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        parser=local_path,
        help="A .toml file, or a shipped recipe: see 'recipes'.",
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", parser=local_path, help="The --out of a train-student."),
]
CacheArgument = Annotated[
    str, typer.Argument(metavar="CACHE", help="The --out of a cache-teacher: a folder or a URL.")
]
_IMAGES = "a folder or .tar of class folders, hfds/NAME[:SPLIT] or wds/PATH[:SPLIT]."
DataOption = Annotated[
    str, typer.Option("--data", metavar="IMAGES", help=f"Training images: {_IMAGES}")
]
ValOption = Annotated[
    str, typer.Option("--val", metavar="IMAGES", help=f"Validation images: {_IMAGES}")
]
AcceptOption = Annotated[
    bool,
    typer.Option(
        "--accept-pixel-libraries",
        help="Go on with other versions if a sample of the pixels is the same.",
    ),
]
AcceptTeacherOption = Annotated[
    bool,
    typer.Option(
        "--accept-teacher-libraries",
        help="Go on with another torch or timm if a sample of the teacher's answers is the same.",
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; repeatable."),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(envvar="RETORT_DEVICE", help="Where to compute."),
]
WeightsOption = Annotated[
    Literal["averaged", "trained", "best"],
    typer.Option(
        help="The moving average, what the optimizer moved last, or the best evaluation's."
    ),
]
NewCacheOption = Annotated[
    str,
    typer.Option(
        metavar="CACHE",
        help="The cache: a folder, or s3://BUCKET/PREFIX; the same command continues it.",
    ),
]
NewRunOption = Annotated[
    Path,
    typer.Option(metavar="RUN", parser=local_path, help="The run; the same command continues it."),
]
FilledCacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="CACHE", help="From cache-teacher, a folder or a URL; none: no teacher."
    ),
]
RankOption = Annotated[
    int, typer.Option(min=0, envvar="RANK", help="This writer's number; torchrun sets it.")
]
WorldSizeOption = Annotated[
    int, typer.Option(min=1, envvar="WORLD_SIZE", help="How many writers share the work.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _say_version(asked: bool) -> None:  # noqa: FBT001 - as typer calls it
    if asked:
        print(f"retort {VERSION}")
        raise typer.Exit


@app.callback()
def retort(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version."),
    ] = False,
) -> None:
    """Distil a big image teacher into a compact student, and pay for the teacher once."""


@app.command(epilog=example("cache-teacher beitv2-base-imagenet --data train --out cache"))
def cache_teacher(
    recipe: RecipeArgument,
    data: DataOption,
    out: NewCacheOption,
    overrides: OverridesOption = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="The recipe's views.count; more than before appends.")
    ] = None,
    rank: RankOption = 0,
    world_size: WorldSizeOption = 1,
    accept_pixel_libraries: AcceptOption = False,
    accept_teacher_libraries: AcceptTeacherOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Run the teacher once over every seeded view, and store its top-k in Zarr."""
    from service.recording.recorder import record_job, recorded_if_it_fails
    from teacher_cache.cache.teacher_sample import read_sample
    from teacher_cache.filling.fill import fill
    from teacher_cache.filling.opening import open_or_create
    from teacher_cache.images.index import require_outside
    from teacher_cache.recipes.cache_recipe import CacheRecipe
    from teacher_cache.recipes.document import load_recipe
    from teacher_cache.storage.disk import Disk
    from teacher_cache.storage.location import locate

    if rank >= world_size:
        raise typer.BadParameter(f"got --rank {rank}, expected 0 to {world_size - 1}")
    place = locate(out)
    changes = [*(overrides or ()), *([f"views.count={views}"] if views else [])]
    settings = load_recipe(recipe, CacheRecipe, overrides=changes, package="teacher_cache")
    shown = {**settings.model_dump(mode="json"), "recipe": recipe.stem, "data": data}
    recorded: dict[str, Any] = {"kind": "cache-teacher", "unit": "records", "out": out}
    with recorded_if_it_fails(**recorded, config=shown, rank=rank):
        index = _index(settings, data)
        if isinstance(place, Disk):
            require_outside(index, place.root)
        teacher = _teacher(settings, index.class_count, device)
        cache = open_or_create(
            place,
            settings,
            index,
            teacher,
            accept_pixel_libraries=accept_pixel_libraries,
            accept_teacher_libraries=accept_teacher_libraries,
        )
        sample = read_sample(cache)
    asked = {"teacher top-1": round(sample.top1, 4)} if sample else {}
    recorder = record_job(
        **recorded,
        config=shown | asked,
        device=str(teacher.device),
        rank=rank,
        images_per_unit=1,
    )
    job = fill(cache, index, teacher, settings, rank=rank, world_size=world_size)
    artifacts = {"zarr.json": place.root / "zarr.json"} if isinstance(place, Disk) else {}
    _run(job, recorder, artifacts, shown=True)
    _tell_what_is_missing(cache, settings)


def _tell_what_is_missing(cache: "Cache", settings: "CacheRecipe") -> None:
    """Print how full a cache is; the exit code says if blocks are left that nobody has in work."""
    from teacher_cache.cache.blocks import missing_blocks
    from teacher_cache.filling.tiles import unclaimed_tiles

    missing = len(missing_blocks(cache))
    state = f"{missing} blocks are still with other writers" if missing else "complete"
    if missing and unclaimed_tiles(cache, settings.storage.views_per_tile):
        state = f"{missing} blocks are missing, and no living writer has them in work"
        print(
            printable_lines(f"cache {cache.place}: {state}: run the same command again"),
            file=sys.stderr,
        )
        raise SystemExit(BLOCKS_LEFT)
    holds = f"{cache.view_count} views of {len(cache.index)} images"
    print(printable_lines(f"cache {cache.place}: {holds}, {state}"))


@app.command(
    epilog=example(
        "train-student ghostnetv3-1.0x-imagenet --cache cache --data train --val val --out run"
    )
)
def train_student(
    recipe: RecipeArgument,
    data: DataOption,
    val: ValOption,
    out: NewRunOption,
    cache: FilledCacheOption = None,
    overrides: OverridesOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for views that are still being filled.")
    ] = False,
    follow_timeout_s: Annotated[
        float, typer.Option(min=0, help="Give up when the cache has not grown for so long.")
    ] = 3600.0,
    accept_pixel_libraries: AcceptOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a student on the views that the teacher saw, with its cached answers.

    Several GPUs: torchrun --nproc-per-node N cli.py train-student ...; each takes its share of
    every batch.
    """
    from service.recording.recorder import record_job, recorded_if_it_fails
    from student.ranks import joined
    from student.recipe import StudentRecipe
    from student.training.start import start_together
    from student.training.train import train
    from teacher_cache.images.index import index_images, require_outside
    from teacher_cache.recipes.document import load_recipe

    settings = load_recipe(recipe, StudentRecipe, overrides=overrides or (), package="student")
    patience_s = follow_timeout_s if follow else None
    shown = {"recipe": recipe.stem, "data": data}
    recorded: dict[str, Any] = {"kind": "train-student", "unit": "steps", "out": str(out)}
    early = {**recorded, "config": {**settings.model_dump(mode="json"), **shown}}
    with recorded_if_it_fails(**early):
        training = _training_data(settings, cache, data, patience_s, accept=accept_pixel_libraries)
        validation = index_images(val, class_ids=training.index.class_ids)
        for images in (training.index, validation):
            require_outside(images, out)
        place = _device(device)
    with joined(place) as ranks:
        with recorded_if_it_fails(**early):
            run = start_together(out, settings, training, validation, ranks)
        if ranks.is_first:
            _tell_what_is_taught(training, run.recipe)
        recorder = record_job(
            **recorded,
            config=training.settings(run.recipe) | shown,
            device=str(place),
            rank=ranks.number,
            images_per_unit=settings.optimizer.batch_size,
        )
        job = train(run, training, validation, device=place, ranks=ranks)
        left = {file.name: file for file in (run.summary, run.last, run.best)}
        _run(job, recorder, left, shown=ranks.is_first)
        if not ranks.is_first:
            return
    _tell_the_result(run.summary, out)


def _tell_the_result(file: Path, out: Path) -> None:
    """Print what a run that has ended came to."""
    from service.console.terminal import spell

    summary = json.loads(file.read_text())
    shown = ("model", "ema_top1", "top1", "top5", "seconds", "parameters", "parameters_folded")
    figures = spell({name: summary[name] for name in shown if name in summary})
    print(printable_lines(f"run {out}: {figures}"))


def _tell_what_is_taught(training: "TrainingData", settings: "StudentRecipe") -> None:
    """Print how near the loss on the cache's records comes to that on the teacher's answers."""
    distill = settings.distill
    found = training.fidelity(distill)
    if training.cache is None or found is None:
        return
    words = ", ".join(
        f"{student} {each.mean:.4f} (5%: {each.low:.4f})" for student, each in found.items()
    )
    print(
        f"teacher: k = {training.cache.layout.k}, tau {distill.temperature:g}, {distill.tail}; "
        f"gradient cosine to the whole teacher: {words}"
    )


def _training_data(
    settings: "StudentRecipe",
    cache: str | None,
    data: str,
    patience_s: float | None,
    *,
    accept: bool,
) -> "TrainingData":
    """The images to train on: as a cache's teacher saw them, or without a cache."""
    from student.data.training_data import plain_data, replayed_data
    from teacher_cache.cache.cache import open_cache
    from teacher_cache.images.index import index_images, rebase
    from teacher_cache.storage.location import locate

    if cache is None:
        return plain_data(settings, index_images(data))
    opened = open_cache(locate(cache))
    return replayed_data(
        settings,
        rebase(opened.index, data),
        opened,
        follow_timeout_s=patience_s,
        accept_pixel_libraries=accept,
    )


@app.command(epilog=example("evaluate run --val val"))
def evaluate(
    run: RunArgument,
    val: ValOption,
    weights: WeightsOption = "averaged",
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Leave out images that do not decode, at most 1% of them."
        ),
    ] = False,
    size: Annotated[int | None, typer.Option(min=8, help="Pixels a side; none: the run's.")] = None,
    crop_ratio: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Size over the shorter side; none: the recipe's."),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure top-1 and top-5 of a run's weights, as trained and folded."""
    from student.results.evaluate import evaluate_run
    from student.runs.run import open_run
    from student.runs.run_weights import Weights
    from teacher_cache.images.index import index_images
    from teacher_cache.recipes.cache_recipe import UnreadableImages

    opened = open_run(run)
    validation = index_images(val, class_ids=opened.class_ids)
    unreadable = UnreadableImages(skip_unreadable=True) if skip_unreadable else None
    facts = evaluate_run(
        opened,
        validation,
        _device(device),
        Weights(weights),
        unreadable=unreadable,
        size=size,
        crop_ratio=crop_ratio,
    )
    _show(facts, as_json=as_json)


@app.command(epilog=example("export run --out student.onnx"))
def export(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", parser=local_path, help="The .safetensors or .onnx file to write."
        ),
    ],
    weights: WeightsOption = "averaged",
) -> None:
    """Fold a run's weights into plain convolutions; write them, and a model card beside them."""
    from student.results.export import export as export_run
    from student.runs.run import open_run
    from student.runs.run_weights import Weights

    done = export_run(open_run(run), out, weights=Weights(weights))
    print(printable_lines(done.words))
    card = f"{done.card}: recipe, digests, metrics, versions, and how to open the file"
    print(printable_lines(card))


@app.command(epilog=example("models --latency"))
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="timm names, torchvision/NAME; none: the paper's."
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time one image on one CPU thread (a minute or two).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Parameters, multiply-adds and speed of students, measured here, beside published figures."""
    from student.models.survey import survey, table
    from teacher_cache.machine import processor

    measured = survey(names or (), timed=latency)
    if as_json:
        print(json.dumps([model.to_json() for model in measured], indent=1))
        return
    print(table(measured))
    if latency:
        cores = os.cpu_count()
        print(f"\nlatency: median of 100 runs, folded, one thread of {processor()}, {cores} cores")


@app.command(epilog=example("inspect-cache cache"))
def inspect_cache(
    cache: CacheArgument,
    as_json: JsonOption = False,
) -> None:
    """Say what a cache holds: teacher, views, how far it is filled, bytes a record."""
    from teacher_cache.cache.cache import open_cache
    from teacher_cache.storage.location import locate
    from teacher_cache.verification.inspection import inspect

    _show(inspect(open_cache(locate(cache))), as_json=as_json)


@app.command(epilog=example("verify-cache cache --repair"))
def verify_cache(
    cache: CacheArgument,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Move what is damaged into quarantine/; cache-teacher refills it."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a cache against its ledger; exit code 0 if it is whole, else 1."""
    from teacher_cache.cache.cache import open_undescribed
    from teacher_cache.storage.location import locate
    from teacher_cache.verification.repair import repair as repair_cache
    from teacher_cache.verification.verify import report, spelled, verify

    opened = open_undescribed(locate(cache))
    started = time.monotonic()
    found = verify(opened)
    facts = report(opened, found, seconds=time.monotonic() - started)
    if repair:
        opened, folder = repair_cache(opened, found)
        before, found = found.quarantined, verify(opened)
        facts |= {
            "sound": found.is_sound,
            "blocks missing": len(found.missing),
            "repaired": True,
            "moved": found.quarantined - before,
        }
        if found.quarantined > before:
            facts["quarantine"] = f"{opened.place}/{folder}"
    if as_json:
        _show(facts, as_json=True)
    else:
        print(printable_lines(spelled(facts)))
    raise SystemExit(0 if found.is_sound else 1)


@app.command(epilog=example("audit-cache cache beitv2-base-imagenet --data train"))
def audit_cache(
    cache: CacheArgument,
    recipe: RecipeArgument,
    data: DataOption,
    records: Annotated[int, typer.Option(min=1, help="How many to compare.")] = 1024,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**63 - 1, help="Repeat a sample; none: a new one, whose seed is shown."
        ),
    ] = None,
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Render a sample and ask the teacher again; exit code 0 if the cache agrees, else 1.

    The teacher is built from your RECIPE, never from what a cache says.
    """
    import secrets

    from teacher_cache.cache.cache import open_cache
    from teacher_cache.filling.opening import require_same_origin
    from teacher_cache.images.index import rebase, require_same_numbers
    from teacher_cache.recipes.cache_recipe import CacheRecipe
    from teacher_cache.recipes.document import load_recipe
    from teacher_cache.storage.location import locate
    from teacher_cache.verification.audit import audit, report

    settings = load_recipe(recipe, CacheRecipe, overrides=overrides or (), package="teacher_cache")
    opened = open_cache(locate(cache))
    index = _index(settings, data)
    if index.digest() != opened.manifest.index_digest:
        asked, index = index, rebase(opened.index, data)
        require_same_numbers(index, asked)
    teacher = _teacher(settings, opened.manifest.class_count, device)
    require_same_origin(opened, settings, index, teacher)
    seed = secrets.randbits(32) if seed is None else seed
    result = audit(opened, index, teacher, settings, records=records, seed=seed)
    _show(report(opened, result, seed=seed), as_json=as_json)
    raise SystemExit(0 if result.passed else 1)


@app.command(epilog=example("plan-cache beitv2-base-imagenet --data train"))
def plan_cache(
    recipe: RecipeArgument,
    data: DataOption,
    overrides: OverridesOption = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes that will train together on a host: torchrun's.")
    ] = 1,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Predict a cache from a real sample: records, bytes, the teacher's hours, memory."""
    from teacher_cache.filling.plan import plan
    from teacher_cache.recipes.cache_recipe import CacheRecipe
    from teacher_cache.recipes.document import load_recipe

    settings = load_recipe(recipe, CacheRecipe, overrides=overrides or (), package="teacher_cache")
    index = _index(settings, data)
    teacher = _teacher(settings, index.class_count, device)
    _show(plan(settings, index, teacher, ranks=ranks), as_json=as_json)


@app.command(epilog=example("bench-data --data train --recipe ghostnetv3-1.0x-imagenet"))
def bench_data(
    data: DataOption,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            parser=local_path,
            help="A student recipe: its views, its size, and what its step takes on this device.",
        ),
    ] = None,
    overrides: OverridesOption = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Pixels a side; none: the recipe's, or 224.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Counts, such as 1,2,4; none: up to the cores here."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long each figure is measured.")
    ] = 5.0,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure images/s by workers and stage, against the installed timm and torchvision."""
    from student.recipe import StudentRecipe
    from student.speed.step_speed import data_speed
    from student.speed.throughput import table
    from teacher_cache.images.index import index_images
    from teacher_cache.recipes.document import load_recipe

    settings = None
    if recipe is not None:
        settings = load_recipe(recipe, StudentRecipe, overrides=overrides or (), package="student")
    facts = data_speed(
        index_images(data),
        settings,
        size=size,
        workers=_counts(workers),
        seconds=seconds,
        device=_device(device),
    )
    print(json.dumps(facts, indent=1) if as_json else table(facts))


def _counts(text: str | None) -> list[int]:
    """The counts of workers to try: 1, 2, 4, ... and all cores, unless they are given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if text is None:
        powers = {1 << n for n in range((cores or 1).bit_length())}
        return sorted(powers | {cores or 1})
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise typer.BadParameter(f"got --workers {text}, expected counts such as 1,2,4")
    return sorted({int(part) for part in text.split(",")})


@app.command(
    epilog=example("compare-online digits-student --teacher digits --cache cache --data train")
)
def compare_online(
    recipe: RecipeArgument,
    teacher: Annotated[
        Path,
        typer.Option(metavar="RECIPE", parser=local_path, help="The cache's recipe."),
    ],
    cache: Annotated[str, typer.Option(metavar="CACHE", help="From cache-teacher.")],
    data: DataOption,
    overrides: OverridesOption = None,
    teacher_overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher-set", metavar="SECTION.KEY=VALUE", help="Override one of --teacher's keys."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Also train both ways for so many steps.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", parser=local_path, help="Where --steps draws the losses."),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Loss, gradient and time of a step: from the cache, and with the teacher in the loop."""
    from student.recipe import StudentRecipe
    from student.results.online import Online, draw_curves, facts_of
    from teacher_cache.filling.opening import require_same_origin
    from teacher_cache.recipes.cache_recipe import CacheRecipe
    from teacher_cache.recipes.document import load_recipe

    settings = load_recipe(recipe, StudentRecipe, overrides=overrides or (), package="student")
    own = load_recipe(
        teacher, CacheRecipe, overrides=teacher_overrides or (), package="teacher_cache"
    )
    training = _training_data(settings, cache, data, None, accept=False)
    assert training.cache is not None
    asked = _teacher(own, training.class_count, device)
    require_same_origin(training.cache, own, training.index, asked)
    online = Online(settings, training, asked, own, _device(device))
    facts = facts_of(online)
    if steps:
        facts["losses"] = lines = list(online.trained(steps))
        if out is not None:
            draw_curves(lines, out)
    if not as_json and steps:
        last = facts.pop("losses")[-1]
        for name in ("cached", "dense"):
            facts[f"{name}: loss after {steps} steps"] = round(last[name], 4)
    _show(facts, as_json=as_json)


@app.command(epilog=example("run-study small --data train --val val --out study"))
def run_study(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY",
            parser=local_path,
            help="A .toml file, or a shipped study: see 'recipes'.",
        ),
    ],
    data: DataOption,
    val: ValOption,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            parser=local_path,
            help="Runs, caches and results; the same command continues, also beside others.",
        ),
    ],
    budget: Annotated[
        float,
        typer.Option(min=1e-6, max=1, help="Which fraction of its epochs each run has."),
    ] = 1.0,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each row; none: as the study says.")
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", metavar="NAME", help="Only this row and its base; repeatable."),
    ] = None,
    overrides: OverridesOption = None,
    shared: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=local_path,
            help="Teachers and caches that several studies share; none: in --out.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List rows, caches and hours, and run nothing.")
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Train every row of a study, and say which of its claims hold."""
    from student.study.comparison import compare
    from student.study.execution import execute, top1_of
    from student.study.hours import hours_of, hours_table
    from student.study.result_table import keep, table, to_json
    from student.study.rows import load_study
    from student.study.work_plan import Place, plan_study, seeds_of
    from teacher_cache.images.index import index_images

    asked = load_study(study)
    place = Place(data, val, out, shared or out, device)
    plan = plan_study(
        asked, study, place, budget=budget, seeds=seeds, rows=rows or (), overrides=overrides or ()
    )
    if dry_run:
        lines = hours_of(plan, index_images(data), _device(device))
        print(json.dumps(lines, indent=1) if as_json else hours_table(lines))
        return
    with redirect_stdout(sys.stderr):  # what the commands print; the table alone is the result
        failed = execute(
            plan,
            lambda arguments: app(list(arguments), standalone_mode=False),
            lambda line: print(printable_lines(line), flush=True),
        )
    found = compare(asked, top1_of(plan.runs))
    results = to_json(asked, found, budget=budget, failed=failed)
    keep(asked, found, results, out)
    planned = {row.name: seeds_of(asked, row, seeds) for row in asked.rows}
    shown = table(asked, found, budget=budget, planned=planned, failed=failed)
    print(json.dumps(results, indent=1) if as_json else printable_lines(shown))
    raise SystemExit(1 if failed else 0)


@app.command(epilog=example("recipes"))
def recipes(as_json: JsonOption = False) -> None:
    """List the recipes and studies that ship with Retort, and what each says of itself."""
    from textwrap import fill as wrapped

    from teacher_cache.recipes.document import shipped_recipes

    found = {
        "teacher_cache": shipped_recipes("teacher_cache"),
        "student": shipped_recipes("student"),
        "studies": shipped_recipes("student", folder="studies"),
    }
    if as_json:
        print(json.dumps(found, indent=1))
        return
    titles = {
        "teacher_cache": "cache recipes, for cache-teacher, plan-cache and audit-cache",
        "student": "student recipes, for train-student and bench-data",
        "studies": "studies, for run-study",
    }
    for kind, title in titles.items():
        print(f"{title}:")
        for name, about in found[kind].items():
            indent = " " * 6
            text = wrapped(about, 79, initial_indent=indent, subsequent_indent=indent)
            print(f"  {name}\n{text}")


@app.command(epilog=example("serve --host 0.0.0.0 --token-file token --allow-host gpu-1"))
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=local_path,
            envvar="RETORT_TOKEN_FILE",
            help="Ask for the token in this file (else RETORT_TOKEN), 32 bytes or more.",
        ),
    ] = None,
    read_token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="RETORT_READ_TOKEN_FILE",
            help="A second token, of which who has it may only read.",
        ),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="RETORT_PUBLIC_URL",
            help="Where a proxy publishes the service: https://HOST[/PATH].",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            envvar="RETORT_ALLOW_HOSTS",
            help="A further name under which the service is asked for; repeatable.",
        ),
    ] = None,
) -> None:
    """Answer HTTP queries about jobs; runs without torch."""
    from service.records.connections.engines import DatabaseRefusedError
    from service.web.app import serve as serve_http
    from service.web.security import AccessRefusedError

    try:
        serve_http(
            host,
            port,
            token_file=token_file,
            read_token_file=read_token_file,
            allowed_hosts=tuple(allow_host or ()),
            public_url=public_url,
        )
    except (DatabaseRefusedError, AccessRefusedError) as error:
        sys.exit(_complain(str(error), 2))


@app.command(epilog=example("demo --out demo-out"))
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", parser=local_path, help="Where everything is written.")
    ] = Path("demo-out"),
) -> None:
    """The whole job on scanned digits, in a minute or two: teacher, cache, three students."""
    from student.demo import report, run, steps, write_digits

    started = time.monotonic()
    write_digits(out / "digits")
    cache_seconds = run(
        steps(out),
        lambda arguments: app(list(arguments), standalone_mode=False),
        lambda line: print(line, flush=True),
        program=Path(__file__),
        log=out / "beside.log",
    )
    print(report(out, seconds=time.monotonic() - started, cache_seconds=cache_seconds))


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and an exit code."""
    _open_standard_streams()
    logging.basicConfig(format="%(message)s")  # warnings are shown, whoever else listens to them
    try:
        app()
    except UserError as error:
        sys.exit(_complain(str(error), error.exit_code))
    except OSError as error:
        advice = "nothing already done is lost; mend this and run it again"
        sys.exit(_complain(f"{reason_of(error)}: {advice}", 1))


def _open_standard_streams() -> None:
    """Give a process that was started without them (`2>&-`, some daemons) streams to nowhere.

    Else the next file that it opens, such as the job database, would be its stderr.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(os.devnull, mode)  # noqa: PTH123, SIM115 - open as long as the process
            if stream.fileno() != number:
                os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)


def _run(job: "Job", recorder: "Recorder", artifacts: Mapping[str, Path], *, shown: bool) -> None:
    """Drain a job into its record; leave with its exit code if it was stopped before its end."""
    from service.console.runner import run_job

    code = run_job(job, recorder, artifacts, shown=shown, stopped_together=StoppedTogether)
    if code is not None:
        raise SystemExit(code)


def _index(settings: "CacheRecipe", data: str) -> "ImageIndex":
    from teacher_cache.images.index import index_images, read_class_map, require_clear_order

    images, section = settings.images, settings.teacher
    class_ids = read_class_map(images.class_map) if images.class_map else None
    index = index_images(data, class_ids=class_ids, class_order=images.class_order)
    is_trained = any(each.pretrained or each.checkpoint for each in (section, *section.ensemble))
    if is_trained and class_ids is None and images.class_order is None:
        require_clear_order(index)
    return index


def _teacher(settings: "CacheRecipe", class_count: int, device: str) -> "Teacher":
    from teacher_cache.teacher.networks import load_teacher

    return load_teacher(
        settings.teacher,
        class_count=class_count,
        has_class_map=settings.images.class_map is not None,
        size=settings.views.size,
        device=_device(device),
    )


def _device(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here: use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one GPU a process
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(place)  # events and page-locking have no other way of knowing
        return place
    return torch.device(name)


def _show(facts: Mapping[str, Any], *, as_json: bool) -> None:
    from service.console.terminal import spell_lines

    # facts and messages may repeat what a stranger has written into a cache
    print(json.dumps(facts, indent=1) if as_json else printable_lines(spell_lines(facts)))


def _complain(message: str, code: int) -> int:
    print(f"error: {printable_lines(bounded(message))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
