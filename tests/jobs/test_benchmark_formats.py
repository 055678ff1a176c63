"""Each layout that `benchmarks.peers` measures gives back what it was given."""

import numpy as np
import pytest

from benchmarks.formats import mds
from benchmarks.formats.contestants import contestants
from benchmarks.formats.rows import bytes_below
from benchmarks.records import simulated

ROWS = 300
HALF_STEP = 2.0**-11
"""float16 rounds a number by this share of it at most."""


@pytest.fixture(scope="module", params=[10, 20, 50])
def records(request):
    return simulated(ROWS, request.param)


def allowed(name, records):
    """float64 [B, K]: how far each log-probability may be from the one that was given."""
    logp = records.logp_BK.astype(np.float64)
    if name == "TinyViT":  # float16 of the probability; its smallest step is 2^-24
        p = np.exp(logp)
        stored = np.maximum(p - p * HALF_STEP - 2.0**-25, 0)
        with np.errstate(divide="ignore"):
            return logp - np.log(stored) + 1e-5
    if name == "Retort, compact":  # half a step of the square root, and a rounding to float16
        root = np.sqrt(-logp)
        return root / 320 + (0.5 / 320) ** 2 + np.abs(logp) * 2 * HALF_STEP
    if name.startswith("DistillKit"):  # bfloat16, where it is exact
        from benchmarks.formats import distillkit

        setting = getattr(distillkit, name.removeprefix("DistillKit, "))(logp.shape[1])
        bound = np.abs(logp) * 2.0**-8
        bound[:, setting.exact_k :] = np.inf
        return bound
    return np.zeros_like(logp)


@pytest.mark.parametrize("contestant", contestants(), ids=lambda contestant: contestant.name)
def test_what_is_read_is_what_was_written(contestant, records, tmp_path):
    contestant.prepare(tmp_path / "view", records)
    contestant.write(tmp_path / "view", records)
    order = np.random.default_rng(1).permutation(ROWS)[:70]
    with contestant.reader(tmp_path / "view") as reader:
        found, some = reader.read_all(), reader.read_rows(order)
    np.testing.assert_array_equal(found.ids_BK, records.ids_BK)
    differences = np.abs(found.logp_BK.astype(np.float64) - records.logp_BK.astype(np.float64))
    assert (differences <= allowed(contestant.name, records)).all()
    if found.tail_BT is not None:
        np.testing.assert_array_equal(found.tail_BT, records.tail_BT)
    same = found.at(order)
    np.testing.assert_array_equal(some.ids_BK, same.ids_BK)
    np.testing.assert_allclose(some.logp_BK, same.logp_BK, rtol=1e-6)
    assert contestant.index_bytes(tmp_path / "view") < bytes_below(tmp_path / "view")


def test_distillkits_polynomial_is_the_least_squares_fit(tmp_path):
    distillkit = pytest.importorskip("benchmarks.formats.distillkit", exc_type=ImportError)
    records = simulated(ROWS, 50)
    distillkit.write(distillkit.recommended, tmp_path / "view", records)
    found = distillkit.Reader(tmp_path / "view").read_all().logp_BK
    ranks = np.arange(34.0)
    design = np.stack([*(ranks**power for power in range(5)), np.sqrt(ranks)], axis=1)
    given = records.logp_BK[:, 16:].astype(np.float64)
    fit = (design @ np.linalg.lstsq(design, given.T)[0]).T
    # six float32 coefficients times terms of up to 33^4, which nearly cancel
    np.testing.assert_allclose(found[:, 16:], fit, atol=0.01)


def test_an_mds_view_of_several_shards_is_read_as_one(tmp_path, monkeypatch):
    records = simulated(ROWS, 10)
    monkeypatch.setattr(mds, "SIZE_LIMIT", 6_000)
    mds.write(tmp_path / "view", records)
    assert len(list((tmp_path / "view").glob("shard.*.mds"))) > 2
    assert all(path.stat().st_size <= 6_000 for path in (tmp_path / "view").glob("shard.*.mds"))
    order = np.arange(ROWS)[::-1]
    with mds.Reader(tmp_path / "view") as reader:
        np.testing.assert_array_equal(reader.read_all().logp_BK, records.logp_BK)
        np.testing.assert_array_equal(reader.read_rows(order).ids_BK, records.ids_BK[order])
