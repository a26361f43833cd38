"""The cookbook of the README: its commands run as they stand there, with the demo checkpoint."""

import importlib
import io
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.clips import make_video

README = Path(__file__).resolve().parents[2] / "README.md"
KIMI = "moonshotai/Kimi-VL-A3B-Instruct"


def cookbook():
    """The commands and the files of the section, in their order."""
    section = README.read_text().partition("\n## Cookbook\n")[2].partition("\n## ")[0]
    fences = re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(text.replace("\\\n", " ")) for kind, text in fences if kind == ""]
    files = {
        text.splitlines()[0].removeprefix("# "): text for kind, text in fences if kind == "yaml"
    }
    return commands, files


def run(command):
    python, dash_m, module, *arguments = command
    assert (python, dash_m) == ("python", "-m")
    arguments = ["demo" if text == KIMI else text for text in arguments]
    return importlib.import_module(module).main(arguments)


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (shade, 30, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the inputs that the commands name; one clip is not there yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(make_video(numbers=range(8)))
    clips = pa.table({"video": ["a.mp4", "late.mp4"], "title": ["Red", "Blue"]})
    pq.write_table(clips, "clips.parquet")
    photos = [[picture(200), picture(90)], [picture(10)]]
    pq.write_table(pa.table({"photos": photos}), "products.parquet")
    return tmp_path


@pytest.mark.ray
def test_the_five_commands_do_what_they_promise(place, ray_local, capfd):
    commands, files = cookbook()
    own_words, several, products, again, review = commands
    for name, text in files.items():
        (place / name).write_text(text)

    def rows(output):
        return pq.read_table(place / output).sort_by("row_id").to_pylist()

    assert run(own_words) == 0, capfd.readouterr().err
    here, late = rows("captions")
    assert here["caption"]
    assert late["error_code"] == "media_missing"

    assert run(several) == 0, capfd.readouterr().err
    here = rows("answers")[0]
    assert here["mood"]
    tags = next(each for each in here["answers"] if each["question"] == "tags")
    if tags["status"] == "ok":
        assert here["tags"].keys() == {"objects", "indoors"}
    else:
        assert (tags["finish_reason"], here["tags"]) == ("length", None)
        assert tags["text"]

    assert run(products) == 0, capfd.readouterr().err
    two, one = rows("products")
    assert two["num_visual_tokens"] == 2 * one["num_visual_tokens"]
    assert two["caption"]

    (place / "late.mp4").write_bytes(make_video(numbers=range(8, 16)))
    assert run([*again, "--dry-run"]) == 0
    assert "--retry-failed tries 1 of them again" in capfd.readouterr().out
    assert run(again) == 0, capfd.readouterr().err
    here, late = rows("captions")
    assert late["caption"]
    assert (here["attempts"], late["attempts"]) == (1, 2)

    assert run(review) == 0
    assert late["caption"] in (place / "captions.html").read_text()
