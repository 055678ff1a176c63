import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.images.names import Names

file_names = st.lists(
    st.binary(max_size=20).map(lambda data: os.fsdecode(data.replace(b"\0", b"x"))), max_size=70
)


@given(names=file_names)
def test_names_are_a_sequence_of_what_they_were_made_of(names):
    found = Names.of(names)
    assert len(found) == len(names)
    assert list(found) == names == [found[row] for row in range(len(names))]
    assert found == names
    assert found[3:9] == tuple(names[3:9])
    assert pickle.loads(pickle.dumps(found)) == found
    for row in range(-len(names), 0):
        assert found[row] == names[row]
    with pytest.raises(IndexError):
        found[len(names)]


def test_names_of_many_pieces_of_memory_are_found(monkeypatch):
    names = [f"n{row % 977:08}/{row:07}.JPEG" for row in range(900_000)]  # more than 2^24 bytes
    found = Names.of(names)
    rows = np.random.default_rng(0).integers(0, len(names), 1000)
    assert [found[row] for row in rows.tolist()] == [names[row] for row in rows.tolist()]
    assert list(found.take(rows[:10])) == [names[row] for row in rows[:10].tolist()]
    assert found != Names.of([*names[:-1], "other"])


def test_a_mapped_file_is_pickled_by_its_name(tmp_path):
    names = [f"class-{row}/x.png" for row in range(100)]
    (tmp_path / "names").write_bytes(bytes(Names.of(names).blob))
    mapped = Names.mapped(tmp_path / "names")
    assert mapped == names
    assert len(pickle.dumps(mapped)) < 400
    assert pickle.loads(pickle.dumps(mapped)) == names


def test_a_name_with_a_nul_is_refused():
    with pytest.raises(ValueError, match="a name holds a NUL byte"):
        Names.of(["a", "b\0c"])


def test_what_is_no_file_of_names_is_refused(tmp_path):
    (tmp_path / "torn").write_bytes(b"a\0b")
    with pytest.raises(ValueError, match="does not end in a NUL"):
        Names.mapped(tmp_path / "torn")
    (tmp_path / "link").symlink_to(tmp_path / "torn")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=r"Too many levels|no regular file"):
            Names.mapped(tmp_path / name)
