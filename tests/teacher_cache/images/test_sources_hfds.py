import io
import multiprocessing
import sys

import datasets
import numpy as np
import pytest
from PIL import Image
from timm.data.readers import create_reader

from teacher_cache.images.hugging_face import DatasetImages
from teacher_cache.images.index import ImagesError, index_images, rebase


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(shade):
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


LABELS = [1, 0, 2, 1, 0, 1]
NAMES = ["cat", "dog", "tench, Tinca tinca"]


def dataset(labels=LABELS, feature=None, paths=True, image="image", label="label"):
    images = [
        {"bytes": png(10 * n), "path": f"{n}.png" if paths else None} for n in range(len(labels))
    ]
    features = datasets.Features(
        {image: datasets.Image(), label: feature or datasets.ClassLabel(names=NAMES)}
    )
    return datasets.Dataset.from_dict({image: images, label: labels}, features=features)


def parquet(folder, **splits):
    folder.mkdir()
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return f"hfds/{folder}"


def test_a_data_set_of_parquet_files_has_the_images_and_labels_of_timms_reader(tmp_path):
    name = parquet(tmp_path / "pq", train=dataset(), test=dataset([2, 2]))
    index = index_images(f"{name}:train")
    reader = create_reader(name, split="train")
    theirs = {reader.filename(row): (reader[row][0].read(), reader[row][1]) for row in range(6)}
    assert index.class_ids == reader.class_to_idx
    assert index.keys == (
        "cat/1.png", "cat/4.png", "dog/0.png", "dog/3.png", "dog/5.png",
        "tench, Tinca tinca/2.png",
    )  # fmt: skip
    for row, key in enumerate(index.keys):
        assert (index.read(row), index.labels[row]) == theirs[key.rpartition("/")[2]]
    assert len(index_images(f"{name}:train[:50%]")) == 3
    assert index_images(f"{name}:test").class_count == 3  # the set's classes, not the split's


def test_a_split_is_never_guessed(tmp_path):
    name = parquet(tmp_path / "pq", train=dataset(), test=dataset([2, 2]))
    with pytest.raises(ImagesError, match=rf"several splits: pass one of {name}:test, {name}:trai"):
        index_images(name)
    with pytest.raises(ImagesError, match='Unknown split "validation"'):
        index_images(f"{name}:validation")
    assert len(index_images(parquet(tmp_path / "one", train=dataset()))) == 6


def test_data_sets_saved_to_disk_are_read_in_forked_and_spawned_processes(tmp_path):
    dataset().save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(a=dataset(), b=dataset([0])).save_to_disk(tmp_path / "splits")
    index = index_images(f"hfds/{tmp_path / 'saved'}")
    assert index.keys == index_images(f"hfds/{tmp_path / 'splits'}:a").keys
    assert len(index_images(f"hfds/{tmp_path / 'splits'}:b")) == 1
    expected = [index.read(row) for row in range(6)]
    for method, processes in (("fork", 2), ("spawn", 1)):
        with multiprocessing.get_context(method).Pool(processes) as pool:
            assert pool.map(index.read, range(6)) == expected
            pool.close()
            pool.join()


def test_a_reordered_data_set_is_matched_by_the_names_of_its_files(tmp_path):
    dataset().save_to_disk(tmp_path / "one")
    dataset().select([5, 1, 0, 2, 4, 3]).save_to_disk(tmp_path / "other")
    one, other = (index_images(f"hfds/{tmp_path / name}") for name in ("one", "other"))
    assert one.digest() == other.digest()
    moved = rebase(one, f"hfds/{tmp_path / 'other'}")
    assert [moved.read(r) for r in range(6)] == [one.read(r) for r in range(6)]
    assert one.take(np.array([3])).read(0) == one.read(3)
    dataset([2, 0, 2, 1, 0, 1]).save_to_disk(tmp_path / "relabelled")
    with pytest.raises(ImagesError, match=r"lacks 1 image \(dog/0.png\) and has 1 image"):
        rebase(one, f"hfds/{tmp_path / 'relabelled'}")


