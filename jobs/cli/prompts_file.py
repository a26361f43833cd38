"""`--prompts prompts.yaml`: several prompts for each row, each with a column of its own.

mood: What is the mood of this clip?          # a name and a text
safety:
  text: "Does {title} show anything dangerous?"   # {column} is a row's value
  max-tokens: 64                              # options of the command, for this one alone
  schema: safety.json                         # its column has the type that the schema says
  as: json                                    # unless it is to be text
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.cli.config_file import read_mapping
from jobs.cli.schema_file import read_schema
from model.engine.sequence import SamplingParams
from pipeline.prompts.answer_type import answer_type
from pipeline.prompts.named_prompts import NamedPrompt

# Options of the command that a prompt may have for itself -> fields of SamplingParams.
_OPTIONS: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    "max-tokens": ("max_tokens", int),
    "temperature": ("temperature", (int, float)),
    "top-p": ("top_p", (int, float)),
    "top-k": ("top_k", int),
    "min-p": ("min_p", (int, float)),
    "repetition-penalty": ("repetition_penalty", (int, float)),
    "loop-guard": ("loop_guard", int),
}
_KEYS = ("text", "schema", "as", "stop", *_OPTIONS)
_FORMS = ("typed", "json")


def read_named_prompts(path: str, sampling: SamplingParams) -> tuple[NamedPrompt, ...]:
    """Read the named prompts of a file.

    Args:
        path: of the YAML file.
        sampling: of the command, for what a prompt does not set.

    Raises:
        ValueError: the file or a prompt is wrong; the message names both.
    """
    try:
        values = read_mapping(path)
    except ValueError as error:
        raise ValueError(f"--prompts {path}: {error}") from error
    if not values:
        raise ValueError(f"--prompts {path}: it holds no prompt")
    named_prompts = []
    for name, value in values.items():
        try:
            named_prompts.append(_named_prompt(name, value, sampling, Path(path).parent))
        except ValueError as error:
            raise ValueError(f"--prompts {path}: {name}: {error}") from error
    return tuple(named_prompts)


def _named_prompt(name: Any, value: Any, sampling: SamplingParams, folder: Path) -> NamedPrompt:
    if not isinstance(name, str) or not name.strip():
        raise ValueError("a prompt needs a name that is text; quote it")
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ValueError("it must be a text, or a mapping with `text`")  # noqa: TRY004
    for key in value:
        if key not in _KEYS:
            (nearest,) = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0.0)
            raise ValueError(f"there is no key {key!r}; the nearest is {nearest!r}")
    sampling = replace(sampling, **_changes(value, folder))
    is_typed = _is_typed(name, value.get("as"), sampling)
    if is_typed:
        sampling = replace(sampling, schema=_closed(sampling.schema))
    return NamedPrompt(name=name, text=value["text"], sampling=sampling, is_typed=is_typed)


def _changes(value: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that a prompt has for itself."""
    changes: dict[str, Any] = {}
    for key, (option, kind) in _OPTIONS.items():
        if key in value:
            if not isinstance(value[key], kind) or isinstance(value[key], bool):
                raise ValueError(f"{key} must be a number, got {value[key]!r}")
            changes[option] = value[key]
    if "stop" in value:
        stop = value["stop"] if isinstance(value["stop"], list) else [value["stop"]]
        if not all(isinstance(text, str) for text in stop):
            raise ValueError(f"stop must be text or a list of texts, got {value['stop']!r}")
        changes["stop"] = tuple(stop)
    if "schema" in value:
        changes["schema"] = _schema(value["schema"], folder)
    return changes


def _is_typed(name: str, form: Any, sampling: SamplingParams) -> bool:
    """Whether answers with a schema have its type, as they do but for `caption`, which is text."""
    if form is None:
        return sampling.schema is not None and name != "caption"
    if form not in _FORMS:
        raise ValueError(f"as must be {' or '.join(_FORMS)}, got {form!r}")
    if sampling.schema is None:
        raise ValueError("as is for answers with a schema, and there is none")
    return form == "typed"


def _closed(schema: str | None) -> str:
    """The schema that the answers of a typed column follow."""
    try:
        return answer_type(schema or "").schema
    except ValueError as error:
        raise ValueError(f"{error}; `as: json` keeps its answers as text") from error


def _schema(value: Any, folder: Path) -> str:
    """The JSON text of a schema: in a file beside the prompts, or in place."""
    if isinstance(value, str):
        return read_schema(str(folder / value))
    if isinstance(value, dict):
        try:
            return json.dumps(value)
        except TypeError as error:  # YAML knows dates
            raise ValueError(f"schema is not JSON: {error}; quote the value") from error
    raise ValueError(f"schema must be a file or a mapping, got {value!r}")
