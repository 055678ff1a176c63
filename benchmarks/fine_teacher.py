"""A cache of a real, trained teacher of 100 classes, for `benchmarks.cache` to measure.

    RETORT_DATA=DIR python -m benchmarks.fine_teacher OUT        (about 10 minutes on one core)

CIFAR-10's ten classes are split in ten each, by k-means over 8 x 8 thumbnails, so that a teacher
has, as ImageNet's do, many classes that resemble each other. It is trained on 2,000 images a class
and asked for its 50 best classes of them all; `OUT/cache` holds the records.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans

from benchmarks.cifar10 import unpack
from benchmarks.demo_margin import cli

PARTS = 10
TEACHER = ("student.model=resnet10t", "schedule.epochs=8", "evaluation.every_epochs=4")
CACHE = ("topk.k=50", "views.count=2", "teacher.model=resnet10t")


def thumbnails(files: list[Path]) -> np.ndarray:
    """float32 [files, 192]"""
    small = [np.asarray(Image.open(file).convert("RGB").resize((8, 8))) for file in files]
    return np.stack(small).reshape(len(files), -1).astype(np.float32)


def split(source: Path, parts: Path, clusters: dict[str, KMeans]) -> None:
    """Link every image into a folder of its class and cluster."""
    for folder in sorted(source.iterdir()):
        files = sorted(folder.iterdir())
        found = thumbnails(files)
        if folder.name not in clusters:
            clusters[folder.name] = KMeans(PARTS, n_init=1, random_state=0).fit(found)
        for file, part in zip(files, clusters[folder.name].predict(found), strict=True):
            link = parts / f"{folder.name}-{part}" / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(file)


def main() -> None:
    out = Path(sys.argv[1])
    train, test = unpack(out / "data", 2_000)
    if not (out / "parts").exists():
        clusters: dict[str, KMeans] = {}
        split(train, out / "parts.part" / "train", clusters)
        split(test, out / "parts.part" / "test", clusters)
        (out / "parts.part").rename(out / "parts")
    train, test = out / "parts" / "train", out / "parts" / "test"
    data: list[object] = ["--data", train, "--val", test]
    chosen = [part for setting in TEACHER for part in ("--set", setting)]
    cli("train-student", "small-teacher", *data, "--out", out / "teacher", *chosen)
    cli("export", out / "teacher", "--out", out / "teacher.safetensors")
    settings = (*CACHE, f"teacher.checkpoint={out / 'teacher.safetensors'}")
    chosen = [part for setting in settings for part in ("--set", setting)]
    cli("cache-teacher", "small", "--data", train, "--out", out / "cache",
        *chosen)  # fmt: skip


if __name__ == "__main__":
    main()
