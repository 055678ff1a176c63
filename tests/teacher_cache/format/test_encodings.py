"""Three encodings of the same records: which bits they keep, and that nobody has to be told."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from commands import cli_environment, command
from repository import REPOSITORY
from small import build_teacher, cache_document, cache_recipe, fill_cache, student_document, to_toml

from teacher_cache.cache.cache import append_views, open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.errors import CacheError, DamagedRecords
from teacher_cache.filling.opening import open_or_create
from teacher_cache.format.arrays import chunk_index
from teacher_cache.format.encodings import decode_chunk, kl_cost, restored_logp, stored_logp
from teacher_cache.format.layout import RECORD_ARRAYS
from teacher_cache.images.index import index_images
from teacher_cache.record import Encoding
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.answers import top_k
from teacher_cache.verification.verify import verify

OTHERS = [Encoding.PORTABLE, Encoding.COMPACT]
SHARDS = [f"{name}/c.1.2{'' if name == 'check' else '.0'}" for name in RECORD_ARRAYS]


def slabs(cache):
    return [read_slab(cache, view) for view in range(cache.view_count)]


def shards(cache):
    """The bytes of every shard, by its path."""
    files = [path for name in RECORD_ARRAYS for path in (cache.place.root / name / "c").rglob("*")]
    return {
        p.relative_to(cache.place.root).as_posix(): p.read_bytes() for p in files if p.is_file()
    }


def test_every_log_probability_is_restored_within_half_a_step_of_its_root():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    logp = halves[np.isfinite(halves) & (halves <= 0)]
    restored = restored_logp(stored_logp(logp, Encoding.COMPACT))
    assert restored.dtype == np.float16
    fine = logp >= -41_952  # where 16 bits end
    root, found = (np.sqrt(-values.astype("f8")) for values in (logp, restored))
    rounding = 2.0**-11 * found  # float16 has 11 bits
    assert (np.abs(found - root)[fine] <= 0.5 / 320 + rounding[fine]).all()
    assert (restored[~fine] == -41_952).all()
    assert np.isnan(restored_logp(stored_logp(np.array([np.nan], "f2"), Encoding.COMPACT))).all()


def test_restored_values_are_their_own_best_codes():
    """So a copy of a compact cache's records is exact."""
    restored = restored_logp(np.arange(2**16, dtype=np.uint16))
    np.testing.assert_array_equal(restored_logp(stored_logp(restored, Encoding.COMPACT)), restored)


@pytest.mark.parametrize(("classes", "spread"), [(10, 0.0), (10, 1.0), (100, 2.0), (1000, 3.0)])
def test_compact_costs_no_more_than_stated(classes, spread):
    logits_BC = spread * torch.randn((4096, classes), generator=torch.Generator().manual_seed(0))
    log_p_BC = torch.log_softmax(logits_BC.double() + torch.rand(4096, 1), 1)
    topk = top_k(logits_BC, k=10, temperatures=(1.0,))
    ids_BK = torch.from_numpy(topk.ids_BK.astype(np.int64))
    rest_B1 = log_p_BC.scatter(1, ids_BK, -torch.inf).logsumexp(1, keepdim=True)
    live_BL = torch.cat([log_p_BC.gather(1, ids_BK), rest_B1], 1)
    cost = {}
    for encoding in Encoding:
        logp = stored_logp(topk.logp_BK, encoding)
        logp = restored_logp(logp) if encoding is Encoding.COMPACT else logp
        shown_BL = torch.from_numpy(np.concatenate([logp, topk.tail_BT], 1)).double()
        assert float((shown_BL.exp().sum(1) - 1).abs().max()) < 0.01
        terms_BL = live_BL.exp() * (live_BL - torch.log_softmax(shown_BL, 1))  # as the loss does
        cost[encoding] = float(torch.where(live_BL.isneginf(), 0.0, terms_BL).sum(1).mean())
    assert cost[Encoding.DEFAULT] == cost[Encoding.PORTABLE] < 2e-7
    assert cost[Encoding.COMPACT] < kl_cost(Encoding.COMPACT, 10) + 2e-7 < 4e-6


