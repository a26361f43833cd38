"""constraints.txt pins all that pyproject.toml asks for, in versions that it allows."""

import re
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}


def test_every_line_is_a_version_that_any_index_has():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == len(PINS) > 100
    assert not [name for name, version in PINS.items() if version.local]


def direct_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["test"], *extras["docs"], *extras["dev"]]
    return [each for each in map(Requirement, asked) if each.name != project["name"]]


def test_every_pin_is_allowed():
    for requirement in direct_requirements():
        assert PINS[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_all_that_is_needed_is_pinned():
    left = [("", direct_requirements())]
    seen: set[str] = set()
    while left:
        extra, requirements = left.pop()
        for requirement in requirements:
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(requirement.name)
            assert name in PINS, requirement
            if name == "torch" or str(requirement) in seen:
                continue  # torch pins the libraries for CUDA itself, which only some builds need
            seen.add(str(requirement))
            needed = [*map(Requirement, metadata.requires(name) or ())]
            left += [(extra, needed) for extra in ("", *requirement.extras)]
