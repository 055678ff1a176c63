"""A cache in a bucket: moto's S3 over HTTP, the same commands, the same records."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from caches import assert_same_records, block_of, index_of, manifest_of, with_images
from damages import BLOCK, FILES, refill
from small import cache_document, cache_recipe, fill_cache, to_toml
from zarr.storage import ObjectStore

from teacher_cache.cache.blocks import committed_blocks, missing_blocks, write_block
from teacher_cache.cache.cache import append_views, create_cache, open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.errors import CacheError, DamagedRecords, LocationError, StoreError
from teacher_cache.format.arrays import encode_shard
from teacher_cache.format.descriptions import descriptions
from teacher_cache.storage import lease
from teacher_cache.storage.bucket import Bucket
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId
from teacher_cache.storage.location import locate
from teacher_cache.verification.repair import repair
from teacher_cache.verification.verify import verify

DAMAGES = ("first", "middle", "index", "truncated", "emptied", "removed")


@pytest.fixture
def remote(bucket, filled):
    """A full cache in the bucket: a copy of the local one, object by object."""
    for path in filled.place.root.rglob("*"):
        if path.is_file() and "staging" not in path.parts:
            bucket.write(path.relative_to(filled.place.root).as_posix(), path.read_bytes())
    return open_cache(locate(bucket.url))


def new_cache(url, **changes):
    index = index_of(90)
    cache = create_cache(locate(url), manifest_of(cache_recipe(**changes), index), index)
    return with_images(cache)


def other_writer(cache, grace_s=0.2):
    """The same cache as another process sees it, in less of a hurry to wait."""
    return open_cache(Bucket(cache.place.objects, grace_s))


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def change(bucket, key, damage):
    data = bucket.read(key)
    if damage == "removed":
        bucket.remove(key)
    elif damage in ("emptied", "truncated"):
        bucket.write(key, data[:-1] if damage == "truncated" else b"")
    else:
        at = {"first": 0, "middle": len(data) // 2, "index": max(len(data) - 12, 0)}[damage]
        bucket.write(key, data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])


def test_a_fill_into_a_bucket_leaves_the_objects_of_a_local_fill_bit_for_bit(
    bucket, scans, filled, tmp_path
):
    remote = fill_cache(locate(bucket.url), scans / "train", cache_recipe())
    local = {
        path.relative_to(filled.place.root).as_posix(): path.read_bytes()
        for path in filled.place.root.rglob("*")
        if path.is_file() and "staging" not in path.parts
    }
    found = bucket.contents()
    assert found.keys() == local.keys()  # and nothing else: no claims, no writers
    # entries and the manifest hold the cache's own random id
    differing = {key for key in local if local[key] != found[key]}
    assert differing == {key for key in local if key.startswith("ledger/")} | {"zarr.json"}
    assert verify(remote).is_sound
    assert_same_records(open_cache(locate(bucket.url)), filled)


def test_a_bucket_is_read_by_plain_zarr(remote, bucket, filled):
    with pytest.warns(match="Numcodecs codecs are not in the Zarr"):
        ids = zarr.open_array(ObjectStore(bucket.client, read_only=True), path="ids", mode="r")
    np.testing.assert_array_equal(ids[1], read_slab(filled, 1).ids_NK)


@pytest.mark.parametrize(
    ("files", "damage"),
    [
        *((FILES[:4], damage) for damage in DAMAGES),
        *((FILES[4:], damage) for damage in DAMAGES if damage not in ("truncated", "removed")),
    ],
)
def test_every_damage_in_a_bucket_is_found_refused_and_mended(
    remote, bucket, filled, files, damage
):
    for file in files:
        change(bucket, file, damage)
    found = verify(remote)
    assert [(d.file, d.block) for d in found.damage] == [(file, BLOCK) for file in files]
    with pytest.raises(DamagedRecords, match=f"verify-cache {bucket.url} --repair"):
        read_slab(remote, 1)
    repair(remote, found)
    assert missing_blocks(remote) == [BLOCK]
    assert verify(remote).damage == verify(remote).strays == ()
    refill(remote, filled)
    assert verify(remote).is_sound
    for name in FILES[:4]:
        assert bucket.read(name) == (filled.place.root / name).read_bytes()


def test_an_entry_without_its_shards_and_shards_without_their_entry(remote, bucket, filled):
    bucket.remove(FILES[4])
    found = verify(remote)
    assert (found.missing, found.damage, set(found.strays)) == ((BLOCK,), (), set(FILES[:4]))
    repair(remote, found)
    assert not set(FILES).intersection(bucket.keys())
    refill(remote, filled)
    for name in FILES[:4]:
        bucket.remove(name)
    found = verify(remote)
    assert [damage.file for damage in found.damage] == list(FILES[:4])
    repair(remote, found)
    refill(remote, filled)
    assert verify(remote).is_sound


def test_strays_of_the_format_go_into_quarantine_and_strangers_objects_are_left(
    remote, bucket, monkeypatch
):
    before = bucket.contents()
    for key in ("ids/c.0.0.0.bak", "notes.txt", "ids/c.7.0.0", "staging/tile-0-0"):
        bucket.write(key, b"x")
    found = verify(remote)
    assert found.strays == ("ids/c.7.0.0",)
    assert found.strangers == ("ids/c.0.0.0.bak", "notes.txt")
    _, folder = repair(remote, found)
    assert bucket.read("staging/tile-0-0")  # its writer may live
    left = {"ids/c.0.0.0.bak": b"x", "notes.txt": b"x", f"{folder}/ids/c.7.0.0": b"x"}
    monkeypatch.setattr(lease, "LEASE_S", 0.0)  # as if so long had passed
    found = verify(remote)
    assert found.strays == ("staging/tile-0-0",)
    repair(remote, found)
    assert bucket.contents() == {**before, **left}


def test_growth_by_two_writers_at_once_keeps_the_larger(remote, bucket):
    before = bucket.contents("ids")
    others = [(open_cache(locate(bucket.url)), count) for count in (5, 8, 6, 7)]
    threads = [threading.Thread(target=append_views, args=other) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    grown = open_cache(locate(bucket.url))
    assert grown.view_count == 8
    assert append_views(grown, 4).view_count == 8
    assert verify(grown).damage == ()
    described = "ids/zarr.json"
    after = bucket.contents("ids")
    assert {**after, described: b""} == {**before, described: b""}
    assert len(missing_blocks(grown)) == 15


def test_two_writers_of_the_same_bits_do_not_notice_each_other(bucket):
    cache = new_cache(bucket.url)
    barrier = threading.Barrier(4, timeout=60)
    failures = []

    def write():
        writer = other_writer(cache, grace_s=5.0)
        try:
            for block in cache.blocks():
                barrier.wait()
                write_block(writer, block_of(cache, block), {})
        except Exception as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert verify(cache).is_sound


def test_of_writers_with_other_bits_one_wins_whole(bucket):
    """Two device models, one block: what the ledger names is what readers get, never a mixture."""
    cache = new_cache(bucket.url, views__count=2)
    barrier = threading.Barrier(3, timeout=60)
    ended = []

    def write(seed):
        writer = other_writer(cache, grace_s=5.0)  # much longer than a commit, as it has to be
        for block in cache.blocks():
            barrier.wait()
            write_block(writer, block_of(cache, block, seed=seed), {"device": str(seed)})
        ended.append(seed)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == [0, 1, 2]
    assert verify(cache).is_sound
    for block in cache.blocks():
        rows = cache.rows(block.shard)
        found = read_slab(cache, block.view).logp_NK[rows.start : rows.stop]
        candidates = [block_of(cache, block, seed=seed).topk.logp_BK for seed in range(3)]
        assert sum(np.array_equal(found, each) for each in candidates) == 1


def test_what_a_killed_writer_of_another_device_left_is_replaced(bucket):
    cache = new_cache(bucket.url)
    block = BlockId(0, 0)
    writer = other_writer(cache)
    write_block(writer, block_of(cache, block, seed=1), {})
    bucket.remove("ledger/0/0.json")  # its files are there, its entry never came
    bucket.remove("check/c.0.0")
    write_block(writer, block_of(cache, block, seed=2), {})
    assert verify(cache).damage == ()
    expected = block_of(cache, block, seed=2).topk.logp_BK
    for missing in missing_blocks(cache):
        write_block(cache, block_of(cache, missing), {})
    np.testing.assert_array_equal(read_slab(cache, 0).logp_NK[:32], expected)


def test_a_file_that_another_replaces_around_the_commit_is_noticed_and_mended(
    bucket, bucket_server, monkeypatch
):
    """The other's late request lands just after the entry: the look after the commit finds it."""
    from faulty_proxy import FaultyProxy

    cache = new_cache(bucket.url)
    block, landed = cache.blocks()[0], []

    def land(method, path):
        if method == "PUT" and path.endswith("ledger/0/0.json") and not landed:
            landed.append(path)
            bucket.write("logp/c.0.0.0", b"another device's records")

    with FaultyProxy(bucket_server.port) as proxy:
        proxy.before_reply = land
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        writer = other_writer(open_cache(locate(bucket.url)))
        write_block(writer, block_of(cache, block), {})
    assert landed
    assert verify(cache).damage == ()
    assert committed_blocks(cache.place) == {block}


