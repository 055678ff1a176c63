import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.storage.ledger import (
    BlockEntry,
    BlockId,
    Owner,
    SourceEntry,
    StoredFile,
    block_key,
    blocks_in,
    decode_block,
    decode_source,
    encode_block,
    encode_source,
    named_files,
    numbers_in,
    seal,
    sha256_of,
    unseal,
)

OWNER = Owner("0123456789abcdef" * 2, "a" * 64)
BLOCK = BlockId(2, 5)
ENTRY = BlockEntry(
    OWNER,
    BLOCK,
    (StoredFile.of("ids/c.2.5.0", b"ids"), StoredFile.of("check/c.2.5", b"check")),
    "b" * 64,
    {"host": "a", "torch": "2"},
    {},
)
SOURCE = SourceEntry(OWNER, 5, StoredFile.of("source/c.5", b"crc"), (163, 170), {"host": "a"})


def test_entries_are_read_back_as_they_were_written():
    assert decode_block(encode_block(ENTRY), BLOCK) == ENTRY
    assert decode_source(encode_source(SOURCE), 5) == SOURCE
    assert named_files(encode_block(ENTRY)) == ENTRY.files
    assert named_files(encode_source(SOURCE)) == (SOURCE.file,)
    assert unseal(seal("views", OWNER, {"views": 9}), "views") == (OWNER, {"views": 9})


def test_a_file_is_known_by_its_content():
    file = StoredFile.of("ids/c.2.5.0", b"ids")
    assert file.sha256 == sha256_of(b"ids")
    assert file.damage(b"ids") is None
    assert file.damage(b"sdi") == "is not what was committed"
    assert file.damage(b"id") == "has 2 bytes, 3 were committed"
    assert file.damage(None) == "is missing"


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@pytest.mark.parametrize("kind", ["block", "source"])
def test_no_flipped_bit_of_an_entry_goes_unnoticed(kind, at, bit):
    data = bytearray(encode_block(ENTRY) if kind == "block" else encode_source(SOURCE))
    before = json.loads(data)
    data[int(at * len(data))] ^= 1 << bit
    try:
        found = decode_block(data, BLOCK) if kind == "block" else decode_source(data, 5)
    except (ValueError, KeyError, TypeError):
        return
    assert found == (ENTRY if kind == "block" else SOURCE)
    assert json.loads(data) == before  # only white space changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"entry_sha256": 3}',
        "[" * 100_000,
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        "1" * 5000,
        '{"entry_sha256": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_entry_is_an_error_in_words_and_not_a_crash(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode_block(text.encode(), BLOCK)
    with pytest.raises((ValueError, KeyError, TypeError)):
        named_files(text.encode())


@pytest.mark.parametrize(
    "content",
    [
        {"files": []},
        {"files": {"ids/c.2.5.0": 3}},
        {"files": {"ids/c.2.5.0": {"size": -1, "sha256": ""}}},
        {"files": {"ids/c.2.5.0": {"size": True, "sha256": ""}}},
        {"files": {"ids/c.2.5.0": {"size": 10**39, "sha256": ""}}},
        {"source": None},
        {"producer": {"host": 3}},
        {"tables": []},
    ],
)
def test_an_entry_with_a_true_digest_and_senseless_content_is_an_error(content):
    _, document = unseal(encode_block(ENTRY), "block")
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode_block(seal("block", OWNER, {**document, **content}), BLOCK)


def test_an_entry_of_another_kind_or_block_is_an_error():
    with pytest.raises(ValueError, match="an entry of the kind 'block', not 'source'"):
        decode_source(encode_block(ENTRY), 5)
    with pytest.raises(ValueError, match="it speaks of view 2, shard 5"):
        decode_block(encode_block(ENTRY), BlockId(2, 6))
    with pytest.raises(ValueError, match="it speaks of shard 5"):
        decode_source(encode_source(SOURCE), 6)


def test_only_names_of_the_format_are_entries():
    keys = ["ledger/0/1.json", "ledger/12/0.json", "ledger/01/1.json", "ledger/0/1.json.bak"]
    keys += ["ledger/source/3.json", "ledger/views/8.json", "ledger/views/x.json", "ledger/a/b/c"]
    keys += ["ledger/\u0663/1.json", "ledger/99999999999/1.json"]
    assert blocks_in(keys) == {BlockId(0, 1), BlockId(12, 0)}
    assert numbers_in(keys, "source") == {3}
    assert numbers_in(keys, "views") == {8}
    assert block_key(BlockId(12, 0)) == "ledger/12/0.json"
