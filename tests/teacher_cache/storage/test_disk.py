"""A cache in a folder, below the ledger's meaning: files, links, the lock, quarantine."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from files import FILES, FIRST, KEY, entry_of, files_in, odd_file
from repository import REPOSITORY

from teacher_cache.durable import make_folder, write_atomic
from teacher_cache.errors import CacheError, UnexpectedFile
from teacher_cache.storage.disk import Disk


def contents(root):
    """Everything in a folder: bytes of files, targets of links, folders, and their modes."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            found[name] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "cache").mkdir()
    return Disk(tmp_path / "cache")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "ids/../../x", "ids//x", "./x", "a\0b"])
def test_no_key_leads_out_of_the_cache(disk, key):
    (disk.root.parent / "x").write_bytes(b"not the cache's")
    for use in (
        disk.read,
        disk.exists,
        disk.remove,
        lambda key: disk.add(key, b""),
        lambda key: disk.replace(key, b""),
        lambda key: disk.publish(key, b"", {}),
        lambda key: disk.publish(KEY, b"", {key: b""}),
        lambda key: disk.quarantine([key], "now"),
    ):
        with pytest.raises(CacheError, match="names no file of a cache"):
            use(key)
    assert files_in(disk.root) == {}
    assert contents(disk.root.parent)["x"] == b"not the cache's"


@pytest.mark.parametrize("kind", ["a symbolic link", "a pipe", "a folder", "a socket"])
def test_what_is_no_regular_file_is_an_error_that_says_what_it_is(disk, kind):
    odd_file(disk.root / "ids/c.0.0.0", kind)
    with pytest.raises(UnexpectedFile, match=f"cache/ids/c.0.0.0 is {kind}, where .* a file") as e:
        disk.read("ids/c.0.0.0")
    assert e.value.key == "ids/c.0.0.0"
    assert not disk.exists("ids/c.0.0.0")
    assert disk.path_of("ids/c.0.0.0") is None
    assert list(disk.keys()) == ([] if kind == "a folder" else ["ids/c.0.0.0"])


def test_no_link_to_a_folder_is_followed_neither_to_read_nor_to_write(disk):
    outside = disk.root.parent / "outside"
    outside.mkdir()
    (outside / "c.3.7.0").write_bytes(b"a stranger's")
    for name in ("ids", "staging"):
        (disk.root / name).symlink_to(outside)
    for use in (
        lambda: disk.read("ids/c.3.7.0"),
        lambda: disk.replace("ids/c.3.7.0", b"x"),
        lambda: disk.remove("ids/c.3.7.0"),
        lambda: disk.publish(KEY, entry_of(FILES), FILES),
        lambda: disk.claim("tile-0-0"),
        lambda: list(disk.keys("ids")),
    ):
        with pytest.raises(UnexpectedFile, match="is a symbolic link, where a cache has a folder"):
            use()
    disk.sweep()
    assert disk.abandoned() == []
    assert sorted(disk.keys()) == ["ids", "staging"]
    assert files_in(outside) == {"c.3.7.0": b"a stranger's"}


def test_the_root_itself_may_be_a_link(disk):
    link = disk.root.parent / "link"
    link.symlink_to(disk.root)
    assert Disk(link).add("ids/c.0", b"x")
    assert disk.read("ids/c.0") == b"x"


def test_a_file_longer_than_it_may_be_is_not_read(disk):
    disk.add("keys/c.0", b"12345")
    assert disk.read("keys/c.0", 5) == b"12345"
    os.truncate(disk.root / "keys/c.0", 1 << 40)  # a terabyte of nothing
    with pytest.raises(UnexpectedFile, match="has 1099511627776 bytes, at most 5 are expected"):
        disk.read("keys/c.0", 5)


def test_a_name_with_escapes_of_a_terminal_is_printed_without_them(disk):
    key = "ids/\x1b]0;owned\x07\u202e\udcff"
    odd_file(disk.root / key, "a pipe")
    with pytest.raises(UnexpectedFile) as error:
        disk.read(key)
    assert r"ids/\x1b]0;owned\x07\u202e\udcff is a pipe" in str(error.value)


