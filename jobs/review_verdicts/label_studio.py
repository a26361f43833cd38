"""Write tasks and an interface for Label Studio (`write_label_studio`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.review_page.rows import Output
from jobs.review_page.sections import prompt_of, windows_of
from jobs.review_verdicts.files import Verdict
from pipeline.media.windows import PageWindows

_LABEL_CONFIG = """\
<View>
  <{tag} name="{name}" value="${name}"/>
  <TextArea name="caption" toName="{name}" editable="true"/>
  <Choices name="verdict" toName="{name}">
    <Choice value="accept"/><Choice value="reject"/><Choice value="edit"/><Choice value="unsure"/>
  </Choices>
</View>
"""


def write_label_studio(
    output: Output,
    judged: Sequence[tuple[dict[str, Any], Verdict]],
    directory: Path,
    final_caption: Callable[[str | None, Verdict], str | None],
) -> list[Path]:
    """Write tasks to import into a project, and the labelling interface that they need.

    The interface shows videos, images or PDFs, like the output. The caption of the model is a
    prediction, and the final caption is an annotation.
    Format: https://labelstud.io/guide/tasks, "Basic Label Studio JSON format".
    """
    tag = _label_tag(output)
    name = tag.lower()
    tasks = []
    for row, verdict in judged:
        final = final_caption(row["caption"], verdict)
        kinds = [] if verdict.kind is None else [verdict.kind]
        choices = [_region(name, "verdict", "choices", {"choices": [kind]}) for kind in kinds]
        texts = [_caption_region(name, final)] if final else []
        guesses = [_caption_region(name, row["caption"])] if row["caption"] else []
        tasks.append(
            {
                "data": media_facts(output, row, name),
                "annotations": [{"result": [*texts, *choices]}],
                "predictions": [{"model_version": output.recipe_sha256[:12], "result": guesses}],
            }
        )
    path, config = directory / "label_studio.json", directory / "label_studio.xml"
    path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    config.write_text(_LABEL_CONFIG.format(tag=tag, name=name), encoding="utf-8")
    return [path, config]


def _label_tag(output: Output) -> str:
    """Return the object tag of Label Studio for the media of an output."""
    if isinstance(windows_of(output.recipe), PageWindows):
        return "Pdf"
    seconds = output.rows["media_duration_s"].drop_null().to_pylist()
    return "Image" if seconds and not any(seconds) else "Video"


def _caption_region(shown: str, text: str) -> dict[str, Any]:
    return _region(shown, "caption", "textarea", {"text": [text]})


def _region(shown: str, name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": shown, "type": kind, "value": value}


def media_facts(output: Output, row: Mapping[str, Any], media_name: str) -> dict[str, str | None]:
    """Return the id of a row, the path of its media, if it has one, and its prompt."""
    columns = output.recipe["columns"]
    media, prompt = (row.get(columns.get(name) or "") for name in ("video", "prompt"))
    path = media.get("path") if isinstance(media, Mapping) else media
    return {
        "row_id": row["row_id"],
        media_name: path if isinstance(path, str) else None,
        "prompt": prompt or prompt_of(output.recipe),
    }
