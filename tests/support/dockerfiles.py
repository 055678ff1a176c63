"""Read Dockerfiles: their instructions, in order, and the arguments of the exec form."""

import json
import re
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    word: str
    text: str

    @property
    def argv(self):
        """The exec form's arguments; of HEALTHCHECK, those of its CMD."""
        return json.loads(self.text[self.text.index("[") :])

    @property
    def copied(self):
        """COPY's sources and its target; none where they come from another stage."""
        words = shlex.split(self.text)
        return ([], words[-1]) if words[0].startswith("--from") else (words[:-1], words[-1])


def instructions(path):
    """The instructions of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def last(found, word):
    """The instruction that counts where a word comes several times."""
    return next(each for each in reversed(found) if each.word == word)
