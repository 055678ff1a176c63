"""Chunks that lie about themselves: refused before anything is allocated or decoded for them."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from numcodecs import zstd
from numcodecs.pcodec import PCodec
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone
from repository import REPOSITORY

from teacher_cache.format.bounded_codecs import decode_pcodec, decode_zstd

RNG = np.random.default_rng(0)
IDS = np.sort(RNG.integers(0, 1000, (4096, 10)), 1).astype("<u2").reshape(-1)
LOGP = -np.sort(RNG.exponential(3, (4096, 10)), 1).astype("<f2").reshape(-1)
WIDE = RNG.integers(0, 2**31, 4096).astype("<u4")
MODES = (ModeSpec.classic(), ModeSpec.try_float_mult(0.5), ModeSpec.try_int_mult(10))
DELTAS = (DeltaSpec.none(), DeltaSpec.try_consecutive(2), DeltaSpec.try_lookback())


def chunks():
    """Sound chunks: (values, bytes, how to decode them)."""
    for values in (IDS, LOGP, WIDE, LOGP[:320].copy(), 10 * IDS):
        yield values, bytes(PCodec().encode(values)), decode_pcodec
        yield values, bytes(zstd.compress(values, 3)), decode_zstd
        for mode in MODES:
            for delta in DELTAS:
                try:
                    config = ChunkConfig(mode_spec=mode, delta_spec=delta)
                    yield values, standalone.simple_compress(values, config), decode_pcodec
                except RuntimeError:
                    continue  # a mode of floats for integers


def lookback_of_2_to_31():
    chunk = bytearray(
        standalone.simple_compress(
            IDS, ChunkConfig(mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.try_lookback())
        )
    )
    assert chunk[14] % 32 == 14  # 2^15 values
    chunk[14] |= 31
    return bytes(chunk)


def test_every_way_to_spell_values_comes_back():
    count = 0
    for values, data, decode in chunks():
        out = np.zeros_like(values)
        decode(data, out)
        assert out.tobytes() == values.tobytes()
        count += 1
    assert count > 30


@pytest.mark.parametrize("stated", [0, 2 * len(IDS) - 1, 2 * len(IDS) + 1, 1 << 32, 1 << 62])
def test_a_zstd_frame_that_states_another_size_is_refused_unread(stated):
    frame = zstd.compress(IDS, 3)
    body = bytes(frame[5 + 1 + 4 :])  # after magic, descriptor, window and size
    lie = frame[:4] + bytes([0xC0]) + frame[5:6] + stated.to_bytes(8, "little") + body
    with pytest.raises(ValueError, match=f"a chunk holds {stated} bytes, not {IDS.nbytes}"):
        decode_zstd(lie, np.zeros_like(IDS))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no zstd frame"),
        (b"\x28\xb5\x2f\xfd", "no zstd frame"),
        (b"\x28\xb5\x2f\xfd\xc0\x00\x00", "does not say how much"),
        (b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00", "does not say how much"),
        (bytes(zstd.compress(IDS, 3))[:-2], "."),
        (bytes(zstd.compress(IDS, 3)) + b"x", "."),
    ],
)
def test_what_is_no_whole_zstd_frame_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        decode_zstd(data, np.zeros_like(IDS))


def test_a_pcodec_chunk_that_looks_back_further_than_a_compressor_does_is_refused():
    with pytest.raises(ValueError, match="looks back over more than 32768 values"):
        decode_pcodec(lookback_of_2_to_31(), np.zeros_like(IDS))


def test_a_second_chunk_is_refused_before_pcodec_sees_it():
    first = bytes(PCodec().encode(IDS))
    with pytest.raises(ValueError, match="more than its 40960 values"):
        decode_pcodec(first[:-1] + lookback_of_2_to_31()[9:], np.zeros_like(IDS))


def test_a_pcodec_chunk_of_another_type_version_or_length_is_refused():
    data = bytes(PCodec().encode(IDS))
    for other, words in (
        (data[:4] + b"\x03" + data[5:], "no file of pcodec's"),
        (data[:8] + b"\x04" + data[9:], "another version"),
        (bytes(PCodec().encode(IDS.view("<f2"))), "another type than uint16"),
        (bytes(PCodec().encode(IDS[:-1])), "40959 values, not 40960"),
        (data[:10] + b"\xff\xff\xff" + data[13:], "16777216 values, not 40960"),
        (data[:-1], "more than its"),
        (data[:20], "."),
        (b"", "no file of pcodec's"),
    ):
        with pytest.raises(ValueError, match=words):
            decode_pcodec(other, np.zeros_like(IDS))


HOSTILE = """
import sys, resource, numpy as np
from teacher_cache.format.bounded_codecs import decode_pcodec

out = np.zeros(40960, "<u2")
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    decode_pcodec(bytes.fromhex(sys.stdin.read()), out)
except ValueError as error:
    print(error)
"""


def test_a_lie_of_16_gb_does_not_end_the_process():
    """pcodec itself aborts where its allocator refuses: no exception, no finally."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], input=lookback_of_2_to_31().hex(),
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "looks back" in done.stdout


def mutated(data, rng):
    changed = bytearray(data)
    at, near = int(rng.integers(len(data))), int(rng.integers(min(len(data), 40)))
    match int(rng.integers(5)):
        case 0:
            changed[near] ^= 1 << int(rng.integers(8))
        case 1:
            changed[at] = int(rng.integers(256))
        case 2:
            del changed[at:]
        case 3:
            changed[near : near + 9] = rng.bytes(int(rng.integers(1, 30)))
        case 4:
            changed[near : near + int(rng.integers(1, 9))] = b"\xff" * 8
    return bytes(changed)


def test_no_changed_chunk_does_more_than_be_refused_or_give_other_values():
    rng = np.random.default_rng(1)
    sound = list(chunks())
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20_000):
        values, data, decode = sound[int(rng.integers(len(sound)))]
        try:
            decode(mutated(data, rng), np.zeros_like(values))
        except ValueError:
            refused += 1
    assert refused > 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10  # KiB
