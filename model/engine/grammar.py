"""Answers that follow a JSON Schema: which tokens may come next.

A schema becomes a grammar of llguidance once; each sequence follows a copy of its own, token after
token. What a schema allows is written on one line, with ", " and ": " between its parts, so that no
text can run away in white space. Control tokens are never part of it, but the stop tokens where the
text may end.

No torch here: the driver checks a schema without it.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from llguidance.tiktoken import lltokenizer_from_encoding
from numpy.typing import NDArray

from model.inputs.prompt import PromptError
from model.inputs.tokenizer import Tokenizer

# What thinking models put around their reasoning; ordinary text in their vocabulary.
OPEN_MARK, CLOSE_MARK = "\u25c1think\u25b7", "\u25c1/think\u25b7"

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANSWER = "start: %json {schema}\n"
_REASONED_ANSWER = """\
start: reasoning /[ \\n]*/ answer
reasoning[suffix={mark}]: /(?s:.*)/
answer: %json {schema}
"""
_MAX_GRAMMARS = 64  # kept by an engine; each is some kilobytes


class Constraint:
    """The state of one sequence: what its tokens were, and hence what may follow.

    Args:
        matcher: of the grammar; nobody else uses it.
        vocab_size: of the network.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed_bits(self) -> NDArray[np.uint8]:
        """One bit for each token, the lowest of a byte first: [ceil(vocabulary / 32) * 4].

        Meaningless where it leaves an `error`.
        """
        bits = allocate_token_bitmask(1, self._vocab_size)
        fill_next_token_bitmask(self._matcher, bits)
        return bits[0].view(np.uint8)

    def take(self, token_id: int) -> None:
        """Follow the sequence by one token, which was allowed."""
        self._matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing can follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why the grammar gave up, for example at a limit of its resources; it stays so."""
        return _one_line(self._matcher.get_error()) if self._matcher.is_error() else None


class Grammars:
    """The grammars of one engine, each schema compiled once.

    Args:
        tokenizer: of the checkpoint.
        stop_token_ids: which end its texts.
    """

    def __init__(self, tokenizer: Tokenizer, stop_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_token_ids = list(stop_token_ids)
        self._vocabulary: LLTokenizer | None = None  # 0.7 s for the published size, once needed
        self._compiled: OrderedDict[tuple[str, bool], LLMatcher] = OrderedDict()

    def start(self, schema: str, *, thinking: bool = False) -> Constraint:
        """Begin a text.

        Args:
            schema: JSON text of a JSON Schema.
            thinking: it is preceded by the reasoning of a thinking model, which is free.

        Raises:
            PromptError: `schema_failed`: it is no JSON Schema, asks for what is not implemented, or
                nothing can satisfy it; the message says what.
        """
        key = (schema, thinking)
        if key not in self._compiled:
            self._compiled[key] = self._compile(schema, thinking=thinking)
            if len(self._compiled) > _MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return Constraint(self._compiled[key].deep_copy(), self._tokenizer.vocab_size)

    def _compile(self, schema: str, *, thinking: bool) -> LLMatcher:
        rules = {**_parse(schema), "x-guidance": _LAYOUT}
        vocabulary = self._vocabulary = self._vocabulary or self._make_vocabulary()
        # On its own first: of a schema inside a grammar the messages are longer.
        alone = LLMatcher.grammar_from_json_schema(rules)
        _refuse(LLMatcher.validate_grammar(alone, vocabulary))
        layout = _REASONED_ANSWER if thinking else _ANSWER
        grammar = layout.format(schema=json.dumps(rules), mark=json.dumps(CLOSE_MARK))
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        Constraint(matcher, self._tokenizer.vocab_size).allowed_bits()  # the first step may fail
        _refuse(matcher.get_error())
        return matcher

    def _make_vocabulary(self) -> LLTokenizer:
        ends = self._stop_token_ids
        if not ends or not all(self._tokenizer.is_special(token_id) for token_id in ends):
            raise PromptError(
                "schema_failed",
                "a schema needs a checkpoint whose texts end with control tokens, and its stop "
                f"tokens are {ends}",
            )
        return lltokenizer_from_encoding(
            self._tokenizer.encoding,
            n_vocab=self._tokenizer.vocab_size,
            eos_token=ends,
            slices=LLTokenizer.json_slices(),
        )


def _parse(schema: str) -> dict[str, object]:
    try:
        rules = json.loads(schema)
    except ValueError as error:
        raise PromptError("schema_failed", f"the schema is not JSON: {error}") from error
    if not isinstance(rules, dict):
        raise PromptError("schema_failed", f"a schema must be a JSON object, got {schema[:80]}")
    return rules


def _refuse(error: str) -> None:
    if error:
        raise PromptError("schema_failed", f"the schema cannot be used: {_one_line(error)}")


def _one_line(error: str) -> str:
    return " ".join(error.split())[:300]
