"""What can go wrong with a cache, and the command that says so; the table in docs/cache-format.md.

The cache of these tests has 90 rows in 3 shards, and 3 views.
"""

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from damages import contents, files_of
from files import odd_file
from PIL import Image
from small import (
    build_teacher,
    cache_document,
    cache_recipe,
    fill_cache,
    rewrite_manifest,
    student_document,
    to_toml,
)

from teacher_cache.cache.blocks import Block, read_entry, withdraw_block, write_block
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.images.index import index_images, rebase
from teacher_cache.images.source import ImageUnavailable
from teacher_cache.recipes.document import digest_of
from teacher_cache.record import TopK
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId, StoredFile, block_key, encode_block, seal
from teacher_cache.verification.audit import audit

RECORDS = ("ids", "logp", "tail", "check")


@pytest.fixture(scope="module")
def foreign(scans, tmp_path_factory):
    """The folder of another teacher's cache of the same images."""
    root = tmp_path_factory.mktemp("foreign") / "cache"
    return fill_cache(root, scans / "train", cache_recipe(teacher__seed=1)).place.root


@pytest.fixture
def retort(cli, own_cache, scans, tmp_path):
    """Each command on the test's own cache, by its verb; what it printed."""
    cache_toml, student_toml = tmp_path / "cache.toml", tmp_path / "student.toml"
    cache_toml.write_text(to_toml(cache_document()))
    student_toml.write_text(to_toml(student_document(schedule__epochs=1)))

    def run(*arguments, check):
        done = cli(*arguments, check=check)
        return done.stdout + done.stderr

    def train(data=scans, check=1):
        return run(
            "train-student", student_toml, "--cache", own_cache, "--data", data / "train",
            "--val", data / "val", "--out", tmp_path / "run", check=check,
        )  # fmt: skip

    def fill(*more, data=scans, out=own_cache, check=0):
        return run(
            "cache-teacher", cache_toml, "--data", data / "train", "--out", out, *more, check=check
        )

    def audit(data=scans, check=1):
        return run(
            "audit-cache", own_cache, cache_toml, "--data", data / "train", "--records", 270,
            "--seed", 0, check=check,
        )  # fmt: skip

    return SimpleNamespace(
        train=train,
        fill=fill,
        audit=audit,
        verify=lambda *more, check=1: run("verify-cache", own_cache, *more, check=check),
        repair=lambda check=0: run("verify-cache", own_cache, "--repair", check=check),
        inspect=lambda check=1: run("inspect-cache", own_cache, check=check),
    )


def exchange(first, second):
    """Two files of other content take each other's place."""
    one, two = first.read_bytes(), second.read_bytes()
    assert one != two
    first.write_bytes(two)
    second.write_bytes(one)


def edited_group(root, change, *, signed):
    """Let somebody edit the attributes of the group."""
    path = root / "zarr.json"
    document = json.loads(path.read_bytes())
    change(document["attributes"]["retort"])
    if signed:
        document["attributes"]["retort_sha256"] = digest_of(document["attributes"]["retort"])
    path.write_text(json.dumps(document))


