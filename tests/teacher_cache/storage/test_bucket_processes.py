"""Real processes on a bucket: SIGKILLs, many writers, outages; and students that read from it."""

import random
import signal
import subprocess
import time

import pytest
from caches import assert_same_records
from commands import sigkill
from commands import start as start_command
from faulty_proxy import FaultyProxy
from small import cache_document, fill_cache, student_document, to_toml

from cli import BLOCKS_LEFT
from teacher_cache.cache.blocks import committed_blocks, missing_blocks
from teacher_cache.cache.cache import open_cache
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.lease import LEASE_S
from teacher_cache.storage.ledger import block_key
from teacher_cache.storage.location import locate
from teacher_cache.verification.verify import verify

pytestmark = pytest.mark.slow

DOCUMENT = cache_document(
    views__count=8, views__size=64, storage__views_per_tile=2, storage__rows_per_shard=64
)


@pytest.fixture(scope="module")
def unbroken(scans, tmp_path_factory):
    """The same recipe filled in a folder, by one process and in one go."""
    recipe = parse_recipe(DOCUMENT, CacheRecipe, source="test")
    return fill_cache(tmp_path_factory.mktemp("unbroken") / "cache", scans / "train", recipe)


@pytest.fixture
def writers(bucket, bucket_server, scans, tmp_path):
    """Starts `cache-teacher` processes on the bucket; those left over are killed."""
    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(DOCUMENT))
    started = []

    def start(*more, port=None, **environment):
        process = start_command(
            tmp_path,
            ["cache-teacher", recipe, "--data", scans / "train", "--out", bucket.url, *more],
            env=bucket_server.environment(port) | environment,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        sigkill(process)


def wait_for_blocks(place, count, process, timeout_s=900):
    deadline = time.monotonic() + timeout_s
    while len(committed_blocks(place)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finish(process, code=0):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return output


def assert_whole(bucket, unbroken):
    cache = open_cache(locate(bucket.url))
    found = verify(cache)
    # a claim of the killed may stand for 30 s more
    assert not (found.damage)
    assert not (found.missing)
    assert not (found.strangers)
    assert all(key.startswith("staging/") for key in found.strays)
    assert_same_records(cache, unbroken)
    deadline = time.monotonic() + LEASE_S + 30
    while bucket.keys("staging"):  # a dead writer's claim counts for its lease
        assert time.monotonic() < deadline
        time.sleep(0.5)
        cache.place.sweep()
    names = ("ids", "logp", "tail", "check")
    for key in (key for name in names for key in bucket.keys(f"{name}/c")):
        assert bucket.read(key) == (unbroken.place.root / key).read_bytes()


@pytest.mark.kill
def test_a_fill_that_was_killed_is_continued_and_sweeps_what_it_left(writers, bucket, unbroken):
    victim = writers()
    wait_for_blocks(locate(bucket.url), 4, victim)
    sigkill(victim)
    kept = bucket.stamps()
    assert bucket.keys("staging") != []
    assert "complete" in finish(writers())
    assert kept.items() <= bucket.stamps().items()
    assert_whole(bucket, unbroken)


@pytest.mark.kill
def test_four_writers_under_sigkill_and_other_world_sizes_leave_one_whole_cache(
    writers, bucket, unbroken
):
    place, kept = locate(bucket.url), {}
    running = [writers("--rank", rank, "--world-size", 4) for rank in range(4)]
    for number, victim in enumerate(running[:3]):
        wait_for_blocks(place, 2 * (number + 1), victim)
        sigkill(victim)
        assert victim.returncode == -signal.SIGKILL
        assert kept.items() <= (kept := bucket.stamps()).items()
    running.append(writers("--rank", 1, "--world-size", 2))
    outputs = [finish(process) for process in running[3:]]
    assert any("8 views of 90 images, complete" in output for output in outputs)
    assert kept.items() <= bucket.stamps().items()  # no committed block was touched
    finish(writers())
    assert kept.items() <= bucket.stamps().items()
    assert_whole(bucket, unbroken)


@pytest.mark.kill
def test_twenty_sigkills_over_four_writers_leave_the_records_of_an_unbroken_fill(
    writers, bucket, unbroken
):
    moments, kills, kept, running = random.Random(0), 20, {}, []
    place = locate(bucket.url)
    while kills:
        while len(running) < 4:
            size = moments.randint(1, 4)
            running.append(writers("--rank", moments.randrange(size), "--world-size", size))
        time.sleep(moments.uniform(0.5, 6.0))
        victim = running.pop(moments.randrange(4))
        if victim.poll() is None:
            sigkill(victim)
            kills -= 1
        else:  # 3 where this test has just taken blocks out of a full cache
            finish(victim, code=victim.returncode and BLOCKS_LEFT)
        assert kept.items() <= (kept := bucket.stamps()).items()
        if bucket.keys() and not missing_blocks(open_cache(place)):
            blocks = [block_key(block) for block in sorted(committed_blocks(place))]
            for key in blocks[::2]:  # a quick machine: some blocks anew
                bucket.remove(key)
            kept = bucket.stamps()
    for process in running:
        process.wait(timeout=300)
        finish(process, code=process.returncode and BLOCKS_LEFT)
    finish(writers())
    assert_whole(bucket, unbroken)


@pytest.mark.parametrize("fault", [503, "hang"])
def test_a_short_outage_delays_a_fill_and_changes_nothing(
    writers, bucket, bucket_server, unbroken, fault
):
    with FaultyProxy(bucket_server.port) as proxy:
        job = writers(port=proxy.port, RETORT_STORE_TIMEOUT_S="1")
        wait_for_blocks(locate(bucket.url), 3, job)
        timer = proxy.fail_for(4.0, fault)
        output = finish(job)
        timer.join()
        assert proxy.failed > 1
        assert "8 views of 90 images, complete" in output
    assert_whole(bucket, unbroken)


@pytest.mark.parametrize("fault", [500, "hang"])
def test_a_long_outage_stops_a_fill_with_a_clear_error_and_the_same_command_continues(
    writers, bucket, bucket_server, unbroken, fault
):
    with FaultyProxy(bucket_server.port) as proxy:
        brief = {"RETORT_STORE_PATIENCE_S": "3", "RETORT_STORE_TIMEOUT_S": "1"}
        job = writers(port=proxy.port, **brief)
        wait_for_blocks(locate(bucket.url), 3, job)
        proxy.mode = fault
        output = finish(job, code=1)
        errors = [line for line in output.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, output
        assert f" {bucket.url}/" in errors[0]
        assert "the store failed for" in errors[0]
        assert "the same command continues when the store answers again" in errors[0]
        kept = bucket.stamps()
        assert 3 <= len(kept) < 16
        proxy.mode = "pass"
        assert "complete" in finish(writers(port=proxy.port, **brief))
    assert kept.items() <= bucket.stamps().items()
    assert_whole(bucket, unbroken)


def test_answers_that_get_lost_change_nothing(writers, bucket, bucket_server, unbroken):
    """The store has written, its answer never comes: the next try meets its own object."""
    moments = random.Random(0)
    with FaultyProxy(bucket_server.port) as proxy:
        proxy.before_reply = lambda method, path: (
            "lose" if method == "PUT" and moments.random() < 0.2 else None
        )
        assert "complete" in finish(writers("--set", "loader.workers=1", port=proxy.port))
    assert_whole(bucket, unbroken)


def training(bucket_or_root, scans, folder, **changes):
    recipe = folder / "student.toml"
    recipe.write_text(to_toml(student_document(**changes)))
    return ["train-student", recipe, "--cache", bucket_or_root, "--data", scans / "train",
            "--val", scans / "val"]  # fmt: skip


def test_a_student_trained_from_the_bucket_has_the_weights_of_one_trained_from_the_folder(
    cli, bucket, filled, scans, tmp_path
):
    fill_cache(locate(bucket.url), scans / "train", filled.manifest.parsed_recipe())
    cli(*training(bucket.url, scans, tmp_path), "--out", "remote")
    cli(*training(filled.place.root, scans, tmp_path), "--out", "local")
    from student.runs.checkpoint import load_checkpoint

    remote, local = (load_checkpoint(tmp_path / name / "last.pt") for name in ("remote", "local"))
    for name, value in local.model.items():
        assert value.numpy().tobytes() == remote.model[name].numpy().tobytes()
    everything = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    from buckets import SECRET

    assert SECRET.encode() not in everything  # neither the run nor the job's record


def test_a_student_follows_a_cache_that_is_being_filled_in_a_bucket(
    cli, writers, bucket, scans, tmp_path
):
    job = writers()
    wait_for_blocks(locate(bucket.url), 1, job)
    changes = {"schedule__epochs": 8, "student__size": 32}
    cli(*training(bucket.url, scans, tmp_path, **changes), "--out", "run", "--follow")
    assert "complete" in finish(job)


def test_an_outage_stops_a_training_and_the_same_command_ends_it(
    cli, bucket, bucket_server, filled, scans, tmp_path
):
    fill_cache(locate(bucket.url), scans / "train", filled.manifest.parsed_recipe())
    with FaultyProxy(bucket_server.port) as proxy:
        brief = {
            "RETORT_STORE_PATIENCE_S": "1",
            "RETORT_STORE_TIMEOUT_S": "1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        }

        def fail_after_the_first_view(method, path):
            if "/c.0.2" in path and "check" in path:
                proxy.mode = 500

        proxy.before_reply = fail_after_the_first_view
        arguments = [*training(bucket.url, scans, tmp_path), "--out", "run"]
        done = cli(*arguments, check=1, env=brief)
        assert "the store failed for" in done.stderr
        proxy.mode, proxy.before_reply = "pass", lambda method, path: None
        done = cli(*arguments, env=brief)
        assert "run run: model" in done.stdout
