import gc
import io
import json
import sys
import warnings

import numpy as np
import pytest
import webdataset
from packing import write_tar
from PIL import Image
from timm.data.readers import create_reader

from teacher_cache.images.index import ImagesError, index_images, rebase


def jpeg(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(file, "JPEG")
    return file.getvalue()


def write_shards(folder, name="train", count=3, **more):
    """Three shards of four samples, as webdataset writes them."""
    folder.mkdir(exist_ok=True)
    for shard in range(count):
        with webdataset.TarWriter(str(folder / f"{name}-{shard:03}.tar")) as writer:
            for n in range(4):
                number = 4 * shard + n
                writer.write(
                    {"__key__": f"{name}_{number:05}", "jpg": jpeg(9 * number), "cls": number % 3}
                    | more
                )
    return folder


def state(folder, **splits):
    """timm's `_info.json`: (samples, label field) of each split of `write_shards`."""
    document = {
        name: {
            "name": name,
            "num_samples": samples,
            "filenames": [f"{name}-{shard:03}.tar" for shard in range(3)],
            "shard_lengths": [4, 4, 4],
            **({"alt_label": label} if label else {}),
        }
        for name, (samples, label) in splits.items()
    }
    (folder / "_info.json").write_text(json.dumps({"splits": document}))


def timms(folder, split="train"):
    """(pixels, label) of each sample, by timm's reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        reader = create_reader("wds/x", root=str(folder), split=split, is_training=False)
        found = [(np.asarray(image).tobytes(), label) for image, label in reader]
        del reader
        gc.collect()
    return found


def test_shards_have_the_images_and_labels_of_timms_reader(tmp_path):
    write_shards(tmp_path)
    state(tmp_path, train=(12, None))
    index = index_images(f"wds/{tmp_path}")
    ours = {
        (np.asarray(Image.open(io.BytesIO(index.read(row)))).tobytes(), index.labels[row])
        for row in range(12)
    }
    assert ours == set(timms(tmp_path))
    assert len(ours) == 12
    assert index.keys[:2] == ("train_00000.jpg", "train_00003.jpg")
    assert index.class_ids == {"0": 0, "1": 1, "2": 2}


def test_labels_of_a_json_field_as_timm_reads_them(tmp_path):
    write_shards(tmp_path, json={"label": 5, "other": -1})
    state(tmp_path, train=(12, "label"))
    assert set(index_images(f"wds/{tmp_path}").labels.tolist()) == {5}
    state(tmp_path, train=(12, "other"))  # timm's way to leave images out
    with pytest.raises(ImagesError, match="holds no samples"):
        index_images(f"wds/{tmp_path}")
    assert timms(tmp_path) == []
    state(tmp_path, train=(12, "absent"))
    with pytest.raises(
        ImagesError, match=r"the .json of train_00000.jpg holds no label .*'absent'"
    ):
        index_images(f"wds/{tmp_path}")


def test_a_folder_a_shard_a_pattern_and_a_split_name_shards(tmp_path):
    write_shards(tmp_path)
    write_shards(tmp_path, "val", 1)
    assert len(index_images(f"wds/{tmp_path}")) == 16
    assert len(index_images(f"wds/{tmp_path}/val-000.tar")) == 4
    assert len(index_images(f"wds/{tmp_path}/train-{{000..001}}.tar")) == 8
    with pytest.raises(ImagesError, match=r"no .*_info.json that names splits: pass a pattern"):
        index_images(f"wds/{tmp_path}:train")
    with pytest.raises(ImagesError, match=r"1 shard \(.*val-001.tar\) not there: restore"):
        index_images(f"wds/{tmp_path}/val-{{000..001}}.tar")
    state(tmp_path, train=(12, None), extra=(1, None))
    assert len(index_images(f"WDS/{tmp_path}:train")) == 12
    with pytest.raises(ImagesError, match="several splits: pass one of .*:extra, .*:train"):
        index_images(f"wds/{tmp_path}")
    with pytest.raises(ImagesError, match="no split 'val'"):
        index_images(f"wds/{tmp_path}:val")


def test_shards_that_hold_less_than_stated_are_refused(tmp_path):
    write_shards(tmp_path)
    state(tmp_path, train=(13, None))
    with pytest.raises(ImagesError, match=r"hold 12 samples, .*_info.json states 13: restore"):
        index_images(f"wds/{tmp_path}")
    (tmp_path / "_info.json").write_text('{"splits": {"train": {"filenames": 3}}}')
    with pytest.raises(ImagesError, match="not what timm writes"):
        index_images(f"wds/{tmp_path}")


def test_names_that_return_in_another_shard_are_told_apart_by_the_shard(tmp_path):
    for shard in "ab":
        write_tar(tmp_path / f"{shard}.tar", ("1.png", shard.encode()), ("1.cls", b"0"))
    index = index_images(f"wds/{tmp_path}")
    assert index.keys == ("a/1.png", "b/1.png")
    assert [index.read(0), index.read(1)] == [b"a", b"b"]


def test_shards_written_anew_in_another_order_are_matched_by_name(tmp_path):
    index = index_images(f"wds/{write_shards(tmp_path / 'one')}")
    samples = [
        (f"{key.removesuffix('jpg')}{kind}", data)
        for row, key in reversed(list(enumerate(index.keys)))
        for kind, data in (("jpg", index.read(row)), ("cls", b"%d" % index.labels[row]))
    ]
    write_tar(tmp_path / "single.tar", *samples)
    moved = rebase(index, f"wds/{tmp_path}/single.tar")
    assert [moved.read(row) for row in range(12)] == [index.read(row) for row in range(12)]
    samples[1] = (samples[1][0], b"0")
    write_tar(tmp_path / "single.tar", *samples)
    with pytest.raises(ImagesError, match=r"holds 1 image \(train_00011.jpg\) under another class"):
        rebase(index, f"wds/{tmp_path}/single.tar")


def test_shards_of_class_folders_replay_a_cache_of_the_folder(tmp_path):
    for key in ("a/1.png", "b/2.png"):
        (tmp_path / "images" / key).parent.mkdir(parents=True)
        (tmp_path / "images" / key).write_bytes(key.encode())
    shard = write_tar(
        tmp_path / "s.tar", ("b/2.png", b"b/2.png"), ("b/2.cls", b"1"),
        ("a/1.png", b"a/1.png"), ("a/1.cls", b"0"),
    )  # fmt: skip
    moved = rebase(index_images(tmp_path / "images"), f"wds/{shard}")
    assert [moved.read(0), moved.read(1)] == [b"a/1.png", b"b/2.png"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ((("1.cls", b"0"),), r"sample 1 has 0 images among its 1 member \(1.cls\)"),
        ((("1.jpg", b""), ("1.png", b""), ("1.cls", b"0")), "sample 1 has 2 images"),
        ((("1.jpg", b""),), "1.jpg has no label: expected a .cls or .json"),
        ((("1.jpg", b""), ("1.cls", b"cat")), "the .cls of 1.jpg holds no label"),
        ((("1.jpg", b""), ("1.json", b"{")), "the .json of 1.jpg holds no label"),
        ((("1.jpg", b""), ("1.json", b"[]")), "the .json of 1.jpg holds no label"),
        ((("1.jpg", b""), ("1.jpg", b""), ("1.cls", b"0")), r"1 name \(1.jpg\) twice"),
        ((("readme", b""),), "holds no samples"),
    ],
)  # fmt: skip
def test_samples_without_one_image_and_a_label_are_refused(tmp_path, members, words):
    shard = write_tar(tmp_path / "odd.tar", *members)
    with pytest.raises(ImagesError, match=words):
        index_images(f"wds/{shard}")


def test_members_that_belong_to_no_sample_are_passed_over(tmp_path):
    shard = write_tar(
        tmp_path / "s.tar", ("__meta__/x.txt", b""), ("._1.jpg", b""), ("README", b""),
        ("dir.v1/1.seg.png", b"mask"), ("dir.v1/1.JPG", b"image"), ("dir.v1/1.cls", b"0\n"),
    )  # fmt: skip
    index = index_images(f"wds/{shard}")
    assert index.keys == ("dir.v1/1.JPG",)
    assert index.read(0) == b"image"


def test_remote_shards_and_missing_packages_and_folders_say_what_to_do(tmp_path, monkeypatch):
    for url in ("s3://bucket/{0..9}.tar", "pipe:cat x.tar", "https://host/a.tar"):
        with pytest.raises(ImagesError, match="must be local files: copy or mount them"):
            index_images(f"wds/{url}")
    with pytest.raises(ImagesError, match="holds no shards"):
        index_images(f"wds/{tmp_path}")
    with pytest.raises(ImagesError, match=r"1 shard \(.*/none\) not there"):
        index_images(f"wds/{tmp_path}/none")
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ImagesError, match="patterns need the package `webdataset`: pip install"):
        index_images(f"wds/{tmp_path}/{{0..9}}.tar")
