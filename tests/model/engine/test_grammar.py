"""Whatever the network prefers, a text that ends by itself follows the schema."""

import json
import re
from functools import partial

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits

from model.engine.config import EngineConfig
from model.engine.engine import GIB, Engine
from model.engine.grammar import CLOSE_MARK, OPEN_MARK, Grammars
from model.engine.sequence import SamplingParams
from model.inputs.prompt import PromptError
from model.inputs.tokenizer import Tokenizer

SCHEMAS = {
    "enum": {"enum": ["red", "blue", 3, None, {"a": [True]}]},
    "nested": {
        "type": "object",
        "properties": {
            "shape": {"enum": ["circle", "square"]},
            "place": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["x"],
                "additionalProperties": False,
            },
            "caption": {"type": "string", "maxLength": 12},
        },
        "required": ["shape", "place", "caption"],
        "additionalProperties": False,
    },
    "array": {
        "type": "array",
        "items": {"type": "boolean"},
        "minItems": 3,
        "maxItems": 6,
    },
    "numbers": {
        "type": "array",
        "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 20},
        "minItems": 2,
        "maxItems": 2,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}(é|月)?$"},
    "reference": {
        "$defs": {"one": {"type": "string", "minLength": 2, "maxLength": 5}},
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/one"},
            "b": {"anyOf": [{"type": "null"}, {"const": 7}]},
        },
        "required": ["b"],
        "additionalProperties": False,
    },
    "free": {"type": "object"},
}


@pytest.fixture
def grammars(checkpoint, processor):
    return Grammars(processor.tokenizer, processor.config.stop_token_ids)


def sampled(schema, seed=0, **params):
    given = {"max_tokens": 150, "temperature": 1.0, "seed": seed, "loop_guard": 0, **params}
    return SamplingParams(schema=json.dumps(schema), **given)


def run(engine):
    done = {}
    while engine.has_work:
        done |= dict(engine.step())
    return done


def follows(text, schema):
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_random_network_writes_what_follows_the_schema(checkpoint, processor, name):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig(max_batch_size=16))
    prompt = processor.prompt([np.zeros((28, 28, 3), np.uint8), "describe"])
    for seed in range(24):
        params = sampled(SCHEMAS[name], seed, top_p=(1.0, 0.9)[seed % 2])
        engine.add(str(seed), prompt, params)
    done = run(engine)
    ended = [each for each in done.values() if each.finish_reason == "stop"]
    assert len(ended) >= (1 if name == "free" else 22)
    assert all(follows(each.text, SCHEMAS[name]) for each in ended)
    for each in done.values():
        assert each.is_truncated == (each.finish_reason != "stop")
        specials = [token for token in each.token_ids if engine.tokenizer.is_special(token)]
        ends = set(engine.model.config.stop_token_ids)
        assert set(specials) <= ends
        assert not specials or each.token_ids.index(specials[0]) == len(each.token_ids) - 1


