"""The documents say what is there: their paths, modules, classes, options, columns and links."""

import builtins
import contextlib
import importlib
import io
import re
import shlex
import sys
import tomllib

import pytest
import yaml

from jobs import (
    caption_videos,
    describe_images,
    doctor,
    parse_documents,
    plan,
    review,
    sweep_videos,
    try_prompt,
)
from pipeline.schema import RESULT_FIELDS, SAMPLES_FIELD, TOKEN_LOGPROBS_FIELD
from pipeline.status import ErrorCode
from tests.conftest import ROOT
from tests.pages import ALL, DOCUMENTS, PAGES, SITE, anchors, code_names, fences, prose

FOLDERS = ("model", "parallel", "pipeline", "jobs", "tests")
JOBS = (
    caption_videos, describe_images, doctor, parse_documents, plan, review, sweep_videos, try_prompt
)  # fmt: skip
# Options of other programs that the pages name.
FOREIGN_OPTIONS = {"--head", "--working-dir"}


def name_of(page):
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", ALL, ids=name_of)


@pytest.mark.parametrize(
    ("name", "most"), [("README", 200), ("BENCHMARKS", 200), ("ARCHITECTURE", 250)]
)
def test_a_document_has_at_most_so_many_lines(name, most):
    assert len((ROOT / f"{name}.md").read_text().splitlines()) <= most


@every_page
def test_every_path_that_a_page_names_exists(page):
    text = page.read_text()
    named = set(re.findall(rf"\b((?:{'|'.join(FOLDERS)})/[\w/.-]*\w/?)", text))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert not missing


@every_page
def test_every_module_that_a_page_names_exists(page):
    named = set(re.findall(rf"\b((?:{'|'.join(FOLDERS)})\.\w[\w.]*\w)", page.read_text()))
    missing = {name for name in named if not names_something(name.removesuffix(".py"))}
    assert not missing


def names_something(name):
    """Whether a dotted name is a module, or a name in a module."""
    parts = name.split(".")
    path = ROOT.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    parent = ROOT.joinpath(*parts[:-1])
    module = parent / "__init__.py" if parent.is_dir() else parent.with_suffix(".py")
    return module.exists() and re.search(rf"\b{parts[-1]}\b", module.read_text()) is not None


def test_every_class_that_the_architecture_names_exists():
    source = "\n".join(
        path.read_text() for folder in FOLDERS[:4] for path in (ROOT / folder).rglob("*.py")
    )
    known = set(re.findall(r"^class (\w+)", source, re.MULTILINE))
    known |= set(dir(builtins))
    names = code_names(ROOT / "ARCHITECTURE.md")
    classes = {name for name in names if re.fullmatch(r"[A-Z][a-z]\w*[A-Za-z]", name)}
    assert len(classes) > 20
    assert classes <= known


def test_the_architecture_shows_the_layers_that_are_checked():
    text = " ".join((ROOT / "ARCHITECTURE.md").read_text().split())
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    rooms = [each for each in linter["contracts"] if each["name"].startswith("rooms of")]
    assert len(rooms) == 4
    for contract in rooms:
        assert f"{contract['containers'][0]} {' > '.join(contract['layers'])}" in text


def test_the_architecture_has_a_line_for_every_room():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for folder in FOLDERS[:4]:
        for room in (ROOT / folder).iterdir():
            if (room / "__init__.py").exists():
                assert f"`{folder}/{room.name}/`" in text
            elif room.suffix == ".py" and room.name != "__init__.py" and folder != "jobs":
                assert f"`{folder}/{room.name}`" in text


@every_page
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_every_document_that_the_code_names_exists():
    for folder in FOLDERS[:4]:
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"[\w/-]+\.md\b", path.read_text()):
                assert (ROOT / name).exists(), (path, name)


def test_every_page_is_in_the_menu():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = {name for entry in menu for name in entry.values()}
    assert named == {page.name for page in SITE}


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_a_page_opens_with_the_command_that_most_people_want(page):
    assert re.match(r"# [^\n]+\n\n```sh\n", page.read_text())


@every_page
def test_every_block_says_what_it_is(page):
    assert {fence.kind for fence in fences(page)} <= {"sh", "yaml", "json", "python", "text"}
    assert page.read_text().count("```") == 2 * len(fences(page))


def test_every_option_that_a_page_names_is_one():
    known = set(FOREIGN_OPTIONS)
    for job in JOBS:
        known |= set(job.make_parser()._option_string_actions)
    for page in PAGES:
        if page.name == "benchmarks-history.md":
            continue  # its options are those of the benchmarks, in the test below
        for code in code_names(page):
            if code.startswith(("python -m jobs.bench", "python -m jobs.faults", "ray ")):
                continue
            options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
            assert options <= known, (page.name, options - known)


def test_every_benchmark_and_drill_that_a_document_names_takes_its_options(monkeypatch):
    """They take minutes or start Ray, so they are asked for their manual page only."""
    named: dict[str, set[str]] = {}
    for page in ALL:
        for code in code_names(page) | {line for f in fences(page) for line in f.text.splitlines()}:
            if words := re.match(
                r"python -m (jobs\.(?:bench|faults|training|demo)\b\S*)(.*)", code
            ):
                options = {word for word in shlex.split(words[2], comments=True) if "--" in word}
                named.setdefault(words[1], set()).update(options)
    assert len(named) > 8
    for name, options in named.items():
        manual = manual_of(name, monkeypatch)
        for option in options:
            assert option in manual, (name, option)


def manual_of(name, monkeypatch):
    """What `python -m NAME --help` prints."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    name = f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        importlib.import_module(name).main()
    return printed.getvalue()


def test_the_table_of_error_codes_is_whole():
    page = ROOT / "docs" / "troubleshooting.md"
    table = page.read_text().partition("## Error codes")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [code.value for code in ErrorCode]


def test_the_table_of_columns_is_whole():
    page = ROOT / "docs" / "inputs-and-outputs.md"
    names = code_names(page)
    for field in (*RESULT_FIELDS, SAMPLES_FIELD, TOKEN_LOGPROBS_FIELD):
        assert field.name in names


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_a_document_names_no_place_of_its_authors(page):
    assert not re.search(r"(?<![\w.:/])(/home/|/root/|/tmp/|\.\./)\w", page.read_text())