def test_folders_without_end_are_listed_and_not_entered(disk):
    folder = os.open(disk.root, os.O_RDONLY)
    for _ in range(5000):  # longer than any path may be
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert list(disk.keys()) == ["/".join(33 * ["d"])]
    disk.quarantine(["d"], "now")
    assert [p.name for p in (disk.root / "quarantine/now").iterdir()] == ["d"]
    subprocess.run(["rm", "-r", disk.root / "quarantine"], check=True)  # pytest cannot


def test_of_two_entries_the_first_stays_with_its_files(disk):
    theirs, mine = dict(FILES), {key: data + b"!" for key, data in FILES.items()}
    assert disk.publish(KEY, entry_of(theirs), theirs)
    assert disk.publish(KEY, entry_of(theirs), theirs)  # it stands, so it is committed
    assert not disk.publish(KEY, entry_of(mine, "b"), mine)
    assert files_in(disk.root) == {**theirs, KEY: entry_of(theirs)}
    assert disk.abandoned() == []
    assert [p.name for p in (disk.root / "staging").iterdir()] == ["lock"]


def test_many_writers_of_one_block_leave_the_files_that_the_one_entry_names(disk):
    barrier, won = threading.Barrier(6), []

    def write(number):
        files = {key: data + bytes([number]) for key, data in FILES.items()}
        barrier.wait()
        if disk.publish(KEY, entry_of(files, str(number)), files):
            won.append((files, entry_of(files, str(number))))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((files, entry),) = won
    assert files_in(disk.root) == {**files, KEY: entry}


def test_a_killed_writers_files_are_replaced_by_the_next_ones(disk):
    disk.replace("ids/c.3.7.0", b"torn")
    assert disk.publish(KEY, entry_of(FILES), FILES)
    assert files_in(disk.root) == {**FILES, KEY: entry_of(FILES)}


def test_without_hard_links_nothing_is_lost(disk):
    """As exFAT answers: a kernel's filter lets every link(2) of a process fail with EPERM."""
    code = REFUSE + (
        "refuse(('link', 'linkat'), errno.EPERM)\n"
        "try:\n"
        "    os.link('/etc/hostname', root / 'link')\n"
        "except PermissionError:\n"
        "    print(Disk(root).add('a/b', b'x'), Disk(root).add('a/b', b'y'))\n"
    )
    assert in_process(code, disk.root) == "True False"
    assert files_in(disk.root) == {"a/b": b"x"}


@pytest.mark.parametrize("call", ["create(first)", "claim('tile-0-0')", "add('a', b'')"])
def test_without_locks_a_writer_stops_before_any_work(disk, call):
    code = REFUSE + (
        "refuse(('flock',), errno.ENOLCK)\n"
        "first = {'zarr.json': b'{}'}\n"
        "try:\n"
        f"    Disk(root).{call}\n"
        "except CacheError as error:\n"
        "    print(error)\n"
    )
    assert "this file system cannot lock files (No locks available)" in in_process(code, disk.root)
    assert files_in(disk.root) == {}


def test_listing_an_unreadable_folder_is_an_error_and_not_an_empty_ledger(disk):
    disk.add(KEY, b"x")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom teacher_cache.storage.disk import Disk\n"
        "root = Path(sys.argv[1])\n"
        "os.chmod(root / 'ledger', 0)\n"
        "os.setuid(65534)\n"
        "try:\n"
        "    print(list(Disk(root).keys('ledger')))\n"
        "except PermissionError as error:\n"
        "    print('error', error.errno)\n"
    )
    if os.getuid() != 0:
        code = code.replace("os.setuid(65534)\n", "")
    for folder in (disk.root, *disk.root.parents[:3]):
        folder.chmod(0o755)
    assert in_process(code, disk.root) == "error 13"
    (disk.root / "ledger").chmod(0o755)


