import errno
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damages import BLOCK, FILES, contents, files_of, refill
from files import odd_file

from teacher_cache.cache.blocks import Block, missing_blocks, read_entry, write_block
from teacher_cache.cache.cache import append_views, open_cache, open_undescribed
from teacher_cache.cache.slab import read_slab
from teacher_cache.errors import DamagedRecords
from teacher_cache.record import TopK
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId, encode_block
from teacher_cache.storage.staging import stage
from teacher_cache.storage.tree import Tree
from teacher_cache.verification.repair import repair
from teacher_cache.verification.verify import damage_beside_blocks, verify

DAMAGES = ("first", "middle", "index", "truncated", "emptied", "removed")


def change(path, damage):
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    else:
        at = {"first": 0, "middle": len(data) // 2, "index": max(len(data) - 12, 0)}[damage]
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])


def test_a_full_cache_is_sound_and_every_byte_of_its_records_is_read(filled):
    found = verify(filled)
    assert found.is_sound
    assert (found.blocks, len(found.damage), len(found.missing), len(found.strays)) == (9, 0, 0, 0)
    names = ("ids", "logp", "tail", "check")
    shards = [p for name in names for p in (filled.place.root / name).glob("c.*") if p.is_file()]
    assert found.bytes == sum(path.stat().st_size for path in shards)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *itertools.product(FILES[:4], DAMAGES),
        # an entry's last byte is a newline, and a block without one is missing, not damaged
        *((FILES[4], damage) for damage in DAMAGES if damage not in ("truncated", "removed")),
    ],
)
def test_every_damage_is_found_refused_by_readers_and_mended(own_cache, filled, file, damage):
    cache = open_cache(Disk(own_cache))
    change(own_cache / file, damage)
    found = verify(cache)
    assert [(d.file, d.block) for d in found.damage] == [(file, BLOCK)]
    with pytest.raises(DamagedRecords, match="verify-cache .* --repair"):
        read_slab(cache, 1)
    repair(cache, found)
    assert missing_blocks(cache) == [BLOCK]
    assert verify(cache).damage == verify(cache).strays == ()
    refill(cache, filled)
    assert verify(cache).is_sound
    for name in FILES[:4]:
        assert (own_cache / name).read_bytes() == (filled.place.root / name).read_bytes()


def test_every_byte_of_a_block_and_its_entry_counts(own_cache):
    cache = open_cache(Disk(own_cache))
    for file in FILES:
        path = own_cache / file
        data = path.read_bytes()
        for at in range(0, len(data), 11):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            found = verify(cache)
            if file.startswith("ledger") and found.is_sound:
                assert json.loads(path.read_bytes()) == json.loads(data)  # white space
            else:
                assert {damage.file for damage in found.damage} == {file}
        path.write_bytes(data)


def test_shards_without_an_entry_are_strays_and_their_rows_missing(own_cache, filled):
    cache = open_cache(Disk(own_cache))
    (own_cache / FILES[-1]).unlink()
    found = verify(cache)
    assert found.missing == (BLOCK,)
    assert found.damage == ()
    assert set(found.strays) == set(FILES[:4])
    repair(cache, found)
    assert not any((own_cache / name).exists() for name in FILES[:4])
    (taken,) = (own_cache / "quarantine").iterdir()
    assert {p.relative_to(taken).as_posix() for p in taken.rglob("c.*")} == set(FILES[:4])
    refill(cache, filled)
    assert verify(cache).is_sound


def test_strays_of_the_format_go_into_quarantine_and_strangers_files_are_left_alone(own_cache):
    cache = open_cache(Disk(own_cache))
    before = contents(own_cache)
    dead = f"staging/{'0' * 16}.tmp"
    for name in ("ids/c.0.0.0.bak", "notes.txt", "ids/c.7.0.0", dead, "staging/mine.txt"):
        path = own_cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    alive = stage(Tree(own_cache), b"being written")
    found = verify(cache)
    assert found.strays == ("ids/c.7.0.0", dead)
    assert found.strangers == ("ids/c.0.0.0.bak", "notes.txt", "staging/mine.txt")
    mended, folder = repair(cache, found)
    alive.release()
    assert verify(mended).is_sound
    assert (own_cache / folder / "ids" / "c.7.0.0").read_bytes() == b"x"
    for name in ("ids/c.0.0.0.bak", "notes.txt", "staging/mine.txt"):
        assert (own_cache / name).read_bytes() == b"x"
    assert before.items() <= contents(own_cache).items()


def test_an_entry_outside_the_cache_and_one_that_names_too_few_files_are_damage(own_cache):
    cache = open_cache(Disk(own_cache))
    (own_cache / "ledger" / "9").mkdir()
    shutil.copy(own_cache / FILES[-1], own_cache / "ledger" / "9" / "9.json")
    entry = read_entry(cache, BLOCK)
    (own_cache / FILES[-1]).write_bytes(encode_block(replace(entry, files=entry.files[1:])))
    found = verify(cache)
    assert [d.file for d in found.damage] == [FILES[-1], "ledger/9/9.json"]
    assert found.damage[1].what == "names a block outside the cache"
    with pytest.raises(DamagedRecords, match="names other files than those of its block"):
        read_slab(cache, 1)
    repair(cache, found)
    assert missing_blocks(cache) == [BLOCK]
    assert not (own_cache / "ledger" / "9" / "9.json").exists()


