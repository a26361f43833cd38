"""`--schema`: a JSON Schema from a file, or from a pydantic model in a Python file."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType


def read_schema(value: str) -> str:
    """The JSON text of a schema, its properties in their order.

    Args:
        value: `file.json` with a JSON Schema, or `file.py:Model` with a pydantic model. The Python
            file is run here, with all that it imports.

    Raises:
        ValueError: there is no such file or model, or it holds something else.
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
    return json.dumps(schema)


def _schema_of_model(path: Path, name: str) -> dict[str, object]:
    from pydantic import BaseModel
    from pydantic.errors import PydanticUserError

    model = getattr(_run(path), name, None)
    if isinstance(model, type) and issubclass(model, BaseModel):
        try:
            return model.model_json_schema()
        except PydanticUserError as error:
            raise ValueError(f"--schema: {name} has no JSON Schema: {error}") from error
    raise ValueError(f"--schema: {path} has no pydantic model {name!r}, but {model!r} there")


def _run(path: Path) -> ModuleType:
    """The module of a Python file."""
    # Under a name that is nobody's: annotations are looked up in the module of that name.
    spec = importlib.util.spec_from_file_location(f"_schema_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--schema: there is no Python file {path}")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does
        raise ValueError(f"--schema: {path} fails: {type(error).__name__}: {error}") from error
    return module
