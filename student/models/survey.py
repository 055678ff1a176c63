"""The students' sizes and speed, measured here, beside what is published of them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from student.models.build import build_student
from student.models.latency import latencies_ms
from student.models.published import ROWS, TABLE_9, Published, Row, agrees, in_units
from student.models.size import multiply_adds, parameter_count
from teacher_cache.networks.reparam import ReparamSpec, fold

SIZE = 224
CLASSES = 1_000


@dataclass(frozen=True, slots=True)
class Measured:
    """One model; everything is None where neither library has it."""

    label: str
    model: str
    params: int | None
    macs: int | None
    params_training: int | None
    """With its training branches; `params` where it has none."""
    macs_training: int | None
    latency_ms: float | None
    """Folded: one image, one CPU thread, median of 100 runs; None when not asked for."""
    published: Published | None

    @property
    def note(self) -> str:
        """Where the published figures and ours do not go together."""
        if self.published is None:
            return "no published figures found"
        if self.params is None or self.macs is None:
            return "published figures only"
        pairs = {"parameters": (self.params, self.published.params)}
        pairs["multiply-adds"] = (self.macs, self.published.macs)
        differing = [name for name, (ours, paper) in pairs.items() if not agrees(ours, paper)]
        return f"{' and '.join(differing)} differ" if differing else ""

    def to_json(self) -> dict[str, Any]:
        """The object of `models --json`: counts as numbers, the published ones too."""
        document = asdict(self)
        paper = document.pop("published")
        if paper is not None:
            for name in ("params", "macs"):
                paper[name] = in_units(paper[name])
        return {**document, "paper": paper, "note": self.note}


def survey(names: Iterable[str], *, timed: bool) -> list[Measured]:
    """Measure models at 224 px with 1,000 classes.

    Args:
        names: as `build_student` takes them; none: every model of `student.models.published`.
        timed: measure latencies too, all models taking turns.

    Raises:
        UnknownModel, ModelError: a name that cannot be built.
    """
    known = {row.model: row for row in reversed(ROWS) if row.model is not None}
    rows = [known.get(name, Row(name, name, None)) for name in names] or list(ROWS)
    training = {row.label: _training_form(row) for row in rows if row.model is not None}
    folded = {label: fold(network) for label, network in training.items()}
    latencies: dict[str, float] = {}
    if timed:
        medians = latencies_ms(list(folded.values()), size=SIZE)
        latencies = dict(zip(folded, medians, strict=True))
    return [
        Measured(
            label=row.label,
            model=row.model,
            **_counts(training[row.label], folded[row.label]),
            latency_ms=round(latencies[row.label], 2) if timed else None,
            published=row.published,
        )
        if row.model is not None
        else Measured(row.label, row.label, None, None, None, None, None, row.published)
        for row in rows
    ]


def _counts(training: nn.Module, folded: nn.Module) -> dict[str, int]:
    return {
        "params": parameter_count(folded),
        "macs": multiply_adds(folded, size=SIZE),
        "params_training": parameter_count(training),
        "macs_training": multiply_adds(training, size=SIZE),
    }


def _training_form(row: Row) -> nn.Module:
    assert row.model is not None
    return build_student(
        row.model,
        num_classes=CLASSES,
        image_size=SIZE,
        reparam=ReparamSpec(branches=row.branches, select=row.select),
        kwargs={},
    )


def table(models: Iterable[Measured]) -> str:
    """Markdown, one row a model: measured here, and what Table 9 prints."""
    models = list(models)
    head = ["model", "M params", "M multiply-adds", "in training: params", "multiply-adds"]
    head += ["ms an image", "published: top-1", "top-5", "params", "multiply-adds"]
    head += ["CPU ms", "phone ms", "note"]
    rows = [head, *(_cells(model) for model in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    published = any(model.published for model in models)
    source = ["", f"Published: {TABLE_9}; its latencies are its own machine's and phone's."]
    return "\n".join([lines[0], rule, *lines[1:], *(source if published else [])])


def _cells(model: Measured) -> list[str]:
    paper = model.published
    printed = [""] * 6
    if paper is not None:
        top5 = "" if paper.top5 is None else str(paper.top5)
        printed = [str(paper.top1), top5, paper.params, paper.macs]
        printed += [f"{paper.cpu_ms:g}", f"{paper.phone_ms:g}"]
    return [
        model.label,
        _millions(model.params, 3),
        _millions(model.macs, 1),
        _millions(model.params_training, 3) if model.params_training != model.params else "",
        _millions(model.macs_training, 1) if model.macs_training != model.macs else "",
        f"{model.latency_ms:.2f}" if model.latency_ms is not None else "",
        *printed,
        model.note,
    ]


def _millions(count: int | None, digits: int) -> str:
    return "" if count is None else f"{count / 1e6:.{digits}f}"
