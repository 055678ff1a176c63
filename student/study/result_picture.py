"""A study's results, drawn: top-1 of every row, and what was published."""

from collections.abc import Sequence
from pathlib import Path

from student.study.comparison import Comparison
from student.study.rows import Study


def draw(study: Study, found: Sequence[Comparison], file: Path) -> None:
    """Write a PNG: a row's seeds as dots, their mean and 95% interval beside its base's.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    shown = [each for each in found if each.top1]
    has_published = any(each.row.published is not None for each in shown)
    figure = Figure(figsize=(8, 1.3 + 0.38 * len(shown)), layout="constrained")
    axes = figure.subplots(1, 2 if has_published else 1, sharey=True, squeeze=False)[0]
    for place, each in enumerate(shown):
        axes[0].plot(list(each.top1.values()), [place] * len(each.top1), "o", ms=4, color="0.7")
        axes[0].plot([each.mean], [place], "D", ms=5, color="tab:blue")
        base = next((other.mean for other in shown if other.row == each.base), None)
        if each.interval is not None and base is not None:
            ends = [base + end for end in each.interval]
            axes[0].plot(ends, [place, place], "-", lw=1.6, color="tab:blue")
        if has_published and each.row.published is not None:
            axes[1].plot([each.row.published], [place], "s", ms=5, color="tab:orange")
    axes[0].set(title="measured here" if has_published else None, xlabel="top-1 [%]")
    axes[0].set_yticks(range(len(shown)), [each.row.name for each in shown])
    axes[0].invert_yaxis()
    if has_published:
        axes[1].set(title="published", xlabel="top-1 [%]")
    for each_axes in axes:
        each_axes.grid(alpha=0.3)
        each_axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(study.title, fontsize=11)
    figure.savefig(file, dpi=150)
