"""`summary.json`: the result of a run that has ended."""

import json
from importlib.metadata import version

from student.data.run_plan import Plan
from student.data.training_data import TrainingData
from student.models.size import parameter_count
from student.runs.metrics import last_evaluation
from student.runs.run import Run
from student.runs.run_weights import load_network
from student.training.state import RunState
from student.training.trainee import Trainee
from teacher_cache.durable import write_atomic
from teacher_cache.networks.reparam import fold
from teacher_cache.recipes.document import digest_of


def write_summary(
    run: Run, data: TrainingData, plan: Plan, trainee: Trainee, state: RunState, device: str
) -> None:
    """Write it unless it exists: a run that has ended is not summarized again."""
    if run.summary.exists():
        return
    network = load_network(run)
    fidelity = data.fidelity(run.recipe.distill) or {}
    summary = {
        "model": run.recipe.student.model,
        **last_evaluation(run.metrics, state.step),
        f"best_{trainee.selection_metric}": state.best_top1,
        "epochs": plan.epochs,
        "images": state.step * plan.batch_size,
        "seconds": round(state.seconds, 1),
        "parameters": parameter_count(network),
        "parameters_folded": parameter_count(fold(network)),
        "alpha": run.recipe.distill.alpha,
        "recipe_digest": digest_of(run.recipe.identity()),
        "data": dict(run.data_digest),
        "gradient_cosine": {student: each.spelt() for student, each in fidelity.items()},
        "device": device,
        "ranks": plan.ranks.count,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }
    write_atomic(run.summary, json.dumps(summary, indent=1).encode() + b"\n")