def test_a_request_that_lands_even_later_is_found_and_refused(bucket):
    cache = new_cache(bucket.url, views__count=1)
    for block in cache.blocks():
        write_block(cache, block_of(cache, block), {})
    block, key = cache.blocks()[1], "logp/c.0.1.0"
    other = block_of(cache, block, seed=1).topk.logp_BK
    description = descriptions(cache.layout, 1)["logp"]
    whole = encode_shard(description, "logp", block, cache.rows(1), other)
    bucket.write(key, whole)  # sound in itself, and of another writer
    found = verify(cache)
    assert [(damage.file, damage.block) for damage in found.damage] == [(key, block)]
    with pytest.raises(DamagedRecords, match=f"view 0, rows 32-63: {key} "):
        read_slab(cache, 0)
    repair(cache, found)
    assert missing_blocks(cache) == [block]


def test_a_claim_is_one_writers_and_ends_with_it(bucket):
    one, other = locate(bucket.url), locate(bucket.url)
    held = one.claim("tile-0-0")
    assert held is not None
    assert one.claim("tile-0-0") is None
    assert other.claim("tile-0-0") is None
    assert other.abandoned() == []
    held.release()
    again = other.claim("tile-0-0")
    assert again is not None
    again.release()
    assert bucket.keys() == []


