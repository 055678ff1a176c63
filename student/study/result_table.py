"""A study's results, in words and as JSON, and kept in its folder."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from student.study.comparison import Comparison
from student.study.result_picture import draw
from student.study.rows import Study
from teacher_cache.durable import write_atomic

_HEAD = ("row", "top-1", "seeds", "difference", "95% interval", "published", "claim", "verdict")


def table(
    study: Study,
    found: Sequence[Comparison],
    *,
    budget: float,
    planned: Mapping[str, int],
    failed: Mapping[tuple[str, int], str],
) -> str:
    """Markdown: every row beside its base, and what is missing.

    Args:
        study: its title.
        found: every row beside its base.
        budget: which fraction of their epochs the runs had.
        planned: row -> how many runs it shall have.
        failed: why runs failed, by row and seed.
    """
    lines = [
        f"{study.title}",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|" + "---|" * len(_HEAD),
        *("| " + " | ".join(_cells(each)) + " |" for each in found),
        "",
        "Top-1 in percent, mean and standard deviation over seeds; differences are paired by seed, "
        "their intervals Student's t.",
    ]
    if budget != 1:
        lines.append(f"Each run had {budget:g} of its epochs: not the published training.")
    lines += [f"row {row}, seed {seed} failed: {why}" for (row, seed), why in failed.items()]
    missing = [each for each in found if len(each.top1) < planned[each.row.name]]
    if missing:
        counts = ", ".join(
            f"{each.row.name} ({len(each.top1)} of {planned[each.row.name]})" for each in missing
        )
        lines.append(f"Not all runs have ended: {counts}. The same command continues them.")
    return "\n".join(lines)


def to_json(
    study: Study,
    found: Sequence[Comparison],
    *,
    budget: float,
    failed: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    """The object of `run-study --json`, which is kept as `results.json`, too."""
    return {
        "title": study.title,
        "budget": budget,
        "rows": [
            {
                "name": each.row.name,
                "base": each.base.name,
                "set": list(each.row.set),
                "top1": {str(seed): value for seed, value in each.top1.items()},
                "mean": each.mean,
                "deviation": each.deviation,
                "difference": each.difference,
                "interval": each.interval,
                "published": each.row.published,
                "claim": each.claim,
                "verdict": each.verdict,
            }
            for each in found
        ],
        "failed": [
            {"row": row, "seed": seed, "reason": why} for (row, seed), why in failed.items()
        ],
    }


def keep(
    study: Study, found: Sequence[Comparison], results: Mapping[str, Any], folder: Path
) -> None:
    """Write `results.json`, and `results.png` where matplotlib is installed and a run has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "results.json", json.dumps(results, indent=1).encode() + b"\n")
    if any(each.top1 for each in found):
        with suppress(ImportError):
            draw(study, found, folder / "results.png")


def _cells(each: Comparison) -> list[str]:
    mean, deviation, difference, interval = (
        each.mean, each.deviation, each.difference, each.interval,
    )  # fmt: skip
    top1 = "" if mean is None else f"{mean:.2f}"
    return [
        each.row.name,
        top1 if deviation is None else f"{top1} ± {deviation:.2f}",
        str(len(each.top1)),
        "base" if each.base.name == each.row.name else _signed(difference),
        "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
        "" if each.row.published is None else f"{each.row.published:g}",
        ""
        if each.claim is None
        else f"{each.claim} than {each.base.name}".replace("alike than", "like"),
        each.verdict or "",
    ]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
