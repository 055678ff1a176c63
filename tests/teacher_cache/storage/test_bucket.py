"""A cache in a bucket, below the ledger's meaning: moto's S3 over HTTP."""

import signal
import subprocess
import sys
import threading
import time

import google_crc32c
import pytest
from faulty_proxy import FaultyProxy
from files import FILES, FIRST, KEY, entry_of, files_in
from repository import REPOSITORY

from teacher_cache.errors import CacheError, DamagedRecords, UnexpectedFile
from teacher_cache.storage import lease
from teacher_cache.storage.bucket import Bucket
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.location import locate


@pytest.fixture
def place(bucket):
    return in_a_hurry(bucket)


def in_a_hurry(bucket):
    """The same cache as another process sees it, which does not wait long for others."""
    return Bucket(locate(bucket.url).objects, grace_s=0.2)


def shard(data):
    """Bytes that end in their own CRC-32C, as a shard of the cache does."""
    return data + google_crc32c.value(data).to_bytes(4, "little")


def test_shards_of_one_length_have_one_checksum_so_it_tells_nothing():
    one, other = shard(b"one writer's records"), shard(b"the other's records!")
    assert google_crc32c.value(one) == google_crc32c.value(other)


def test_of_two_entries_the_first_stays_with_its_files(place, bucket):
    theirs, mine = dict(FILES), {key: data + b"!" for key, data in FILES.items()}
    assert place.publish(KEY, entry_of(theirs), theirs)
    assert place.publish(KEY, entry_of(theirs), theirs)
    assert not place.publish(KEY, entry_of(mine, "b"), mine)
    assert bucket.contents() == {**theirs, KEY: entry_of(theirs)}


def test_a_killed_writers_other_bits_are_replaced(place, bucket):
    bucket.write("ids/c.3.7.0", b"of another device")
    assert place.publish(KEY, entry_of(FILES), FILES)
    assert bucket.contents() == {**FILES, KEY: entry_of(FILES)}


def test_writers_of_other_bits_at_once_leave_the_files_that_the_one_entry_names(bucket):
    barrier, won = threading.Barrier(3, timeout=60), []

    def write(number):
        mine = Bucket(locate(bucket.url).objects, grace_s=5.0)
        files = {key: shard(data + bytes([number])) for key, data in FILES.items()}
        barrier.wait()
        if mine.publish(KEY, entry_of(files, str(number)), files):
            won.append((files, entry_of(files, str(number))))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((files, entry),) = won
    assert bucket.contents() == {**files, KEY: entry}


@pytest.mark.parametrize("landed", ["whole", "other"])
def test_where_two_writers_meet_bytes_are_compared_and_no_checksum(
    bucket, bucket_server, monkeypatch, landed
):
    """Another's entry lands while this writer puts its files, one of which a late request took."""
    theirs = {key: shard(data + b"one") for key, data in FILES.items()}
    mine = {key: shard(data + b"two") for key, data in FILES.items()}
    bucket.write("ids/c.3.7.0", theirs["ids/c.3.7.0"])

    def land(method, path):
        if method == "PUT" and path.endswith("check/c.3.7") and not bucket.keys("ledger"):
            bucket.write("check/c.3.7", (theirs if landed == "whole" else mine)["check/c.3.7"])
            bucket.write(KEY, entry_of(theirs))

    with FaultyProxy(bucket_server.port) as proxy:
        proxy.before_reply = land
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        writer = in_a_hurry(bucket)
        if landed == "whole":
            assert not writer.publish(KEY, entry_of(mine, "b"), mine)
        else:
            with pytest.raises(DamagedRecords, match="the files are not what the ledger names"):
                writer.publish(KEY, entry_of(mine, "b"), mine)
    assert bucket.read(KEY) == entry_of(theirs)


def test_an_entry_that_is_none_is_damage_where_writers_meet(bucket, bucket_server, monkeypatch):
    def land(method, path):
        if method == "PUT" and path.endswith("check/c.3.7"):
            bucket.write("ids/c.3.7.0", b"another's")
            bucket.write(KEY, b'{"files": []}')

    with FaultyProxy(bucket_server.port) as proxy:
        proxy.before_reply = land
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(DamagedRecords, match=r"ledger/3/7\.json is damaged .*--repair"):
            in_a_hurry(bucket).publish(KEY, entry_of(FILES), FILES)


@pytest.mark.parametrize(
    "stranger", ["letters/a.txt", "labels/c.0/x", "staging/release.tar", "staging/upload.tmp"]
)
def test_a_prefix_that_holds_something_else_is_not_touched(place, bucket, stranger):
    bucket.write(stranger, b"x")
    with pytest.raises(CacheError, match=f"it holds something else .{stranger}"):
        place.create(FIRST)
    place.sweep()
    assert bucket.contents() == {stranger: b"x"}


