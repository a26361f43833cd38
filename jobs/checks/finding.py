"""`Finding`: one line of what the doctor found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "BAD"]  # BAD: a job would be refused, or go wrong


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was seen."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.subject:10}  {self.text}"
