"""The full loop on CIFAR-10 at 32 px: teacher, cache, student alone and distilled over 3 seeds.

    RETORT_DATA=DIR python -m benchmarks.cifar10 OUT        (about 30 minutes on two cores)

A subset of 2,000 training images a class; every network sees the same images, the student alone
and the distilled one the same views; accuracy on all 10,000 test images. Run again to continue.
"""

import json
import os
import statistics
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.machine import describe

REPOSITORY = Path(__file__).parents[1]
RECIPES = Path(__file__).parent / "recipes"
IMAGES_A_CLASS = 2_000
SEEDS = (0, 1, 2)


def unpack(out: Path) -> tuple[Path, Path]:
    train, test = out / "data" / "train", out / "data" / "test"
    if not (out / "data").exists():
        archive = Path(os.environ["RETORT_DATA"]) / "cifar10.tar.xz"
        temporary = out / "data.part"
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and is_in_subset(Path(member.name)):
                    tar.extract(member, temporary, filter="data")
        temporary.rename(out / "data")
    return train, test


def is_in_subset(path: Path) -> bool:
    """`train/<class>/0000.jpg` to `1999.jpg`, and all of `test/`."""
    return path.parts[-3] == "test" or int(path.stem) < IMAGES_A_CLASS


def cli(*arguments: object) -> None:
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment)


def train_student(out: Path, data: list[object], name: str, seed: int, *settings: str) -> Path:
    run = out / f"{name}-{seed}"
    overrides = [part for setting in (*settings, f"run.seed={seed}") for part in ("--set", setting)]
    cache = ["--cache", out / "cache"]
    cli("train-student", RECIPES / "cifar10-student.toml", *cache, *data, "--out", run, *overrides)
    return run


def main() -> None:
    out = Path(sys.argv[1])
    train, test = unpack(out)
    data: list[object] = ["--data", train, "--val", test]
    cli("train-student", RECIPES / "cifar10-teacher.toml", *data, "--out", out / "teacher")
    weights = out / "teacher.safetensors"
    cli("export", out / "teacher", "--out", weights)
    checkpoint = ["--set", f"teacher.checkpoint={weights}"]
    recipe = RECIPES / "cifar10-cache.toml"
    cli("cache-teacher", recipe, "--data", train, "--out", out / "cache", *checkpoint)
    variants = {"alone": ("distill.alpha=0",), "distilled": ()}
    with ThreadPoolExecutor(2) as pool:  # one core each
        for seed in SEEDS:
            jobs = [
                pool.submit(train_student, out, data, name, seed, *settings)
                for name, settings in variants.items()
            ]
            for job in jobs:
                job.result()
    report(out, list(variants))


def report(out: Path, variants: list[str]) -> None:
    print(describe())
    teacher = json.loads((out / "teacher" / "summary.json").read_text())
    print(f"teacher {teacher['model']}: {teacher['ema_top1']:.2f}% in {teacher['seconds']:.0f} s")
    for name in variants:
        summaries = [json.loads((out / f"{name}-{s}" / "summary.json").read_text()) for s in SEEDS]
        top1 = [summary["ema_top1"] for summary in summaries]
        print(
            f"student {name}: {statistics.mean(top1):.2f}% +- {statistics.stdev(top1):.2f} "
            f"({', '.join(f'{value:.2f}' for value in top1)}) in "
            f"{statistics.mean(s['seconds'] for s in summaries):.0f} s each"
        )


if __name__ == "__main__":
    main()
