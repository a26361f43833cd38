"""`Processor`: text and images -> `Prompt`, by the chat template of the checkpoint.

One rule: text from a prompt or a row is always ordinary text. The template never sees it. The
template is rendered with a marker in the place of each item, the result is split at the markers,
and control tokens are recognised only in the parts that come from the template:

    rendered   <|im_user|>user<|im_middle|>   marker 0   <|im_end|><|im_assistant|>...
    token ids  encode_template                encode     encode_template

For an image the template prints one media pad, which is repeated once per visual token. A template
that drops, repeats or reorders items is refused.

The parts are encoded one by one. The result equals that of the whole text wherever a control token
stands at the border, as always in the published template. In a template with plain text beside the
content, bytes would not merge across the border.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import numpy as np
from jinja2 import StrictUndefined, Template, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from model.config import KimiVLConfig
from model.inputs.images import image_patches, image_size, require_rgb
from model.inputs.prompt import Prompt, PromptError
from model.inputs.tokenizer import Tokenizer
from model.json_values import CheckpointError, read_json, within

Item = str | NDArray[np.uint8]
Kind = Literal["system", "text", "image"]

_MAX_LAYOUTS = 256  # in memory, one for each order of texts and images

# What the expressions of a template can raise, besides the errors of jinja2 itself.
_RENDER_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


@dataclass(frozen=True)
class _Placeholder:
    """The place of item number `index` between the token ids of the template."""

    index: int


class Processor:
    """Makes prompts for one checkpoint. Make one per process and use it for all rows.

    Raises CheckpointError: the template cannot be used, or the media pad is not a control token.
    """

    def __init__(self, config: KimiVLConfig, tokenizer: Tokenizer, chat_template: str) -> None:
        if not tokenizer.is_special(config.media_token_id):
            raise CheckpointError(
                f"media_placeholder_token_id={config.media_token_id} is not a control token, so "
                "ordinary text could hold it"
            )
        self.config = config
        self.tokenizer = tokenizer
        self._template = _compiled(chat_template)
        # No row can contain a marker, because none can know this.
        self._nonce = secrets.token_hex(16)
        self._layouts: dict[tuple[Kind, ...], list[int | _Placeholder]] = {}
        self._layout(["text", "image"])  # a broken template fails here, before any row is read

    @classmethod
    def from_checkpoint(cls, directory: Path) -> Self:
        """Read the files of a checkpoint, or raise CheckpointError for what is not implemented."""
        config = KimiVLConfig.from_checkpoint(directory)
        tokenizer = Tokenizer.from_checkpoint(directory, config.text.vocab_size)
        with within(f"{directory}"):
            return cls(config, tokenizer, _read_template(directory))

    def prompt(
        self,
        content: Sequence[Item],
        *,
        system: str | None = None,
        max_frame_tokens: int | None = None,
    ) -> Prompt:
        """Make the prompt of one user turn, which the model will answer.

        Neighbouring strings of `content` are joined and empty ones skipped; images are [H, W, 3]
        uint8 RGB. `system=None` leaves the system text to the template. `max_frame_tokens` limits
        the visual tokens of one image, see `image_size`.

        Raises:
            PromptError: `bad_prompt` for no content or an image of an impossible size,
                `prompt_too_long` if the context leaves no room for an answer.
            ValueError: an image is not [H, W, 3] uint8.
            CheckpointError: the template fails on this order of items, or loses one.
        """
        items = _joined(content)
        if not items:
            raise PromptError("bad_prompt", "a prompt needs text or an image, got neither")
        kinds: list[Kind] = ["text" if isinstance(item, str) else "image" for item in items]
        if system is not None:
            items.insert(0, system)
            kinds.insert(0, "system")
        item_ids = [self._item_ids(item, max_frame_tokens) for item in items]
        token_ids: list[int] = []
        for entry in self._layout(kinds):
            token_ids.extend(item_ids[entry.index] if isinstance(entry, _Placeholder) else [entry])
        self._check_length(token_ids, kinds.count("image"))
        images = [item for item in items if not isinstance(item, str)]
        cuts = [image_patches(image, self.config.image, max_frame_tokens) for image in images]
        side = self.config.image.patch_size
        no_patches = np.zeros((0, 3, side, side), np.uint8)
        return Prompt(
            token_ids=np.array(token_ids, np.int32),
            patches=np.concatenate([no_patches, *(patches for patches, _ in cuts)]),
            grid_hw=np.array([grid_hw for _, grid_hw in cuts], np.int32).reshape(-1, 2),
        )

    @cached_property
    def max_images(self) -> int:
        """The most images that a prompt has room for, however small they are."""
        one, two = self._layout(["text", "image"]), self._layout(["text", "image", "image"])
        num_tokens = max(1, len(two) - len(one))  # of an image with a single visual token
        return (self.config.text.max_position_embeddings - 1) // num_tokens

    def _item_ids(self, item: Item, max_frame_tokens: int | None) -> list[int]:
        if isinstance(item, str):
            return self.tokenizer.encode(item)
        require_rgb(item)
        height_px, width_px, _ = item.shape
        size = image_size(width_px, height_px, self.config.image, max_frame_tokens)
        return [self.config.media_token_id] * size.num_tokens

    def _check_length(self, token_ids: Sequence[int], num_images: int) -> None:
        context_len = self.config.text.max_position_embeddings
        if len(token_ids) >= context_len:
            num_pads = token_ids.count(self.config.media_token_id)
            raise PromptError(
                "prompt_too_long",
                f"the prompt has {len(token_ids)} tokens, {num_pads} of them from {num_images} "
                f"images, but must leave room for an answer in a context of {context_len}; use "
                "fewer frames or smaller ones, or less text",
            )

    def _layout(self, kinds: Sequence[Kind]) -> list[int | _Placeholder]:
        """Return the token ids of the template around items of these kinds, with placeholders."""
        known = self._layouts.get(tuple(kinds))
        if known is not None:
            return known
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        layout = self._layouts[tuple(kinds)] = self._new_layout(kinds)
        return layout

    def _new_layout(self, kinds: Sequence[Kind]) -> list[int | _Placeholder]:
        parts = re.split(_marker(self._nonce, r"(\d+)"), self._render(kinds))
        images = (index for index, kind in enumerate(kinds) if kind == "image")
        layout: list[int | _Placeholder] = []
        for number, part in enumerate(parts):
            if number % 2:  # re.split puts what the group matched between the parts
                layout.append(_Placeholder(int(part)))
            else:
                layout.extend(self._part(part, images))
        found = [entry.index for entry in layout if isinstance(entry, _Placeholder)]
        _check_placeholders(found, kinds)
        return layout

    def _part(self, part: str, images: Iterator[int]) -> Iterator[int | _Placeholder]:
        """Encode a part of the template; each media pad in it stands for the next image."""
        for token_id in self.tokenizer.encode_template(part):
            if token_id != self.config.media_token_id:
                yield token_id
                continue
            index = next(images, None)
            if index is None:
                raise CheckpointError("the chat template prints more media pads than images")
            yield _Placeholder(index)

    def _render(self, kinds: Sequence[Kind]) -> str:
        markers = [_marker(self._nonce, str(index)) for index in range(len(kinds))]
        messages: list[dict[str, Any]] = []
        if kinds[0] == "system":
            messages.append({"role": "system", "content": markers[0]})
        content = [
            {"type": kind, kind: marker}
            for kind, marker in zip(kinds, markers, strict=True)
            if kind != "system"
        ]
        messages.append({"role": "user", "content": content})
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None
            )
        except _RENDER_ERRORS as error:
            raise CheckpointError(
                f"the chat template failed: {type(error).__name__}: {error}"
            ) from error


def _marker(nonce: str, number: str) -> str:
    """Make a marker of letters and digits only, which trimming and escaping do not change."""
    return f"item{nonce}n{number}e"


def _joined(content: Sequence[Item]) -> list[Item]:
    """Join neighbouring strings, as the published code encodes them; drop empty ones."""
    items: list[Item] = []
    for is_text, run in groupby(content, key=lambda item: isinstance(item, str)):
        if not is_text:
            items.extend(run)
        elif text := "".join(item for item in run if isinstance(item, str)):
            items.append(text)
    return items


def _check_placeholders(found: Sequence[int], kinds: Sequence[Kind]) -> None:
    """Refuse a template that does not print the items 0, 1, ... once each, in order."""
    if list(found) == list(range(len(kinds))):
        return
    for index, kind in enumerate(kinds):
        if found.count(index) != 1:
            verb = "drops" if index not in found else "repeats"
            raise CheckpointError(f"the chat template {verb} item {index}, of kind {kind}")
    raise CheckpointError(f"the chat template reorders the items to {list(found)}")


def _read_template(directory: Path) -> str:
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path.name} cannot be read: {error}") from error
    template = read_json(directory / "tokenizer_config.json").get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(
            "there is neither a chat_template.jinja nor a text chat_template in "
            "tokenizer_config.json"
        )
    return template


def _compiled(chat_template: str) -> Template:
    """Compile a template with the settings that published templates are written for.

    The settings are those of `_compile_jinja_template` in transformers. Like there, the template
    runs in a sandbox, because it is a program from a stranger.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Unprintable,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(chat_template)
    except TemplateError as error:
        raise CheckpointError(f"the chat template is not jinja: {error}") from error


class _Unprintable(Undefined):
    """A missing name. A template may test it, but not print it: text would be lost silently."""

    __slots__ = ()
    __str__ = StrictUndefined.__str__


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
