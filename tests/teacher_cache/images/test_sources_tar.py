import bz2
import gzip
import lzma
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
import threading

import numpy as np
import pytest
from packing import folder, link, pack, write_tar

from teacher_cache.images.archive import Archive
from teacher_cache.images.index import ImagesError, index_images, rebase

A, B, C = b"one", b"two!", b"three."


@pytest.fixture
def images(tmp_path):
    """Files of every kind that a class folder holds, and what is passed over."""
    root = tmp_path / "images"
    for key in (
        "b/2.png", "b/10.PNG", "a/x.jpeg", "a/deep/.dim/y.webp", "a/notes.txt", "a/.hidden.png",
        "a/._x.jpeg", ".trash/1.png", "loose.png", "ä/ü ß.png", f"b/{'long' * 40}.png",
    ):  # fmt: skip
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    with open(os.fsencode(root) + b"/a/\xff\xfe.png", "wb") as file:  # noqa: PTH123
        file.write(b"odd")
    return root


def same(one, other):
    assert one.keys == other.keys
    assert one.digest() == other.digest()
    assert [one.read(row) for row in range(len(one))] == [
        other.read(row) for row in range(len(other))
    ]


@pytest.mark.parametrize("form", ["pax", "gnu"])
def test_a_tar_of_a_folder_is_the_folder(images, tmp_path, form):
    subprocess.run(
        ["tar", f"--format={form}", "-cf", tmp_path / "images.tar", "-C", images, "."], check=True
    )
    same(index_images(images), index_images(tmp_path / "images.tar"))
    same(index_images(images), index_images(pack(images, tmp_path / "shuffled.tar")))
    assert len(index_images(images)) == 7


def test_a_folder_inside_a_tar_is_named_by_its_path(images, tmp_path):
    tar = tmp_path / "all.tar"
    subprocess.run(["tar", "-cf", tar, "-C", tmp_path, "images"], check=True)
    same(index_images(images), index_images(f"{tar}/images"))
    same(index_images(images), index_images(tar / "images"))
    with pytest.raises(ImagesError, match=r"no such folder; it holds 1 folder \(images\)"):
        index_images(tar / "train")
    # without the path, the folder around the classes would be the only class
    (images / "loose.png").unlink()
    for splits in ("images",), ("train", "val"):
        shutil.rmtree(tmp_path / "top", ignore_errors=True)
        for split in splits:
            shutil.copytree(images, tmp_path / "top" / split)
        with pytest.raises(
            ImagesError, match=rf"that is .*, expected .* pass one, .*t\.tar/{splits[0]}$"
        ):
            index_images(pack(tmp_path / "top", tmp_path / "t.tar"))


def class_tars(tmp_path, own_folder=False):
    """One tar a class, as in ImageNet's archive; in some, below a folder of the class's name."""
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "n01.tar", ("n01_2.JPEG", B), ("./n01_1.JPEG", A), ("x.txt", A))
    prefix = "n02/" if own_folder else ""
    write_tar(tmp_path / "tars" / "n02.tar", (f"{prefix}n02_7.JPEG", C))
    (tmp_path / "tars" / "._n02.tar").write_bytes(b"a Macintosh was here")
    for key, data in {"n01/n01_1.JPEG": A, "n01/n01_2.JPEG": B, "n02/n02_7.JPEG": C}.items():
        (tmp_path / "plain" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / key).write_bytes(data)
    return tmp_path / "tars", tmp_path / "plain"


@pytest.mark.parametrize("own_folder", [False, True])
def test_a_tar_a_class_in_a_folder_or_in_a_tar_is_the_unpacked_folder(tmp_path, own_folder):
    tars, plain = class_tars(tmp_path, own_folder)
    same(index_images(plain), index_images(tars))
    subprocess.run(
        ["tar", "-cf", tmp_path / "outer.tar", "-C", tars, "n02.tar", "n01.tar"], check=True
    )
    same(index_images(plain), index_images(tmp_path / "outer.tar"))
    (tars / "n03").mkdir()
    (tars / "n03" / "1.png").write_bytes(A)
    assert index_images(tars).keys == ("n03/1.png",)  # class folders win, as ever