def test_portable_holds_the_same_records_bit_for_bit_and_compact_all_but_logp(encoded):
    exact = slabs(encoded(Encoding.DEFAULT))
    for encoding in OTHERS:
        for slab, expected in zip(slabs(encoded(encoding)), exact, strict=True):
            np.testing.assert_array_equal(slab.ids_NK, expected.ids_NK)
            np.testing.assert_array_equal(slab.tail_NT, expected.tail_NT)
            np.testing.assert_array_equal(slab.check, expected.check)
            logp = expected.logp_NK
            if encoding is Encoding.COMPACT:
                logp = restored_logp(stored_logp(logp, encoding))
            np.testing.assert_array_equal(slab.logp_NK, logp)
            assert slab.logp_NK.dtype == np.float16


@pytest.mark.parametrize("encoding", OTHERS)
def test_a_cache_of_another_encoding_is_verified_audited_inspected_and_trained_on(
    cli, encoded, scans, tmp_path, encoding
):
    root = encoded(encoding).place.root
    assert json.loads(cli("verify-cache", root, "--json").stdout)["sound"]
    data, recipe = ["--data", scans / "train"], tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document(storage__encoding=encoding.value)))
    facts = json.loads(cli("audit-cache", root, recipe, *data, "--records", 200, "--json").stdout)
    assert facts["passed"]
    assert facts["KL(live || cached), mean"]["tau 1"] < kl_cost(encoding, 2) + 1e-6
    assert facts["KL of the encoding, at most"] == pytest.approx(kl_cost(encoding, 2), rel=0.01)
    assert json.loads(cli("inspect-cache", root, "--json").stdout)["encoding"] == encoding
    (tmp_path / "student.toml").write_text(to_toml(student_document(schedule__epochs=1)))
    options = ["--cache", root, *data, "--val", scans / "val", "--out", "run", "--follow"]
    done = cli("train-student", "student.toml", *options)
    assert "5/5 steps" in done.stderr


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("file", SHARDS)
def test_a_flipped_byte_is_found_in_every_encoding(encoded, tmp_path, encoding, file):
    cache = open_cache(Disk(shutil.copytree(encoded(encoding).place.root, tmp_path / "cache")))
    data = (cache.place.root / file).read_bytes()
    (cache.place.root / file).write_bytes(data[:9] + bytes([data[9] ^ 16]) + data[10:])
    assert [damage.file for damage in verify(cache).damage] == [file]
    with pytest.raises(DamagedRecords, match="view 1, rows 64-89"):
        read_slab(cache, 1)


@pytest.mark.parametrize("encoding", OTHERS)
def test_tiles_writers_and_growth_change_no_byte_of_any_encoding(
    encoded, scans, tmp_path, encoding
):
    name = {"storage__encoding": encoding.value, "storage__views_per_tile": 3}
    fill_cache(tmp_path / "cache", scans / "train", cache_recipe(views__count=1, **name))
    grown = fill_cache(tmp_path / "cache", scans / "train", cache_recipe(views__count=3, **name))
    assert shards(grown) == shards(encoded(encoding))
    assert verify(append_views(grown, 4)).damage == ()


def test_a_cache_is_not_continued_in_another_encoding(encoded, scans, tmp_path):
    index, recipe = index_images(scans / "train"), cache_recipe(storage__encoding="compact")
    teacher = build_teacher(recipe, index)
    words = "storage.encoding: portable in the cache, compact asked for"
    with pytest.raises(CacheError, match=words):
        open_or_create(encoded(Encoding.PORTABLE).place, recipe, index, teacher)
    with pytest.raises(CacheError, match="storage.encoding: default in the cache"):
        open_or_create(encoded(Encoding.DEFAULT).place, recipe, index, teacher)


