"""What a record must be: every true one passes, and of each kind of false one the row is named."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.format.encodings import ranges_of_halves, restored_logp, stored_logp
from teacher_cache.record import Encoding
from teacher_cache.teacher.answers import TopK, top_k
from teacher_cache.verification.invariants import Fault, Rules, fault_in_checks, fault_in_records

TEMPERATURES = st.lists(
    st.one_of(
        st.sampled_from([0.05, 0.5, 1.0, 1.0, 2.0, 4.0, 1e6]),
        st.floats(0.05, 1e6, allow_nan=False),
    ),
    min_size=1,
    max_size=5,
    unique=True,
)


def as_read(logp, encoding):
    stored = stored_logp(logp, encoding)
    return restored_logp(stored) if encoding is Encoding.COMPACT else stored


def fault(topk, rules, absent=()):
    rows = np.zeros(len(topk.ids_BK), bool)
    rows[list(absent)] = True
    logp = as_read(topk.logp_BK, rules.encoding)
    return fault_in_records(topk.ids_BK, logp, topk.tail_BT, rows, rules)


def logits_of(shape, rows, classes, scale, generator):
    """Logits as networks, untrained networks and broken ones give them; float32 [rows, classes]."""
    normal = torch.randn((rows, classes), generator=generator)
    match shape:
        case "normal":
            logits = normal * scale
        case "ties":
            logits = (normal * 2).round() * scale
        case "one far above":
            logits = normal.clone()
            logits[:, 0] += scale
        case "all alike":
            logits = torch.full((rows, classes), scale)
        case "far apart":
            logits = normal.sign() * torch.logspace(-8, float(np.log10(scale)), classes)
        case "two groups":
            logits = torch.where(normal > 0, scale, -scale) + 1e-3 * normal
    return logits.clamp(-3e38, 3e38)


@settings(max_examples=400, deadline=None)
@given(
    shape=st.sampled_from(
        ["normal", "ties", "one far above", "all alike", "far apart", "two groups"]
    ),
    classes=st.one_of(st.integers(1, 40), st.sampled_from([1000, 30_000])),
    kept=st.floats(0, 1),
    scale=st.floats(-6, 38).map(lambda power: 10.0**power),
    temperatures=TEMPERATURES,
    encoding=st.sampled_from(Encoding),
    seed=st.integers(0, 2**32),
)
def test_no_true_record_is_refused(shape, classes, kept, scale, temperatures, encoding, seed):
    k = max(1, min(classes, round(kept * min(classes, 60))))
    generator = torch.Generator().manual_seed(seed)
    logits = logits_of(shape, 8, classes, scale, generator)
    topk = top_k(logits, k=k, temperatures=temperatures)
    assert fault(topk, Rules(classes, tuple(temperatures), encoding)) is None


@pytest.mark.parametrize("encoding", Encoding)
def test_true_records_in_great_numbers_are_not_refused(encoding):
    """20,000 rows of each of several spreads, since rounding adds up in few of them."""
    generator = torch.Generator().manual_seed(5)
    for classes, k in ((2, 1), (3, 2), (10, 10), (30, 5)):
        for spread in (0.01, 1.0, 4.0, 30.0):
            logits = spread * torch.randn((20_000, classes), generator=generator)
            topk = top_k(logits, k=k, temperatures=(0.5, 1.0, 3.0))
            assert fault(topk, Rules(classes, (0.5, 1.0, 3.0), encoding)) is None


def test_a_range_holds_what_rounds_to_it_and_hardly_more():
    lowest, highest = ranges_of_halves()
    rng = np.random.default_rng(0)
    values = np.concatenate([-(10.0 ** rng.uniform(-12, 4.8, 100_000)), rng.normal(0, 3, 100_000)])
    halves = values.astype(np.float16)
    bits = halves.view(np.uint16)
    assert ((lowest[bits] <= values) & (values <= highest[bits])).all()
    steps = np.abs(np.spacing(halves).astype(np.float64))
    finite = np.isfinite(lowest[bits])
    assert (highest[bits] - lowest[bits] <= 4.01 * steps)[finite].all()
    assert lowest[np.float16(-65504).view(np.uint16)] == -np.inf


def sample(classes=100, k=5, temperatures=(1.0, 2.0, 4.0), encoding=Encoding.DEFAULT, rows=64):
    """Records of a teacher that is neither certain nor clueless, and their rules."""
    logits = 3 * torch.randn((rows, classes), generator=torch.Generator().manual_seed(1))
    topk = top_k(logits, k=k, temperatures=temperatures)
    return topk, Rules(classes, tuple(temperatures), encoding)


def set_absent(topk, row):
    topk.ids_BK[row] = np.iinfo(topk.ids_BK.dtype).max
    topk.logp_BK[row] = topk.tail_BT[row] = np.nan


def far_id(topk):
    topk.ids_BK[17, 3] = 100


def id_twice(topk):
    topk.ids_BK[17, 3] = topk.ids_BK[17, 0]


def positive(topk):
    topk.logp_BK[17, 0] = 0.001


def infinite(topk):
    topk.logp_BK[17, 4] = -np.inf


def nan_logp(topk):
    topk.logp_BK[17, 1] = np.nan


def ranks_exchanged(topk):
    topk.logp_BK[17, [1, 3]] = topk.logp_BK[17, [3, 1]]


def too_likely(topk):
    topk.logp_BK[17, 0] = 0


def too_unlikely(topk):
    topk.logp_BK[17] -= np.float16(0.05)


def nan_tail(topk):
    topk.tail_BT[17, 1] = np.nan


def no_tail(topk):
    topk.tail_BT[17, 2] = -np.inf


def endless_tail(topk):
    topk.tail_BT[17, 2] = np.inf


def tail_too_low(topk):
    topk.tail_BT[17, 1] = topk.tail_BT[17, 0] / 2 - 0.01


def tail_too_high(topk):
    topk.tail_BT[17, 2] = 4.6


def unlisted_absence(topk):
    set_absent(topk, 17)


FAULTS = {
    far_id: "the class id 100, and classes are 0 to 99",
    id_twice: "the class id .* twice",
    positive: "the log-probability 0.00100[0-9]*, expected a finite number of at most 0",
    infinite: "the log-probability -inf, expected",
    nan_logp: "the log-probability nan, expected",
    ranks_exchanged: "a rank .* that is likelier than the rank before it",
    too_likely: "probabilities that sum to 1.*, not 1",
    too_unlikely: "probabilities that sum to 0.9.*, not 1",
    nan_tail: "the tail nan, expected a finite number",
    no_tail: "the tail -inf, expected a finite number",
    endless_tail: "the tail inf, expected a finite number",
    tail_too_low: "tails at temperatures 1 and 2 that no teacher gives together",
    tail_too_high: "a tail at temperature 4 with classes above the last kept",
    unlisted_absence: "the class id 65535",
}


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("change", FAULTS)
def test_the_row_of_each_fault_is_named(change, encoding):
    topk, rules = sample(encoding=encoding)
    assert fault(topk, rules) is None
    change(topk)
    if change in (positive, infinite) and encoding is Encoding.COMPACT:
        return  # it has no code for them
    found = fault(topk, rules)
    assert found is not None
    assert found.row == 17
    assert re.match(FAULTS[change], found.what), found.what


@pytest.mark.parametrize("temperatures", [(1.0, 2.0), (2.0, 4.0), (0.5, 1.0), (1.0, 2.0, 4.0)])
def test_exchanged_columns_of_tails_are_found_in_every_row(temperatures):
    topk, rules = sample(temperatures=temperatures)
    for row in range(len(topk.ids_BK)):
        one = TopK(topk.ids_BK[[row]], topk.logp_BK[[row]], topk.tail_BT[[row]][:, ::-1])
        assert fault(one, rules) == Fault(0, fault(one, rules).what)


def test_a_column_of_tails_that_was_copied_over_another_is_found():
    topk, rules = sample()
    topk.tail_BT[:, 2] = topk.tail_BT[:, 1]
    assert fault(topk, rules).row == 0


def test_tails_of_other_rows_are_found_where_the_mass_differs():
    topk, rules = sample()
    topk.tail_BT[:] = np.roll(topk.tail_BT, 1, axis=0)
    assert fault(topk, rules).row == 0


def test_where_tau_1_is_not_stored_the_kept_sum_bounds_the_tails():
    topk, rules = sample(temperatures=(2.0, 4.0))
    assert fault(topk, rules) is None
    topk.tail_BT[17, 0] -= 1
    assert fault(topk, rules).what == "tails at temperatures 2 and 4 that no teacher gives together"
    topk, rules = sample(temperatures=(2.0, 4.0))
    topk.logp_BK[17] = np.log(0.21)
    assert fault(topk, rules).what.startswith("probabilities that sum to 1.05")
    topk, rules = sample(temperatures=(2.0, 4.0))
    topk.logp_BK[17] = -60  # 95 other classes cannot have the rest
    assert fault(topk, rules).row == 17


def test_where_all_classes_are_kept_the_tail_is_minus_infinity_and_the_sum_1():
    topk, rules = sample(classes=5, k=5)
    assert fault(topk, rules) is None
    topk.tail_BT[17, 1] = -10
    assert fault(topk, rules) == Fault(
        17, "the tail -10, expected -inf, since all classes are kept"
    )
    topk, rules = sample(classes=5, k=5)
    topk.logp_BK[17, 4] -= 1
    assert "sum to" in fault(topk, rules).what


def test_absent_rows_hold_fill_values_and_only_they():
    topk, rules = sample()
    set_absent(topk, 17)
    set_absent(topk, 40)
    assert fault(topk, rules, absent=(17, 40)) is None
    assert fault(topk, rules, absent=(17,)).row == 40
    assert fault(topk, rules, absent=(9, 17, 40)) == Fault(
        9, "a record, where fill values are expected"
    )
    topk.tail_BT[40, 2] = 0
    assert fault(topk, rules, absent=(17, 40)).row == 40
    wide = TopK(topk.ids_BK.astype(np.uint32), topk.logp_BK, topk.tail_BT)
    assert fault(wide, rules, absent=(17, 40)).row == 17  # 65535 is no fill value there


def test_equal_log_probabilities_may_have_any_order_of_ids():
    topk, rules = sample(classes=4, k=2, temperatures=(1.0,), rows=1)
    topk.logp_BK[:] = np.log(0.25)
    topk.tail_BT[:] = np.log(0.5)
    for ids in ((3, 0), (0, 3)):
        topk.ids_BK[:] = ids
        assert fault(topk, rules) is None


def test_the_first_of_many_faults_in_many_pieces_is_named():
    topk, rules = sample(rows=10_000)
    topk.ids_BK[9000, 0] = topk.ids_BK[5000, 1] = 1000
    topk.logp_BK[5001:, 0] = 0
    assert fault(topk, rules) == Fault(5000, "the class id 1000, and classes are 0 to 99")


def test_checks_of_rows_without_pixels_are_zero():
    absent = np.zeros(70, bool)
    absent[33] = True
    assert fault_in_checks(np.array([5, 0, 9], np.uint32), 1, absent) is None
    assert fault_in_checks(np.array([5, 7, 9], np.uint32), 1, absent).row == 33
    assert fault_in_checks(np.array([5, 7, 9], np.uint32), 2, absent) is None
    assert fault_in_checks(np.array([5, 7, 9], np.uint32), 6, absent).row == 70