def test_tars_that_are_not_one_a_class_are_refused(tmp_path):
    (tmp_path / "parts").mkdir()
    part = write_tar(tmp_path / "parts" / "0.tar", ("a/1.png", A), ("b/1.png", B))
    with pytest.raises(ImagesError, match=r"0.tar holds folders \(a/1.png\); expected one tar a"):
        index_images(tmp_path / "parts")
    write_tar(part, ("1.txt", A))
    with pytest.raises(ImagesError, match=r"class folder .*/parts/0 holds no image"):
        index_images(tmp_path / "parts")
    write_tar(part, ("1.png", A), ("1.cls", b"0"))
    with pytest.raises(ImagesError, match=r"\.cls members, as WebDataset .* pass wds/PATH"):
        index_images(tmp_path / "parts")
    with pytest.raises(ImagesError, match="pass wds/PATH"):
        index_images(part)


def test_links_stand_for_the_bytes_that_extraction_would_leave_there(tmp_path):
    tar = write_tar(
        tmp_path / "links.tar",
        ("a/1.png", A),
        link("a/hard.png", "a/1.png", tarfile.LNKTYPE),
        link("b/soft.png", "../a/2.png"),  # to a later member
        link("b/chain.png", "./soft.png"),
        ("a/1.png", B),  # once more: the hard link keeps the first one's bytes
        ("a/2.png", C),
        link("a/readme", "/etc/hostname"),  # no image, so nobody's business
    )
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", tar, "-C", tmp_path / "out"], check=True)
    same(index_images(tmp_path / "out"), index_images(tar))
    index = index_images(tar)
    found = {key: index.read(row) for row, key in enumerate(index.keys)}
    assert found == {
        "a/1.png": B, "a/2.png": C, "a/hard.png": A, "b/chain.png": C, "b/soft.png": C,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (link("a/l.png", "/etc/hostname"), "a/l.png is a link to /etc/hostname, which the archive"),
        (link("a/l.png", "../../x.png"), "which the archive does not hold"),
        (link("a/l.png", "l.png"), "which the archive does not hold"),
        (link("a/l.png", "none.png", tarfile.LNKTYPE), "a link to none.png, which the archive"),
        (link("b", "a"), "b is a link to a folder: pack the archive again with --dereference"),
        ("../evil.png", r"\.\./evil.png leads out of the archive"),
        ("a/../../evil.png", "leads out of the archive"),
        (folder("c"), "class folder .*/odd.tar/c holds no image"),
    ],
)  # fmt: skip
def test_members_that_lead_nowhere_are_refused_by_name(tmp_path, member, words):
    tar = write_tar(tmp_path / "odd.tar", ("a/1.png", A), member)
    with pytest.raises(ImagesError, match=words):
        index_images(tar)


def test_absolute_names_and_dots_are_read_as_tar_extracts_them(tmp_path):
    tar = write_tar(tmp_path / "odd.tar", ("/a/1.png", A), ("././b//./2.png", B))
    assert index_images(tar).keys == ("a/1.png", "b/2.png")


def test_sparse_images_are_refused_and_other_sparse_files_passed_over(tmp_path):
    root = tmp_path / "sparse"
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.png").write_bytes(A)
    with (root / "a" / "2.bin").open("wb") as file:
        file.truncate(1 << 20)
    command = ["tar", "-cSf", tmp_path / "s.tar", "-C", root, "a"]
    subprocess.run(command, check=True)
    assert index_images(tmp_path / "s.tar").keys == ("a/1.png",)
    (root / "a" / "2.bin").rename(root / "a" / "2.png")
    subprocess.run(command, check=True)
    with pytest.raises(ImagesError, match=r"a/2.png is stored sparse: pack .* without --sparse"):
        index_images(tmp_path / "s.tar")


