"""Defaults of options from a project file: below flags and the environment, above the built-in.

A key is an option's long name without its dashes. In a command's table it holds for that command;
outside of it, for every command that has the option:

    device = "cuda"              # every command with --device

    [train-student]
    set = ["optimizer.lr=0.01"]

    [jobs]
    url = "http://gpu-1:8000"    # jobs ls, show, watch and cancel
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT_FILE = Path("retort.toml")
"""In the working directory."""


class ProjectFileError(ValueError):
    """A project file that cannot be read, or names an option that no command has."""


def project_defaults(file: Path, command: Any) -> dict[str, Any]:
    """Return what `file` sets, as the `default_map` of this click command; {} without a file.

    Raises:
        ProjectFileError: the file is not TOML, or a key is not an option of the command at hand.
    """
    if not file.is_file():
        return {}
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProjectFileError(f"{file}: {error}: expected TOML") from None
    for key in _unknown(command, document):
        raise ProjectFileError(
            f"{file}: got {key!r}, expected the name of a command, or of one of its options "
            f"('cli.py {' '.join(key.split('.')[:-1])} --help'), without the dashes"
        )
    return _defaults(command, document, {})


def _defaults(command: Any, table: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    values = {**above, **{key: value for key, value in table.items() if not _is_table(value)}}
    children = getattr(command, "commands", None)
    if children is None:
        options = _options(command)
        return {options[key]: value for key, value in values.items() if key in options}
    return {name: _defaults(child, table.get(name, {}), values) for name, child in children.items()}


def _unknown(command: Any, table: Mapping[str, Any], place: str = "") -> list[str]:
    children = getattr(command, "commands", None) or {}
    known = _all_options(command)
    found = []
    for key, value in table.items():
        if _is_table(value) and key in children:
            found += _unknown(children[key], value, f"{place}{key}.")
        elif _is_table(value) or key not in known:
            found.append(place + key)
    return found


def _all_options(command: Any) -> set[str]:
    children = (getattr(command, "commands", None) or {}).values()
    return set(_options(command)).union(*map(_all_options, children))


def _options(command: Any) -> dict[str, str]:
    """Return the long names of a command's options, and their parameters' names."""
    return {
        spelling.removeprefix("--"): parameter.name
        for parameter in command.params
        for spelling in parameter.opts
        if spelling.startswith("--")
    }


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)
