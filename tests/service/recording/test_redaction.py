import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.recording.redaction import public_metrics, public_text, public_value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/ada/data/n01/a.jpg: truncated", "cannot read a.jpg: truncated"),
        ("'/srv/x/y' and /z", "'y' and /z"),
        ("n01/a.jpg is not an image", "n01/a.jpg is not an image"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("12 records/s, 3/4", "12 records/s, 3/4"),
    ],
)
def test_a_public_text_tells_no_folder(text: str, shown: str) -> None:
    assert public_text(text) == shown


@given(st.text(st.characters(categories=None)))
def test_a_public_text_is_short_and_any_database_and_answer_can_hold_it(text: str) -> None:
    shown = public_text(text)
    assert len(shown) <= 500
    assert "\0" not in shown
    assert shown.encode().decode() == shown


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(anything)
def test_a_public_value_is_json_without_nan(value: object) -> None:
    json.dumps(public_value(value), allow_nan=False).encode()


def test_a_public_value_keeps_what_json_has_and_cuts_paths_to_their_name() -> None:
    shown = public_value({"a": (1, 2.5, None, True), "nan": float("nan"), "p": Path("/x y/w.bin")})
    assert shown == {"a": [1, 2.5, None, True], "nan": None, "p": "w.bin"}


def test_a_metric_that_is_not_finite_is_null() -> None:
    values = {"loss": float("nan"), "kd": float("inf"), "top1": 1}
    assert public_metrics(values) == {"loss": None, "kd": None, "top1": 1.0}