def test_each_encoding_has_a_digest_of_its_own():
    digests = {cache_recipe(storage__encoding=e.value).digest() for e in Encoding}
    assert len(digests) == 3
    assert cache_recipe().digest() in digests


def test_portable_names_only_codecs_of_the_standard(encoded):
    def names(codecs):
        for codec in codecs:
            yield codec["name"]
            for key in ("codecs", "index_codecs"):
                yield from names(codec.get("configuration", {}).get(key, []))

    root = encoded(Encoding.PORTABLE).place.root
    found = [json.loads((root / n / "zarr.json").read_text()) for n in (*RECORD_ARRAYS, "keys")]
    used = {name for document in found for name in names(document["codecs"])}
    assert used == {"sharding_indexed", "bytes", "zstd", "crc32c"}
    assert {document["data_type"] for document in found} == {"uint16", "float16", "uint32", "uint8"}


WITHOUT_PCODEC = """
import pathlib, sys
sys.modules["pcodec"] = sys.modules["numcodecs.pcodec"] = None
from teacher_cache.cache.slab import read_slab
from teacher_cache.cache.cache import open_cache
from teacher_cache.storage.disk import Disk
print(read_slab(open_cache(Disk(pathlib.Path(sys.argv[1]))), 1).logp_NK.tobytes().hex())
"""


def test_portable_is_read_where_pcodec_is_not_installed(encoded):
    def read(encoding):
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_PCODEC, encoded(encoding).place.root],
            capture_output=True, text=True, check=False, cwd=REPOSITORY,
        )  # fmt: skip

    expected = read_slab(encoded(Encoding.DEFAULT), 1).logp_NK.tobytes().hex()
    assert read(Encoding.PORTABLE).stdout.strip() == expected
    assert "pip install 'numcodecs[pcodec]'" in read(Encoding.DEFAULT).stderr


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_the_zarrs_pipeline_reads_the_same_records(encoded, encoding):
    pytest.importorskip("zarrs")
    cache = encoded(encoding)
    with zarr.config.set(
        {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    ):
        arrays = {
            name: zarr.open_array(cache.place.root / name, mode="r") for name in RECORD_ARRAYS
        }
        ids, logp, tail, check = (arrays[name][1:2][0] for name in RECORD_ARRAYS)
    slab = read_slab(cache, 1)
    logp = restored_logp(logp) if encoding is Encoding.COMPACT else logp
    for found, expected in (
        (ids, slab.ids_NK), (logp, slab.logp_NK), (tail, slab.tail_NT), (check, slab.check),
    ):  # fmt: skip
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_writer_whose_zarr_is_set_to_another_pipeline_writes_the_same_bytes(
    encoded, scans, tmp_path
):
    pytest.importorskip("zarrs")
    (tmp_path / "cache.toml").write_text(to_toml(cache_document()))
    done = subprocess.run(
        command("cache-teacher", "cache.toml", "--data", scans / "train", "--out", "cache"),
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env=cli_environment(tmp_path) | {"PYTHONWARNINGS": "error::UserWarning:zarrs",
                                         "ZARR_CODEC_PIPELINE__PATH": "zarrs.ZarrsCodecPipeline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shards(open_cache(Disk(tmp_path / "cache"))) == shards(encoded(Encoding.DEFAULT))
    assert "zarrs" not in done.stderr


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("name", RECORD_ARRAYS)
def test_a_chunk_of_another_length_is_refused(encoded, encoding, name):
    cache = encoded(encoding)
    shard = (cache.place.root / name / ("c.1.0" if name == "check" else "c.1.0.0")).read_bytes()
    ((offset, length),) = chunk_index(shard, 1)
    chunk = shard[offset : offset + length - 4]
    layout = cache.layout
    out = layout.empty_arrays()[name][: 32 if name != "check" else 1]
    decode_chunk(name, chunk, out.reshape(-1), encoding)
    for count in (out.size // 2, 2 * out.size):
        with pytest.raises(ValueError, match="a chunk holds"):
            decode_chunk(name, chunk, np.zeros(count, out.dtype), encoding)
