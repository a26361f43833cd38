"""Write questions about generated clips as a dataset that `jobs.sweep_videos` can score.

    python -m jobs.demo.quiz --output quiz --clips 40

It writes the clips of the test split as files, and quiz/questions.parquet with the columns id,
video (a path), task, question, options (for multiple choice) and answer (the text). `--layout open`
asks the questions without options, `--layout choice` with them.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.evaluate import make_clips
from jobs.demo.language import questions

_MAX_WRONG = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dataset and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m jobs.demo.quiz")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--clips", type=int, default=40, help="number of clips (default: 40)")
    parser.add_argument("--tasks", help="only these kinds of questions, such as motion,colour")
    options = parser.parse_args(arguments)
    tasks = None if options.tasks is None else options.tasks.split(",")
    try:
        path = write_quiz(options.output, options.clips, tasks)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"{pq.read_metadata(path).num_rows} questions about {options.clips} clips: {path}")
    return 0


def write_quiz(folder: Path, num_clips: int, tasks: Collection[str] | None = None) -> Path:
    """Write clips and questions of the test split into a folder; return the Parquet file.

    Args:
        folder: created if needed.
        num_clips: number of clips; every possible question is asked about each.
        tasks: kinds of questions; None for all.

    Raises:
        ValueError: there are no such questions.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    kinds = set()
    for number, clip in enumerate(make_clips("test", num_clips)):
        name = f"clips/{number:04}.mp4"
        (folder / name).write_bytes(clip.video)
        for place, question in enumerate(questions(clip.scene)):
            kinds.add(question.kind)
            if tasks is not None and question.kind not in tasks:
                continue
            wrong = rng.permutation(list(question.wrong))[:_MAX_WRONG]
            options = [str(option) for option in rng.permutation([question.answer, *wrong])]
            rows.append(
                {
                    "id": f"{number}-{place}",
                    "video": name,
                    "task": question.kind,
                    "question": question.text,
                    "options": options,
                    "answer": question.answer,
                }
            )
    if not rows:
        raise ValueError(
            f"there are no questions of the kinds {', '.join(sorted(tasks or ()))}, only of "
            f"{', '.join(sorted(kinds))}"
        )
    path = folder / "questions.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
