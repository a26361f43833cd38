"""Several questions about one clip: its frames are encoded and prefilled once for all of them."""

from statistics import mean

from jobs.bench.shapes import add_all, drain, engine_for
from jobs.bench.turns import timed
from jobs.bench.workbench import Workbench

_QUESTION_LEN = 32
_CACHE_GIB = 1.0


def measure_questions(bench: Workbench) -> dict[str, object]:
    """Time until all questions have a first token, by the time of one question alone."""
    alone = [_first_tokens(bench, 1)]
    together = _first_tokens(bench, bench.sizes.num_questions)
    alone.append(_first_tokens(bench, 1))
    return {
        "questions": bench.sizes.num_questions,
        "one_question_s": round(mean(alone), 3),
        "questions_cost": round(together / mean(alone), 3),
    }


def _first_tokens(bench: Workbench, num_questions: int) -> float:
    """Seconds of a new engine, about a clip that it has never seen."""
    sizes = bench.sizes
    engine = engine_for(bench.model, num_questions, bench.num_threads, _CACHE_GIB)
    grids = [sizes.frame] * sizes.num_frames
    prompts = bench.prompts.about(grids, num_questions, _QUESTION_LEN)

    def ask() -> None:
        add_all(engine, prompts, max_tokens=1)
        drain(engine)

    return timed(ask)
