"""What a record weighs, and what its encoding costs the teacher's answer.

    python -m benchmarks.sizes [ROWS] [CACHE]        (two minutes at the default 98,304 rows)

Simulated records are compared with the dense logits they come from; those of CACHE, real ones from
`python -m benchmarks.fine_teacher`, with the float16 records that it holds.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.machine import describe
from benchmarks.records import (
    PART,
    cache_of,
    dense,
    fill,
    mean_kl,
    real,
    shown,
    simulated,
    simulated_logits,
)
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.format.encodings import kl_cost
from teacher_cache.record import Encoding
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.answers import TopK

INDEX = ("keys", "labels", "classes", "class_ids")


def weights_of(root: Path) -> dict[str, int]:
    """Bytes of every file of a cache, by its first folder."""
    found: dict[str, int] = {}
    for path in root.rglob("*"):
        if path.is_file():
            part = path.relative_to(root).parts[0]
            found[part] = found.get(part, 0) + path.stat().st_size
    return found


def report(name: str, topk: TopK, truth_BL: torch.Tensor, classes: int) -> None:
    """One line an encoding; the truth is of the first rows."""
    rows, k = topk.ids_BK.shape
    for encoding in Encoding:
        with TemporaryDirectory(prefix="retort-sizes-") as folder:
            cache = fill(cache_of(Path(folder) / "cache", topk, encoding, classes), topk)
            found = weights_of(cache.place.root)
            slab = read_slab(cache, 0)
        part = slice(0, len(truth_BL))
        kl = mean_kl(truth_BL, shown(slab.logp_NK[part], slab.tail_NT[part, :1]))
        index = sum(found.pop(part) for part in INDEX)
        a_record = {part: size / rows for part, size in found.items()}
        rest = sum(a_record[part] for part in a_record if part not in ("ids", "logp", "tail"))
        print(
            f"{name:14} k = {k}  T = {topk.tail_BT.shape[1]}  {encoding.value:8}  "
            f"ids {a_record['ids']:5.2f} + logp {a_record['logp']:5.2f} + tail "
            f"{a_record['tail']:4.2f} + rest {rest:4.2f} = {sum(a_record.values()):6.2f} bytes a "
            f"record;  KL {kl:.1e} nats, at most {kl_cost(encoding, k):.1e} of the encoding"
        )
    print(f"{'':14} the index adds {index / rows:.1f} bytes an image, once for all views")


def main(rows: int, caches: list[Path]) -> None:
    for k in (10, 20, 50):
        topk = simulated(rows, k)
        truth = dense(simulated_logits(min(PART, rows), 0), topk.ids_BK[:PART])
        report("simulated", topk, truth, 1_000)
    topk = simulated(rows, 10, (1.0, 2.0, 4.0))
    truth = dense(simulated_logits(min(PART, rows), 0), topk.ids_BK[:PART])
    report("simulated", topk, truth, 1_000)
    for path in caches:
        cache = open_cache(Disk(path))
        name = cache.manifest.recipe["teacher"]["model"]
        kept = cache.manifest.parsed_recipe().topk.k
        for k in (k for k in (5, 10, 20, 50) if k <= kept):
            topk = real(cache, k)
            truth = shown(topk.logp_BK, topk.tail_BT)
            print(f"{name}: entropy of its answers {entropy(truth):.2f} nats")
            report(name, topk, truth, cache.manifest.class_count)


def entropy(log_p_BL: torch.Tensor) -> float:
    return float(torch.special.entr(log_p_BL.exp()).sum(1).mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(describe())
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 98_304, [Path(a) for a in sys.argv[2:]])
