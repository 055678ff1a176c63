"""CIFAR-10 as class folders, for the small studies: 1,000 training images a class, all for testing.

RETORT_DATA=DIR python -m benchmarks.cifar10 OUT
cli.py run-study small --data OUT/train --val OUT/test --out OUT/small
"""

import os
import sys
import tarfile
from pathlib import Path

IMAGES_A_CLASS = 1_000


def unpack(out: Path, images_a_class: int = IMAGES_A_CLASS) -> tuple[Path, Path]:
    """The first training images of each class, and all 10,000 for testing."""
    if not out.exists():
        temporary = out.with_name(f"{out.name}.part")
        with tarfile.open(Path(os.environ["RETORT_DATA"]) / "cifar10.tar.xz") as tar:
            for member in tar:
                path = Path(member.name)  # train/cat/0123.jpg
                is_wanted = path.parts[-3:-2] == ("test",) or path.stem < f"{images_a_class:04}"
                if member.isfile() and is_wanted:
                    tar.extract(member, temporary, filter="data")
        temporary.rename(out)
    return out / "train", out / "test"


if __name__ == "__main__":
    print(*unpack(Path(sys.argv[1])))
