import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.loading.shared_memory import ALIGNMENT, NoMemory, SharedBytes, Slots


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=60))
def test_a_slot_is_never_given_twice_and_none_is_lost(steps):
    slots, taken = Slots(4, ALIGNMENT), []
    for forget in steps:
        if forget is None:
            start = slots.take()
            assert (start is None) == (len(taken) == 4)
            if start is not None:
                assert start not in taken
                assert start in range(0, 4 * ALIGNMENT, ALIGNMENT)
                taken.append(start)
        elif forget < len(taken):
            slots.give_back(taken.pop(forget))
        assert slots.taken == len(taken)


def test_the_lowest_free_slot_is_given_so_that_warm_memory_is_used_again():
    slots = Slots(4, 10)
    assert [slots.take() for _ in range(5)] == [0, 10, 20, 30, None]
    slots.give_back(20)
    slots.give_back(10)
    assert slots.take() == 10


def test_a_slot_that_is_not_taken_cannot_be_given_back():
    slots = Slots(2, 10)
    with pytest.raises(ValueError, match="no taken slot starts at 0"):
        slots.give_back(0)


def test_memory_stays_when_its_file_is_forgotten():
    shared = SharedBytes(8192)
    pixels = np.frombuffer(shared.memory, np.uint8)
    shared.forget_file()
    pixels[:] = 7
    assert shared.memory[8191] == 7


def test_memory_that_is_not_to_be_had_is_said_with_what_to_do():
    with pytest.raises(NoMemory, match=r"cannot be had .*lower loader.memory_mb"):
        SharedBytes(1 << 62)
