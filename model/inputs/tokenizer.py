"""`Tokenizer`: text -> token ids and back, by `tiktoken.model` and `tokenizer_config.json`.

One rule: `encode` knows no control tokens, so text from a row stays ordinary text whatever it
holds. Only `encode_template`, which is for the chat template of the checkpoint, turns names such as
`<|im_end|>` into ids. Ids below the number of base tokens are text. All ids from there to the end
of the model's vocabulary are control tokens. No id outside the vocabulary is ever produced.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import tiktoken

from model.json_values import CheckpointError, read_json, within

# Text is split by this pattern before byte pairs are merged, as by `TikTokenTokenizer.pat_str` in
# tokenization_moonshot.py. `&&` is the intersection of character classes.
_LETTER_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PAT_STR = "|".join(
    [
        r"[\p{Han}]+",
        f"{_LETTER_PREFIX}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_LETTER_PREFIX}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Longer text is cut, as in `TikTokenTokenizer.encode`: this bounds the time and the stack of the
# split. The first limit is for the whole text, the second for a run with or without white space.
_MAX_CHARS = 400_000
_MAX_RUN_CHARS = 25_000
_RUN = re.compile(r"\s+|\S+")


class Tokenizer:
    """The byte-pair encoding of one checkpoint. It is picklable, and threads may use it together.

    `ranks` maps the bytes of base tokens to the ids 0 .. len(ranks) - 1. Ids from there to
    `vocab_size` that `special_names` lacks are named `<|reserved_token_{id}|>`. Its names of ids
    from `vocab_size` on are ignored: the published wrapper makes two of them, for which the network
    has no row. Raises CheckpointError: there are more base tokens than ids, or a control token has
    the id of a base token or the name of another control token.
    """

    def __init__(
        self, ranks: Mapping[bytes, int], special_names: Mapping[int, str], *, vocab_size: int
    ) -> None:
        if len(ranks) > vocab_size:
            raise CheckpointError(
                f"tiktoken.model has {len(ranks)} tokens but the network embeds {vocab_size}"
            )
        self.vocab_size = vocab_size
        self.num_ordinary = len(ranks)  # ids below it are text
        self._special_ids = _special_ids(special_names, len(ranks), vocab_size)
        self.encoding = tiktoken.Encoding(
            "checkpoint",
            pat_str=PAT_STR,
            mergeable_ranks=dict(ranks),
            special_tokens=self._special_ids,
        )

    @classmethod
    def from_checkpoint(cls, directory: Path, vocab_size: int) -> Self:
        """Read the tokenizer in 0.25 s (published size); CheckpointError names file and line."""
        ranks = _read_ranks(directory / "tiktoken.model")
        with within(f"{directory}"):
            config = read_json(directory / "tokenizer_config.json")
            names = _special_names(config.get("added_tokens_decoder", {}))
            return cls(ranks, names, vocab_size=vocab_size)

    def encode(self, text: str) -> list[int]:
        """Encode `text` as ordinary text; the result never holds a control token.

        Lone surrogates, which UTF-8 cannot carry, become U+FFFD.
        """
        return [
            token_id
            for piece in _cut(_without_lone_surrogates(text))
            for token_id in self.encoding.encode_ordinary(piece)
        ]

    def encode_template(self, text: str) -> list[int]:
        """Encode text and recognise names of control tokens in it. Never give it text of a row."""
        return self.encoding.encode(
            _without_lone_surrogates(text), allowed_special="all", disallowed_special=()
        )

    def special(self, name: str) -> int:
        """Return the id of the control token `name`; raise ValueError if there is none."""
        if name not in self._special_ids:
            raise ValueError(f"the checkpoint has no control token {name!r}")
        return self._special_ids[name]

    def is_special(self, token_id: int) -> bool:
        """Say whether `token_id` is a control token, which `encode` never returns."""
        return self.num_ordinary <= token_id < self.vocab_size

    def decode(self, ids: Iterable[int]) -> str:
        """Decode `ids` without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Decode to bytes, which may end inside a character; an unknown id raises ValueError."""
        ordinary: list[int] = []
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {token_id} is not in [0, {self.vocab_size})")
            if token_id < self.num_ordinary:
                ordinary.append(int(token_id))
        return self.encoding.decode_bytes(ordinary)


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Parse lines of base64, a space and a rank; refuse ranks by which no text could be encoded."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        token, rank = _parse_line(line, f"{path}:{number}")
        if token in ranks:
            raise CheckpointError(f"{path}:{number}: the token {token!r} occurs twice")
        ranks[token] = rank
    _check_ranks(ranks, path)
    return ranks


def _parse_line(line: bytes, where: str) -> tuple[bytes, int]:
    encoded, _, rank = line.partition(b" ")
    try:
        token = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        token = b""
    if not token or not rank.isdigit():
        raise CheckpointError(f"{where}: expected base64, a space and a rank, got {line[:80]!r}")
    return token, int(rank)


def _check_ranks(ranks: Mapping[bytes, int], path: Path) -> None:
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise CheckpointError(f"{path} lacks the byte {missing}; every single byte must be a token")
    used = set(ranks.values())
    gap = next((rank for rank in range(len(ranks)) if rank not in used), None)
    if gap is not None:
        raise CheckpointError(
            f"{path}: {len(ranks)} tokens need the ranks 0 to {len(ranks) - 1}, once each; "
            f"{gap} is missing"
        )


def _special_names(added_tokens: Any) -> dict[int, str]:
    if not isinstance(added_tokens, dict):
        raise CheckpointError(f"added_tokens_decoder must be an object, got {added_tokens!r}")
    names: dict[int, str] = {}
    for key, value in added_tokens.items():
        content = value.get("content") if isinstance(value, dict) else None
        if not key.isdecimal() or not isinstance(content, str) or not content:
            raise CheckpointError(
                f'added_tokens_decoder must map ids to {{"content": name}}, got {key!r}: {value!r}'
            )
        if int(key) in names:
            raise CheckpointError(f"added_tokens_decoder names id {int(key)} twice")
        names[int(key)] = content
    return names


def _special_ids(names: Mapping[int, str], num_base: int, vocab_size: int) -> dict[str, int]:
    """Name every id from `num_base` to `vocab_size`: name -> id."""
    for token_id, name in names.items():
        if token_id < num_base:
            raise CheckpointError(
                f"added_tokens_decoder gives {name!r} the id {token_id} of a base token; control "
                f"tokens start at {num_base}"
            )
    ids: dict[str, int] = {}
    for token_id in range(num_base, vocab_size):
        name = names.get(token_id, f"<|reserved_token_{token_id}|>")
        if name in ids:
            raise CheckpointError(f"the ids {ids[name]} and {token_id} are both named {name!r}")
        ids[name] = token_id
    return ids


def _without_lone_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _cut(text: str) -> Iterator[str]:
    """Cut `text` after each `_MAX_CHARS`, and each part where a run reaches `_MAX_RUN_CHARS`."""
    for start in range(0, len(text), _MAX_CHARS):
        part = text[start : start + _MAX_CHARS]
        begin = 0
        for run in _RUN.finditer(part):
            for end in range(run.start() + _MAX_RUN_CHARS, run.end(), _MAX_RUN_CHARS):
                yield part[begin:end]
                begin = end
        yield part[begin:]
