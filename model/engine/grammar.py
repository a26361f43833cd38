"""Answers that follow a JSON Schema: which tokens may come next.

A schema is compiled once into a grammar of llguidance, and each sequence follows a copy of its own,
token by token. JSON is written on one line, with ", " and ": " as separators, because otherwise a
text could go on in white space without an end. Control tokens are forbidden, except for the stop
tokens where the text may end.

This module does not import torch: the driver checks schemas too.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from llguidance.tiktoken import lltokenizer_from_encoding
from numpy.typing import NDArray

from model.inputs.prompt import PromptError
from model.inputs.tokenizer import Tokenizer
from model.json_schema import Place, children, pointer, refuse_unknown_keys

# Thinking models write these around their reasoning. They are ordinary text, not control tokens.
OPEN_MARK, CLOSE_MARK = "\u25c1think\u25b7", "\u25c1/think\u25b7"

_WHITESPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANSWER = "start: %json {schema}\n"
_REASONED_ANSWER = """\
start: reasoning /[ \\n]*/ answer
reasoning[suffix={mark}]: /(?s:.*)/
answer: %json {schema}
"""
_MAX_GRAMMARS = 64  # that an engine keeps; each is some kilobytes
_MAX_SEARCHED = 500  # subschemas, for the place of an error


class Constraint:
    """The grammar of one sequence, and how far the sequence is in it; others have their own."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed_bits(self) -> NDArray[np.uint8]:
        """Return one bit for each token, the lowest of a byte first: [ceil(vocabulary / 32) * 4].

        The bits are undefined if this sets `error`.
        """
        bits = allocate_token_bitmask(1, self._vocab_size)
        fill_next_token_bitmask(self._matcher, bits)
        return bits[0].view(np.uint8)

    def advance(self, token_id: int) -> None:
        """Advance by one token, which was allowed."""
        self._matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether the text is complete and no token can follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why the grammar gave up, such as at a limit of its resources; None if it did not."""
        return _one_line(self._matcher.get_error()) if self._matcher.is_error() else None


class Grammars:
    """The grammars of one engine; each schema is compiled once."""

    def __init__(self, tokenizer: Tokenizer, stop_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_token_ids = list(stop_token_ids)
        self._vocabulary: LLTokenizer | None = None  # takes 0.7 s: made if needed
        self._compiled: OrderedDict[tuple[str, bool], LLMatcher] = OrderedDict()

    def start(self, schema: str, *, thinking: bool = False) -> Constraint:
        """Begin a text that follows a JSON Schema, given as JSON text.

        With `thinking`, the reasoning of a thinking model comes first; the schema does not bind it.
        Raises PromptError `schema_failed`: the text is no JSON Schema, has keys that JSON Schema
        does not know or that are not implemented, or cannot be satisfied; the message says which,
        and at which place of the schema.
        """
        key = (schema, thinking)
        if key not in self._compiled:
            self._compiled[key] = self._compile(schema, thinking=thinking)
            if len(self._compiled) > _MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return Constraint(self._compiled[key].deep_copy(), self._tokenizer.vocab_size)

    def _compile(self, schema: str, *, thinking: bool) -> LLMatcher:
        rules = {**_parse(schema), "x-guidance": _WHITESPACE}
        vocabulary = self._vocabulary = self._vocabulary or self._make_vocabulary()
        # The schema is checked by itself first: inside a grammar its error messages are longer.
        if error := _error_of(rules, vocabulary):
            _refuse(f"{pointer(_place_of(error, rules, vocabulary))}: {error}")
        template = _REASONED_ANSWER if thinking else _ANSWER
        grammar = template.format(schema=json.dumps(rules), mark=json.dumps(CLOSE_MARK))
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        Constraint(matcher, self._tokenizer.vocab_size).allowed_bits()  # some errors show only here
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


def _parse(schema: str) -> dict[str, Any]:
    try:
        rules = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise PromptError("schema_failed", f"the schema is not JSON: {error}") from error
    if not isinstance(rules, dict):
        raise PromptError("schema_failed", f"a schema must be a JSON object, got {schema[:80]}")
    try:
        refuse_unknown_keys(rules)
    except ValueError as error:
        raise PromptError("schema_failed", f"the schema cannot be used: {error}") from error
    return rules


def _error_of(rules: dict[str, Any], vocabulary: LLTokenizer) -> str:
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(rules), vocabulary)


def _place_of(error: str, rules: dict[str, Any], vocabulary: LLTokenizer) -> Place:
    """Find the innermost subschema that is refused by itself with the same error."""
    shared = {key: rules[key] for key in ("$defs", "definitions", "x-guidance") if key in rules}
    place, node, seen = (), rules, 0
    while True:
        for steps, child in children(node):
            seen += 1
            if seen > _MAX_SEARCHED:
                return place
            if isinstance(child, dict) and _error_of({**shared, **child}, vocabulary) == error:
                place, node = (*place, *steps), child
                break
        else:
            return place


def _refuse(error: str) -> None:
    if error:
        raise PromptError("schema_failed", f"the schema cannot be used: {_one_line(error)}")


def _one_line(error: str) -> str:
    return " ".join(error.split())[:300]
