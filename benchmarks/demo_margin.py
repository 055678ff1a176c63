"""Whether the demo's result stands: student alone and distilled over seeds that chose no setting.

    python -m benchmarks.demo_margin [SEED ...] [--out DIR]         (default: seeds 1 to 5)

Each seed has a teacher, a cache (other views) and two students of its own; what is trained is the
demo's recipes on the demo's scans. The two students of a seed see the same images, views and
order and start from the same weights: only distill.alpha differs. Run again to continue.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import describe
from student.demo import write_digits

REPOSITORY = Path(__file__).parents[1]


def cli(*arguments: object) -> None:
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def top1(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["top1"])


def trained(digits: Path, out: Path, seed: int) -> tuple[float, float, float]:
    """Top-1 in percent of this seed's teacher, student alone and student distilled."""
    train, few, val = (digits / part for part in ("train", "few", "val"))
    teacher, alone, distilled = out / "teacher", out / "alone", out / "distilled"
    weights, cache = out / "teacher.safetensors", out / "cache"
    of_seed = ["--set", f"run.seed={seed}"]
    views = ["--set", f"views.seed={seed}"]
    data = ["--data", train, "--val", val]
    if not (distilled / "summary.json").exists():
        cli("train-student", "digits-teacher", *data, "--out", teacher, *of_seed, *views)
        cli("export", teacher, "--out", weights)
        checkpoint = ["--set", f"teacher.checkpoint={weights}"]
        cli("cache-teacher", "digits", "--data", few, "--out", cache, *checkpoint, *views)
        student = ["train-student", "digits-student", "--cache", cache, "--data", few, "--val", val]
        cli(*student, "--out", alone, *of_seed, "--set", "distill.alpha=0")
        cli(*student, "--out", distilled, *of_seed)
    return top1(teacher), top1(alone), top1(distilled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("demo-margin"))
    asked = parser.parse_args()
    write_digits(asked.out / "digits")
    print(describe())
    print("\n| seed | teacher | alone | distilled | difference |\n|---|---|---|---|---|")
    differences = []
    for seed in asked.seeds:
        teacher, alone, distilled = trained(asked.out / "digits", asked.out / f"{seed}", seed)
        differences.append(distilled - alone)
        print(
            f"| {seed} | {teacher:.1f} | {alone:.1f} | {distilled:.1f} | {differences[-1]:+.1f} |",
            flush=True,
        )
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    print(f"\ndifference: mean {mean:.2f} points, standard deviation {deviation:.2f}", end="")
    print(f", ratio {mean / deviation:.1f}" if deviation else "")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} s of CPU time in {len(asked.seeds)} seeds")


if __name__ == "__main__":
    main()