def test_a_folder_of_images_has_the_same_keys_as_itself_read_by_datasets(tmp_path):
    for n, label in enumerate(LABELS):
        (tmp_path / "images" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / NAMES[label] / f"{n}.png").write_bytes(png(n))
    folder = index_images(tmp_path / "images")
    moved = rebase(folder, f"hfds/{tmp_path / 'images'}")
    assert [moved.read(r) for r in range(6)] == [folder.read(r) for r in range(6)]


def test_images_without_names_are_named_by_their_rows(tmp_path):
    dataset(paths=False).save_to_disk(tmp_path / "saved")
    assert index_images(f"hfds/{tmp_path / 'saved'}").keys[:2] == ("cat/00000001", "cat/00000004")


def test_columns_are_found_by_what_they_hold(tmp_path):
    dataset(image="img", label="fine_label").save_to_disk(tmp_path / "named")
    assert len(index_images(f"hfds/{tmp_path / 'named'}")) == 6
    dataset([7, 0, 7], datasets.Value("int64")).save_to_disk(tmp_path / "numbers")
    assert index_images(f"hfds/{tmp_path / 'numbers'}").labels.tolist() == [0, 7, 7]
    dataset(["b", "a"], datasets.Value("string")).save_to_disk(tmp_path / "words")
    assert index_images(f"hfds/{tmp_path / 'words'}").class_ids == {"a": 0, "b": 1}
    two = dataset(image="photo").add_column("coarse", [0] * 6, feature=datasets.ClassLabel(2))
    two = two.rename_column("label", "fine")
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(ImagesError, match=r"2 columns of labels \(fine, coarse\): save it"):
        index_images(f"hfds/{tmp_path / 'two'}")


@pytest.mark.parametrize(
    ("labels", "feature", "words"),
    [
        ([0, -1, -1], None, "2 of its 3 rows have no label, as in test splits"),
        ([0.5, 1.5], datasets.Value("float32"), "expected one class a row"),
        ([0, None], datasets.Value("int64"), r"1 of its 2 rows have no label \(null\)"),
        ([[0], [1]], datasets.List(datasets.Value("int64")), "expected one class a row"),
    ],
)
def test_rows_without_one_label_are_refused(tmp_path, labels, feature, words):
    dataset(labels, feature).save_to_disk(tmp_path / "odd")
    with pytest.raises(ImagesError, match=words):
        index_images(f"hfds/{tmp_path / 'odd'}")


def test_sets_without_images_or_labels_or_anything_are_refused(tmp_path):
    dataset().remove_columns("label").save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(ImagesError, match="has no column of labels"):
        index_images(f"hfds/{tmp_path / 'unlabelled'}")
    dataset().remove_columns("image").save_to_disk(tmp_path / "blind")
    with pytest.raises(ImagesError, match="has no column of images"):
        index_images(f"hfds/{tmp_path / 'blind'}")
    dataset().save_to_disk(tmp_path / "cut")
    next((tmp_path / "cut").glob("*.arrow")).write_bytes(b"ARROW1")
    for name in (tmp_path / "nothing", tmp_path / "cut", "/"):
        with pytest.raises(
            ImagesError,
            match=r"cannot be opened .*: expected a data set's name on|is no such folder",
        ):
            index_images(f"hfds/{name}")
    with pytest.raises(ImagesError, match="hfds: no such folder; .* hfds/NAME or wds/PATH"):
        index_images("hfds/")


def test_an_image_that_is_gone_is_unavailable_and_one_that_was_never_there_is_empty(tmp_path):
    gone = [{"bytes": None, "path": str(tmp_path / "gone.png")}, None]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    found = datasets.Dataset.from_dict({"image": gone}, features=features)
    images = DatasetImages(found, "image", np.arange(2))
    with pytest.raises(OSError, match=r"gone\.png"):
        images.read(0)
    assert images.read(1) == b""


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImagesError, match="needs `datasets`: pip install datasets"):
        index_images(f"hfds/{tmp_path}")
