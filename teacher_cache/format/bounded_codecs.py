"""Decoders for chunks of a known size, which allocate nothing because a chunk asks for it.

The bytes may come from a stranger. A zstd frame states how much it holds, which can be 4 GB in a
hundred bytes, and numcodecs allocates what it states. A pcodec chunk states how far back it looks;
pcodec allocates up to 16 GB for that, and ends the process if there is no room. So both statements
are read here first, and compared with what the layout of the cache asks for.
"""

import numpy as np

from teacher_cache.errors import CacheError

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PCODEC_MAGIC = b"pco!\x02"
"""The first bytes of a file, which end in the version of pcodec's standalone format."""
_PCODEC_VERSION = b"\x03"
"""The version of the chunks in such a file: that of pcodec 0.3, which numcodecs needs."""
_PCODEC_TYPES = {"uint16": ("u16", 7), "uint32": ("u32", 1), "float16": ("f16", 9)}
"""NumPy's name of a type -> pcodec's name and number of it."""
_LOOKBACK = 2
"""pcodec's number of the delta encoding that looks back for a similar value."""
_MOST_LOOKBACK = 1 << 15
"""The most values that pcodec's compressor looks back over."""


def decode_zstd(data: bytes, out: np.ndarray) -> None:
    """Decompress one zstd frame into an array of one dimension.

    Raises:
        ValueError: the bytes are no zstd frame, or one of another size.
    """
    from numcodecs.zstd import decompress

    size = _stated_size(data)
    if size != out.nbytes:
        raise ValueError(f"a chunk holds {size} bytes, not {out.nbytes}")
    try:
        decompress(data, out.view(np.uint8))
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _stated_size(data: bytes) -> int:
    """How many bytes a zstd frame says that it holds (RFC 8878, section 3.1.1.1)."""
    if data[:4] != _ZSTD_MAGIC or len(data) < 5:
        raise ValueError("a chunk is no zstd frame")
    descriptor = data[4]
    is_single_segment = bool(descriptor & 32)
    # The upper bits of the descriptor tell the width of the size; the lower ones, of a dictionary's
    # id.
    width = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    start = 5 + int(not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    stated = data[start : start + width]
    if not width or len(stated) < width:
        raise ValueError("a chunk is a zstd frame that does not say how much it holds")
    return int.from_bytes(stated, "little") + (256 if width == 2 else 0)


def decode_pcodec(data: bytes, out: np.ndarray) -> None:
    """Decompress a pcodec file of one chunk into an array of one dimension.

    pcodec's own function for such files goes on to further chunks before it says that there are
    some, so the file is taken apart here and only its first chunk is given to pcodec.

    Raises:
        ValueError: the bytes are no such file, or hold another number of values.
        CacheError: pcodec is not installed.
    """
    try:
        from pcodec import wrapped
    except ImportError as error:
        raise pcodec_missing(error) from None
    start = _chunk_in(data, out)
    try:
        file, _ = wrapped.FileDecompressor.new(_PCODEC_VERSION)
        chunk, length = file.read_chunk_meta(data[start:], _PCODEC_TYPES[out.dtype.name][0])
        progress, page_length = chunk.read_page_into(data[start + length :], len(out), out)
    except (RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from None
    if progress.n_processed != len(out) or not progress.finished:
        raise ValueError(f"a chunk holds {progress.n_processed} values, not {len(out)}")
    if data[start + length + page_length :] != b"\0":
        raise ValueError(f"a chunk holds more than its {len(out)} values")


def pcodec_missing(error: ImportError) -> CacheError:
    """The error that pcodec cannot be imported, which says how to install it."""
    return CacheError(
        f"the cache's codec is not installed ({error}): pip install 'numcodecs[pcodec]'"
    )


def _chunk_in(data: bytes, out: np.ndarray) -> int:
    """Check a file's header; return where the description of its first chunk begins.

    The header states the version, the type and the number of the values.
    """
    if len(data) < 6 or not data.startswith(_PCODEC_MAGIC):
        raise ValueError("a chunk is no file of pcodec's")
    # The header holds a hint at the number of values: 6 bits say how many bits the hint has, less
    # one.
    start = 5 + -(-(7 + data[5] % 64) // 8)
    if data[start : start + 1] != _PCODEC_VERSION:
        raise ValueError("a chunk is of another version of pcodec's format than 3")
    # A byte for the type follows, and three bytes for the number of values, less one.
    type_number, count = data[start + 1 : start + 2], data[start + 2 : start + 5]
    if type_number != bytes([_PCODEC_TYPES[out.dtype.name][1]]):
        raise ValueError(f"a chunk holds values of another type than {out.dtype.name}")
    if (values := int.from_bytes(count, "little") + 1) != len(out):
        raise ValueError(f"a chunk holds {values} values, not {len(out)}")
    _require_short_lookback(data[start + 5 : start + 13], 8 * out.itemsize)
    return start + 5


def _require_short_lookback(description: bytes, value_bits: int) -> None:
    """Refuse a chunk that looks back over more values than pcodec's compressor ever does.

    The description begins with 4 bits for the mode, the mode's own bits, 4 bits for the delta
    encoding and, if that is `_LOOKBACK`, 5 bits for the logarithm of the window.
    """
    bits = int.from_bytes(description, "little")
    mode = bits % 16
    if mode > 3:
        raise ValueError(f"a chunk is in a mode {mode} of pcodec's that is not known")
    bits >>= 4 + (0, value_bits, value_bits, 8)[mode]
    if bits % 16 == _LOOKBACK and 2 << (bits >> 4) % 32 > _MOST_LOOKBACK:
        raise ValueError(f"a chunk looks back over more than {_MOST_LOOKBACK} values")
