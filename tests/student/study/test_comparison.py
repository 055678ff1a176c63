"""Paired differences, their intervals, and verdicts."""

import math
import statistics

import pytest
from scipy.stats import t

from student.study.comparison import _T, Verdict, compare
from student.study.rows import Study
from teacher_cache.recipes.document import parse_recipe


def compared(top1, **row):
    rows = [{"name": "base", "published": 70.0}, {"name": "row", **row}]
    document = {"title": "t", "cache": "digits", "student": "digits-student", "rows": rows}
    study = parse_recipe(document, Study, source="test")
    base, found = compare(study, {"base": dict.fromkeys(top1, 50.0), "row": top1})
    assert (base.difference, base.interval, base.verdict) == (None, None, None)
    return found


def test_students_quantiles_are_those_of_the_distribution():
    for degrees, quantile in enumerate(_T, start=1):
        assert quantile == pytest.approx(t.ppf(0.975, degrees), abs=5.1e-4)


def test_differences_are_paired_by_seed():
    rows = [{"name": "base"}, {"name": "row"}]
    document = {"title": "t", "cache": "digits", "student": "digits-student", "rows": rows}
    study = parse_recipe(document, Study, source="test")
    top1 = {"base": {0: 50.0, 1: 60.0, 3: 10.0}, "row": {0: 51.0, 1: 63.0, 2: 99.0}}
    _, row = compare(study, top1)
    assert row.differences == (1.0, 3.0)
    assert row.mean == statistics.mean([51.0, 63.0, 99.0])
    half = t.ppf(0.975, 1) * statistics.stdev([1.0, 3.0]) / math.sqrt(2)
    assert row.interval == pytest.approx((2 - half, 2 + half), rel=1e-4)


@pytest.mark.parametrize(
    ("top1", "row", "verdict"),
    [
        ({0: 51.0, 1: 51.1, 2: 50.9}, {"claim": "higher"}, Verdict.HELD),
        ({0: 51.0, 1: 51.1, 2: 50.9}, {"claim": "lower"}, Verdict.CONTRADICTED),
        ({0: 51.0, 1: 51.1, 2: 50.9}, {"published": 71.0}, Verdict.HELD),
        ({0: 51.0, 1: 51.1, 2: 50.9}, {"published": 69.0}, Verdict.CONTRADICTED),
        ({0: 51.0, 1: 51.1, 2: 50.9}, {"claim": "alike"}, Verdict.CONTRADICTED),
        ({0: 50.1, 1: 50.0, 2: 49.9}, {"claim": "alike"}, Verdict.HELD),
        ({0: 50.1, 1: 50.0, 2: 49.9}, {"published": 70.0}, Verdict.HELD),
        ({0: 53.0, 1: 49.0, 2: 50.0}, {"claim": "higher"}, Verdict.UNDECIDED),
        ({0: 53.0}, {"claim": "higher"}, Verdict.UNDECIDED),
        ({0: 53.0, 1: 52.0}, {}, None),
    ],
)
def test_a_claim_holds_where_the_whole_interval_is_on_its_side(top1, row, verdict):
    assert compared(top1, **row).verdict == verdict
