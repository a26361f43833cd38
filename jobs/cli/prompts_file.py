"""Read `--prompts prompts.yaml`: several prompts for each row, each with an output column.

mood: What is the mood of this clip?          # a name and the text of the prompt
safety:
  text: "Does {title} show anything dangerous?"   # {column} inserts a value of the row
  max-tokens: 64                              # an option of the command, for this prompt only
  schema: safety.json                         # its column gets the type of the schema
  as: json                                    # keeps the column as JSON text
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.cli.config_file import read_mapping, refuse_other_name
from jobs.cli.schema_file import read_schema, unwrapped
from model.engine.sequence import SamplingParams
from pipeline.prompts.answer_type import answer_type
from pipeline.prompts.named_prompts import NamedPrompt

# Options that a prompt may set for itself, with their types; SamplingParams has them as fields.
_OPTIONS = {
    **dict.fromkeys(("max-tokens", "top-k", "loop-guard"), int),
    **dict.fromkeys(("temperature", "top-p", "min-p", "repetition-penalty"), int | float),
}
_KEYS = ("text", "schema", "as", "stop", *_OPTIONS)
_FORMS = ("typed", "json")


def read_named_prompts(path: str, sampling: SamplingParams) -> tuple[NamedPrompt, ...]:
    """Read the prompts of a YAML file; `sampling` has the settings that a prompt does not set.

    Raises:
        ValueError: the file or a prompt is invalid; the message names both.
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
        raise ValueError("the name of a prompt must be text; quote it")
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ValueError("it must be a text, or a mapping with `text`")  # noqa: TRY004
    for key in value:
        refuse_other_name("key", key, _KEYS)
    sampling = replace(sampling, **_changes(value, folder))
    is_typed = _is_typed(name, value.get("as"), sampling)
    if is_typed:
        sampling = replace(sampling, schema=_closed(sampling.schema))
    return NamedPrompt(name=name, text=value["text"], sampling=sampling, is_typed=is_typed)


def _changes(value: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings that a prompt sets for itself."""
    changes: dict[str, Any] = {}
    for key, kind in _OPTIONS.items():
        if key in value:
            if not isinstance(value[key], kind) or isinstance(value[key], bool):
                raise ValueError(f"{key} must be a number, got {value[key]!r}")
            changes[key.replace("-", "_")] = value[key]
    if "stop" in value:
        stop = value["stop"] if isinstance(value["stop"], list) else [value["stop"]]
        if not all(isinstance(text, str) for text in stop):
            raise ValueError(f"stop must be text or a list of texts, got {value['stop']!r}")
        changes["stop"] = tuple(stop)
    if "schema" in value:
        changes["schema"] = _schema(value["schema"], folder)
    return changes


def _is_typed(name: str, form: Any, sampling: SamplingParams) -> bool:
    """Tell whether the column of a prompt gets the type of its schema; `caption` never does."""
    if form is None:
        return sampling.schema is not None and name != "caption"
    if form not in _FORMS:
        raise ValueError(f"as must be {' or '.join(_FORMS)}, got {form!r}")
    if sampling.schema is None:
        raise ValueError("`as` needs a schema, and this prompt has none")
    return form == "typed"


def _closed(schema: str | None) -> str:
    """Return the schema that the answers of a typed column follow."""
    try:
        return answer_type(schema or "").schema
    except ValueError as error:
        raise ValueError(f"{error}; `as: json` keeps its answers as text") from error


def _schema(value: Any, folder: Path) -> str:
    """Return the JSON text of a schema, given in place or as a file beside the prompts."""
    if isinstance(value, str):
        return read_schema(str(folder / value))
    if isinstance(value, dict):
        try:
            return json.dumps(unwrapped(value))
        except TypeError as error:  # YAML has dates, JSON has none
            raise ValueError(f"schema is not JSON: {error}; quote the value") from error
    raise ValueError(f"schema must be a file or a mapping, got {value!r}")
