"""Recipes as users write them: TOML and `section.key=value`, read, checked and refused in words."""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from teacher_cache.errors import LocationError, UserError, shortened
from teacher_cache.local_path import local_path

PositiveInt = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What TOML can hold and torch takes."""


def _in_this_file_system(path: Path) -> Path:
    try:
        return local_path(path)
    except LocationError as error:
        raise ValueError(str(error)) from None


LocalPath = Annotated[Path, AfterValidator(_in_this_file_system)]
"""A file or folder of this machine, its `~` expanded."""


def _within_float32(temperature: float) -> float:
    if not 0.01 <= temperature <= 100:
        raise ValueError(
            f"a temperature of {temperature}, expected 0.01 to 100: tau^2 times a divergence of "
            "nearly equal distributions is mostly rounding beyond that"
        )
    return temperature


Temperature = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_within_float32)]
"""tau of a softmax. Up to 100 the gradient of tau^2 KL, computed in float32 from float16 records,
is within 5% of the exact one; at 1000 it is not within 15%
(`tests/student/losses/test_distillation.py`)."""


class Section(BaseModel):
    """One table of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class RecipeError(UserError):
    """A recipe that cannot be read, or a key or value in it that is not understood."""

    exit_code = 2  # usage


Recipe = TypeVar("Recipe", bound=Section)


def load_recipe(
    path: Path, kind: type[Recipe], *, overrides: Iterable[str] = (), package: str
) -> Recipe:
    """Read a TOML recipe and apply `section.key=value` overrides.

    Args:
        path: a file, or the name of a recipe that ships with `package` (with or without `.toml`).
        kind: `CacheRecipe` or `StudentRecipe`.
        overrides: what the user passed with `--set`; values are TOML, or else plain strings;
            `none` takes a key away, or says None where that is a value of the key.
        package: where shipped recipes lie, such as `teacher_cache`.

    Raises:
        RecipeError: naming the file, the key, what it got and what it expected.
    """
    document = read_toml(path, package)
    for change in overrides:
        override(document, change, kind)
    return parse_recipe(document, kind, source=str(path))


def parse_recipe(document: Mapping[str, Any], kind: type[Recipe], *, source: str) -> Recipe:
    """Validate a recipe that was read already; `source` names it in errors."""
    _require_kind(document, kind, source)
    if lines := [*_truth_values(document, kind, ())][:_MOST_PROBLEMS]:
        raise RecipeError(f"{source}: " + "; ".join(lines))
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        problems = error.errors()
        lines = [explain(problem, kind) for problem in problems[:_MOST_PROBLEMS]]
        if len(problems) > _MOST_PROBLEMS:
            lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
        raise RecipeError(f"{source}: " + "; ".join(lines)) from None


def _truth_values(
    table: Mapping[str, Any], kind: type[BaseModel], place: tuple[str, ...]
) -> Iterator[str]:
    """Every true and false where a number is meant: to Python they are 1 and 0."""
    for key, value in table.items():
        if key not in kind.model_fields:
            continue
        kinds = _kinds_of(kind.model_fields[key].annotation)
        items = value if isinstance(value, list | tuple) else [value]
        tables = [item for item in kinds if isinstance(item, type) and issubclass(item, BaseModel)]
        for item in items:
            if isinstance(item, Mapping) and tables:
                yield from _truth_values(item, tables[0], (*place, key))
            elif isinstance(item, bool) and bool not in kinds and {int, float} & kinds:
                yield f"{'.'.join((*place, key))}: got {str(item).lower()}, expected a number"


def _kinds_of(annotation: Any) -> set[Any]:
    """A type, or those that a union, a tuple or an Annotated is made of."""
    parts = get_args(annotation)
    return set().union(*map(_kinds_of, parts)) if parts else {_hashable(annotation)}


def _hashable(annotation: Any) -> Any:
    return annotation if isinstance(annotation, type) else None


_MOST_PROBLEMS = 8
"""So many mistakes are told at once; a recipe out of a stranger's cache may hold thousands."""

_PURPOSE = {
    "teacher": "a cache recipe, for cache-teacher and plan-cache",
    "student": "a student recipe, for train-student",
}
"""What a recipe is for, by the one section that only this kind has."""


def _require_kind(document: Mapping[str, Any], kind: type[Section], source: str) -> None:
    """One sentence for a recipe of the other job, instead of an error for each of its keys."""
    own = [section for section in _PURPOSE if section in kind.model_fields]
    others = [section for section in _PURPOSE if section in document and section not in own]
    if own and others and not any(section in document for section in own):
        raise RecipeError(
            f"{source}: this is {_PURPOSE[others[0]]} (it has [{others[0]}] and no [{own[0]}]), "
            f"expected {_PURPOSE[own[0]]}"
        )


def digest_of(value: object) -> str:
    """SHA-256, in hexadecimal, of a JSON value in its canonical spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_toml(path: Path, package: str, *, folder: str = "recipes") -> dict[str, Any]:
    """Read a file, or one that ships in a `folder` of `package`.

    Raises:
        RecipeError: no such file, or not TOML.
    """
    shipped = _shipped(package, folder)
    path = local_path(path)
    found = path if path.is_file() else shipped.get(path.name.removesuffix(".toml"))
    if found is None:
        what = "a folder, and no file" if path.is_dir() else "no such file"
        raise RecipeError(
            f"{path}: {what}; give the path of a .toml file, or the name of one of the "
            f"shipped {folder}: " + ", ".join(shipped)
        )
    try:
        return tomllib.loads(found.read_bytes().decode("utf-8-sig"))
    except ValueError as error:  # of the text, its encoding, or a number of thousands of digits
        raise RecipeError(f"{path}: not TOML: {error}") from None


def shipped_recipes(package: str, *, folder: str = "recipes") -> dict[str, str]:
    """Return what ships in a `folder` of `package` by name, and what each says of itself first."""
    shipped = _shipped(package, folder)
    return {name: _head_comment(file.read_text()) for name, file in shipped.items()}


def _shipped(package: str, folder: str) -> dict[str, Traversable]:
    files = (resources.files(package) / folder).iterdir()
    named = {f.name.removesuffix(".toml"): f for f in files if f.name.endswith(".toml")}
    return dict(sorted(named.items()))


def _head_comment(text: str) -> str:
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in comment)


def override(document: dict[str, Any], change: str, kind: type[BaseModel]) -> None:
    """Apply one `section.key=value` to a document; the value is TOML, or else a plain string.

    `none` is None where the key of this kind of recipe may be that, and else takes the key away.

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
    value = _toml_value(text.strip())
    if value is None and not _may_be_none(kind, [*sections, key]):
        table.pop(key, None)
    else:
        table[key] = value


def _may_be_none(kind: type[BaseModel], keys: list[str]) -> bool:
    for key in keys[:-1]:
        found = kind.model_fields[key].annotation if key in kind.model_fields else None
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return False
        kind = found
    if keys[-1] not in kind.model_fields:
        return True  # told as an unknown key
    return type(None) in _kinds_of(kind.model_fields[keys[-1]].annotation)


def _toml_value(text: str) -> object:
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text in {"True", "False", "None", "null"}:
            raise RecipeError(
                f"--set got the value {text}, expected TOML: true, false, or none to take the key "
                "away"
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
