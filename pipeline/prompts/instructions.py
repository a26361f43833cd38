"""`Instructions`: what is asked about each row, and how its media are shown to the model."""

from dataclasses import dataclass, field

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import DEFAULT_LIMITS, MediaLimits
from pipeline.media.windows import Windows
from pipeline.prompts.frame_view import FrameView, Timestamps
from pipeline.prompts.questions import Question, check_names


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """What is asked about each video, and how it is shown to the model; see also `FrameView`."""

    prompt: str = "Describe this video in detail."  # where the row has none of its own
    questions: tuple[Question, ...] = ()  # in place of the prompt; each has a column of its own
    system: str | None = None  # None leaves it to the checkpoint's template
    frames: FrameSampling = field(default_factory=FrameSampling)  # of each window, if there are any
    windows: Windows | None = None  # each asked about by itself
    timestamps: Timestamps = "seconds"
    max_frame_tokens: int | None = 256
    max_row_tokens: int | None = None
    limits: MediaLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; say what is wanted of each video")
        check_names(self.questions)
        if self.windows is not None and (self.questions or self.max_row_tokens is not None):
            raise ValueError(
                "windows go with neither several prompts a row (--prompts) nor a budget of tokens "
                "for the row (--tokens-per-row); --frame-tokens sets what a frame takes"
            )
        assert self.look  # whose values are checked

    @property
    def look(self) -> FrameView:
        """How a row is shown where a question does not say otherwise."""
        return FrameView(
            frames=self.frames,
            timestamps=self.timestamps,
            max_frame_tokens=self.max_frame_tokens,
            max_row_tokens=self.max_row_tokens,
        )

    @property
    def looks(self) -> tuple[FrameView, ...]:
        """All ways in which a row is shown, each once."""
        wanted = [question.look or self.look for question in self.questions]
        return tuple(dict.fromkeys(wanted)) or (self.look,)
