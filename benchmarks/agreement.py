"""Whether an exported student predicts what the trained one does, image by image.

    python -m benchmarks.agreement RUN VAL OUT

Exports a timm student's run to OUT as safetensors and as ONNX, opens the one with plain timm and
the other with onnxruntime, and shows every validation image to all three.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from safetensors import safe_open

from benchmarks.machine import describe
from student.results.export import export
from student.runs.run import open_run
from student.runs.run_weights import load_network
from student.training.evaluation import evaluation_of
from teacher_cache.images.index import index_images
from teacher_cache.loading.loader import rendered
from teacher_cache.loading.renderers import Request
from teacher_cache.teacher.normalize import Normalization


def main() -> None:
    torch.set_num_threads(1)
    run, out = open_run(Path(sys.argv[1])), Path(sys.argv[3])
    validation = index_images(Path(sys.argv[2]), class_ids=run.class_ids)
    file, onnx = export(run, out / "student.safetensors").file, out / "student.onnx"
    export(run, onnx)
    trained = load_network(run)
    plain = timm_network(file)
    session = onnxruntime.InferenceSession(onnx)
    data = evaluation_of(run.recipe, validation, size=run.size, interpolation=run.interpolation)
    requests = [
        Request(rows, (0,))
        for rows in np.array_split(np.arange(len(validation)), -(-len(validation) // 250))
    ]
    normalization = Normalization.of(trained, torch.device("cpu"))
    logits = {"trained": [], "plain timm": [], "onnxruntime": []}
    for batch in rendered(data.renderer, requests, data.loader, largest=(1, 250)):
        images = normalization.images(batch.pixels_GBHWC[0])
        with torch.inference_mode():
            logits["trained"].append(trained(images))
            logits["plain timm"].append(plain(images))
        found = session.run(None, {"images": images.numpy()})[0]
        logits["onnxruntime"].append(torch.from_numpy(found))
    report({name: torch.cat(parts) for name, parts in logits.items()}, validation.labels)


def timm_network(file: Path) -> torch.nn.Module:
    """The file as a user opens it: its metadata name the model, timm builds it."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    network = timm.create_model(metadata["model"], num_classes=int(metadata["classes"]))
    if metadata["model"].startswith("ghostnetv3_"):
        network = timm.utils.reparameterize_model(network)
    network.load_state_dict(state, strict=True)
    return network.eval()


def report(logits: dict[str, torch.Tensor], labels: np.ndarray) -> None:
    expected = logits["trained"]
    print(f"agreement on {len(labels):,} images; largest logit {expected.abs().max():.2f}")
    for name, found in logits.items():
        same = int((found.argmax(1) == expected.argmax(1)).sum())
        top1 = 100 * float((found.argmax(1).numpy() == labels).mean())
        difference = float((found - expected).abs().max())
        print(f"  {name.ljust(11)}  top-1 {top1:.2f}%  same predictions {same:,}", end="  ")
        print(f"largest difference {difference:.1e}")


if __name__ == "__main__":
    print(describe())
    main()
