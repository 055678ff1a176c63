"""docs/students.md and docs/training.md: recipes are recipes, the table is what `models` counts."""

import re
import tomllib

import pytest
from repository import REPOSITORY
from small import cache_document, student_document

from student.models.survey import survey
from student.recipe import StudentRecipe
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe

PAGE = (REPOSITORY / "docs" / "students.md").read_text()


@pytest.mark.parametrize(("page", "at_least"), [("students", 2), ("training", 1)])
def test_the_pages_recipes_are_understood(page, at_least):
    text = (REPOSITORY / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= at_least
    for block in blocks:
        part = tomllib.loads(block)
        if "teacher" in part:
            parse_recipe(cache_document() | part, CacheRecipe, source=f"docs/{page}.md")
        else:
            parse_recipe(student_document() | part, StudentRecipe, source=f"docs/{page}.md")


def test_the_pages_table_holds_todays_counts():
    (row,) = re.findall(r"\| GhostNetV3 1\.0x +\|(.*)\|", PAGE)
    cells = [cell.strip() for cell in row.split("|")]
    (measured,) = survey(["ghostnetv3_100"], timed=False)
    assert cells[0] == f"{measured.params / 1e6:.3f}"
    assert cells[1] == f"{measured.macs / 1e6:.1f}"
    assert cells[2] == f"{measured.params_training / 1e6:.3f}"
