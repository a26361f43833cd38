"""Define `Finding`, one line that the doctor prints."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "BAD"]  # BAD: a job would be refused, or would fail


@dataclass(frozen=True)
class Finding:
    """The result of one check, about one subject."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.subject:10}  {self.text}"
