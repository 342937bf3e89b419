"""A share of an extraction: every n-th shard of each stream, so that nobody has to hand them out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glscl.common.errors import UsageError


@dataclass(frozen=True)
class Part:
    """Part `index` of `count`, counted from 1. Part(1, 1) is everything."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def whole(self) -> bool:
        return self.count == 1

    def takes(self, shard: int) -> bool:
        """Whether the shard of a number falls to this part."""
        return shard % self.count == self.index - 1

    def among(self, rank: int, world: int) -> Part:
        """The share that process `rank` (from 0) of `world` takes of this part."""
        return Part((self.index - 1) * world + rank + 1, self.count * world)

    @classmethod
    def parse(cls, text: str | None) -> Part:
        """ "2/8" → Part(2, 8), None → everything. Raises UsageError for anything else."""
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        index, count = (int(number) for number in match.groups()) if match else (0, 0)
        if not 1 <= index <= count:
            raise UsageError(f"`part` is {text!r}; expected I/N with I from 1 to N, such as 2/8")
        return cls(index, count)
