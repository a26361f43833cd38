"""Read options from a YAML file (`--config run.yaml`); the command line takes precedence.

The keys are the names of the options: `frames: 16`, `stop: [a, b]`, `keep-media: true`. All options
of a run, with their defaults, are written to `_run.yaml` in the output directory; `--config` with
that file repeats the run. Credentials in URIs are left out.
"""

import argparse
import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.cli.options import Parser

# Options whose paths are written to _run.yaml as absolute paths.
_PATHS = frozenset("input output model schema prompts grid expert_placement allow_folder".split())
_URIS = _PATHS | {"allow_uri", "video_path"}  # options that may hold URIs
_NOT_KEPT = frozenset(
    {"help", "config", "job", "dry_run", "retry_failed", "new_recipe", "new_rows"}
)  # options of one call, which must not be repeated


def parse(make_parser: Callable[[], Parser], arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, with defaults from the file that it names with `--config`.

    The `run_yaml` of the options is the text of `_run.yaml`. An option that cannot be parsed ends
    the process with 2, after one line on standard error.
    """
    parser = make_parser()
    given = _given(make_parser, [text for text in arguments if text not in ("-h", "--help")])
    path = given.get("config")
    from_file: list[str] = []
    if path is not None:
        try:
            values = read_mapping(path)
            _refuse_unknown(parser, values)
            overruled = _excluded(parser, given) | given.keys()
            names = {_name(action) for action in parser._actions if action.dest in overruled}
            kept = {name: value for name, value in values.items() if name not in names}
            from_file = as_arguments(parser, kept)
        except ValueError as error:
            parser.error(f"{path}: {error}")
        # Parsed alone first, so that the message about a bad option names the file.
        _given_parser(make_parser, f"{path}: ").parse_args(from_file)
    options = parser.parse_args([*from_file, *arguments])
    options.run_yaml = _run_yaml(parser, _given(make_parser, [*from_file, *arguments]))
    return options


def overlay(
    make_parser: Callable[[], Parser],
    options: argparse.Namespace,
    values: Mapping[str, Any],
    where: str,
) -> argparse.Namespace:
    """Replace some options, and remove those that the new ones exclude.

    `values` are the new ones by option name, as in a file. `where` begins the message about an
    invalid one, which ends the process with 2.

    Raises:
        ValueError: a value is not a text, a number or a boolean.
    """
    parser = _given_parser(make_parser, where)
    given = vars(parser.parse_args(as_arguments(parser, values)))
    excluded = dict.fromkeys(_excluded(parser, given))
    return argparse.Namespace(**{**vars(options), **excluded, **given})


def command_of(
    make_parser: Callable[[], Parser],
    given_to: Callable[[], Parser],
    arguments: Sequence[str],
    changes: Mapping[str, Any],
) -> str:
    """Return the command line of one job with the options that were given to another.

    `arguments` were given to the parser of `given_to`. Options that the job of `make_parser` does
    not have are left out; `changes` replace options by name, and None removes one.
    """
    parser = make_parser()
    given = _given(given_to, arguments)
    names = [_name(action) for action in _kept(parser)]
    values = {_name(action): given[action.dest] for action in _kept(parser) if action.dest in given}
    values = {name: {**values, **changes}.get(name) for name in names}
    texts = [part for text in as_arguments(parser, values) for part in _two_words(text)]
    return shlex.join(["python", "-m", f"jobs.{parser.prog}", *texts])


def _two_words(argument: str) -> list[str]:
    """Split `--name=value`, unless the value would be taken for an option."""
    name, is_value, value = argument.partition("=")
    return [name, value] if is_value and not value.startswith("-") else [argument]


def _excluded(parser: Parser, given: Mapping[str, Any]) -> set[str]:
    """Return the destinations of the options that cannot be combined with those in `given`."""
    groups = [
        {action.dest for action in group._group_actions}
        for group in parser._mutually_exclusive_groups
    ]
    return {name for group in groups if group & given.keys() for name in group - given.keys()}


def _given(make_parser: Callable[[], Parser], arguments: Sequence[str]) -> dict[str, Any]:
    """Return what `arguments` give explicitly, as texts by destination, without defaults."""
    parser = _given_parser(make_parser)
    for action in parser._actions:
        action.type = action.choices = None
    return vars(parser.parse_args(arguments))


def _given_parser(make_parser: Callable[[], Parser], where: str = "") -> Parser:
    """Make a parser that requires no option and leaves out those that are not given."""
    parser = make_parser()
    parser.where = where
    parser._defaults.clear()  # `set_defaults` stores its defaults here as well
    for action in parser._actions:
        action.required, action.default = False, argparse.SUPPRESS
    for group in parser._mutually_exclusive_groups:
        group.required = False
    return parser


def read_mapping(path: str) -> dict[str, Any]:
    """Read the mapping in a YAML file at a path or URI.

    Raises:
        ValueError: the file cannot be read, is not a mapping, or repeats a key; the message names
            the line.
    """
    import yaml

    try:
        node = yaml.compose(_read_text(path), Loader=yaml.SafeLoader)
        value = None if node is None else yaml.SafeLoader("").construct_document(node)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    except ImportError as error:  # the library of a filesystem is missing
        raise ValueError(f"cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}not valid YAML, {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML, {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode) or not isinstance(value, dict):
        message = "must be a mapping of names to values, such as `frames: 16`"
        raise ValueError(message)  # noqa: TRY004
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
        seen.add(key.value)
    return value


def _read_text(path: str) -> str:
    if "://" not in path:
        return Path(path).read_text(encoding="utf-8")
    from pipeline.filesystems import open_filesystem  # pyarrow

    filesystem, place = open_filesystem(path)
    with filesystem.open_input_stream(place, compression=None) as stream:
        return stream.read().decode()


def _refuse_unknown(parser: Parser, values: Mapping[str, Any]) -> None:
    names = [_name(action) for action in _kept(parser)]
    of_one_call = {_name(action) for action in parser._actions if action.dest in _NOT_KEPT}
    for name in values:
        if name in of_one_call:
            raise ValueError(f"{name!r} cannot be set in a file; give --{name} on the command line")
        refuse_other_name("option", name, names)


def refuse_other_name(kind: str, name: object, names: Sequence[str]) -> None:
    """Raise `ValueError`, with the nearest known name, if `name` is not among `names`."""
    if name not in names:
        (nearest,) = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
        raise ValueError(f"there is no {kind} {name!r}; the nearest is {nearest!r}")


def as_arguments(parser: Parser, values: Mapping[str, Any]) -> list[str]:
    """Convert `{"frames": 16}` to `["--frames=16"]`.

    Raises:
        ValueError: an option does not accept its value.
    """
    actions = {_name(action): action for action in _kept(parser)}
    arguments: list[str] = []
    for name, value in values.items():
        arguments += _of_option(actions[name], name, value)
    return arguments


def _of_option(action: argparse.Action, name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [f"--{name}" if value else f"--no-{name}"]
        return [f"--{name}"] if value else []
    repeats = isinstance(action, argparse._AppendAction)
    values = value if isinstance(value, list) and repeats else [value]
    for each in values:
        is_plain = isinstance(each, str | int | float) and not isinstance(each, bool)
        if not is_plain:
            what = "values" if repeats else "one value"
            raise ValueError(f"{name} takes {what} of text or numbers, got {each!r}; quote text")
    return [f"--{name}={each}" for each in values]


def _run_yaml(parser: Parser, given: Mapping[str, Any]) -> str:
    """Return the text of `_run.yaml`; of options that exclude each other it has the given one."""
    import yaml

    replaced = _excluded(parser, given)
    values: dict[str, Any] = {}
    for action in _kept(parser):
        value = given.get(action.dest, action.default)
        if value not in (None, []) and action.dest not in replaced:
            values[_name(action)] = _as_yaml(action.dest, value)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return f"# python -m jobs.{parser.prog} --config THIS_FILE repeats this run\n{text}"


def _as_yaml(name: str, value: Any) -> Any:
    """Make paths absolute, remove secrets from URIs, and turn numeric text into numbers."""
    if isinstance(value, list):
        return [_as_yaml(name, each) for each in value] if name in _URIS else value
    if not isinstance(value, str):
        return value
    if name in _URIS and "://" in value:
        from pipeline.filesystems import without_secrets  # pyarrow

        return without_secrets(value)
    if name in _PATHS:
        from jobs.cli.ray_cluster import is_in_copy  # Ray

        path = Path(value).expanduser()
        if is_in_copy() and not path.is_absolute():
            return value  # Ray copies it with the working directory, next time to another place
        path = path.absolute()
        return str(path) if name != "model" or path.is_dir() else value
    for number in (int, float):
        try:
            if str(number(value)) == value:
                return number(value)
        except ValueError:
            continue
    return value


def _kept(parser: Parser) -> list[argparse.Action]:
    return [each for each in parser._actions if each.option_strings and each.dest not in _NOT_KEPT]


def _name(action: argparse.Action) -> str:
    """Return the long name of an option without its dashes, or "" if it has none."""
    return next((text[2:] for text in action.option_strings if text.startswith("--")), "")
