"""Where the time of a view goes: reading, decoding, and the parts of rendering."""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

from teacher_cache.loading.renderers import ViewRenderer
from teacher_cache.pixels.render import Picture, decode_image, render
from teacher_cache.views.view import View, sample_view

ROUNDS = 3
"""Turns that are taken at least; a figure is the median of its turns."""


def turns(seconds: float) -> Iterator[int]:
    """Count turns until the time is over; the first, for warming up, is thrown away by medians."""
    started = time.perf_counter()
    for turn in itertools.count():
        if turn >= ROUNDS and time.perf_counter() - started > seconds:
            return
        yield turn


def stages(renderer: ViewRenderer, seconds: float) -> dict[str, float]:
    """Microseconds an image, means over the sample, medians over turns.

    Operations and erasing are what rendering takes longer with them than without.
    """
    found: dict[str, list[float]] = {}
    for number in turns(seconds):
        spent = _staged(renderer, number)
        for name, value in spent.items():
            found.setdefault(name, []).append(1e6 * value / len(renderer.index))
    return {name: max(statistics.median(values), 0.0) for name, values in found.items()}


def _staged(renderer: ViewRenderer, number: int) -> dict[str, float]:
    """Seconds that a view of every sampled image spends in each stage."""
    clock = time.perf_counter
    names = ("read", "decode", "crop+resize", "ops", "erase", "sample")
    spent = dict.fromkeys(names, 0.0)
    for row, key in enumerate(renderer.index.keys):
        at = [clock()]
        data = renderer.index.read(row)
        at.append(clock())
        view = sample_view(renderer.policy, seed=renderer.seed, key=key, view=number)
        at.append(clock())
        picture = decode_image(data, views=[view])
        at.append(clock())
        plain_s, with_ops_s, whole_s = _rendering(renderer, picture, view)
        parts = (
            at[1] - at[0],
            at[3] - at[2],
            plain_s,
            with_ops_s - plain_s,
            whole_s - with_ops_s,
            at[2] - at[1],
        )
        for name, part in zip(names, parts, strict=True):
            spent[name] += part
    return spent


def _rendering(renderer: ViewRenderer, picture: Picture, view: View) -> list[float]:
    """Seconds to render a view without operations and erasing, with operations, and with both."""
    plain = replace(view, ops=(), erase=None)
    with_ops = replace(view, erase=None) if view.ops else plain
    took: dict[int, float] = {}
    variants = [plain, with_ops, view if view.erase else with_ops]
    for variant in variants:
        if id(variant) not in took:
            started = time.perf_counter()
            render(picture, variant, size=renderer.size, interpolation=renderer.interpolation)
            took[id(variant)] = time.perf_counter() - started
    return [took[id(variant)] for variant in variants]
