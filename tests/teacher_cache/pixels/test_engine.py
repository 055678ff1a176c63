"""The compiled engine gives Pillow's pixels, byte for byte, whatever it is given."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, picture
from PIL import Image, ImageOps
from repository import REPOSITORY

from teacher_cache.pixels.decode import decode_with
from teacher_cache.pixels.engine import COMPILED, PILLOW, Engine, native
from teacher_cache.pixels.ops import Step, apply_step
from teacher_cache.pixels.render import Picture, UnreadableImage, decode_image, render
from teacher_cache.pixels.resize import resize_crop
from teacher_cache.pixels.selftest import proved_engine
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import View, sample_view

pytestmark = pytest.mark.skipif(
    native is None, reason="the compiled engine is not built: run `make setup` with a C compiler"
)
BUSY = ViewPolicy(num_ops=4, op_probability=1, erase=1)
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 300))
FACTORS = st.floats(0.1, 1.9)
ARGUMENTS = {
    **dict.fromkeys(("autocontrast", "equalize", "invert"), st.none()),
    **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), FACTORS),
    "posterize": st.integers(1, 8),
    "solarize": st.integers(0, 256),
    "solarize_add": st.integers(0, 128),
    "affine": st.tuples(*[st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-60, 60)] * 2),
}


def photograph(width, height, seed):
    """Smooth, noisy, flat and saturated parts."""
    pixels = picture(width, height, seed=seed).copy()
    generator = np.random.default_rng(seed)
    flat = generator.integers(0, 256, 3)
    pixels[height // 3 : height // 2] = flat
    pixels[:, width // 2 : width // 2 + width // 5] //= 16
    pixels[-height // 4 :, : width // 3] = generator.choice([0, 255])
    return pixels


def jpeg_of(width, height, seed, gray, **options):
    image = Image.fromarray(photograph(width, height, seed))
    return encoded(image.convert("L") if gray else image, "JPEG", **options)


def test_the_whole_engine_is_proved_with_the_pinned_pillow():
    if os.environ.get("RETORT_PIXELS") == "pillow":
        pytest.skip("RETORT_PIXELS=pillow asks for Pillow")
    assert proved_engine() == COMPILED
    assert str(proved_engine()) == "compiled"
    assert str(PILLOW) == "pillow"


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(8, 200),
    height=st.integers(8, 200),
    seed=st.integers(0, 99),
    gray=st.booleans(),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    restart=st.sampled_from([0, 1, 3, 7]),
    optimize=st.booleans(),
    progressive=st.booleans(),
    view=st.integers(0, 1000),
)
def test_a_jpeg_decodes_as_by_pillow_in_whole_and_in_part(
    width, height, seed, gray, quality, subsampling, restart, optimize, progressive, view
):
    data = jpeg_of(
        width, height, seed, gray, quality=quality, subsampling=subsampling,
        restart_marker_blocks=restart, optimize=optimize, progressive=progressive and seed % 4 == 0,
    )  # fmt: skip
    expected = decode_with(PILLOW, data).pixels
    assert np.array_equal(decode_with(COMPILED, data).pixels, expected)
    seen = sample_view(BUSY, seed=0, key="a", view=view)
    part = decode_with(COMPILED, data, [seen])
    assert part.size == (width, height)
    left, top, right, bottom = part.box_of(seen)
    whole = Picture.of(expected).box_of(seen)
    assert np.array_equal(
        part.pixels[top:bottom, left:right], expected[whole[1] : whole[3], whole[0] : whole[2]]
    )


def test_plain_jpegs_are_read_by_the_compiled_decoder_and_others_are_not():
    assert native.jpeg_size(jpeg_of(64, 48, 0, gray=False)) == (64, 48)
    assert native.jpeg_size(jpeg_of(64, 48, 0, gray=True)) == (64, 48)
    cmyk = encoded(Image.fromarray(picture(64, 48)).convert("CMYK"), "JPEG")
    for data in (cmyk, jpeg_of(64, 48, 0, gray=False, progressive=True), b"", b"\xff\xd8"):
        assert native.jpeg_size(data) is None
    tiny = jpeg_of(15, 48, 0, gray=False)
    assert native.jpeg_size(tiny) is None


@pytest.mark.parametrize("gray", [False, True])
def test_a_damaged_jpeg_gives_what_pillow_gives(gray):
    generator = random.Random(gray)
    good = [
        jpeg_of(90, 70, 1, gray, quality=q, restart_marker_blocks=r)
        for q in (50, 95)
        for r in (0, 2)
    ]
    refused = 0
    for number in range(400):
        data = bytearray(good[number % len(good)])
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(2, len(data))] = generator.choice(
                [0, 255, generator.randrange(256)]
            )
        if number % 5 == 0:
            del data[generator.randrange(20, len(data)) :]
        refused += isinstance(same_as_pillow(bytes(data)), str)
    assert 0 < refused < 400


def same_as_pillow(data):
    """Pixels, or why there are none: of the whole, and whether a part at the top is given."""
    top = replace(sample_view(BUSY, seed=0, key="a", view=0), crops=((1 << 29, 1 << 18, 0, 0),))
    outcomes, refused = [], []
    for engine in (COMPILED, PILLOW):
        try:
            outcomes.append(decode_with(engine, data).pixels)
            refused.append(False)
        except UnreadableImage as error:
            outcomes.append(str(error))
            refused.append(True)
    assert np.array_equal(*outcomes)
    try:
        part = decode_with(COMPILED, data, [top])
    except UnreadableImage as error:
        assert outcomes[1] == str(error)
    else:
        assert not refused[1]
        left, upper, right, lower = part.box_of(top)
        box = Picture.of(outcomes[1]).box_of(top)
        assert np.array_equal(
            part.pixels[upper:lower, left:right], outcomes[1][box[1] : box[3], box[0] : box[2]]
        )
    return outcomes[1]


ODD_MARKERS = {
    "unknown": b"\xff\x02",
    "reserved": b"\xff\xf0",
    "a Huffman table cut short": b"\xff\xc4\x00\x05\x01\x02\x03",
    "application data past the end": b"\xff\xe1\xff\xff",
    "a restart": b"\xff\xd0",
    "a second image": None,
}


@pytest.mark.parametrize("what", ODD_MARKERS)
def test_what_stands_behind_the_bits_is_judged_by_pillow_wherever_the_part_is(what):
    data = jpeg_of(64, 64, 1, gray=False, quality=80)
    odd = ODD_MARKERS[what] or data
    same_as_pillow(data[:-2] + odd + b"\xff\xd9")
    cut = data[: len(data) - 400].removesuffix(b"\xff")
    same_as_pillow(cut + odd + b"\xff\xd9")


def test_one_odd_byte_below_the_part_is_found():
    data = bytearray(jpeg_of(64, 64, 1, gray=False, quality=80))
    data[data.rindex(b"\xff\x00") + 1] = 2
    assert isinstance(same_as_pillow(bytes(data)), str)


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe0\x00\x06JFIF",
        b"\xff\xe0\x00\x08JFIF\0\1",
        b"\xff\xee\x00\x07Adobe",
        b"\xff\xee\x00\x02",
    ],
)
def test_short_segments_are_judged_by_pillow(segment):
    data = jpeg_of(64, 48, 0, gray=False)
    at = data.index(b"\xff\xe0")
    behind = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    same_as_pillow(data[:at] + segment + data[behind:])


@pytest.mark.parametrize("factors", [0x63, 0xFF, 0x44, 0x22])
def test_a_gray_jpegs_sampling_factors_are_judged_by_pillow(factors):
    data = bytearray(jpeg_of(64, 48, 0, gray=True))
    data[data.index(b"\xff\xc0") + 11] = factors
    same_as_pillow(bytes(data))


def test_coefficients_beyond_libjpegs_16_bits_are_left_to_pillow():
    taken = 0
    for seed in range(120):
        generator = np.random.default_rng(seed)
        amplitude = int(generator.choice([4, 8, 16, 32]))
        noise = np.clip(128 + generator.integers(-amplitude, amplitude + 1, (16, 16)), 0, 255)
        rows = np.tile(noise[:1], (16, 1)) if seed % 2 else noise
        data = encoded(Image.fromarray(rows.astype(np.uint8)), "JPEG", qtables=[[1] * 64])
        at = data.index(b"\xff\xdb") + 5
        wild = data[:at] + bytes(generator.integers(1, 256, 64).tolist()) + data[at + 64 :]
        taken += native.jpeg_decode(wild, np.empty((16, 16, 3), np.uint8), 0, 0)
        same_as_pillow(wild)
    assert 0 < taken < 120


@settings(max_examples=200, deadline=None)
@given(
    width=SIDES, height=SIDES, seed=st.integers(0, 9), size=st.integers(1, 80),
    filter_name=st.sampled_from(sorted(COMPILED.filters)), flip=st.booleans(), data=st.data(),
)  # fmt: skip
def test_a_crop_is_resized_as_by_pillow(width, height, seed, size, filter_name, flip, data):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right = data.draw(st.integers(left + 1, width))
    bottom = data.draw(st.integers(top + 1, height))
    size = data.draw(st.sampled_from([size, right - left, bottom - top]))
    pixels, (ours, theirs) = photograph(width, height, seed), np.empty((2, size, size, 3), np.uint8)
    for out, engine in ((ours, COMPILED), (theirs, PILLOW)):
        resize_crop(
            pixels, (left, top, right, bottom), out,
            interpolation=filter_name, flip=flip, engine=engine,
        )  # fmt: skip
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 20_000), (20_000, 1), (3000, 2500)])
@pytest.mark.parametrize("filter_name", sorted(COMPILED.filters))
def test_the_smallest_longest_and_largest_crops_too(width, height, filter_name):
    pixels = picture(width, height)
    for size in (1, 2, 224):
        ours, theirs = np.empty((2, size, size, 3), np.uint8)
        for out, engine in ((ours, COMPILED), (theirs, PILLOW)):
            resize_crop(
                pixels, (0, 0, width, height), out,
                interpolation=filter_name, flip=False, engine=engine,
            )  # fmt: skip
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(COMPILED.steps))
@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 9), data=st.data())
def test_a_step_is_pillows(name, width, height, seed, data):
    step = Step(name, data.draw(ARGUMENTS[name]))
    ours = photograph(width, height, seed)
    theirs = ours.copy()
    apply_step(ours, step, engine=COMPILED)
    apply_step(theirs, step, engine=PILLOW)
    assert np.array_equal(ours, theirs)


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 150), height=st.integers(1, 150), seed=st.integers(0, 9),
    size=st.integers(1, 64), view=st.integers(0, 10**6), increasing=st.booleans(),
    filter_name=st.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
)  # fmt: skip
def test_a_view_is_the_same_by_either_engine(
    width, height, seed, size, view, increasing, filter_name
):
    policy = BUSY.model_copy(update={"increasing": increasing})
    seen = sample_view(policy, seed=3, key="b", view=view)
    data = jpeg_of(width, height, seed, gray=False)
    ours, theirs = (
        render(
            decode_image(data, views=[seen], engine=engine), seen,
            size=size, interpolation=filter_name, engine=engine,
        )
        for engine in (COMPILED, PILLOW)
    )  # fmt: skip
    assert np.array_equal(ours, theirs)


def test_a_picture_decoded_for_some_views_renders_them_and_refuses_others():
    data = jpeg_of(200, 160, 2, gray=False)
    small = View(((2**28, 65536, 0, 0),), flip=False, ops=(), erase=None, noise_key=b"")
    other = small.__class__(((2**28, 65536, 2**32 - 1, 2**32 - 1),), False, (), None, b"")
    part, both = decode_image(data, views=[small]), decode_image(data, views=[small, other])
    whole = decode_image(data)
    assert part.pixels.size < both.pixels.size <= whole.pixels.size
    for seen, pictures in ((small, (part, both)), (other, (both,))):
        expected = render(whole, seen, size=32)
        assert all(np.array_equal(render(p, seen, size=32), expected) for p in pictures)
    with pytest.raises(ValueError, match="decode with `views` that include it"):
        render(part, other, size=32)


def test_rendering_into_a_slot_writes_there_and_nowhere_else():
    ring = np.full((3, 32, 32, 3), 7, np.uint8)
    seen = sample_view(BUSY, seed=3, key="c", view=0)
    source = Picture.of(picture(60, 50))
    assert render(source, seen, size=32, out=ring[1]).base is ring
    assert np.array_equal(ring[1], render(source, seen, size=32))
    assert (ring[[0, 2]] == 7).all()
    with pytest.raises(ValueError, match="expected C-contiguous uint8"):
        render(source, seen, size=32, out=ring[:, :, :, 0])


BLACK = {shape: np.zeros(shape, np.uint8) for shape in ((4, 4, 3), (2, 2, 3), (4, 4), (0, 4, 3))}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resize_crop", (BLACK[4, 4, 3], BLACK[2, 2, 3], (0, 0, 5, 4), 2, False)),
        ("resize_crop", (BLACK[4, 4, 3], BLACK[2, 2, 3], (0, 0, 4, 4), 9, False)),
        ("resize_crop", (BLACK[4, 4], BLACK[2, 2, 3], (0, 0, 4, 4), 2, False)),
        ("invert", (BLACK[4, 4],)),
        ("invert", (BLACK[0, 4, 3],)),
        ("jpeg_decode", (b"", BLACK[4, 4], 0, 0)),
    ],
)
def test_the_compiled_functions_refuse_what_does_not_fit(name, arguments):
    with pytest.raises(ValueError, match="expected contiguous uint8 pixels|does not fit"):
        getattr(native, name)(*arguments)


def test_a_part_outside_the_jpeg_is_not_decoded():
    data = jpeg_of(64, 48, 0, gray=False)
    for left, top in ((-1, 0), (0, -1), (60, 0), (0, 45), (2**31 - 1, 2**31 - 1)):
        assert native.jpeg_decode(data, np.zeros((4, 8, 3), np.uint8), left, top) is False


def test_what_differs_from_the_installed_pillow_is_left_to_it(monkeypatch, caplog):
    # another Pillow, as far as the proof can tell
    monkeypatch.delenv("RETORT_PIXELS", raising=False)
    monkeypatch.setattr(ImageOps, "equalize", ImageOps.invert)
    engine = proved_engine.__wrapped__()
    assert engine == Engine(
        jpeg=True, filters=COMPILED.filters, steps=COMPILED.steps - {"equalize"}
    )
    assert "compiled, but equalize by pillow" in caplog.text


CRCS = """
import sys
if sys.argv[1] == "absent":
    sys.modules["teacher_cache.pixels._native"] = None  # as where no compiler was
