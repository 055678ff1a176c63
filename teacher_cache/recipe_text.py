"""Recipes as users write them: TOML, `section.key=value`, and what is wrong with them in words."""

import tomllib
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from teacher_cache.errors import UserError, shortened


class RecipeError(UserError):
    """A recipe that cannot be read, or a key or value in it that is not understood."""

    exit_code = 2  # usage


def read_toml(path: Path, package: str) -> dict[str, Any]:
    """Read a file, or a recipe that ships with `package`.

    Raises:
        RecipeError: no such file, or not TOML.
    """
    shipped = resources.files(package) / "recipes"
    found = path if path.is_file() else shipped / f"{path.name.removesuffix('.toml')}.toml"
    if not found.is_file():
        names = sorted(f.name.removesuffix(".toml") for f in shipped.iterdir())
        raise RecipeError(
            f"{path}: no such file; give the path of a .toml file, or a shipped recipe: "
            + ", ".join(names)
        )
    try:
        return tomllib.loads(found.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from None


def override(document: dict[str, Any], change: str) -> None:
    """Apply one `section.key=value` to a document; the value is TOML, or else a plain string.

    Raises:
        RecipeError: it has another form.
    """
    name, equals, text = change.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not sections or not all(sections) or not key:
        raise RecipeError(f"--set got {change!r}, expected section.key=value")
    table = document
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {change}: {section} is a value, expected a section")
    table[key] = _toml_value(text.strip())


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text in {"True", "False", "None", "none", "null"}:
            raise RecipeError(
                f"--set got the value {text}, expected TOML: true, false, or no such key at all"
            ) from None
        return text  # a bare word: --set teacher.model=resnet10t


def explain(problem: Any, kind: type[BaseModel]) -> str:
    """What pydantic found wrong, as `section.key: what was got and expected`."""
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(kind, problem["loc"][:-1])
        close = get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "expected one of " + ", ".join(known)
        return f"{place}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{place}: missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    got = (
        ""
        if isinstance(problem["input"], dict | BaseModel)
        else f" (got {shortened(problem['input'])})"
    )
    return f"{place}: {message}{got}"


def _known_keys(kind: type[BaseModel], sections: tuple[str | int, ...]) -> list[str]:
    for section in sections:
        if isinstance(section, int):  # a place in a list of tables: the same kind
            continue
        annotation = kind.model_fields[section].annotation
        inner = get_args(annotation)
        annotation = inner[0] if get_origin(annotation) is tuple else annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return sorted(kind.model_fields)
