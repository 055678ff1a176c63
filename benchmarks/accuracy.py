"""The paper's Figures 1 and 5 with latencies measured here: docs/images/accuracy.png.

    python -m benchmarks.accuracy [OUT.png]        (three minutes on one core)

Published top-1 on ImageNet over multiply-adds, and over the latency of one image on one CPU
thread. Accuracies are those of the paper's Table 9 (`student.models.published`), none is measured.
"""

import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.machine import describe
from student.models.published import in_units
from student.models.survey import Measured, survey, table
from teacher_cache.machine import processor

OUT = Path(__file__).parents[1] / "docs" / "images" / "accuracy.png"
COLORS = {
    "GhostNetV3": "tab:red",
    "GhostNetV2": "tab:orange",
    "GhostNetV1": "gold",
    "MobileNetV2": "tab:blue",
    "MobileNetV3": "tab:cyan",
    "ShuffleNetV2": "tab:green",
    "MobileOne": "tab:purple",
    "MixNet": "tab:brown",
    "MobileViT": "tab:pink",
    "PiT": "tab:olive",
    "Mobileformer": "0.65",
}
OTHERS = "0.45"
OURS = " + ours"
LEGEND = {"ncols": 4, "frameon": False, "fontsize": 8}


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    models = survey((), timed=True)
    print(describe())
    print(table(models))
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(models, out)


def draw(models: list[Measured], out: Path) -> None:
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for family, members in families(models).items():
        color = COLORS.get(family.removesuffix(OURS), OTHERS)
        measured = [member for member in members if member.macs is not None]
        quoted = [member for member in members if member.macs is None]
        line(left, [m.macs / 1e6 for m in measured], measured, color, family)
        if quoted:
            macs = [in_units(m.published.macs) / 1e6 for m in quoted]
            line(left, macs, quoted, color, f"{family} (all figures published)", "white")
        line(right, [m.latency_ms for m in measured], measured, color, family)
    left.set(xlabel="multiply-adds [M], log scale", ylabel="top-1 on ImageNet, published [%]")
    left.set(xscale="log", xticks=[50, 100, 200, 400, 800], xticklabels=[50, 100, 200, 400, 800])
    left.minorticks_off()
    right.set(xlabel=f"measured: ms an image, folded, one thread\n({processor()})")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", **LEGEND)
    figure.savefig(out, dpi=150)


def families(models: list[Measured]) -> dict[str, list[Measured]]:
    """Models with a published accuracy, by the family that their label begins with."""
    found = defaultdict(list)
    for model in models:
        if model.published is not None:
            named = [name for name in COLORS if model.label.startswith(name)] or ["others"]
            found[named[0] + (OURS if model.label.endswith(OURS) else "")].append(model)
    return found


def line(
    axes: Axes,
    x: list[float],
    members: list[Measured],
    color: str,
    label: str,
    face: str | None = None,
) -> None:
    if not members:
        return
    top1 = [member.published.top1 for member in members]
    style = {"color": color, "markerfacecolor": face or color, "markersize": 5, "label": label}
    is_family = len(members) > 1 and label != "others"
    axes.plot(x, top1, "o-" if is_family else "D" if label.endswith(OURS) else "o", **style)
    for place, member in zip(zip(x, top1, strict=True), members, strict=True):
        name = member.label.removesuffix(OURS)
        short = name if label == "others" else name.replace("-", " ").rpartition(" ")[2]
        axes.annotate(short, place, xytext=(3, 4), textcoords="offset points", fontsize=6.5)


if __name__ == "__main__":
    main()
