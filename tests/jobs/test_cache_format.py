"""docs/cache-format.md says what is on disk, and its example runs."""

import hashlib
import json
import os
import re
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
from pcodec import standalone
from repository import REPOSITORY

from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.record import Encoding

DOCUMENT = (REPOSITORY / "docs" / "cache-format.md").read_text()
GOLDEN = REPOSITORY / "tests" / "golden" / "cache"


@pytest.mark.parametrize("encoding", list(Encoding))
def test_the_ten_lines_of_plain_zarr_read_a_cache_of_any_encoding(encoded, encoding):
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    cache = encoded(encoding)
    done = subprocess.run(
        [sys.executable, "-c", example, cache.place.root, "1"],
        capture_output=True, text=True, check=True, cwd=os.sep,
    )  # fmt: skip
    slab, index = read_slab(cache, 1), open_cache(cache.place).index
    key, ids, probabilities = re.fullmatch(r"(.*) (\[.*\]) (\[.*\])\n", done.stdout).groups()
    assert key == index.keys[0]
    assert json.loads(ids) == slab.ids_NK[0].tolist()
    assert json.loads(probabilities) == pytest.approx(np.exp(slab.logp_NK[0]), abs=1e-3)
    imports, *lines = example.splitlines()
    assert "teacher_cache" not in imports
    assert sum(bool(line) for line in lines) <= 10


def chunks(path, count):
    """A shard's inner chunks, read by nothing but the document's words."""
    data = path.read_bytes()
    index = data[-16 * count - 4 : -4]
    assert google_crc32c.value(index) == int.from_bytes(data[-4:], "little")
    for offset, length in np.frombuffer(index, "<u8").reshape(count, 2).tolist():
        if offset == 2**64 - 1:
            yield None
            continue
        chunk = data[offset : offset + length]
        assert google_crc32c.value(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")
        yield chunk[:-4]


def test_a_reader_without_zarr_finds_the_records_where_the_document_says(filled):
    slab = read_slab(filled, 2)
    expected = {"ids": slab.ids_NK, "logp": slab.logp_NK, "tail": slab.tail_NT}
    for shard in range(3):
        entry = json.loads((filled.place.root / f"ledger/2/{shard}.json").read_text())
        for file, stated in entry["files"].items():
            data = (filled.place.root / file).read_bytes()
            found = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            assert found == stated
        rows = slice(32 * shard, min(32 * shard + 32, 90))
        for name, dtype in (("ids", "u2"), ("logp", "f2"), ("tail", "f2")):
            (chunk,) = chunks(filled.place.root / name / f"c.2.{shard}.0", 1)
            values = np.array(standalone.simple_decompress(chunk)).astype(dtype)
            found = values.reshape(32, 2)[: rows.stop - rows.start]
            np.testing.assert_array_equal(found, expected[name][rows])
        (check,) = chunks(filled.place.root / "check" / f"c.2.{shard}", 1)
        assert np.frombuffer(check, "<u4")[0] == slab.check[shard]


@pytest.mark.parametrize("entry", ["0/0", "source/1", "sample"])
def test_the_digest_of_an_entry_is_that_of_its_canonical_spelling(filled, entry):
    document = json.loads((filled.place.root / "ledger" / f"{entry}.json").read_text())
    stated = document.pop("entry_sha256")
    spelled = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(spelled).hexdigest() == stated
    manifest = json.loads((filled.place.root / "zarr.json").read_text())["attributes"]["retort"]
    spelled = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert document["manifest"] == hashlib.sha256(spelled).hexdigest()
    assert document["cache"] == manifest["cache_id"]


def test_a_reader_without_zarr_finds_the_images_and_their_checksums(filled, scans):
    keys = (filled.place.root / "keys" / "c.0").read_bytes().split(b"\0")[:-1]
    labels = np.frombuffer((filled.place.root / "labels" / "c.0").read_bytes(), "<i8")
    assert len(keys) == len(labels) == 90
    for shard in range(3):
        (chunk,) = chunks(filled.place.root / "source" / f"c.{shard}", 1)
        stated = np.frombuffer(chunk, "<u4")
        for row, crc in zip(range(32 * shard, 90), stated, strict=False):
            image = (scans / "train" / keys[row].decode()).read_bytes()
            assert google_crc32c.value(image) == crc


def test_a_compact_cache_holds_the_codes_that_the_document_states(encoded):
    cache, exact = encoded(Encoding.COMPACT), encoded(Encoding.DEFAULT)
    stated = json.loads((cache.place.root / "logp" / "zarr.json").read_text())
    assert (stated["data_type"], stated["fill_value"]) == ("uint16", 65535)
    assert stated["attributes"]["sqrt_scale"] == 320
    (chunk,) = chunks(cache.place.root / "logp" / "c.2.0.0", 1)
    codes = np.array(standalone.simple_decompress(chunk)).reshape(32, 2)
    expected = np.rint(320 * np.sqrt(-read_slab(exact, 2).logp_NK[:32].astype("f8")))
    np.testing.assert_array_equal(codes, expected)
