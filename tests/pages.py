"""The documents as tests read them: their fenced blocks, commands, names in backticks and links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

README = ROOT / "README.md"
SITE = tuple(sorted((ROOT / "docs").glob("*.md")))  # the pages that `make docs` builds
PAGES = (README, *SITE)  # whose commands are run
DOCUMENTS = (*PAGES, *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "BENCHMARKS")))
ALL = (*DOCUMENTS, ROOT / "CONTRIBUTING.md")

_FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """A fenced block."""

    kind: str  # sh, yaml, json, python or text
    text: str
    before: str  # the text of the page before it


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in their order."""
    text = page.read_text()
    return [Fence(f[2], f[3], text[: f.start()]) for f in _FENCE.finditer(text)]


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines of the shell blocks of a page, as lists of words."""
    for fence in fences(page):
        if fence.kind == "sh":
            for line in fence.text.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    if words := shlex.split(command, comments=True):
                        yield words


def files(page: Path) -> dict[str, str]:
    """The files that a page shows, by their names.

    A YAML or Python block begins with its name as a comment; a JSON block follows its name in
    backticks and a colon. Python without a name is code to run.
    """
    found: dict[str, str] = {}
    for fence in fences(page):
        named = re.match(r"# (\S+)\n", fence.text)
        if fence.kind in ("yaml", "python") and named is not None:
            found[named[1]] = fence.text
        elif fence.kind == "json":
            name = re.search(r"`([\w.]+)`:\s*$", fence.before)
            assert name is not None, f"{page}: a JSON block without the name of its file"
            found[name[1]] = fence.text
        else:
            assert fence.kind != "yaml", f"{page}: a YAML block without the name of its file"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def code_names(page: Path) -> set[str]:
    """What stands in backticks in the prose of a page."""
    return set(re.findall(r"`([^`\n]+)`", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
