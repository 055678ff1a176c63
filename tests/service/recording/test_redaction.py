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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no /home/jane doe/data/x.jpg: gone", "no x.jpg: gone"),
        ("no /home/jane o'neil/my data/x.jpg", "no x.jpg"),
        ("copy /a/b/c to /d/e/f", "copy c to f"),
        ("file:///home/jane/x.tar is no tar", "x.tar is no tar"),
        ("file://nas/home/jane/x.tar", "x.tar"),
        ("sqlite:////home/jane/jobs.db is locked", "jobs.db is locked"),
        ("~jane/data/x.jpg and ~/y/z.jpg", "x.jpg and z.jpg"),
        ("gcc -I/home/jane/include -o x", "gcc -Iinclude -o x"),
        (r"C:\Users\jane doe\x.jpg: gone", "x.jpg: gone"),
        ("PATH=/home/jane/bin:/usr/local/bin", "PATH=bin:bin"),
        ('File "/home/jane/retort/cli.py", line 3', 'File "cli.py", line 3'),
        ("data:/home/jane/x", "data:x"),
    ],
)
def test_however_a_folder_is_written_its_path_is_cut(text: str, shown: str) -> None:
    assert public_text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://user:p@ss/word@db/x", "at postgresql://db/x"),
        ("at postgresql://user:p ss'w@rd@db/x", "at postgresql://db/x"),
        ("at https://ghp_0123@git.example/x", "at https://git.example/x"),
        ("s3://b/k?X-Amz-Signature=0f&X-Amz-Date=1: 403", "s3://b/k?... 403"),
        ("https://b/k#access_token=0f", "https://b/k?..."),
        ("GET /k?X-Amz-Signature=0f&b=1", "GET /k?X-Amz-Signature=...&b=1"),
        ("host=db password=hunter2 user=ada", "host=db password=... user=ada"),
        ("RETORT_TOKEN='a b' failed", "RETORT_TOKEN=... failed"),
        ('{"api_key": "0f", "n": 3}', '{"api_key": ..., "n": 3}'),
        ("AWS_SECRET_ACCESS_KEY=0f", "AWS_SECRET_ACCESS_KEY=..."),
        ("Authorization: Bearer 0f.1e refused", "Authorization: ... refused"),
        ("bearer 0123456789abcdef0123", "bearer ..."),
        ("basic training of the bearer of this", None),
        ("http://gpu-1:8000/x asks for a token: see --token-file", None),
        ("expected a token: 32 bytes", None),
        ("top_k=5, tokens 3", None),
    ],
)
def test_no_secret_is_told(text: str, shown: str | None) -> None:
    assert public_text(text) == (text if shown is None else shown)


@given(
    user=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    password=st.text(st.characters(exclude_characters="\n", categories=["L", "N", "P", "S", "Zs"])),
    host=st.from_regex(r"[a-z]{3,8}", fullmatch=True),
)
def test_no_password_is_told_whatever_its_characters(user: str, password: str, host: str) -> None:
    secret = f"QX{password}ZJ"
    shown = public_text(f"cannot reach postgresql://{user}:{secret}@{host}/jobs")
    assert shown == f"cannot reach postgresql://{host}/jobs"


def test_a_long_text_is_cut_in_time_linear_in_what_is_kept() -> None:
    for text in ("/a b c d" * 100_000, "/" * 10**6, "a://b:" * 10**5, "?a=" * 10**5):
        assert len(public_text(text)) <= 500


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