@pytest.mark.parametrize(
    ("pack_bytes", "tool"),
    [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")],
)
def test_a_compressed_tar_is_refused_with_what_unpacks_it(tmp_path, pack_bytes, tool):
    plain = write_tar(tmp_path / "plain.tar", ("a/1.png", A))
    packed = tmp_path / "packed.tar.x"
    packed.write_bytes(pack_bytes(plain.read_bytes()))
    with pytest.raises(ImagesError, match=f"compressed, .* unpack it with {tool}"):
        index_images(packed)


def test_every_cut_of_a_tar_is_found(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", ("a/1.png", A), ("b/2.png", B * 300)).read_bytes()
    end = 512 + 512 + 512 + 1536  # headers and data; then zeros
    cut = tmp_path / "cut.tar"
    for length in (*range(0, end + 1, 128), end - 1, end + 511):
        cut.write_bytes(whole[:length])
        with pytest.raises(ImagesError, match=r"cut\.tar.*(damaged or cut off|no such folder)"):
            index_images(cut)
    cut.write_bytes(whole[: end + 512])
    assert len(index_images(cut)) == 2


def test_a_damaged_header_and_a_second_archive_behind_the_first_are_found(tmp_path):
    tar = write_tar(tmp_path / "t.tar", ("a/1.png", A), ("a/2.png", B), ("b/3.png", C))
    whole = bytearray(tar.read_bytes())
    whole[1024 + 3] ^= 1  # in the second header, where tarfile would silently stop
    tar.write_bytes(whole)
    with pytest.raises(ImagesError, match="something else than headers from byte 1024 on"):
        index_images(tar)
    whole[1024 + 3] ^= 1
    tar.write_bytes(bytes(whole) * 2)
    with pytest.raises(ImagesError, match="something else than headers from byte 3072 on"):
        index_images(tar)
    tar.write_bytes(b"no tar at all" * 100)
    with pytest.raises(ImagesError, match="cannot be read as a tar"):
        index_images(tar)


def test_a_tar_without_class_folders_is_refused(tmp_path):
    tar = write_tar(tmp_path / "flat.tar", ("1.png", A))
    with pytest.raises(ImagesError, match="holds no class folders; expected members <class>/<im"):
        index_images(tar)
    with pytest.raises(ImagesError, match=r"no such folder; .* a \.tar of them, hfds/NAME or wds"):
        index_images(tmp_path / "nothing.tar")


def test_a_tar_that_changes_after_it_was_listed_is_an_error_at_the_next_read(tmp_path):
    tar = write_tar(tmp_path / "t.tar", ("a/1.png", A), ("b/2.png", B))
    index = index_images(tar)
    assert index.read(1) == B
    os.utime(tar, ns=(1, 1))
    with pytest.raises(ImagesError, match=r"t\.tar was changed or replaced since"):
        index.read(1)
    index = index_images(tar)
    write_tar(tar, ("a/1.png", A * 1000), ("b/2.png", B))
    with pytest.raises(ImagesError, match="changed or replaced"):
        index.read(0)


def read_all(index, pipe):
    pipe.send([index.read(row) for row in range(len(index))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_and_threads_read_the_same_tar_at_the_same_time(tmp_path, method):
    random = np.random.default_rng(0)
    bodies = [random.bytes(int(size)) for size in random.integers(0, 9000, 60)]
    tar = write_tar(
        tmp_path / "t.tar", *((f"c{n % 3}/{n:03}.png", b) for n, b in enumerate(bodies))
    )
    index = index_images(tar)
    expected = [bodies[int(key[-7:-4])] for key in index.keys]
    context = multiprocessing.get_context(method)
    ends = []
    for _ in range(3):
        here, there = context.Pipe()
        process = context.Process(target=read_all, args=(index, there))
        process.start()
        ends.append((here, process))
    threads_saw = []
    threads = [
        threading.Thread(
            target=lambda: threads_saw.append([index.read(row) for row in range(len(index))])
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for here, process in ends:
        assert here.poll(60)
        assert here.recv() == expected
        process.join()
    for thread in threads:
        thread.join()
    assert threads_saw == [expected] * 3
    assert pickle.loads(pickle.dumps(index)).read(5) == expected[5]


def test_rows_follow_their_keys_into_another_tar(images, tmp_path):
    index = index_images(images)
    tar = pack(images, tmp_path / "t.tar")
    same(index, rebase(index, tar))
    part = index.take(np.array([4, 1]))
    assert part.keys == (index.keys[4], index.keys[1])
    moved = rebase(index, tar).take(np.array([4, 1]))
    assert [moved.read(0), moved.read(1)] == [index.read(4), index.read(1)]
    smaller = shutil.copytree(images, tmp_path / "smaller")
    (smaller / "b" / "2.png").unlink()
    with pytest.raises(ImagesError, match=r"small.tar is not .* \(7 images\): it lacks 1 image"):
        rebase(index, pack(smaller, tmp_path / "small.tar"))


def test_an_archive_cut_while_it_is_read_says_so(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"abc")
    with pytest.raises(OSError, match="got 1 of 5 bytes"):
        Archive.of(path).read(2, 5)


def test_every_tar_format_is_read(tmp_path):
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tar = write_tar(tmp_path / "t.tar", ("a/1.png", A), ("b/1.png", B), format=form)
        assert index_images(tar).read(1) == B
