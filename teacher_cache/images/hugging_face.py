"""A data set of Hugging Face's `datasets`, under timm's name for it: `hfds/NAME`.

timm's own reader must be told the columns and the split. Apart from that it opens the data set as
this module does, and a test compares the two.
"""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Self

import numpy as np

from teacher_cache.errors import reason_of
from teacher_cache.images.source import (
    ImagesError,
    Listing,
    choose_split,
    keys_of,
    printable,
    read_regular_file,
    split_of,
)


@dataclass(frozen=True, slots=True, eq=False)
class DatasetImages:
    """Images in rows of a `datasets.Dataset`, whose files every process maps for itself."""

    dataset: Any
    """One column of undecoded images."""
    column: str
    rows: np.ndarray
    """int64 [N] rows of the data set."""

    def read(self, row: int) -> bytes:
        """The encoded bytes of one image, or no bytes if the data set has no image in this row."""
        image = self.dataset[int(self.rows[row])][self.column]
        if image is None or not (image["bytes"] or image["path"]):
            return b""
        return image["bytes"] or read_regular_file(Path(image["path"]))

    def take(self, rows: np.ndarray) -> Self:
        """Some of the images: row i of the result is row `rows[i]` of these."""
        return type(self)(self.dataset, self.column, self.rows[rows])


def list_dataset(name: str) -> Listing:
    """List NAME or NAME:SPLIT: a data set of the hub, its local copy, or one saved to a folder.

    A key is the class and the stored file name. If a file name is missing or not unique, each key
    is the class and the number of the row.

    Raises:
        ImagesError: `datasets` is not installed, there is no such data set or split, or a row has
            not one image and one label.
    """
    name, split = split_of(name)
    dataset = _open(name, split)
    image, label = _columns(dataset, name)
    classes, labels, ids = _labels(dataset, label, name)
    keys = _keys(dataset, image, [classes[number] for number in labels.tolist()])
    import datasets

    undecoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    source = DatasetImages(undecoded, image, np.arange(len(dataset)))
    root = Path(f"hfds/{name}")
    return Listing(root, keys_of(keys, root), classes, labels, ids, source)


def _open(name: str, split: str | None) -> Any:
    if not _may_be_on_the_hub(name) and not Path(name).exists():
        raise ImagesError(f"hfds/{name}: there is no such folder: {printable(name)}")
    try:
        import datasets
    except ImportError:
        raise ImagesError(f"hfds/{name} needs `datasets`: pip install datasets") from None
    try:
        if any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)  # save_to_disk writes one split, or several
            if isinstance(saved, datasets.Dataset):
                saved = {str(saved.split or "train"): saved}
            return saved[choose_split(list(saved), split, f"hfds/{name}")]
        if split is None:
            split = choose_split(datasets.get_dataset_split_names(name), split, f"hfds/{name}")
        return datasets.load_dataset(name, split=split)
    except ImagesError:
        raise
    except Exception as error:  # the library, the network and the format raise many types
        raise ImagesError(
            f"hfds/{name} cannot be opened ({reason_of(error)}): expected a data set's "
            "name on the hub, a folder of its files, or one written by save_to_disk"
        ) from error


def _may_be_on_the_hub(name: str) -> bool:
    """NAME or USER/NAME; a path is not asked for there, again and again, for a quarter minute."""
    return name.count("/") < 2 and not name.startswith((".", "/"))


def _columns(dataset: Any, name: str) -> tuple[str, str]:
    """The names of the columns of images and of labels."""
    import datasets

    features = dataset.features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not labels:
        labels = [key for key in ("label", "cls", "class") if key in features]
    return (
        _one(images, "image", f"hfds/{name}", "images"),
        _one(labels, "label", f"hfds/{name}", "labels"),
    )


def _one(columns: list[str], usual: str, data: str, what: str) -> str:
    if usual in columns:
        return usual
    if len(columns) == 1:
        return columns[0]
    if not columns:
        raise ImagesError(f"{data} has no column of {what}: nothing to train on")
    raise ImagesError(
        f"{data} has {len(columns)} columns of {what} ({', '.join(columns)}): save it with one of "
        f"them, or with one called {usual!r}"
    )


def _labels(
    dataset: Any, column: str, name: str
) -> tuple[list[str], np.ndarray, dict[str, int] | None]:
    """Class names, int64 [N] positions in them, and the ids that the data set gives its classes.

    There are no ids if the labels are names.
    """
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    names = getattr(dataset.features[column], "names", None)
    if values.null_count:
        raise ImagesError(
            f"hfds/{name}: {values.null_count} of its {len(values)} rows have no label (null): "
            "choose another split, or save the set without them"
        )
    found = np.array(values.to_pylist())
    if found.ndim == 1 and found.dtype.kind in "iu":
        if (found < 0).any() or (names and (found >= len(names)).any()):
            raise ImagesError(
                f"hfds/{name}: {int((found < 0).sum())} of its {len(found)} rows have no label, as "
                "in test splits: choose another split"
            )
        names = names or [str(number) for number in range(int(found.max()) + 1)]
        return list(names), found.astype(np.int64), {key: n for n, key in enumerate(names)}
    if found.ndim == 1 and found.dtype.kind == "U":
        classes, labels = np.unique(found, return_inverse=True)
        return classes.tolist(), labels.astype(np.int64), None
    raise ImagesError(
        f"hfds/{name}: column {column!r} holds {dataset.features[column]}; expected one class a "
        "row, as a number or a name"
    )


def _keys(dataset: Any, column: str, classes: list[str]) -> list[str]:
    import pyarrow.compute as pc

    images = dataset.select_columns([column]).with_format("arrow")[:][column]
    paths = pc.struct_field(images, "path").to_pylist()
    if None not in paths:
        keys = [
            f"{of_class}/{PurePath(path).name}"
            for of_class, path in zip(classes, paths, strict=True)
        ]
        if len(set(keys)) == len(keys):
            return keys
    return [f"{of_class}/{row:08}" for row, of_class in enumerate(classes)]