def test_an_arrays_description_that_was_changed_is_found_and_restored(own_cache):
    path = own_cache / "logp" / "zarr.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"NaN"', b"0.0"))
    with pytest.raises(DamagedRecords, match=r"logp/zarr\.json is not what the manifest describes"):
        open_cache(Disk(own_cache))
    cache = open_undescribed(Disk(own_cache))
    found = verify(cache)
    assert [(d.file, d.block) for d in found.damage] == [("logp/zarr.json", None)]
    repair(cache, found)
    assert json.loads(path.read_bytes()) == json.loads(before)
    assert verify(cache).is_sound


@pytest.mark.parametrize("data", [b"", b"{", b"null", b'{"shape": []}', None])
def test_an_arrays_description_that_cannot_be_read_is_written_anew_by_repair(cli, own_cache, data):
    before = contents(own_cache)
    for name in ("ids", "tail"):
        path = own_cache / name / "zarr.json"
        path.unlink() if data is None else path.write_bytes(data)
    assert "--repair" in cli("inspect-cache", own_cache, check=1).stderr
    assert "ids/zarr.json is not" in cli("verify-cache", own_cache, check=1).stdout
    assert "repaired: sound" in cli("verify-cache", own_cache, "--repair").stdout
    assert files_of(own_cache) == before


def test_a_group_that_cannot_be_read_is_restored_from_a_copy_of_this_cache_alone(
    cli, own_cache, filled, scans, tmp_path
):
    from small import cache_recipe, fill_cache

    (own_cache / "zarr.json").write_bytes(b"{")
    done = cli("verify-cache", own_cache, "--repair", check=1)
    assert "restore it from a copy of this cache" in done.stderr
    fill_cache(tmp_path / "new", scans / "train", cache_recipe())
    shutil.copy(tmp_path / "new" / "zarr.json", own_cache)  # of the same recipe, another cache
    done = cli("verify-cache", own_cache, check=1)
    assert "belongs to another cache" in done.stdout
    (own_cache / "zarr.json").write_bytes((filled.place.root / "zarr.json").read_bytes())
    cli("verify-cache", own_cache)


def test_a_shard_of_several_chunks_has_each_of_them_checked(tmp_path):
    from caches import filled_cache

    cache = filled_cache(
        tmp_path / "cache", rows=8192 + 5000, views__count=1, storage__rows_per_shard=8192
    )
    assert verify(cache).is_sound
    from teacher_cache.verification.verify import _wrong_chunks

    data = (cache.place.root / "ids/c.0.1.0").read_bytes()
    assert _wrong_chunks(cache, "ids", data, BlockId(0, 1)) is None
    flipped = bytes([data[0] ^ 1]) + data[1:]
    words = "chunk 0 does not match its checksum"
    assert _wrong_chunks(cache, "ids", flipped, BlockId(0, 1)) == words
    words = "its index of chunks is damaged"
    assert _wrong_chunks(cache, "ids", data[:-1], BlockId(0, 1)) == words
    np.testing.assert_array_equal(read_slab(cache, 0).ids_NK.shape, (13_192, 2))


def test_the_command_names_view_and_rows_and_its_exit_code_says_whether_the_cache_is_whole(
    cli, own_cache, scans, tmp_path
):
    from small import cache_document, to_toml

    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document()))
    assert "9 of 9 blocks" in cli("verify-cache", own_cache, check=0).stdout
    before = (own_cache / FILES[0]).read_bytes()
    change(own_cache / FILES[0], "middle")
    done = cli("verify-cache", own_cache, check=1).stdout
    assert "damaged  view 1, rows 64-89: ids/c.1.2.0 is not what was committed" in done
    facts = json.loads(cli("verify-cache", own_cache, "--json", check=1).stdout)
    assert (facts["sound"], facts["damage"][0]["rows"]) == (False, [64, 89])
    done = cli("verify-cache", own_cache, "--repair", check=1).stdout
    assert "missing  1 of 9 blocks" in done
    facts = json.loads(cli("inspect-cache", own_cache, "--json").stdout)
    assert facts["incomplete views"] == {"1": "2 of 3 blocks"}
    stamps = {p: p.stat().st_mtime_ns for p in Path(own_cache / "ledger").rglob("*.json")}
    cli("cache-teacher", recipe, "--data", scans / "train", "--out", own_cache)
    assert (own_cache / FILES[0]).read_bytes() == before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    cli("verify-cache", own_cache, check=0)


