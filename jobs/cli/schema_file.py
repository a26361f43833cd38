"""Read `--schema`: a JSON Schema from a file, or from a pydantic model in a Python file."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# The keys of the wrappers in which services take a schema; the first one holds it.
_WRAPPERS = (("schema", "name", "strict", "description", "type"), ("json_schema", "type"))


def read_schema(value: str) -> str:
    """Return the JSON text of a schema, with its properties in their order.

    `value` is `file.json` with a JSON Schema, which may stand in a wrapper as for `unwrapped`, or
    `file.py:Model` with a pydantic model. The Python file is run in this process, with all that it
    imports.

    Raises:
        ValueError: there is no such file or model, or it is not a schema.
    """
    path, colon, name = value.rpartition(":")
    if colon and path.endswith(".py"):
        return json.dumps(_schema_of_model(Path(path), name))
    try:
        schema = json.loads(Path(value).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"--schema {value} cannot be read ({error.strerror}); it must be a JSON file, or "
            "file.py:Model"
        ) from error
    except ValueError as error:
        raise ValueError(f"--schema {value} is not JSON: {error}") from error
    return json.dumps(unwrapped(schema))


def unwrapped(schema: Any) -> Any:
    """Return the schema within a wrapper of OpenAI's API; without one, return it as it is.

    The wrappers are `{"name", "strict", "schema"}` and `{"type": "json_schema", "json_schema"}`.
    """
    for inner, *others in _WRAPPERS:
        is_wrapper = (
            isinstance(schema, dict)
            and isinstance(schema.get(inner), dict)
            and schema.keys() <= {inner, *others}
            and schema.get("type", "json_schema") == "json_schema"
        )
        if is_wrapper:
            return unwrapped(schema[inner])
    return schema


def _schema_of_model(path: Path, name: str) -> dict[str, object]:
    from pydantic import BaseModel
    from pydantic.errors import PydanticUserError

    model = getattr(_run(path), name, None)
    if isinstance(model, type) and issubclass(model, BaseModel):
        try:
            return model.model_json_schema()
        except PydanticUserError as error:
            raise ValueError(f"--schema: {name} has no JSON Schema: {error}") from error
    raise ValueError(f"--schema: {name!r} in {path} is {model!r}, not a pydantic model")


def _run(path: Path) -> ModuleType:
    """Run a Python file and return it as a module."""
    # The module needs a name that no other module has: pydantic looks annotations up by that name.
    spec = importlib.util.spec_from_file_location(f"_schema_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--schema: there is no Python file {path}")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        raise ValueError(f"--schema: {path} fails: {type(error).__name__}: {error}") from error
    return module
