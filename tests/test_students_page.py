"""docs/students.md: its recipes are recipes, its table is what `cli.py models` counts."""

import re
import tomllib

from small import REPOSITORY, cache_document, student_document

from student.recipe import StudentRecipe
from student.survey import survey
from teacher_cache.recipe import CacheRecipe, parse_recipe

PAGE = (REPOSITORY / "docs" / "students.md").read_text()


def test_the_pages_recipes_are_understood():
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        part = tomllib.loads(block)
        if "teacher" in part:
            parse_recipe(cache_document() | part, CacheRecipe, source="docs/students.md")
        else:
            parse_recipe(student_document() | part, StudentRecipe, source="docs/students.md")


def test_the_pages_table_holds_todays_counts():
    (row,) = re.findall(r"\| GhostNetV3 1\.0x +\|(.*)\|", PAGE)
    cells = [cell.strip() for cell in row.split("|")]
    (measured,) = survey(["ghostnetv3_100"], timed=False)
    assert cells[0] == f"{measured.params / 1e6:.3f}"
    assert cells[1] == f"{measured.macs / 1e6:.1f}"
    assert cells[2] == f"{measured.params_training / 1e6:.3f}"