def test_a_claim_of_a_writer_that_vanished_is_taken_over_after_its_lease(bucket, monkeypatch):
    place = locate(bucket.url)
    for key in ("staging/tile-0-0", "staging/0123456789abcdef.tmp"):
        bucket.write(key, b"0123456789abcdef")
    assert place.claim("tile-0-0") is None  # it may live
    assert place.abandoned() == []
    monkeypatch.setattr(lease, "LEASE_S", 0.0)  # as if so long had passed
    assert place.abandoned() == ["staging/0123456789abcdef.tmp", "staging/tile-0-0"]
    held = place.claim("tile-0-0")
    assert held is not None
    monkeypatch.setattr(lease, "LEASE_S", 30.0)
    assert locate(bucket.url).claim("tile-0-0") is None
    held.release()
    assert bucket.keys() == ["staging/0123456789abcdef.tmp"]
    monkeypatch.setattr(lease, "LEASE_S", 0.0)
    place.sweep()
    assert bucket.keys() == []


def test_a_held_claim_is_kept_young_and_one_that_was_taken_is_left_to_who_took_it(
    bucket, monkeypatch
):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    held = locate(bucket.url).claim("tile-0-0")
    mine = bucket.read("staging/tile-0-0")
    bucket.write("staging/tile-0-0", b"another's")
    until(lambda: bucket.read("staging/tile-0-0") == mine)  # written anew
    monkeypatch.setattr(lease, "HEARTBEAT_S", 1e6)
    other = locate(bucket.url).claim("tile-1-0")
    bucket.write("staging/tile-1-0", b"another's")
    other.release()
    held.release()
    assert bucket.contents() == {"staging/tile-1-0": b"another's"}


def test_who_may_only_read_a_bucket_verifies_it_with_claims_in_it(
    remote, bucket, bucket_server, monkeypatch
):
    from faulty_proxy import FaultyProxy

    bucket.write("staging/tile-0-0", b"x")
    with FaultyProxy(bucket_server.port) as proxy:
        proxy.refused_methods = ("PUT", "DELETE")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        assert verify(open_cache(locate(bucket.url))).is_sound
        assert proxy.failed > 0
    assert bucket.keys("staging") == ["staging/tile-0-0"]


def test_a_prefix_that_holds_something_else_is_not_touched(bucket):
    bucket.write("letters/a.txt", b"x")
    with pytest.raises(CacheError, match=r"holds something else \(letters/a.txt"):
        new_cache(bucket.url)
    assert bucket.contents() == {"letters/a.txt": b"x"}


