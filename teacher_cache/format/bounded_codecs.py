"""A chunk's bytes into memory whose size is known before: their claims allocate nothing.

The bytes may come from a stranger. A zstd frame states how much it holds, 4 GB in a hundred bytes,
and numcodecs allocates what it states; a pcodec chunk states how far back it looks, and pcodec
allocates up to 16 GB for that and ends the process where there is no room. So both statements are
read here first, and compared with what the layout of the cache asks for.
"""

import numpy as np

from teacher_cache.errors import CacheError

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PCODEC_MAGIC = b"pco!\x02"
"""With the version of the standalone format."""
_PCODEC_VERSION = b"\x03"
"""Of the chunks in it: pcodec 0.3's, to which numcodecs is bound."""
_PCODEC_TYPES = {"uint16": ("u16", 7), "uint32": ("u32", 1), "float16": ("f16", 9)}
"""NumPy's type -> pcodec's name and number of it."""
_LOOKBACK = 2
_MOST_LOOKBACK = 1 << 15
"""Over how many values pcodec's compressor looks back at most."""


def decode_zstd(data: bytes, out: np.ndarray) -> None:
    """Decompress one zstd frame into an array of one dimension.

    Raises:
        ValueError: bytes that are no frame, or a frame of another size.
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
        ValueError: bytes that are no such file, or hold another number of values.
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
    """What to do where the codec cannot be imported."""
    return CacheError(
        f"the cache's codec is not installed ({error}): pip install 'numcodecs[pcodec]'"
    )


def _chunk_in(data: bytes, out: np.ndarray) -> int:
    """Where the description of a file's first chunk begins: after its type and number of values."""
    if len(data) < 6 or not data.startswith(_PCODEC_MAGIC):
        raise ValueError("a chunk is no file of pcodec's")
    start = 5 + -(-(7 + data[5] % 64) // 8)  # past the hint at how many values there are
    if data[start : start + 1] != _PCODEC_VERSION:
        raise ValueError("a chunk is of another version of pcodec's format than 3")
    type_number, count = data[start + 1 : start + 2], data[start + 2 : start + 5]
    if type_number != bytes([_PCODEC_TYPES[out.dtype.name][1]]):
        raise ValueError(f"a chunk holds values of another type than {out.dtype.name}")
    if (values := int.from_bytes(count, "little") + 1) != len(out):
        raise ValueError(f"a chunk holds {values} values, not {len(out)}")
    _require_short_lookback(data[start + 5 : start + 13], 8 * out.itemsize)
    return start + 5


def _require_short_lookback(description: bytes, value_bits: int) -> None:
    bits = int.from_bytes(description, "little")
    mode = bits % 16
    if mode > 3:
        raise ValueError(f"a chunk is in a mode {mode} of pcodec's that is not known")
    bits >>= 4 + (0, value_bits, value_bits, 8)[mode]
    if bits % 16 == _LOOKBACK and 2 << (bits >> 4) % 32 > _MOST_LOOKBACK:
        raise ValueError(f"a chunk looks back over more than {_MOST_LOOKBACK} values")
