import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from teacher_cache.images.index import (
    ImageIndex,
    ImagesError,
    index_images,
    read_class_map,
    rebase,
    require_clear_order,
)


@pytest.fixture
def folder(tmp_path):
    for key in ("b/2.png", "b/10.PNG", "a/x.jpeg", "a/deep/y.webp", "a/notes.txt", "a/.hidden.png"):
        path = tmp_path / "data" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    (tmp_path / "data" / ".cache").mkdir()
    return tmp_path / "data"


def test_images_are_listed_in_the_byte_order_of_their_paths_with_their_classes(folder):
    index = index_images(folder)
    assert index.keys == ("a/deep/y.webp", "a/x.jpeg", "b/10.PNG", "b/2.png")
    assert index.labels.tolist() == [0, 0, 1, 1]
    assert index.class_ids == {"a": 0, "b": 1}
    assert index.read(1) == b"a/x.jpeg"


def test_the_digest_depends_on_keys_labels_and_classes_but_not_on_the_place(folder, tmp_path):
    digest = index_images(folder).digest()
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert index_images(moved).digest() == digest
    assert index_images(moved, class_ids={"a": 1, "b": 0}).digest() != digest
    (moved / "a" / "x.jpeg").rename(moved / "a" / "z.jpeg")
    assert index_images(moved).digest() != digest


def test_file_names_that_are_no_utf8_are_kept_byte_for_byte(folder):
    name = os.fsencode(folder) + b"/a/\xff\xfe.png"
    with open(name, "wb") as file:  # noqa: PTH123 - a Path cannot be made of these bytes
        file.write(b"odd")
    index = index_images(folder)
    row = [os.fsencode(key) for key in index.keys].index(b"a/\xff\xfe.png")
    assert index.read(row) == b"odd"
    index.digest()


def test_a_missing_an_empty_and_a_flat_folder_are_refused_with_what_was_expected(tmp_path):
    with pytest.raises(ImagesError, match="no such folder; expected a folder of class folders"):
        index_images(tmp_path / "nowhere")
    with pytest.raises(ImagesError, match=r"holds no class folders; expected .*<class>/<image>"):
        index_images(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(ImagesError, match="holds no class folders"):
        index_images(tmp_path)


def test_an_empty_class_folder_and_an_unknown_class_are_named(folder):
    (folder / "c").mkdir()
    with pytest.raises(ImagesError, match="class folder .*/c holds no image"):
        index_images(folder)
    with pytest.raises(ImagesError, match=r"1 class folder \(c\) that the class list of 2"):
        index_images(folder, class_ids={"a": 0, "b": 1})


def test_a_moved_data_set_keeps_its_rows_and_another_one_is_refused_with_counts(folder, tmp_path):
    index = index_images(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert rebase(index, moved).keys == index.keys
    assert rebase(index, moved).root == moved
    (moved / "b" / "2.png").unlink()
    with pytest.raises(ImagesError, match=r"lacks 1 image \(b/2.png\)"):
        rebase(index, moved)
    (moved / "b" / "3.png").write_bytes(b"")
    (moved / "c").mkdir()
    (moved / "c" / "1.png").write_bytes(b"")
    with pytest.raises(ImagesError, match=r"lacks 1 .* has 2 images \(b/3.png, c/1.png\) beyond"):
        rebase(index, moved)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": -1}', '{"a": true}', '{"a": 0, "b": 0}'])
def test_a_class_map_is_an_object_of_unique_whole_numbers(tmp_path, text):
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(ImagesError, match="class map"):
        read_class_map(path)
    path.write_text('{"a": 7, "b": 3}')
    assert read_class_map(path) == {"a": 7, "b": 3}


def test_a_link_that_leads_back_is_not_followed_in_circles(folder):
    before = index_images(folder).keys
    (folder / "a" / "deep" / "loop").symlink_to(folder / "a")
    assert index_images(folder).keys == before


@pytest.fixture
def numbered(tmp_path):
    for name in ("1", "2", "10", "B", "a"):
        (tmp_path / "numbered" / name).mkdir(parents=True)
        (tmp_path / "numbered" / name / "x.png").write_bytes(name.encode())
    return tmp_path / "numbered"


def test_class_folders_are_numbered_as_timm_does_on_request_and_rows_stay_where_they_are(numbered):
    from timm.data.readers.reader_image_folder import find_images_and_targets

    by_bytes, by_timm = (index_images(numbered, class_order=order) for order in ("bytes", "timm"))
    assert by_bytes.class_ids == {"1": 0, "10": 1, "2": 2, "B": 3, "a": 4}
    assert by_timm.class_ids == find_images_and_targets(str(numbered))[1]
    assert list(by_timm.keys) == list(by_bytes.keys) == list(index_images(numbered).keys)
    assert by_timm.digest() != by_bytes.digest() == index_images(numbered).digest()


def test_two_orders_of_class_folders_are_shown_and_refused(numbered, folder):
    require_clear_order(index_images(folder))
    words = r"from class 1 on, 10, 2, B in .*torchvision's\), 2, 10, a in timm's: set images.class_"
    with pytest.raises(ImagesError, match=words):
        require_clear_order(index_images(numbered))


def test_class_names_and_keys_are_never_confused_by_the_digest():
    def index(class_ids, keys):
        labels = np.zeros(len(keys), np.int64)
        return ImageIndex(Path("/data"), keys, labels, class_ids)

    # the digest of format 1 ran over the same bytes for both: it put no length before the classes
    one, other = index({"a": 0, "b": 0}, ("c", "d")), index({"a": 0}, ("b", "0", "c", "d"))
    labels = np.frombuffer(one.labels.tobytes(), np.uint8)
    assert len(labels) == 16
    assert one.digest() != other.digest()
