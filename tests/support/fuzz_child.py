"""Mutated caches opened, read and repaired, case by case; one line a case for `test_fuzz.py`.

python fuzz_child.py SOUND_CACHE IMAGES FOLDER FIRST_SEED
"""

import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from mutations import fresh_copy, mutate
from small import student_document

from student.data.training_data import replayed_data
from student.recipe import StudentRecipe
from teacher_cache.cache.cache import open_cache, open_undescribed
from teacher_cache.cache.slab import read_slab
from teacher_cache.errors import UserError, printable_lines
from teacher_cache.images.index import rebase
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.disk import Disk
from teacher_cache.verification.inspection import inspect
from teacher_cache.verification.repair import repair
from teacher_cache.verification.verify import report, spelled, verify

MOST_BYTES_MORE = 200 << 20
STUDENT = parse_recipe(student_document(), StudentRecipe, source="fuzz")


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def limit_address_space() -> None:
    """No allocation of more than twice the bound: a MemoryError says where it was asked for."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = now + 2 * MOST_BYTES_MORE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def replay(root: Path, images: Path) -> None:
    cache = open_cache(Disk(root))
    replayed_data(STUDENT, rebase(cache.index, images), cache)


def slabs(root: Path) -> None:
    cache = open_cache(Disk(root))
    for view in range(min(cache.view_count, 4)):
        read_slab(cache, view)


def verified(root: Path) -> None:
    cache = open_undescribed(Disk(root))
    found = verify(cache)
    printable_lines(spelled(report(cache, found, seconds=1)))


def repaired(root: Path) -> None:
    """A repaired cache opens and holds no damage but what the next cache-teacher restores."""
    cache = open_undescribed(Disk(root))
    mended, _ = repair(cache, verify(cache))
    found = verify(mended)
    open_cache(Disk(root))
    left = [each for each in found.damage if "is missing, though" not in each.what]
    if left or found.strays:
        raise RuntimeError(f"damage is left after a repair: {(left, found.strays)!r:.400}")


def attempts(root: Path, images: Path) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("open", lambda: open_cache(Disk(root))),
        ("inspect", lambda: inspect(open_cache(Disk(root)))),
        ("read_slab", lambda: slabs(root)),
        ("replayed_data", lambda: replay(root, images)),
        ("verify", lambda: verified(root)),
        ("repair", lambda: repaired(root)),
        ("read_slab after", lambda: slabs(root)),
    ]


def failures_of(root: Path, images: Path) -> list[str]:
    found = []
    for name, attempt in attempts(root, images):
        try:
            attempt()
        except UserError as error:
            if len(str(error)) > 5000:
                found.append(f"{name}: a message of {len(str(error))} characters")
        except Exception:  # noqa: BLE001
            found.append(f"{name}: {traceback.format_exc(limit=-6)}")
    return found


def main() -> None:
    sound, images, folder, seed = (*map(Path, sys.argv[1:4]), int(sys.argv[4]))
    root = fresh_copy(sound, folder / "cache")
    assert failures_of(root, images) == []
    limit_address_space()
    before = resident_peak()
    while True:
        root = fresh_copy(sound, folder / "cache")
        print("case", seed, flush=True)
        words = mutate(root, seed)
        started = time.monotonic()
        for failure in failures_of(root, images):
            print("failure", repr(f"seed {seed}, {words}: {failure}"), flush=True)
        if (more := resident_peak() - before) > MOST_BYTES_MORE:
            print("failure", repr(f"seed {seed}, {words}: {more >> 20} MB more"), flush=True)
            return
        print("done", round(time.monotonic() - started, 2), flush=True)
        seed += 1


if __name__ == "__main__":
    main()
