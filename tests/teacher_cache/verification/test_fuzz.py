"""Caches that a disk, a user or a stranger has changed: errors in words, in bounded time and space.

RETORT_FUZZ_S says for how long; RETORT_FUZZ_SEED where to begin, to repeat a failure.
"""

import ast
import os
import queue
import subprocess
import sys
import threading
import time

import pytest
from repository import REPOSITORY
from small import cache_recipe, fill_cache

FUZZ_S = float(os.environ.get("RETORT_FUZZ_S", "60"))
FIRST_SEED = int(os.environ.get("RETORT_FUZZ_SEED", "0"))
HANGS_AFTER_S = 20.0
STARTS_WITHIN_S = 120.0


def lines_of(process, lines):
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def fuzzed(cache, images, folder, *, seed, until):
    """One child's cases: the seed that follows them, how many there were, what failed."""
    support = REPOSITORY / "tests" / "support"
    path = os.pathsep.join(map(str, (REPOSITORY, support)))
    process = subprocess.Popen(
        [sys.executable, support / "fuzz_child.py", cache, images, folder, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    lines, failures, cases, said = queue.Queue(), [], 0, []
    reader = threading.Thread(target=lines_of, args=(process, lines), daemon=True)
    reader.start()
    patience = STARTS_WITHIN_S
    try:
        while time.monotonic() < until:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                return seed + 1, cases, [*failures, f"seed {seed} hangs"]
            if line is None:
                ended = failures or [f"seed {seed}: the process ended: {''.join(said)}"]
                return seed + 1, cases, ended
            word, _, rest = line.partition(" ")
            if word == "case":
                seed, cases, patience = int(rest), cases + 1, HANGS_AFTER_S
            elif word == "failure":
                failures.append(ast.literal_eval(rest))
            else:
                said = [*said[-20:], line]
        return seed + 1, cases, failures
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["default", "portable"])
def test_no_change_of_any_file_does_more_than_an_error_in_words(scans, tmp_path, encoding):
    extras = ["moments"] if encoding == "portable" else []
    recipe = cache_recipe(storage__encoding=encoding, topk__extras=extras)
    cache = fill_cache(tmp_path / "sound", scans / "train", recipe)
    until = time.monotonic() + FUZZ_S / 2
    seed, cases, failures = FIRST_SEED, 0, []
    while time.monotonic() < until:
        seed, more, found = fuzzed(
            cache.place.root, scans / "train", tmp_path, seed=seed, until=until
        )
        cases, failures = cases + more, failures + found
        if len(failures) > 300:
            break
    print(f"{encoding}: {cases} cases from seed {FIRST_SEED} in {FUZZ_S / 2:g} s")
    assert failures == [], "\n\n".join(dict.fromkeys(failures))
    assert cases > 20