def test_a_killed_creation_is_gone_on_with_and_a_cache_is_not_created_again(place, bucket):
    bucket.write("labels/c.0", b"of another recipe")
    bucket.write("ids/zarr.json", FIRST["ids/zarr.json"])
    place.create(FIRST)
    assert bucket.contents() == FIRST
    place.create({**FIRST, "labels/c.0": b"\3\4", "zarr.json": b"{}"})
    assert bucket.contents() == FIRST


def test_an_object_longer_than_it_may_be_is_not_read(place, bucket, bucket_server):
    bucket.write("keys/c.0", b"12345")
    assert place.read("keys/c.0", 5) == b"12345"
    assert place.read("keys/gone", 5) is None
    with pytest.raises(UnexpectedFile, match="keys/c.0 has 5 bytes, at most 4 are expected"):
        place.read("keys/c.0", 4)


@pytest.mark.parametrize("key", ["", "/x", "../x", "ids/../../x", "ids//x"])
def test_no_key_leads_out_of_the_prefix(place, bucket, key):
    for use in (place.read, place.exists, place.remove, lambda key: place.add(key, b"")):
        with pytest.raises(CacheError, match="names no file of a cache"):
            use(key)
    assert bucket.keys() == []


def test_quarantine_keeps_every_object(place, bucket):
    place.publish(KEY, entry_of(FILES), FILES)
    place.withdraw(KEY, FILES, "2030-01-01")
    place.add(KEY, b"again")
    place.quarantine([KEY, "labels/gone"], "2030-01-01")
    moved = {**FILES, KEY: entry_of(FILES), f"{KEY}.1": b"again"}
    assert bucket.contents() == {f"quarantine/2030-01-01/{key}": moved[key] for key in moved}


def test_both_places_hold_the_same_after_the_same(place, bucket, tmp_path):
    disk = Disk(tmp_path / "cache")
    for each in (place, disk):
        each.create(FIRST)
        assert each.publish(KEY, entry_of(FILES), FILES)
        assert each.add("ledger/views/4.json", b"{}")
        assert not each.add("ledger/views/4.json", b"[]")
        each.replace("ids/zarr.json", b"{}")
        each.remove("check/c.3.7")
        assert each.exists("ids/c.3.7.0")
        assert not each.exists("check/c.3.7")
        assert sorted(each.keys("ledger")) == [KEY, "ledger/views/4.json"]
    assert bucket.contents() == files_in(disk.root)


def test_a_claim_is_one_writers_and_a_sweep_leaves_what_strangers_put_there(bucket, monkeypatch):
    one, other = in_a_hurry(bucket), in_a_hurry(bucket)
    held = one.claim("tile-0-0")
    assert other.claim("tile-0-0") is None
    bucket.write("staging/notes", b"a stranger's")
    other.sweep()
    assert bucket.keys("staging") == ["staging/notes", "staging/tile-0-0"]
    held.release()
    bucket.write("staging/tile-9-9", b"0123456789abcdef")
    monkeypatch.setattr(lease, "LEASE_S", 0.0)  # as if its writer had been silent for so long
    assert other.abandoned() == ["staging/tile-9-9"]
    other.sweep()
    assert bucket.contents() == {"staging/notes": b"a stranger's"}


def test_a_store_is_asked_as_patiently_after_a_stop_as_before(bucket, bucket_server, place):
    """Five seconds of patience, six of them stopped: what was not waited for does not count."""
    bucket.write("a", b"found")
    code = (
        "import sys\nfrom teacher_cache.storage.location import locate\n"
        "print(locate(sys.argv[1]).read('a'))"
    )
    with FaultyProxy(bucket_server.port) as proxy:
        proxy.mode = 500
        brief = {"RETORT_STORE_PATIENCE_S": "5", "RETORT_STORE_TIMEOUT_S": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", code, bucket.url],
            env={**bucket_server.environment(proxy.port), **brief},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
        )  # fmt: skip
        try:
            until_failed(proxy, 2)
            process.send_signal(signal.SIGSTOP)
            time.sleep(6)
            seen = proxy.failed
            process.send_signal(signal.SIGCONT)
            until_failed(proxy, seen + 1)
            proxy.mode = "pass"
            output, _ = process.communicate(timeout=900)
        finally:
            process.kill()
    assert output == "b'found'\n"


def until_failed(proxy, count):
    deadline = time.monotonic() + 900
    while proxy.failed < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
