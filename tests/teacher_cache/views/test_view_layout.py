"""What is committed: the tables, the layout of docs/views.md, and golden views."""

import json
import os
from dataclasses import asdict
from hashlib import shake_128

from mpmath import mp, mpf
from repository import GOLDEN

from teacher_cache.views.policy import RAND_AUGMENT_OPS, ViewPolicy
from teacher_cache.views.quantiles import quantiles
from teacher_cache.views.view import Box, Op, sample_view


def test_the_committed_tables_are_the_quantiles_they_claim_to_be():
    half = mpf(1) / 2

    def log_uniform(low, high, quantile):
        return mp.exp(mp.log(low) + (mp.log(high) - mp.log(low)) * quantile)

    with mp.workprec(200):
        parts = [(i + half) / 4096 for i in range(4096)]
        crop = [log_uniform(mpf(3) / 4, mpf(4) / 3, part) for part in parts]
        erase = [log_uniform(mpf(3) / 10, mpf(10) / 3, part) for part in parts]
        normal = [mp.sqrt(2) * mp.erfinv(2 * part - 1) for part in parts[2048:]]
        expected = [[int(mp.nint(value * 65536)) for value in table] for table in (crop, erase)]
        upper = [int(mp.nint(value * 65536)) for value in normal]
    assert list(quantiles().crop_ratio) == expected[0]
    assert list(quantiles().erase_ratio) == expected[1]
    assert list(quantiles().standard_normal) == [-value for value in reversed(upper)] + upper


def test_the_layout_of_docs_views_md_read_by_other_code():
    # A second implementation, from the page's words alone: one int.from_bytes per word.
    key = b"n01440764/\xff \xc3\xa9.JPEG"
    message = b"13:retort/view/1,2:2a,%d:%b,3:1f4," % (len(key), key)
    digest = shake_128(message).digest(960)
    word = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(120)]
    uniform = [w >> 32 for w in word]
    view = sample_view(ViewPolicy(erase=1), seed=42, key=os.fsdecode(key), view=500)

    assert view.flip == (uniform[0] < 2**31)
    assert view.noise_key == digest[16:32]
    low = round(0.08 * 2**32)
    for c, crop in enumerate(view.crops):
        area, ratio, x, y = uniform[4 + 4 * c : 8 + 4 * c]
        area = low + (area * (2**32 - low)) // 2**32
        assert crop == (area, quantiles().crop_ratio[ratio // 2**20], x, y)
    ops = []
    for o in range(2):
        which, applied, level, negate = uniform[44 + 4 * o : 48 + 4 * o]
        if applied < 2**31:
            name = RAND_AUGMENT_OPS[which * 15 // 2**32]
            z = quantiles().standard_normal[level // 2**20]
            level = min(max(9 * 65536 + (32768 * z + 32768) // 65536, 0), 655360)
            signed = name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
            ops.append(Op(name, level, signed and negate < 2**31))
    assert view.ops == tuple(ops)
    for e in range(10):
        area, ratio, top, left = uniform[60 + 4 * e : 64 + 4 * e]
        area = 85899346 + area * (1431655765 - 85899346) // 2**32
        ratio = quantiles().erase_ratio[ratio // 2**20]
        with mp.workprec(200):
            height = int(mp.floor(mp.sqrt(mpf(area) * ratio * 2**16)))
            width = int(mp.floor(mp.sqrt(mpf((area << 48) // ratio))))
        if height < 2**32 and width < 2**32:
            assert view.erase == Box(height, width, top, left)
            break


def golden_record(policy, seed, key, view):
    sampled = asdict(sample_view(ViewPolicy(**policy), seed=seed, key=os.fsdecode(key), view=view))
    sampled["noise_key"] = sampled["noise_key"].hex()
    arguments = {"policy": policy, "seed": seed, "key_hex": key.hex(), "view": view}
    # Through JSON, so that tuples and lists compare alike.
    return json.loads(json.dumps({**arguments, "sampled": sampled}))


def test_golden_views_have_not_moved():
    # If this fails, every cache in the world must be refilled. Do not regenerate: find the change.
    records = json.loads((GOLDEN / "views.json").read_text("utf-8"))
    assert len(records) >= 50
    for record in records:
        key = bytes.fromhex(record["key_hex"])
        again = golden_record(record["policy"], record["seed"], key, record["view"])
        assert again == record
