"""What is no image, no class or no data set, though it lies where one is expected."""

import os
import unicodedata

import datasets
import pyarrow as pa
import pytest
from packing import pack, write_tar
from pictures import encoded, picture

from teacher_cache.images.index import ImagesError, index_images, rebase

PNG = encoded(picture(8, 8))


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return root


def forms(root):
    """The same folder, and as a tar."""
    return root, pack(root, root.with_name(root.name + ".tar"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("train/a/1.png", "train/b/1.png", "val/a/1.png"), "the splits of a data set"),
        (("train/a/1.png", "test/1.png"), "the splits of a data set"),
        (("Train/a/1.png", "Val/a/1.png", "Test/a/1.png"), "the splits of a data set"),
        (("train/1.png", "val/1.png"), "the splits of a data set"),
        (("images/a/1.png", "images/b/1.png"), "nothing but folders in it"),
    ],
)
def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path, files, words):
    for data in forms(write(tmp_path / "data", *files)):
        with pytest.raises(ImagesError, match=f"{words}, expected the folder of the class folders"):
            index_images(data)


def test_classes_may_be_named_as_splits_are_and_have_folders_of_their_own(tmp_path):
    for files in (("train/1.png", "car/1.png"), ("a/x/1.png", "a/y/1.png", "b/z/1.png")):
        for data in forms(write(tmp_path / files[1].replace("/", "-"), *files)):
            assert len(index_images(data).class_ids) == 2


def test_what_is_passed_over_is_counted_and_told(tmp_path, caplog):
    root = write(
        tmp_path / "data", "a/1.png", "a/2.avif", "a/3.avif", "a/.4.png", "a/5", "a/6.txt",
        "b/1.png", "b/.DS_Store", "b/Thumbs.db", "7.png",
    )  # fmt: skip
    digests = set()
    for data in forms(root):
        caplog.clear()
        index = index_images(data)
        digests.add(index.digest())
        assert list(index.keys) == ["a/1.png", "b/1.png"]
        (told,) = caplog.messages
        assert "6 files that are no images by their names were passed over" in told
        for part in ("2 .avif", "1 hidden", "1 without suffix", "1 .txt", "1 outside class fold"):
            assert part in told
    assert len(digests) == 1
    caplog.clear()
    index_images(write(tmp_path / "plain", "a/1.png", "b/1.png", "b/.DS_Store"))
    assert caplog.messages == []


def test_pillows_names_of_the_formats_that_are_decoded_are_images(tmp_path):
    names = [f"a/1.{suffix}" for suffix in ("jfif", "JPE", "apng", "pnm", "pbm", "jpg", "webp")]
    for data in forms(write(tmp_path / "data", *names)):
        assert sorted(index_images(data).keys) == sorted(names)


def test_names_in_two_unicode_forms_or_cases_are_named_as_such(tmp_path, caplog):
    composed = unicodedata.normalize("NFC", "café")
    apart = unicodedata.normalize("NFD", "café")
    here = index_images(write(tmp_path / "here", f"{composed}/É.png", "b/1.png"))
    there = write(tmp_path / "there", f"{apart}/É.png", "b/1.png")
    with pytest.raises(ImagesError, match=r"'caf\\xe9/\\xc9.png'.* differ only in Unicode form"):
        rebase(here, there)
    with pytest.raises(
        ImagesError, match=r"name \('cafe\\u0301' and 'caf\\xe9' differ only in Uni"
    ):
        index_images(there, class_ids=here.class_ids)
    cased = write(tmp_path / "cased", f"{composed}/é.png", "b/1.png")
    with pytest.raises(ImagesError, match="differ only in upper and lower case"):
        rebase(here, cased)
    assert caplog.messages == []
    index_images(write(tmp_path / "twins", f"{composed}/1.png", f"{apart}/1.png"))
    assert "two classes, " in caplog.text
    assert "differ only in Unicode form, NFC and NFD" in caplog.text


@pytest.mark.parametrize("kind", ["hfds", "wds"])
def test_a_folder_here_of_that_name_is_not_looked_for_elsewhere(tmp_path, monkeypatch, kind):
    write(tmp_path / kind, "a/1.png", "b/1.png")
    write(tmp_path / kind / "set", "a/1.png", "b/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImagesError, match=rf"write \./{kind}/set for the folder"):
        index_images(f"{kind}/set")
    assert len(index_images(f"./{kind}/set")) == 2
    with pytest.raises(ImagesError, match="(no such folder|not there)"):
        index_images(f"{kind}/{tmp_path}/nowhere")


def test_rows_without_a_label_are_counted(tmp_path):
    for values, kind in (([0, None, 1, None], pa.int64()), (["a", None, "b", "b"], pa.string())):
        table = pa.table({"label": pa.array(values, kind), "image": pa.array([b"x"] * 4)})
        dataset = datasets.Dataset(table).cast_column("image", datasets.Image())
        folder = tmp_path / str(kind)
        dataset.save_to_disk(folder)
        nulls = values.count(None)
        with pytest.raises(ImagesError, match=rf"{nulls} of its 4 rows have no label \(null\)"):
            index_images(f"hfds/{folder}")


def test_a_shard_sample_with_a_byte_order_mark_has_a_label(tmp_path):
    write_tar(tmp_path / "a.tar", ("1.png", PNG), ("1.cls", b"\xef\xbb\xbf3\n"))
    assert index_images(f"wds/{tmp_path / 'a.tar'}").labels.tolist() == [3]


def test_a_device_named_as_an_image_does_not_hang(tmp_path):
    write(tmp_path / "data", "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "data" / "b" / "2.jpg")
    with pytest.raises(ImagesError, match="it is a FIFO, not a regular file"):
        index_images(tmp_path / "data")
    (tmp_path / "data" / "b" / "2.jpg").unlink()
    (tmp_path / "data" / "b" / "3.jpg").symlink_to("/dev/zero")
    with pytest.raises(ImagesError, match="it is a device, not a regular file"):
        index_images(tmp_path / "data")
