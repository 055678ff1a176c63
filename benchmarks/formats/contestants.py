"""Every layout that this machine can measure, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.formats import mds, retort, tinyvit
from benchmarks.formats.rows import OpenView
from teacher_cache.record import Encoding, TopK


def _nothing(folder: Path, records: TopK) -> None:
    """Most layouts have no part that is shared by views."""


def _no_bytes(folder: Path) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Contestant:
    """One layout."""

    name: str
    write: Callable[[Path, TopK], None]
    """Every file of one view."""
    reader: Callable[[Path], OpenView]
    """Opens a view for an epoch."""
    prepare: Callable[[Path, TopK], None] = _nothing
    """What is made once for all views."""
    index_bytes: Callable[[Path], int] = _no_bytes
    """How many bytes of the folder that is."""


def contestants() -> list[Contestant]:
    """Retort's encodings, then its peers; without those whose library is not installed."""
    found = [_retort(encoding) for encoding in Encoding]
    found.append(Contestant("TinyViT", tinyvit.write, tinyvit.Reader))
    if find_spec("pyarrow"):
        kit = import_module("benchmarks.formats.distillkit")
        parquet = import_module("benchmarks.formats.parquet")
        for name in ("budget", "recommended"):
            write = partial(kit.write, getattr(kit, name))
            found.append(Contestant(f"DistillKit, {name}", write, kit.Reader))
        found.append(Contestant("Parquet, lists", parquet.write_lists, parquet.Reader))
        found.append(Contestant("Parquet, split bytes", parquet.write_split, parquet.Reader))
    if find_spec("h5py"):
        hdf5 = import_module("benchmarks.formats.hdf5")
        found.append(Contestant("HDF5", hdf5.write, hdf5.Reader))
    found.append(Contestant("MDS", mds.write, mds.Reader))
    return found


def skipped() -> list[str]:
    """What `contestants` leaves out here, and why."""
    needs = {"pyarrow": "DistillKit and Parquet", "h5py": "HDF5"}
    return [f"{name}: no {library}" for library, name in needs.items() if not find_spec(library)]


def _retort(encoding: Encoding) -> Contestant:
    return Contestant(
        f"Retort, {encoding.value}",
        retort.write,
        retort.Reader,
        partial(retort.prepare, encoding),
        retort.index_bytes,
    )
