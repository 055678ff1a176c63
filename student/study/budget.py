"""A run at a fraction of its length. Pure.

With budget b a run of E epochs becomes one of max(1, round(b E)); its warm-up has b times as many
epochs, and so has each step of a step schedule; its average has a decay of 1 - (1 - decay) / b, so
that it covers the same share of the run. Where nothing is left of the average (a decay of 0 or
less), none is kept. Rates, batch and weight decay stay.
"""

from student.recipe import StudentRecipe


def changes_of(recipe: StudentRecipe, budget: float) -> list[str]:
    """The keys that a budget changes, as `section.key=value`."""
    if budget == 1:
        return []
    schedule, decay = recipe.schedule, recipe.ema.decay
    epochs = max(1, round(budget * schedule.epochs))
    changes = [f"schedule.epochs={epochs}"]
    if schedule.warmup_epochs:
        warmup = min(budget * schedule.warmup_epochs, epochs / 2)
        changes.append(f"schedule.warmup_epochs={warmup:.6g}")
    if schedule.name == "step":
        changes.append(f"schedule.decay_epochs={budget * schedule.decay_epochs:.6g}")
    if decay is not None:
        shorter = 1 - (1 - decay) / budget
        changes.append(f"ema.decay={max(shorter, 0.0):.8g}")
    return changes
