"""The learning rate of a step. Pure."""

import math


def learning_rate(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, minimum: float
) -> float:
    """Linear warm-up to `peak`, then one half cosine down to `minimum`, per optimizer step.

    Warm-up: peak (step + 1) / (warmup_steps + 1), so that the first step is not wasted at 0 and
    step `warmup_steps` is the first at the peak. Then, with x running from 0 there to 1 at
    `total_steps`: minimum + (peak - minimum) (1 + cos(pi x)) / 2 (Loshchilov and Hutter,
    arXiv 1608.03983, eq. 5; GhostNetV3 goes down to 0). It moves every step, because an epoch-wise
    cosine stands still for hundreds of updates and depends on the epoch's length.

    Args:
        step: number of steps done before this one, 0 to total_steps.
        total_steps: optimizer steps of the whole run; at this step the rate is `minimum`.
        warmup_steps: below total_steps; 0 for none.
        peak: the highest rate.
        minimum: the rate at the end, 0 to peak.

    Raises:
        ValueError: an argument outside these ranges.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warm-up takes {warmup_steps} of {total_steps} steps, expected 0 to "
            f"{total_steps - 1}: change schedule.warmup_epochs or schedule.epochs"
        )
    if not 0 <= step <= total_steps:
        raise ValueError(f"step is {step}, expected 0 to {total_steps}")
    if not 0.0 <= minimum <= peak < math.inf:
        raise ValueError(
            f"the learning rate goes from {peak} to {minimum}, expected 0 <= schedule.min_lr <= "
            "optimizer.lr: change one of them"
        )
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))


def stepped_rate(
    step: int, *, warmup_steps: int, peak: float, decay_steps: float, decay_rate: float
) -> float:
    """Linear warm-up to `peak` as above, then `decay_rate` times less after each `decay_steps`.

    timm's step schedule, per optimizer step: peak decay_rate^floor((step - warm-up) / decay_steps).

    Args:
        step: number of steps done before this one.
        warmup_steps: 0 for none.
        peak: the highest rate.
        decay_steps: above 0; it need not be whole.
        decay_rate: above 0, at most 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return peak * decay_rate ** math.floor((step - warmup_steps) / decay_steps)
