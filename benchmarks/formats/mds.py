"""MDS, the shards of mosaicml-streaming: offsets of samples, a description, the samples.

A shard is uint32 sample count n, n + 1 uint32 offsets from the file's start, the description as
JSON, and the samples; one of more than 64 MiB is not made. A sample is its columns in the order of
their names; all of ours have a fixed size. `index.json` describes every shard. A reader looks up
two offsets and then reads the sample. Nothing is compressed: a compressed shard is unpacked to a
second, uncompressed file before it is read.

Layout: mosaicml/streaming, streaming/base/format/mds/{writer,reader,encodings}.py and
streaming/base/format/base/writer.py.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.formats.rows import OpenView, Rows
from teacher_cache.record import TopK

SIZE_LIMIT = 1 << 26


def _columns(k: int, temperatures: int) -> dict[str, tuple[str, int]]:
    return {"ids": ("uint16", k), "logp": ("float16", k), "tail": ("float16", temperatures)}


def _config(columns: dict[str, tuple[str, int]]) -> dict[str, Any]:
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": [],
        "size_limit": SIZE_LIMIT,
        "column_names": list(columns),
        "column_encodings": [f"ndarray:{kind}:{count}" for kind, count in columns.values()],
        "column_sizes": [np.dtype(kind).itemsize * count for kind, count in columns.values()],
    }


def _sample(config: dict[str, Any]) -> np.dtype:
    encodings = (encoding.split(":") for encoding in config["column_encodings"])
    columns = zip(config["column_names"], encodings, strict=True)
    return np.dtype([(name, kind, (int(count),)) for name, (_, kind, count) in columns])


def write(folder: Path, records: TopK) -> None:
    """Every shard of a view, and the index."""
    config = _config(_columns(records.ids_BK.shape[1], records.tail_BT.shape[1]))
    header = json.dumps(config, sort_keys=True).encode()
    samples = np.empty(len(records.ids_BK), _sample(config))
    samples["ids"], samples["logp"] = records.ids_BK, records.logp_BK
    samples["tail"] = records.tail_BT
    a_shard = (SIZE_LIMIT - 8 - len(header)) // (samples.itemsize + 4)
    folder.mkdir()
    shards = []
    for at in range(0, len(samples), a_shard):
        part = samples[at : at + a_shard]
        first = 4 + 4 * (len(part) + 1) + len(header)
        offsets = first + np.arange(len(part) + 1, dtype=np.uint32) * part.itemsize
        data = np.uint32(len(part)).tobytes() + offsets.astype(np.uint32).tobytes()
        data += header + part.tobytes()
        name = f"shard.{len(shards):05}.mds"
        (folder / name).write_bytes(data)
        file = {"basename": name, "bytes": len(data), "hashes": {}}
        shards.append({**config, "samples": len(part), "raw_data": file, "zip_data": None})
    index = {"version": 2, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


class Reader(OpenView):
    """Keeps the shards open, where mosaicml-streaming opens one for every sample."""

    def __init__(self, folder: Path) -> None:
        self._shards = json.loads((folder / "index.json").read_text())["shards"]
        names = [shard["raw_data"]["basename"] for shard in self._shards]
        self._files = [(folder / name).open("rb") for name in names]
        self._numbers = [file.fileno() for file in self._files]
        self._starts = np.cumsum([0] + [shard["samples"] for shard in self._shards])
        self._dtype = _sample(self._shards[0])

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read_rows(self, rows: np.ndarray) -> Rows:
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        samples = rows - self._starts[shards]
        found = []
        for shard, sample in zip(shards.tolist(), samples.tolist(), strict=True):
            file = self._numbers[shard]
            pair = os.pread(file, 8, 4 * (1 + sample))
            begin, end = int.from_bytes(pair[:4], "little"), int.from_bytes(pair[4:], "little")
            found.append(os.pread(file, end - begin, begin))
        return self._rows(b"".join(found))

    def read_all(self) -> Rows:
        found = []
        for file in self._files:
            file.seek(0)
            data = file.read()
            count = int.from_bytes(data[:4], "little")
            first, last = np.frombuffer(data, "<u4", count + 1, 4)[[0, -1]].tolist()
            found.append(data[first:last])
        return self._rows(b"".join(found))

    def _rows(self, data: bytes) -> Rows:
        samples = np.frombuffer(data, self._dtype)
        return Rows(samples["ids"], samples["logp"], samples["tail"])