from pictures import encoded, picture
from teacher_cache.pixels.selftest import proved_engine
from teacher_cache.pixels.render import decode_image, pixel_crc, render
from teacher_cache.views.view import ViewPolicy, sample_view
crcs, policy = [], ViewPolicy(num_ops=4, op_probability=1, erase=1)
for row in range(40):
    view = sample_view(policy, seed=1, key="a", view=row)
    data = encoded(picture(40 + 3 * row, 90, seed=row), "JPEG")
    crcs.append(pixel_crc(render(decode_image(data, views=[view]), view, size=57)))
print(proved_engine(), crcs)
"""


def test_without_the_compiled_engine_the_pixels_are_the_same():
    outputs = {}
    for how, settings_ in (
        ("present", {}),
        ("absent", {}),
        ("switched", {"RETORT_PIXELS": "pillow"}),
    ):
        paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests/support")))
        environment = {k: v for k, v in os.environ.items() if k != "RETORT_PIXELS"}
        done = subprocess.run(
            [sys.executable, "-c", CRCS, how],
            env=environment | settings_ | {"PYTHONPATH": paths},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        outputs[how] = done.stdout.split(" ", 1)
    assert [outputs[how][0] for how in outputs] == ["compiled", "pillow", "pillow"]
    assert outputs["present"][1] == outputs["absent"][1] == outputs["switched"][1]


def test_real_jpegs_decode_and_render_as_by_pillow():
    if "RETORT_DATA" not in os.environ:
        pytest.skip("set RETORT_DATA to a folder with imagenet-sample/ to read real JPEGs")
    paths = sorted(Path(os.environ["RETORT_DATA"], "imagenet-sample").rglob("*.JPEG"))[::5]
    plain = 0
    for row, path in enumerate(paths):
        data = path.read_bytes()
        plain += native.jpeg_size(data) is not None
        with Image.open(BytesIO(data)) as image:
            assert np.array_equal(decode_image(data).pixels, np.array(image.convert("RGB"))), path
        seen = sample_view(BUSY, seed=1, key=path.name, view=row)
        ours = render(decode_image(data, views=[seen]), seen, size=224)
        theirs = render(decode_image(data, engine=PILLOW), seen, size=224, engine=PILLOW)
        assert np.array_equal(ours, theirs), path
    assert plain > 0.9 * len(paths)