def test_a_new_cache_keeps_the_mode_of_its_empty_folder_and_its_inode(disk):
    disk.root.chmod(0o2770)
    before = disk.root.stat()
    disk.root.parent.chmod(0o500)
    disk.create(FIRST)
    disk.root.parent.chmod(0o700)
    after = disk.root.stat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert files_in(disk.root) == FIRST
    assert [p.name for p in (disk.root.parent).iterdir()] == ["cache"]


def test_a_new_cache_in_the_working_folder_stays_the_working_folder(disk, monkeypatch):
    monkeypatch.chdir(disk.root)
    Disk(Path()).create(FIRST)
    assert files_in(Path.cwd()) == FIRST
    assert Path("labels/c.0").read_bytes() == FIRST["labels/c.0"]


def test_a_new_cache_is_made_with_the_folders_above_it(tmp_path):
    Disk(tmp_path / "a/b/c").create(FIRST)
    assert files_in(tmp_path / "a/b/c") == FIRST


STRANGERS = {
    "a file of another": ("notes.txt", "file"),
    "a link": ("labels", "a symbolic link"),
    "a pipe": ("labels/c.0", "a pipe"),
    "an empty folder": ("photos", "a folder"),
    "keys that are none": ("labels/id_ed25519", "file"),
    "a file for a folder": ("labels", "file"),
    "another's staging": ("staging/release.tar", "file"),
    "a temporary of another": ("staging/upload.tmp", "file"),
    "a folder for a file": ("labels/c.0", "a folder"),
    "a folder for zarr.json": ("zarr.json", "a folder"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_folder_that_is_no_cache_is_left_exactly_as_it_was(disk, stranger):
    key, kind = STRANGERS[stranger]
    if kind == "file":
        (disk.root / key).parent.mkdir(exist_ok=True)
        (disk.root / key).write_bytes(b"a stranger's")
    else:
        odd_file(disk.root / key, kind)
    before, stamp = contents(disk.root), disk.root.stat().st_mtime_ns
    with pytest.raises(CacheError, match=f"is not a cache, it holds something else .{key}"):
        disk.create(FIRST)
    disk.sweep()
    assert contents(disk.root) == before
    assert disk.root.stat().st_mtime_ns == stamp


def test_a_file_that_is_no_folder_is_no_place_for_a_cache(disk):
    (disk.root / "file").write_bytes(b"x")
    for root in (disk.root / "file", disk.root / "file/below"):
        with pytest.raises(CacheError, match="nor is it a folder"):
            Disk(root).create(FIRST)
    assert contents(disk.root) == {"file": b"x"}


def test_a_killed_creation_is_gone_on_with_whenever_it_was_killed(tmp_path):
    """strace-like: the process is killed after each of its renames in turn."""
    for number in range(1, len(FIRST) + 1):
        root = tmp_path / str(number)
        code = (
            "import os, signal, sys\nfrom pathlib import Path\n"
            "from teacher_cache.storage.disk import Disk\n"
            "left = [int(sys.argv[2])]\n"
            "def after(event, arguments):\n"
            "    if event == 'os.rename':\n"
            "        if left[0] == 0:\n"
            "            os.kill(os.getpid(), signal.SIGKILL)\n"
            "        left[0] -= 1\n"
            "sys.addaudithook(after)\n"
            f"Disk(Path(sys.argv[1])).create({FIRST!r})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, root, str(number - 1)], cwd=REPOSITORY, check=False
        )
        assert done.returncode == -signal.SIGKILL
        assert "zarr.json" not in files_in(root)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels/c.0").write_bytes(b"of another recipe")
        Disk(root).create(FIRST)
        Disk(root).sweep()
        assert files_in(root) == FIRST
        assert [p.name for p in (root / "staging").iterdir()] == ["lock"]


def test_equal_bytes_of_a_killed_creation_are_not_written_again(disk):
    (disk.root / "ids").mkdir()
    (disk.root / "ids/zarr.json").write_bytes(FIRST["ids/zarr.json"])
    inode = (disk.root / "ids/zarr.json").stat().st_ino
    disk.create(FIRST)
    assert (disk.root / "ids/zarr.json").stat().st_ino == inode


def test_what_exists_is_not_created_again(disk):
    disk.create(FIRST)
    disk.create({**FIRST, "labels/c.0": b"\3\4", "zarr.json": b"{}"})
    assert files_in(disk.root) == FIRST


def test_creations_of_two_recipes_at_once_leave_one_of_them_whole(disk):
    one, other = FIRST, {key: data + b" " for key, data in FIRST.items()}
    barrier = threading.Barrier(4)

    def make(files):
        barrier.wait()
        disk.create(files)

    threads = [threading.Thread(target=make, args=(f,)) for f in (one, other, one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files_in(disk.root) in (one, other)


def test_quarantine_keeps_every_file_and_moves_a_link_as_itself(disk):
    disk.publish(KEY, entry_of(FILES), FILES)
    odd_file(disk.root / "labels/link", "a symbolic link")
    disk.withdraw(KEY, FILES, "2030-01-01")
    disk.publish(KEY, entry_of({}), {})
    disk.withdraw(KEY, [], "2030-01-01")
    with disk.alone():
        disk.quarantine(["labels/link", "labels/gone"], "2030-01-01")
    folder = disk.root / "quarantine/2030-01-01"
    assert (folder / "labels/link").readlink() == Path("/etc/hostname")
    (folder / "labels/link").unlink()
    assert files_in(folder) == {**FILES, KEY: entry_of(FILES), f"{KEY}.1": entry_of({})}
    assert sorted(disk.keys("ledger")) == sorted(disk.keys("ids")) == []


def test_a_group_may_write_where_the_mask_lets_it(disk):
    before = os.umask(0o002)
    try:
        disk.create(FIRST)
    finally:
        os.umask(before)
    for path in ("zarr.json", "staging/lock", "labels"):
        assert (disk.root / path).stat().st_mode & stat.S_IWGRP


def test_a_temporary_name_is_not_longer_than_a_name_may_be(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomic(path, b"before")
    write_atomic(path, b"after")
    assert files_in(tmp_path) == {path.name: b"after"}


def test_a_folder_is_made_with_those_above_it_or_says_what_is_in_the_way(tmp_path):
    make_folder(tmp_path / "a/b")
    make_folder(tmp_path / "a/b")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        make_folder(tmp_path / "file/below")


def test_sizes_are_those_of_the_files(disk):
    disk.add("a/b", b"123")
    disk.add("c", b"45")
    assert disk.total_bytes() == 5
    assert disk.path_of("a/b").read_bytes() == b"123"
    assert disk.path_of("a/gone") is None


def in_process(code, root):
    """What a process of its own prints."""
    return subprocess.run(
        [sys.executable, "-c", code, root],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    ).stdout.strip()


REFUSE = '''
import ctypes, errno, os, platform, struct, sys
from pathlib import Path
from teacher_cache.storage.disk import Disk
from teacher_cache.errors import CacheError

root = Path(sys.argv[1])
NUMBERS = {
    "x86_64": {"link": 86, "linkat": 265, "flock": 73},
    "aarch64": {"linkat": 37, "flock": 32},
}[platform.machine()]


def refuse(names, number):
    """Let system calls of this process fail (seccomp with a BPF program), as a file system may."""
    numbers = [NUMBERS[name] for name in names if name in NUMBERS]
    program = [(0x20, 0, 0, 0)]  # load the call's number
    for at, call in enumerate(numbers):
        program.append((0x15, len(numbers) - at, 0, call))  # if it is this, jump to the refusal
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | number)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    library = ctypes.CDLL(None, use_errno=True)
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    assert library.prctl(38, 1, 0, 0, 0) == 0
    assert library.prctl(22, 2, filter_, 0, 0) == 0
'''
