import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.shared_bytes import ALIGNMENT, NoMemory, Places, SharedBytes


def overlap(one, other):
    return max(one[0], other[0]) < min(one[0] + one[1], other[0] + other[1])


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 5)), max_size=60))
def test_places_never_overlap_start_at_pages_and_stay_inside(steps):
    places, taken = Places(100_000), []
    for size, forget in steps:
        start = places.take(size)
        if start is not None:
            assert start % ALIGNMENT == 0
            assert start + size <= places.size
            assert not any(overlap((start, size), other) for other in taken)
            taken.append((start, size))
        elif not taken:
            raise AssertionError("no room in empty memory")
        if forget < len(taken):
            places.give_back(taken.pop(forget)[0])


def test_the_lowest_free_place_is_given_so_that_warm_memory_is_used_again():
    places = Places(4 * ALIGNMENT)
    assert [places.take(ALIGNMENT) for _ in range(5)] == [0, 4096, 8192, 12288, None]
    places.give_back(8192)
    places.give_back(4096)
    assert places.take(2 * ALIGNMENT) == 4096


def test_a_place_that_is_not_taken_cannot_be_given_back():
    places = Places(ALIGNMENT)
    with pytest.raises(ValueError, match="no place starts at 7"):
        places.give_back(7)


def test_memory_stays_when_its_file_is_forgotten():
    shared = SharedBytes(8192)
    pixels = np.frombuffer(shared.memory, np.uint8)
    shared.forget_file()
    pixels[:] = 7
    assert shared.memory[8191] == 7


def test_memory_that_is_not_to_be_had_is_said_with_what_to_do():
    with pytest.raises(NoMemory, match=r"cannot be had .*lower loader.memory_mb"):
        SharedBytes(1 << 62)