KINDS = ("a pipe", "a folder", "a symbolic link")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["staging/lock", "ids/zarr.json", "labels/zarr.json"])
def test_what_is_no_file_where_none_is_needed_to_read_is_moved_away_and_made_anew(
    own_cache, key, kind
):
    before = contents(own_cache)
    odd_file(own_cache / key, kind)
    cache = open_undescribed(Disk(own_cache))
    found = verify(cache)
    assert [damage.file for damage in found.damage] == [key]
    mended, folder = repair(cache, found)
    assert os.path.lexists(own_cache / folder / key)
    assert verify(mended).is_sound
    if key == "staging/lock":
        assert (own_cache / key).is_file()
    else:
        assert (own_cache / key).read_bytes() == before[own_cache / key]


@pytest.mark.parametrize("name", ["ids", "source", "ledger/1", "staging"])
def test_a_link_in_the_place_of_a_folder_is_named_and_no_repair_drops_what_lies_behind_it(
    cli, own_cache, tmp_path, name
):
    shutil.move(own_cache / name, tmp_path / "elsewhere")
    (own_cache / name).symlink_to(tmp_path / "elsewhere")
    before = contents(own_cache)
    for option in ((), ("--repair",)):
        done = cli("verify-cache", own_cache, *option, check=1)
        assert "is a symbolic link, where a cache has a folder" in done.stdout + done.stderr
    assert "put the folder itself in its place" in done.stderr
    assert contents(own_cache) == before
    (own_cache / name).unlink()
    shutil.move(tmp_path / "elsewhere", own_cache / name)
    cli("verify-cache", own_cache)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["zarr.json", "keys/c.0"])
def test_what_is_no_file_in_the_place_of_one_that_nothing_can_derive_is_to_be_restored(
    cli, own_cache, key, kind
):
    odd_file(own_cache / key, kind)
    done = cli("verify-cache", own_cache, "--repair", check=1)
    assert f"{key} is {kind}, where a cache has a file" in done.stderr
    assert "restore" in done.stderr
    assert "--repair" not in done.stderr


def test_a_file_of_keys_longer_than_names_can_be_is_not_mapped(cli, own_cache):
    with (own_cache / "keys/c.0").open("wb") as file:
        file.truncate(5 << 30)  # zeros, which take no room
    done = cli("verify-cache", own_cache, check=1)
    assert "keys/c.0 has 5368709120 bytes, at most 368640 are expected" in done.stderr


def test_a_sample_that_was_removed_is_missed(cli, own_cache):
    (own_cache / "ledger/sample.json").unlink()
    done = cli("verify-cache", own_cache, check=1)
    assert "damaged  ledger/sample.json is missing, though the cache has records" in done.stdout


def test_a_repair_leaves_what_another_repair_and_a_writer_have_mended_meanwhile(own_cache, filled):
    cache = open_cache(Disk(own_cache))
    (own_cache / "ids/c.1.2.0").write_bytes(b"")
    found = verify(cache)
    repair(cache, found)
    refill(cache, filled)
    before = files_of(own_cache)
    repair(cache, found)  # of what was found hours ago
    assert files_of(own_cache) == before
    assert verify(cache).is_sound


def test_a_repair_leaves_a_source_entry_that_was_put_back_meanwhile(own_cache):
    path = own_cache / "ledger/source/1.json"
    entry = path.read_bytes()
    path.unlink()
    cache = open_cache(Disk(own_cache))
    found = verify(cache)
    path.write_bytes(entry)
    repair(cache, found)
    assert path.read_bytes() == entry


def test_views_that_are_appended_while_a_cache_is_read_are_no_damage(own_cache, filled):
    before = open_cache(Disk(own_cache))
    append_views(before, 4)
    grown = open_cache(Disk(own_cache))
    slab, rows = read_slab(filled, 0), grown.rows(0)
    part = slice(rows.start, rows.stop)
    topk = TopK(slab.ids_NK[part], slab.logp_NK[part], slab.tail_NT[part])
    write_block(grown, Block(BlockId(3, 0), topk, np.zeros(1, np.uint32)), {"host": "test"})
    found = verify(before)
    assert (found.damage, found.unannounced) == ((), ())
    assert {block.view for block in found.missing} == {3}


def test_images_that_are_named_while_the_ledger_is_listed_are_not_missing(own_cache):
    cache = open_cache(Disk(own_cache))
    keys = set(cache.place.keys()) - {"ledger/source/1.json"}
    assert list(damage_beside_blocks(cache, keys)) == []


def test_a_cache_that_has_lost_its_group_is_told_from_no_cache(cli, own_cache):
    (own_cache / "zarr.json").unlink()
    error = cli("verify-cache", own_cache, check=1).stderr
    assert "the ledger of a cache is there, but not the zarr.json" in error


def test_an_index_that_cannot_be_reached_is_not_called_damaged(cli, own_cache, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(own_cache / "labels/c.0"))

    monkeypatch.setattr(np, "memmap", fail)
    error = cli("verify-cache", own_cache, check=1).stderr
    assert "labels/c.0" in error
    assert "restore" not in error
