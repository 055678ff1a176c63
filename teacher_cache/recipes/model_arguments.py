"""What a recipe may pass on to a model's constructor, and which model names it may use.

A recipe is a text that people send to each other, so it must not be able to run code or to read a
file that it does not name openly. timm's and torchvision's constructors take arguments that do
both: `checkpoint_path` unpickles a file, `pretrained_cfg` names another file, URL or hub
repository to load. These are refused by name, in favour of `teacher.checkpoint`, whose loading is
Retort's own and whose weights have a digest. Values are refused unless they are plain: a table
could carry the same settings a level deeper (`pretrained_cfg` is one).

A name with a scheme (`hf-hub:USER/REPOSITORY`, `local-dir:FOLDER`) is refused, too: such a source
brings a configuration of its own, whose `model_args` reach the constructor unseen by the rule
above. Registered names with `pretrained = true` load from the hub as ever, by timm's own table.
"""

import math
from typing import Annotated, Any

from pydantic import AfterValidator

_LOADING = frozenset({
    "cache_dir",
    "checkpoint_path",
    "custom_load",
    "file",
    "hf_hub_filename",
    "hf_hub_id",
    "model_cfg",
    "model_dir",
    "model_name",
    "source",
    "state_dict",
    "url",
    "weights",
    "weights_backbone",
})  # fmt: skip
"""Arguments of timm 1.0.20 to 1.0.31 and torchvision 0.26 that choose what is loaded; besides
these, whatever begins with `pretrained`."""


def _require_plain_values(arguments: dict[str, Any]) -> dict[str, Any]:
    for name, value in arguments.items():
        if not _is_plain(value):
            raise ValueError(
                f"got {name} = {value!r:.80}, expected a string, a finite number, true, false or a "
                "list of these: constructors take no tables from a recipe"
            )
    return arguments


def _require_plain(arguments: dict[str, Any]) -> dict[str, Any]:
    for name in arguments:
        if name in _LOADING or name.startswith("pretrained"):
            raise ValueError(
                f"got the argument {name}, which loads weights or code: remove it, and name local "
                "weights as teacher.checkpoint (timm's own come with teacher.pretrained = true)"
            )
    return _require_plain_values(arguments)


def _require_plain_or_pretrained(arguments: dict[str, Any]) -> dict[str, Any]:
    _require_plain({name: v for name, v in arguments.items() if name != "pretrained"})
    if arguments.get("pretrained", False) not in (True, False):
        raise ValueError(
            f"got pretrained = {arguments['pretrained']!r:.80}, expected true or false"
        )
    return arguments


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int)  # a bool is an int


def _require_registered_form(name: str) -> str:
    if any(character in name.removeprefix("torchvision/") for character in ":/\\"):
        raise ValueError(
            "expected the name of a timm model without a scheme or path: what hf-hub: and "
            "local-dir: load brings arguments of its own; name the architecture here, and its "
            "weights as teacher.checkpoint"
        )
    return name


PlainArguments = Annotated[dict[str, Any], AfterValidator(_require_plain_values)]
"""Arguments of whatever loads nothing, such as an optimizer: infinities and NaN, which JSON and so
a digest cannot tell apart, are none of them."""

ModelArguments = Annotated[dict[str, Any], AfterValidator(_require_plain)]
"""Constructor arguments of a teacher."""

StudentArguments = Annotated[dict[str, Any], AfterValidator(_require_plain_or_pretrained)]
"""Those of a student, which has no key of its own for timm's pretrained weights."""

ModelName = Annotated[str, AfterValidator(_require_registered_form)]
"""A timm name, with or without a tag, or `torchvision/` and a name there."""
