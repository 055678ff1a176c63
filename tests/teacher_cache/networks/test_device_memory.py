"""Networks that need more memory than there is: one sentence, with the keys to change."""

import numpy as np
import pytest
import torch
from small import CPU, build_teacher, cache_recipe, student_document

from student.data.batches import MicroBatch
from student.recipe import StudentRecipe
from student.training.trainee import Trainee
from teacher_cache.images.index import index_images
from teacher_cache.networks.device_memory import OutOfMemory, out_of_memory_in_words
from teacher_cache.recipes.document import parse_recipe

# As float32 these are 800 TB, more than any process can address; as they are, three bytes.
TOO_LARGE = torch.zeros((1, 1, 1, 3), dtype=torch.uint8).expand(1, 2**23, 2**23, 3)


def test_an_allocation_that_fails_is_told_and_other_errors_are_let_through():
    with (
        pytest.raises(OutOfMemory, match="a batch does not fit into memory .*: lower it, or end"),
        out_of_memory_in_words("a batch", "lower it"),
    ):
        torch.empty(2**50)
    with pytest.raises(OutOfMemory, match="CUDA out of memory"), out_of_memory_in_words("x", "y"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    with pytest.raises(RuntimeError, match="size mismatch"), out_of_memory_in_words("x", "y"):
        raise RuntimeError("size mismatch")


def test_a_teachers_batch_names_its_keys(scans):
    index = index_images(scans / "train")
    teacher = build_teacher(cache_recipe(), index)
    with pytest.raises(OutOfMemory, match=r"batch of 1 images .* lower teacher\.batch_size"):
        teacher.logits_of_batch(TOO_LARGE, 1)


def test_a_training_step_names_its_keys():
    recipe = parse_recipe(student_document(distill__alpha=0.0), StudentRecipe, source="test")
    trainee = Trainee.build(recipe, 3, 32, CPU)
    batch = MicroBatch(np.arange(1), TOO_LARGE, torch.zeros(1, dtype=torch.int64), None)
    with pytest.raises(OutOfMemory, match=r"step of 1 images .* lower optimizer\.micro_batch"):
        trainee.step([batch], lr=0.1, step=0)
