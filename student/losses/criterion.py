"""Which loss draws the student to the teacher's answers."""

from collections.abc import Mapping
from enum import StrEnum

from teacher_cache.record import Tail


class Criterion(StrEnum):
    """The losses that a recipe can name; each is tau^2 times a mean over a micro-batch's rows."""

    KL = "kl"
    """KL(teacher || student), the paper's."""
    REVERSE_KL = "reverse_kl"
    """KL(student || teacher): seeks a mode of the teacher's instead of covering all."""
    JSD = "jsd"
    """The Jensen-Shannon divergence: symmetric, at most log 2."""
    HARD = "hard"
    """Cross-entropy to the teacher's best class."""
    DIST = "dist"
    """Correlation with the teacher over classes and over images."""
    DKD = "dkd"
    """KL of label against others, and of the others among themselves, weighed apart."""
    STANDARDIZED = "standardized"
    """KL of logits that have mean 0 and deviation 1 in every row."""


TAILS: Mapping[Criterion, tuple[Tail, ...]] = {
    Criterion.KL: tuple(Tail),
    Criterion.REVERSE_KL: (Tail.UNIFORM, Tail.BUCKET),
    Criterion.JSD: (Tail.UNIFORM, Tail.BUCKET),
    Criterion.HARD: tuple(Tail),
    Criterion.DIST: (Tail.UNIFORM,),
    Criterion.DKD: (Tail.UNIFORM,),
    Criterion.STANDARDIZED: tuple(Tail),
}
"""What may stand for the teacher's other classes. Where they have no mass at all the reverse KL is
infinite; DIST and DKD need every class by itself, and a bucket is none."""


def mismatch(criterion: Criterion, tail: Tail, temperature: float) -> str | None:
    """What is wrong with this choice, and what to choose instead; None where nothing is."""
    if tail not in TAILS[criterion]:
        choices = " or ".join(f'"{each}"' for each in TAILS[criterion])
        return (
            f'got distill.tail = "{tail}" with distill.loss = "{criterion}", expected {choices}: '
            "change one of them"
        )
    if criterion is Criterion.HARD and temperature != 1.0:
        return (
            f'got distill.temperature = {temperature} with distill.loss = "hard", expected 1.0: '
            "the teacher's best class is the same at every temperature"
        )
    return None


def lack(criterion: Criterion, kept: int, classes: int, *, has_moments: bool) -> str | None:
    """What records of so many classes lack for a criterion, and what to do; None for nothing."""
    if criterion is not Criterion.STANDARDIZED or kept == classes or has_moments:
        return None
    # with a guess for mean and deviation its gradient points elsewhere: docs/loss.md
    return (
        f'distill.loss = "standardized" needs mean and deviation of all {classes} logits, the '
        f"cache keeps the best {kept} classes and neither of them: fill one with topk.extras = "
        f'["moments"], or with topk.k = {classes}, or choose another loss'
    )
