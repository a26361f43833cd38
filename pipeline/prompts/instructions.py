"""`Instructions`: what the model is asked about each row, and how the row's media are shown."""

from dataclasses import dataclass, field

from pipeline.media.display import WHITE
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import DEFAULT_LIMITS, MediaLimits
from pipeline.media.windows import Windows
from pipeline.prompts.frame_view import FrameView, Timestamps
from pipeline.prompts.named_prompts import NamedPrompt, check_names


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """What is asked about each row, and how its media are shown; see also `FrameView`.

    The recipe of an output stores these fields; `pipeline.config.recipe_of` names its keys.

    Raises:
        ValueError: a value is out of range, or two of them cannot be combined.
    """

    prompt: str = "Describe this video in detail."  # for rows without a prompt of their own
    named_prompts: tuple[NamedPrompt, ...] = ()  # replace `prompt`; each fills its own column
    system: str | None = None  # None keeps what the checkpoint's template says
    frames: FrameSampling = field(default_factory=FrameSampling)  # of the row, or of each window
    windows: Windows | None = None  # each window gets a prompt of its own
    timestamps: Timestamps = "seconds"
    max_frame_tokens: int | None = 256
    max_row_tokens: int | None = None
    # What shows through transparent pictures: #rrggbb; "none" takes the colours that they have
    # there; "auto" is white, but for outputs from before this field, which were made with "none".
    background: str = "auto"
    limits: MediaLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; say what is wanted of each video")
        check_names(self.named_prompts)
        if self.windows is not None and (self.named_prompts or self.max_row_tokens is not None):
            raise ValueError(
                "windows cannot be combined with several prompts a row (--prompts) or with a "
                "budget of tokens for the row (--tokens-per-row); --frame-tokens limits each frame"
            )
        assert self.view  # constructing it checks its values

    @property
    def background_color(self) -> str | None:
        """The background as `FrameRequest` has it."""
        return {"auto": WHITE, "none": None}.get(self.background, self.background)

    @property
    def view(self) -> FrameView:
        """How a row is shown where a named prompt has no view of its own."""
        return FrameView(
            frames=self.frames,
            timestamps=self.timestamps,
            max_frame_tokens=self.max_frame_tokens,
            max_row_tokens=self.max_row_tokens,
        )

    @property
    def views(self) -> tuple[FrameView, ...]:
        """All distinct views of a row, in the order of their first use."""
        wanted = [prompt.view or self.view for prompt in self.named_prompts]
        return tuple(dict.fromkeys(wanted)) or (self.view,)