def test_a_creation_that_was_killed_is_taken_over(bucket):
    index = index_of(90)
    manifest = manifest_of(cache_recipe(), index)
    create_cache(locate(bucket.url), manifest, index)
    whole = bucket.contents()
    for key in list(whole)[::2]:
        bucket.remove(key)
    bucket.remove("zarr.json")
    bucket.write("labels/c.0", b"torn")
    create_cache(locate(bucket.url), manifest, index)
    assert bucket.contents() == whole


def test_a_store_that_ignores_if_none_match_is_refused(bucket, bucket_server, monkeypatch):
    """A proxy takes the header away, as an old store would."""
    from faulty_proxy import FaultyProxy

    with FaultyProxy(bucket_server.port) as proxy:
        proxy.dropped_headers = ("if-none-match",)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(StoreError, match="ignores If-None-Match"):
            locate(bucket.url).sweep()
    assert bucket.keys() == []


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter2hunter2@caches/x",
        "s3://AKIAKEY:hunter2/hunter2@caches/x",
        "s3://hunter2hunter2@caches/x",
        "https://user:hunter2hunter2@example.org/x",
        "https://example.org/x?X-Amz-Signature=hunter2hunter2",
        "s3://caches/x?secret=hunter2hunter2",
        "s3://caches/x#hunter2hunter2",
        "abfss://c:hunter2hunter2@account.dfs.core.windows.net/x",
    ],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(cli, url, tmp_path):
    done = cli("inspect-cache", url, check=2)
    assert "in the environment" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "AKIAKEY" not in done.stderr + done.stdout


def test_a_signed_requests_error_does_not_show_the_signature(cli):
    """A shared access signature goes into every request's query."""
    done = cli(
        "inspect-cache", "az://caches/x", check=1,
        env={
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_STORAGE_SAS_KEY": "sv=2022-11-02&sig=hunter2hunter2%3D",
            "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9",
            "AZURE_ALLOW_HTTP": "true",
            "RETORT_STORE_PATIENCE_S": "0.2",
        },
    )  # fmt: skip
    assert "the store failed for" in done.stderr
    assert "hunter2" not in done.stderr


def test_refused_credentials_stop_at_once_and_are_not_shown(cli, bucket, bucket_server):
    from buckets import SECRET
    from faulty_proxy import FaultyProxy

    with FaultyProxy(bucket_server.port) as proxy:
        proxy.mode = 403
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        done = cli("inspect-cache", bucket.url, check=1, env=endpoint)
        assert proxy.failed == 1
    assert "credentials and endpoint in the environment" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize("url", ["memory://x", "ftp://host/x", "nonsense://x"])
def test_a_url_of_another_kind_is_refused(url):
    with pytest.raises(LocationError, match=r"s3://BUCKET/PREFIX"):
        locate(url)


def test_a_file_url_is_a_path():
    assert locate("file:///tmp/a%20b") == Disk(Path("/tmp/a b"))
    assert locate("runs/cache") == Disk(Path("runs/cache"))


def test_no_bucket_and_no_cache_are_told_apart(bucket, cli):
    done = cli("inspect-cache", bucket.url, check=1)
    assert f"{bucket.url}: no cache there" in done.stderr
    done = cli("inspect-cache", "s3://nowhere/x", check=1)
    assert "NoSuchBucket" in done.stderr or "not found" in done.stderr
    assert "check the URL" in done.stderr


def test_without_obstore_the_error_names_the_extra(tmp_path):
    import subprocess
    import sys

    from repository import REPOSITORY

    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from teacher_cache.storage.location import locate\n"
        "locate('s3://b/x')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert "pip install 'retort-distill[stores]'" in done.stderr


def test_the_commands_take_a_url(cli, bucket, scans, tmp_path, filled):
    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document()))
    done = cli("cache-teacher", recipe, "--data", scans / "train", "--out", bucket.url)
    assert f"cache {bucket.url}: 3 views of 90 images, complete" in done.stdout
    facts = json.loads(cli("inspect-cache", bucket.url, "--json").stdout)
    assert (facts["cache"], facts["complete views"]) == (bucket.url, 3)
    local = json.loads(cli("inspect-cache", filled.place.root, "--json").stdout)
    assert facts["bytes of records"] == local["bytes of records"]
    assert "9 of 9 blocks" in cli("verify-cache", bucket.url).stdout
    cli("audit-cache", bucket.url, recipe, "--data", scans / "train", "--records", 40)
    cli("cache-teacher", recipe, "--data", scans / "train", "--out", bucket.url, "--views", 4)
    assert open_cache(locate(bucket.url)).view_count == 4
    assert "staging" not in " ".join(bucket.keys())