def test_what_the_length_limit_cuts_is_truncated(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    engine.add("x", processor.prompt(["a"]), sampled(SCHEMAS["nested"], max_tokens=5))
    done = run(engine)["x"]
    assert done.finish_reason == "length"
    assert done.is_truncated
    assert not follows(done.text, SCHEMAS["nested"])


def test_a_text_that_is_whole_needs_no_stop_token(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    num_tokens = len(engine.tokenizer.encode('"ab"'))
    for name, limit in (("enough", 4), ("unlimited", 50)):
        engine.add(name, processor.prompt(["a"]), sampled({"const": "ab"}, max_tokens=limit))
    for done in run(engine).values():
        assert (done.text, done.finish_reason) == ('"ab"', "stop")
        assert num_tokens <= done.num_generated_tokens <= 4
        assert not any(engine.tokenizer.is_special(token) for token in done.token_ids)


def test_a_stop_token_comes_only_where_the_text_may_end(grammars, processor):
    constraint = grammars.start('{"type": "integer"}')
    stop = processor.config.stop_token_ids[-1]

    def is_allowed(token_id):
        bits = np.unpackbits(constraint.allowed_bits(), bitorder="little")
        return bool(bits[token_id])

    (minus,), (seven,), (letter,) = (processor.tokenizer.encode(text) for text in "-7a")
    assert [is_allowed(each) for each in (stop, minus, seven, letter)] == [False, True, True, False]
    constraint.advance(minus)
    assert [is_allowed(each) for each in (stop, minus, seven)] == [False, False, True]
    constraint.advance(seven)
    assert [is_allowed(each) for each in (stop, minus, seven)] == [True, False, True]
    assert not constraint.is_complete
    constraint.advance(stop)
    assert constraint.is_complete
    assert constraint.error is None


def test_reasoning_is_free_and_the_answer_is_not(checkpoint, processor, grammars):
    constraint = grammars.start('{"const": "ab"}', thinking=True)
    written = f"{OPEN_MARK}any {{ thing <|im_end|> \n{CLOSE_MARK}\n\n"
    for token in [*processor.tokenizer.encode(written), *processor.tokenizer.encode('"ab"')]:
        bits = np.unpackbits(constraint.allowed_bits(), bitorder="little")
        assert bits[token]
        assert not bits[list(processor.config.stop_token_ids)].any()
        constraint.advance(token)
    assert constraint.is_complete
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    engine.add("x", processor.prompt(["a"]), sampled({"const": 1}, max_tokens=9, thinking=True))
    done = run(engine)["x"]  # random tokens, and no mark among them
    assert done.finish_reason == "length"
    assert done.num_generated_tokens == 9


def test_marks_in_an_answer_that_was_not_reasoned_are_text(checkpoint, processor):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    engine.add("x", processor.prompt(["a"]), sampled({"const": f"a{CLOSE_MARK}b"}))
    done = run(engine)["x"]
    assert json.loads(done.text) == f"a{CLOSE_MARK}b"
    assert done.reasoning is None


def test_neighbours_preemption_and_shared_prefixes_change_nothing(checkpoint, processor):
    def engine(num_blocks=None, **config):
        whole = Engine.from_checkpoint(checkpoint, EngineConfig(**config))
        if num_blocks is None:
            return whole
        per_block = sum(layer.nbytes for layer in whole.cache.layers) / (whole.pool.num_blocks + 1)
        gib = (num_blocks + 0.5) * per_block / GIB
        return Engine.from_checkpoint(checkpoint, EngineConfig(cache_gib=gib, **config))

    prompt = processor.prompt(["a red circle " * 4])
    asked = {f"{name}{seed}": sampled(SCHEMAS[name], seed) for name in SCHEMAS for seed in range(3)}
    asked["none"] = SamplingParams(max_tokens=40, temperature=1.0)
    alone = {}
    for name, params in asked.items():
        one = engine()
        one.add(name, prompt, params)
        alone |= run(one)
    small = engine(num_blocks=17, max_step_tokens=50)
    for name, params in asked.items():
        small.add(name, prompt, params)
    together = run(small)
    assert small.scheduler.num_preemptions > 0
    for name, completion in alone.items():
        assert together[name].token_ids == completion.token_ids, name
        assert together[name].finish_reason == completion.finish_reason


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "the schema is not JSON: Expecting property name"),
        ("[1]", r"a schema must be a JSON object, got \[1\]"),
        ('{"type": "strin"}', "used: #: Invalid type: strin"),
        pytest.param(
            '{"type": "object", "properties": {"a/b": {"type": "strin"}, "c": {"not": {}}}}',
            "used: #/properties/a~1b: Invalid type: strin",
            id="the place of a type",
        ),
        pytest.param(
            '{"anyOf": [{"type": "null"}, {"type": "array", "items": {"not": {}}}]}',
            r'used: #/anyOf/1/items: Unimplemented keys: \["not"\]',
            id="the place of a key",
        ),
        pytest.param(
            '{"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/x"}}}}}',
            r"used: #/\$defs/a/properties/b: Pointer '/\$defs/x' does not exist",
            id="the place of a reference",
        ),
        pytest.param(
            '{"type": "array", "items": {"type": "string", "maxlength": 3}}',
            "#/items has the key 'maxlength', which JSON Schema does not have.* is 'maxLength'",
            id="a key that would constrain nothing",
        ),
        pytest.param(
            '{"name": "clip", "strict": true, "schema": {"type": "object"}}',
            "# has the key 'name', which JSON Schema does not have",
            id="a wrapper",
        ),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable schema: minimum"),
        ('{"type": "string", "pattern": "("}', "unclosed group"),
        ('{"type": "array", "uniqueItems": true}', "Unimplemented keys"),
        ('{"$ref": "#/nothing"}', "'/nothing' does not exist"),
        ('{"$ref": "https://example.org/schema.json"}', "not present in a registry"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(grammars, schema, message):
    for thinking in (False, True):
        with pytest.raises(PromptError, match=message) as error:
            grammars.start(schema, thinking=thinking)
        assert error.value.code == "schema_failed"
        assert "\n" not in error.value.message


def test_a_checkpoint_whose_texts_end_with_a_word_has_no_schemas(processor):
    for ends in ((), (5,), (*processor.config.stop_token_ids, 5)):
        with pytest.raises(PromptError, match="control tokens, and its stop"):
            Grammars(processor.tokenizer, ends).start('{"type": "null"}')


def test_a_schema_leaves_no_room_for_stops():
    with pytest.raises(ValueError, match="a schema decides where the answer ends"):
        SamplingParams(schema="{}", stop=("x",))
    with pytest.raises(ValueError, match="a schema decides where the answer ends"):
        SamplingParams(schema="{}", stop_token_ids=(5,))


def test_a_grammar_that_gives_up_fails_its_sequence_alone(checkpoint, processor, monkeypatch):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    prompt = processor.prompt(["a"])
    engine.add("neighbour", prompt, sampled(SCHEMAS["nested"], 1))
    expected = run(engine)["neighbour"]
    engine.add("neighbour", prompt, sampled(SCHEMAS["nested"], 1))
    # All limits of llguidance are far away for any schema that it accepts; here one is not.
    limited = partial(LLMatcher, limits=LLParserLimits(max_lexer_states=20))
    for name in ("grammar_from_json_schema", "validate_grammar"):
        setattr(limited, name, getattr(LLMatcher, name))
    monkeypatch.setattr("model.engine.grammar.LLMatcher", limited)
    heavy = {"type": "string", "pattern": "^(a|b)*a(a|b){200}c$"}
    engine.add("heavy", prompt, sampled(heavy, max_tokens=120))
    done = run(engine)
    assert done["neighbour"].token_ids == expected.token_ids
    assert isinstance(done["heavy"], PromptError)
    assert done["heavy"].code == "schema_failed"
    assert re.match(r"the schema's grammar gave up after [1-9]\d* tokens: .+", str(done["heavy"]))
    assert engine.pool.num_available == engine.pool.num_blocks


def test_each_schema_is_compiled_once(checkpoint, processor, monkeypatch):
    engine = Engine.from_checkpoint(checkpoint, EngineConfig())
    compiled = []
    compile_one = Grammars._compile

    def counted(self, schema, *, thinking):
        compiled.append(schema)
        return compile_one(self, schema, thinking=thinking)

    monkeypatch.setattr(Grammars, "_compile", counted)
    for seed in range(6):
        engine.add(str(seed), processor.prompt(["a"]), sampled({"const": seed % 2}, seed))
    assert [done.text for _, done in sorted(run(engine).items())] == ["0", "1"] * 3
    assert len(compiled) == 2


def test_characters_of_several_tokens_are_written_whole(checkpoint):
    tokenizer = Tokenizer.from_checkpoint(checkpoint, 400)
    ends = [tokenizer.vocab_size - 1]
    constraint = Grammars(tokenizer, ends).start('{"const": "é月🙂"}')
    written = []
    while not constraint.is_complete:
        bits = np.unpackbits(constraint.allowed_bits(), bitorder="little")
        written.append(int(np.flatnonzero(bits)[-1]))
        constraint.advance(written[-1])
    assert json.loads(tokenizer.decode(written)) == "é月🙂"
