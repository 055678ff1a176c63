import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import DamagedRecords
from teacher_cache.ledger import (
    BlockId,
    LedgerEntry,
    StoredFile,
    committed_blocks,
    crc32c_of,
    encode_entry,
    entry_key,
    is_committed,
    read_entry,
)
from teacher_cache.place import place_of

ENTRY = LedgerEntry(
    BlockId(2, 5),
    (StoredFile("ids/c/2/5/0", 123, 0xDEADBEEF), StoredFile("check/c/2/5", 9, 7)),
    (4, 9),
    {"host": "a", "torch": "2"},
)


def commit_entry(root, entry):
    """As a block's writer names it; False when another writer was first."""
    return place_of(root).add(entry_key(entry.block), encode_entry(entry))


def test_crc32c_is_castagnolis():
    assert crc32c_of(b"123456789") == 0xE3069283  # the check value of RFC 3720's polynomial


def test_an_entry_is_read_back_as_committed_and_listed(tmp_path):
    assert read_entry(tmp_path, ENTRY.block) is None
    assert commit_entry(tmp_path, ENTRY)
    assert read_entry(tmp_path, ENTRY.block) == ENTRY
    assert committed_blocks(tmp_path) == {ENTRY.block}
    assert is_committed(tmp_path, ENTRY.block)
    assert not is_committed(tmp_path, BlockId(5, 2))


def test_the_first_writer_of_a_block_wins_and_leaves_no_other_file(tmp_path):
    assert commit_entry(tmp_path, ENTRY)
    other = LedgerEntry(ENTRY.block, (), (), {"host": "b"})
    assert not commit_entry(tmp_path, other)
    assert read_entry(tmp_path, ENTRY.block) == ENTRY
    assert [p.name for p in (tmp_path / "ledger" / "2").iterdir()] == ["5.json"]


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_an_entry_goes_unnoticed(tmp_path_factory, at, bit):
    root = tmp_path_factory.mktemp("ledger")
    commit_entry(root, ENTRY)
    path = root / "ledger" / "2" / "5.json"
    data = bytearray(path.read_bytes())
    before = json.loads(data)
    data[int(at * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert read_entry(root, ENTRY.block) == ENTRY
        assert json.loads(data) == before  # only white space changed
    except DamagedRecords as error:
        assert "verify-cache" in str(error)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"entry_crc32c": 3}'])
def test_an_entry_that_is_none_is_damage_and_not_a_crash(tmp_path, text):
    commit_entry(tmp_path, ENTRY)
    (tmp_path / "ledger" / "2" / "5.json").write_text(text)
    with pytest.raises(DamagedRecords, match=r"5\.json is damaged"):
        read_entry(tmp_path, ENTRY.block)


def test_an_entry_under_another_blocks_name_is_damage(tmp_path):
    commit_entry(tmp_path, ENTRY)
    folder = tmp_path / "ledger" / "2"
    (folder / "5.json").rename(folder / "6.json")
    with pytest.raises(DamagedRecords, match="it speaks of view 2, shard 5"):
        read_entry(tmp_path, BlockId(2, 6))