def written_anew(cache, block, **changed):
    """Replace a block by records of which every digest is true."""
    slab, rows = read_slab(cache, block.view), cache.rows(block.shard)
    part = slice(rows.start, rows.stop)
    arrays = {
        "ids_BK": slab.ids_NK[part].copy(),
        "logp_BK": slab.logp_NK[part].copy(),
        "tail_BT": slab.tail_NT[part].copy(),
    }
    for name, change in changed.items():
        arrays[name] = change(arrays[name])
    withdraw_block(cache, block, "test")
    check = slab.check[rows.start // 32 : -(-rows.stop // 32)]
    write_block(cache, Block(block, TopK(**arrays), check), {})


def tree(root):
    """Everything below a folder, with its bytes and times."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in (root, *root.rglob("*"))
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("logp/c.0.0.0", "logp/c.1.0.0"),  # of two views
        ("logp/c.0.0.0", "logp/c.0.1.0"),  # of two shards of rows
        ("check/c.0.0", "check/c.1.0"),  # these and those of `source` have equal lengths
        ("check/c.0.0", "check/c.0.1"),
        ("source/c.0", "source/c.1"),
    ],
)
def test_exchanged_files_are_found(retort, own_cache, first, second):
    exchange(own_cache / first, own_cache / second)
    found = retort.verify()
    assert f"{first} " in found or "ledger/source/0.json" in found
    assert f"{second} " in found or "ledger/source/1.json" in found
    assert f"{first} " in retort.train()


def test_a_shard_of_another_cache_is_found(retort, own_cache, foreign, tmp_path):
    copy = shutil.copytree(foreign, tmp_path / "foreign")
    exchange(own_cache / "logp/c.0.0.0", copy / "logp/c.0.0.0")
    assert "view 0, rows 0-31: logp/c.0.0.0 " in retort.verify()
    assert "view 0, rows 0-31: logp/c.0.0.0 " in retort.train()


def sign_anew(cache, block):
    """Rewrite an entry so that it names the files as they are."""
    entry = read_entry(cache, block)
    files = [StoredFile.of(f.key, (cache.place.root / f.key).read_bytes()) for f in entry.files]
    (cache.place.root / block_key(block)).write_bytes(
        encode_block(replace(entry, files=tuple(files)))
    )


def test_exchanged_records_that_are_signed_anew_are_found_by_the_audit(retort, own_cache):
    for name in ("ids", "logp", "tail"):
        first, second = (own_cache / name / f"c.{view}.1.0" for view in (0, 1))
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    for view in (0, 1):
        sign_anew(open_cache(Disk(own_cache)), BlockId(view, 1))
    retort.verify(check=0)  # each record is one that a teacher may have given
    retort.audit()


def test_exchanged_checks_that_are_signed_anew_are_found_by_training(retort, own_cache):
    exchange(own_cache / "check/c.0.1", own_cache / "check/c.1.1")
    for view in (0, 1):
        sign_anew(open_cache(Disk(own_cache)), BlockId(view, 1))
    assert "its pixels have CRC-32" in retort.train()
    assert "pixels that differ" in retort.audit()


@pytest.mark.parametrize("blocks", ["0/1.json", "*/*.json"])
def test_blocks_of_another_cache_are_refused_by_everybody(retort, own_cache, foreign, blocks):
    for name in RECORDS:
        shutil.copytree(foreign / name, own_cache / name, dirs_exist_ok=True)
    for entry in (foreign / "ledger").glob(blocks):
        shutil.copy(entry, own_cache / entry.relative_to(foreign))
    assert "ledger/0/1.json belongs to another cache" in retort.verify()
    for found in (retort.train(), retort.inspect()):
        assert "belongs to another cache" in found or "is not what was committed" in found


@pytest.mark.parametrize("name", ["ids", "logp", "tail", "check"])
def test_a_digit_changed_in_a_description_is_refused_and_restored(retort, own_cache, name):
    before = files_of(own_cache)
    path = own_cache / name / "zarr.json"
    document = json.loads(path.read_bytes())
    document["shape"][0] = 2
    path.write_text(json.dumps(document))
    for found in (retort.inspect(), retort.train(), retort.audit(), retort.fill(check=1)):
        assert f"{name}/zarr.json is not what the manifest describes" in found
    assert f"{name}/zarr.json is not what the manifest describes" in retort.verify()
    assert "repaired: sound" in retort.repair()
    assert files_of(own_cache) == before


CHANGES = {
    "classes": lambda manifest: manifest.update(class_count=4),
    "views": lambda manifest: manifest["recipe"]["views"].update(count=2),
    "weights": lambda manifest: manifest["teacher"].update(weights_sha256="0" * 64),
    "the cache's id": lambda manifest: manifest.update(cache_id="0" * 32),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("signed", [False, True])
def test_edited_attributes_of_the_group_are_refused(retort, own_cache, change, signed):
    edited_group(own_cache, CHANGES[change], signed=signed)
    words = "belongs to another cache" if signed else "the manifest is damaged"
    assert words in retort.verify()
    records = {path: data for path, data in contents(own_cache).items() if "c." in path.name}
    for found in (retort.train(), retort.inspect(), retort.fill(check=1)):
        assert (
            words in found
            or (signed and "is not what the manifest describes" in found)
            or ("was made otherwise" in found)
        )
    assert records.items() <= contents(own_cache).items()


def test_an_old_backup_of_shards_over_new_ledgers_is_found(retort, own_cache, foreign):
    for name in RECORDS:
        shutil.copytree(foreign / name, own_cache / name, dirs_exist_ok=True)
    found = retort.verify()
    for view in range(3):
        for shard in range(3):
            assert f"logp/c.{view}.{shard}.0 " in found
    assert "--repair" in retort.train()


def test_the_group_of_an_older_cache_makes_every_entry_a_strangers(retort, own_cache, foreign):
    shutil.copy(foreign / "zarr.json", own_cache)
    assert retort.verify().count("belongs to another cache") == 9 + 3 + 1  # blocks, images, sample
    assert "belongs to another cache" in retort.train()


def twice(ids_BK):
    ids_BK[3, 1] = ids_BK[3, 0]
    return ids_BK


def out_of_range(ids_BK):
    ids_BK[3, 1] = 3
    return ids_BK


MEANINGS = {
    "tails of two temperatures": {"tail_BT": lambda tail_BT: tail_BT[:, ::-1].copy()},
    "an id twice": {"ids_BK": twice},
    "an id that no class has": {"ids_BK": out_of_range},
    "log-probabilities in another order": {"logp_BK": lambda logp_BK: logp_BK[:, ::-1].copy()},
}


@pytest.mark.parametrize("fault", MEANINGS)
def test_records_that_cannot_be_are_found_though_every_digest_is_true(retort, own_cache, fault):
    written_anew(open_cache(Disk(own_cache)), BlockId(1, 1), **MEANINGS[fault])
    assert "view 1, rows 32-63: ledger/1/1.json names records that cannot be: row" in (
        retort.verify()
    )


@pytest.mark.parametrize("fault", ["removed", "damaged", "another cache's", "senseless"])
def test_appended_views_outlive_their_entry(retort, own_cache, foreign, fault):
    retort.fill("--views", 4)
    before = files_of(own_cache)
    entry = own_cache / "ledger/views/4.json"
    if fault == "removed":
        entry.unlink()
    elif fault == "damaged":
        entry.write_bytes(entry.read_bytes().replace(b'"views": 4', b'"views": 5'))
    else:
        owner = open_cache(Disk(foreign if fault == "another cache's" else own_cache)).owner
        entry.write_bytes(seal("views", owner, {"views": 4 if "another" in fault else 9**40}))
    assert "the ledger announces no view 3" in retort.verify()
    retort.train()
    retort.repair()
    after = files_of(own_cache)
    assert {path.relative_to(own_cache) for path in before} == {
        path.relative_to(own_cache) for path in after
    }
    records = {path: data for path, data in before.items() if path.name.startswith("c.")}
    assert records.items() <= after.items()
    retort.verify(check=0)


@pytest.mark.parametrize("fault", ["entry removed", "entry damaged", "file damaged"])
def test_the_images_of_a_shard_are_read_again_where_their_entry_is_lost(
    retort, own_cache, own_scans, fault
):
    entry, file = own_cache / "ledger/source/1.json", own_cache / "source/c.1"
    before = file.read_bytes()
    if fault == "entry removed":
        entry.unlink()
        assert "source/1.json is missing, though the shard has records" in retort.verify()
    else:
        path = entry if fault == "entry damaged" else file
        path.write_bytes(path.read_bytes()[:-5])
        assert "ledger/source/1.json" in retort.verify()
    assert "verify-cache" in retort.train()
    records = {p: d for p, d in files_of(own_cache).items() if p.parent.name in RECORDS}
    retort.repair(check=1)
    victim = own_scans / "train" / open_cache(Disk(own_cache)).index.keys[40]
    Image.new("RGB", (40, 40), "red").save(victim)
    assert "are not those that its records are of" in retort.fill(data=own_scans, check=1)
    assert "complete" in retort.fill()
    assert file.read_bytes() == before
    retort.verify(check=0)
    assert records.items() <= files_of(own_cache).items()


def test_a_damaged_sample_is_found_and_asked_again(retort, own_cache):
    path = own_cache / "ledger/sample.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"rows"', b'"wors"'))
    assert "ledger/sample.json its own SHA-256 does not match" in retort.verify()
    assert "sample.json is damaged" in retort.inspect()
    retort.repair(check=1)
    assert "ledger/sample.json is missing, though the cache has records" in retort.verify()
    retort.fill()
    retort.verify(check=0)
    assert json.loads(path.read_bytes()) == json.loads(before)


@pytest.mark.parametrize("name", ["keys", "labels", "classes", "class_ids"])
def test_a_damaged_image_index_is_refused_by_every_command(retort, own_cache, name):
    path = own_cache / name / "c.0"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    before = contents(own_cache)
    for found in (retort.verify(), retort.repair(check=1), retort.inspect(), retort.train()):
        assert "its image index" in found
    assert contents(own_cache) == before


def changed_images(index, root, change):
    """Change the image of row 33, whose pixels are checked in view 1 alone."""
    path = root / index.keys[33]
    if change == "replaced":
        Image.new("RGB", (40, 40), "red").save(path)
    elif change == "encoded anew":  # the same pixels
        Image.open(path).save(path, compress_level=1)
    elif change == "gray":
        Image.open(path).convert("L").convert("RGB").save(path, compress_level=9)
    else:
        other, data = root / index.keys[70], path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)


@pytest.mark.parametrize("change", ["replaced", "encoded anew", "gray", "exchanged"])
def test_changed_images_are_found_by_who_appends_views_and_by_the_audit(
    retort, own_cache, own_scans, change
):
    index = open_cache(Disk(own_cache)).index
    changed_images(index, own_scans / "train", change)
    found = retort.audit(data=own_scans)
    assert index.keys[33] in found.split("images that differ")[1]
    found = retort.fill("--views", 4, data=own_scans, check=1)
    assert "its bytes are not those that the teacher read" in found
    assert not (own_cache / "ledger/3/1.json").exists()


def test_an_outage_stops_training_and_the_audit_in_one_line(retort, own_scans, tmp_path):
    folder = own_scans / "train/digit-1"
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "mounted")
    for found in (retort.train(own_scans), retort.audit(own_scans)):
        assert found.count("\n") == 1
        assert "digit-1 cannot be read (No such file or directory): nothing is lost" in found


def test_an_outage_during_a_fill_and_an_audit_leaves_no_image_out(own_scans, tmp_path):
    train, root = own_scans / "train", tmp_path / "cache"
    recipe = cache_recipe(images__skip_unreadable=True, images__max_unreadable=1.0)
    index = index_images(train)
    teacher = build_teacher(recipe, index)
    cache = open_or_create(Disk(root), recipe, index, teacher)
    job = fill(cache, index, teacher, recipe)
    next(job)
    train.rename(tmp_path / "away")
    with pytest.raises(ImageUnavailable, match=r"(cannot be read|No such file)"):
        list(job)
    assert cache.sources.absent_rows() == frozenset()
    (tmp_path / "away").rename(train)
    cache = fill_cache(root, train, recipe)
    assert cache.sources.absent_rows() == frozenset()
    index = rebase(cache.index, train)
    train.rename(tmp_path / "away")
    with pytest.raises(ImageUnavailable, match=r"(cannot be read|No such file)"):
        audit(cache, index, teacher, recipe, records=90, seed=0)


def test_strangers_files_of_every_kind_are_listed_and_left(retort, own_cache, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("mine")
    (own_cache / "ids/link").symlink_to(secret)
    (own_cache / "ledger/link.json").symlink_to(secret / "key")
    odd_file(own_cache / "pipe", "a pipe")
    odd_file(own_cache / "ledger/0/socket", "a socket")
    (own_cache / "notes\x1b[31m.txt").write_text("mine")
    names = ("ids/link", "ledger/link.json", "pipe", "ledger/0/socket", r"notes\x1b[31m.txt")
    before = {path.relative_to(own_cache) for path in own_cache.rglob("*")}
    for found in (retort.verify(check=0), retort.repair()):
        assert all(f"others'  {own_cache}/{name}: left alone" in found for name in names)
        assert "\x1b" not in found
    retort.inspect(check=0)
    retort.fill()
    assert before <= {path.relative_to(own_cache) for path in own_cache.rglob("*")}
    assert (secret / "key").read_text() == "mine"


@pytest.mark.parametrize("kind", ["a symbolic link", "a pipe", "a socket"])
@pytest.mark.parametrize("key", ["ids/c.0.1.0", "ledger/0/1.json"])
def test_what_is_no_file_in_the_place_of_one_is_moved_away_unread(retort, own_cache, key, kind):
    (own_cache / key).unlink()
    odd_file(own_cache / key, kind)
    assert f"is {kind}, where a cache has a file" in retort.verify()
    assert f"is {kind}, where a cache has a file" in retort.train()
    retort.repair(check=1)
    assert not os.path.lexists(own_cache / key)
    assert "complete" in retort.fill()
    retort.verify(check=0)


@pytest.mark.parametrize("name", ["thesis.txt", "staging/release.tar", "zarr.json/x"])
def test_out_on_a_strangers_folder_changes_nothing_in_it(retort, tmp_path, name):
    root = tmp_path / "stranger"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("mine")
    before = tree(root)
    assert "is not a cache" in retort.fill(out=root, check=1)
    assert tree(root) == before


def test_a_cache_of_format_1_is_refused_by_name(retort, own_cache):
    shutil.rmtree(own_cache)
    own_cache.mkdir()
    attributes = {"retort": {"format_version": 1, "recipe": {}}, "retort_crc32c": "0"}
    group = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    (own_cache / "zarr.json").write_text(json.dumps(group))
    before = tree(own_cache)
    for found in (
        retort.verify(), retort.repair(check=1), retort.inspect(), retort.train(),
        retort.audit(), retort.fill(check=1),
    ):  # fmt: skip
        assert "has cache format 1, this release reads format 2: fill a new cache" in found
    assert tree(own_cache) == before


LONG = "x" * 100_000
SENSELESS = {
    "a format version": lambda manifest: manifest.update(format_version=LONG),
    "an ensemble": lambda manifest: manifest["recipe"]["teacher"].update(ensemble=[None] * 10_000),
    "a setting": lambda manifest: manifest["recipe"]["storage"].update(encoding=LONG),
    "a library's version": lambda manifest: manifest["pixel_libraries"].update(zlib=[LONG]),
    "rows of a shard": lambda manifest: manifest["recipe"]["storage"].update(rows_per_shard=10**39),
}


@pytest.mark.parametrize("change", SENSELESS)
def test_a_senseless_manifest_is_refused_in_few_words(retort, own_cache, change):
    edited_group(own_cache, SENSELESS[change], signed=True)
    for found in (retort.verify(), retort.inspect(), retort.train()):
        assert found.startswith("error: ")
        assert len(found) < 5000


def test_a_huge_description_is_restored_unread(retort, own_cache):
    before = files_of(own_cache)
    with (own_cache / "tail/zarr.json").open("wb") as file:
        file.truncate(1 << 40)  # zeros, which take no room
    assert "tail/zarr.json is not what the manifest describes" in retort.verify()
    retort.repair()
    shutil.rmtree(own_cache / "quarantine")
    assert contents(own_cache) == before


def test_of_a_block_outside_the_cache_the_files_are_moved_with_the_entry(retort, own_cache):
    (own_cache / "ledger/9").mkdir()
    shutil.copy(own_cache / "ledger/1/2.json", own_cache / "ledger/9/9.json")
    shutil.copy(own_cache / "logp/c.1.2.0", own_cache / "logp/c.9.9.0")
    assert "ledger/9/9.json names a block outside the cache" in retort.verify()
    retort.repair()
    assert not (own_cache / "logp/c.9.9.0").exists()
    retort.verify(check=0)


ESCAPES = "\x1b]0;title\x07"


def test_no_entry_prints_what_a_terminal_obeys(retort, own_cache):
    content = {"view": ESCAPES, "shard": 1, "files": {}}
    entry = seal("block", open_cache(Disk(own_cache)).owner, content)
    (own_cache / "ledger/0/1.json").write_bytes(entry)
    for found in (retort.train(), retort.verify(), retort.inspect()):
        assert r"it speaks of view '\x1b]0;title\x07', shard 1" in found
        assert "\x1b" not in found


def test_no_manifest_prints_what_a_terminal_obeys(retort, own_cache):
    libraries = {**open_cache(Disk(own_cache)).manifest.pixel_libraries, "pillow": ESCAPES}
    rewrite_manifest(own_cache, pixel_libraries=libraries, recipe_digest=ESCAPES)
    for found in (retort.train(), retort.inspect(check=0)):
        assert r"\x1b]0;title\x07" in found
        assert "\x1b" not in found
