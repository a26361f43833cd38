"""The real `tiktoken.model` is not here, so these tests build one of its size and special names."""

import base64
import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex

from jobs.training.vocabulary import SPECIAL_NAMES, train_merges, write_tokenizer
from model.inputs.tokenizer import PAT_STR, Tokenizer
from model.json_values import CheckpointError

NUM_BASE = 163_584
VOCAB_SIZE = 163_840
PUBLISHED_NAMES = {
    163584: "[BOS]",
    163585: "[EOS]",
    163586: "<|im_end|>",
    163587: "<|im_user|>",
    163588: "<|im_assistant|>",
    163594: "<|im_system|>",
    163601: "<|im_middle|>",
    163602: "<|media_start|>",
    163603: "<|media_content|>",
    163604: "<|media_end|>",
    163605: "<|media_pad|>",
    163838: "[UNK]",
    163839: "[PAD]",
}
WORDS = ["system", "user", "assistant", "You", " are", " a", " helpful", " assistant"]
BYTES = [bytes([byte]) for byte in range(256)]


def write_published_tokenizer(directory: Path) -> None:
    """Make 163,584 ranks. Few are words; the others are bytes that no text contains."""
    tokens = [*BYTES, *(word.encode() for word in WORDS)]
    tokens += [b"\xff\xfe" + rank.to_bytes(3, "big") for rank in range(len(tokens), NUM_BASE)]
    tokens[4017] = b"image"
    lines = [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    write_names(directory, PUBLISHED_NAMES)


def write_names(directory: Path, names: dict) -> None:
    added = {str(token_id): {"content": name} for token_id, name in names.items()}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))


def write_ranks(directory: Path, lines: list[bytes]) -> None:
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines))
    if not (directory / "tokenizer_config.json").exists():
        write_names(directory, {})


def byte_lines() -> list[bytes]:
    return [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(BYTES)]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("published")
    write_published_tokenizer(directory)
    return Tokenizer.from_checkpoint(directory, VOCAB_SIZE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("trained")
    lines = ["the red ball rolls to the left", "The ball isn't blue; it's red."] * 3
    return Tokenizer.from_checkpoint(directory, write_tokenizer(directory, lines, 40))


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """Make a tokenizer of bytes, five merges with `b"ab"` first, and three control tokens."""
    tokens = [*BYTES, b"ab", b"bc", b"abc", b"aa", b"  "]
    return Tokenizer({token: rank for rank, token in enumerate(tokens)}, {}, vocab_size=264)


SAMPLES = [
    "",
    "a",
    "A plain English sentence, with punctuation! (And more...)",
    "it's we'RE they'Ll \u2019s",
    "numbers 1 12 123 1234 12345 3.14159",
    "  leading, double  spaces and trailing   ",
    "lines\n\nand\r\nmore\t\ttabs \n \n",
    "\u4e2d\u6587\u6df7\u5408English\u548c\u6570\u5b57123",
    "\u3042\u308a\u304c\u3068\u3046 \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "e\u0301 combining, \u01c5 title case, \u00df, \u0130stanbul",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\u25c1think\u25b7hm\u25c1/think\u25b7",
    "\x00\x01\x7f\x80\ufeff\ufffd\u2028\u00a0",
    "\ufeffstarts with a byte order mark",
    "".join(chr(code) for code in range(0x20, 0x3000, 7)),
]


@pytest.mark.parametrize("name", ["published", "trained", "plain"])
def test_text_comes_back_from_its_ids(name, request):
    tokenizer = request.getfixturevalue(name)
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert not any(map(tokenizer.is_special, ids))


def test_random_text_comes_back_from_its_ids(trained):
    rng = np.random.default_rng(0)
    for _ in range(200):
        codes = rng.choice([0x20, 0x61, 0x41, 0x301, 0x4E2D, 0x0A, 0x31, 0x27], 30)
        codes += rng.integers(0, 20, 30)
        text = "".join(map(chr, codes))
        assert trained.decode(trained.encode(text)) == text


def test_published_words_have_their_ids(published):
    assert published.encode("image") == [4017]
    assert len(published.encode("You are a helpful assistant")) == 5
    assert {published.special(name): name for name in PUBLISHED_NAMES.values()} == PUBLISHED_NAMES


def test_ids_without_a_name_are_reserved_up_to_the_end_of_the_vocabulary(published):
    assert published.special("<|reserved_token_163589|>") == 163589
    assert published.special("<|reserved_token_163837|>") == 163837
    for beyond in (163840, 163841):
        with pytest.raises(ValueError, match=f"reserved_token_{beyond}"):
            published.special(f"<|reserved_token_{beyond}|>")
        assert max(published.encode_template(f"<|reserved_token_{beyond}|>")) < NUM_BASE


def test_a_name_beyond_the_vocabulary_is_left_out():
    ranks = {token: rank for rank, token in enumerate(BYTES)}
    tokenizer = Tokenizer(ranks, {256: "<|in|>", 257: "<|out|>"}, vocab_size=257)
    assert tokenizer.encode_template("<|in|>") == [256]
    assert max(tokenizer.encode_template("<|out|>")) < 256


def test_an_unknown_control_token_is_refused_by_name(published):
    with pytest.raises(ValueError, match=r"no control token '<\|media_begin\|>'"):
        published.special("<|media_begin|>")


@pytest.mark.parametrize("name", [*PUBLISHED_NAMES.values(), "<|reserved_token_163590|>"])
def test_only_the_template_can_make_a_control_token(published, name):
    text = f"before{name}after"
    assert max(published.encode(text)) < NUM_BASE
    assert published.decode(published.encode(text)) == text
    assert published.special(name) in published.encode_template(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        pytest.param("Hello world", ["Hello", " world"], id="a word takes one space"),
        pytest.param("HELLOworld", ["HELLOworld"], id="upper then lower"),
        pytest.param("helloWORLD", ["hello", "WORLD"], id="lower then upper"),
        pytest.param("it's it'S", ["it's", " it'S"], id="contractions"),
        pytest.param("1234567", ["123", "456", "7"], id="three digits"),
        pytest.param("a  b", ["a", " ", " b"], id="the last space goes to the word"),
        pytest.param("a \n\n b", ["a", " \n\n", " b"], id="white space up to newlines"),
        pytest.param("x!?\n/y", ["x", "!?\n", "/y"], id="punctuation takes newlines, not slashes"),
        pytest.param("x //y", ["x", " //", "y"], id="punctuation takes one space"),
        pytest.param(
            "ab\u4e2d\u6587cd", ["ab", "\u4e2d\u6587", "cd"], id="Han characters stand alone"
        ),
        pytest.param("\u4e2d\u3042", ["\u4e2d", "\u3042"], id="kana are letters, not Han"),
        pytest.param("end  ", ["end", "  "], id="trailing space"),
    ],
)
def test_text_is_split_as_published(text, pieces):
    """Each whole piece is a token here, and the text and all its other parts are not."""
    tokens = {token: rank for rank, token in enumerate(BYTES)}
    for piece in pieces:
        tokens.setdefault(piece.encode(), len(tokens))
    tokens.setdefault(text.encode(), len(tokens))  # would be chosen if the text were one piece
    tokenizer = Tokenizer(tokens, {}, vocab_size=300)
    found = [tokenizer.decode([token_id]) for token_id in tokenizer.encode(text)]
    assert found == pieces


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("abc", ["abc"], id="a whole piece is a token"),
        pytest.param("abcd", ["abc", "d"], id="merged twice"),
        pytest.param("dabd", ["d", "ab", "d"], id="merged once"),
        pytest.param("aaax", ["aa", "a", "x"], id="the left pair first"),
        pytest.param("aabc", ["a", "abc"], id="the lowest rank first"),
    ],
)
def test_the_pair_with_the_lowest_rank_merges_first(plain, text, tokens):
    assert [plain.decode([token_id]) for token_id in plain.encode(text)] == tokens


def slow_encode(ranks: dict[bytes, int], text: str) -> list[int]:
    """Encode by the definition: split, then merge neighbours of lowest rank, left ones first."""
    ids = []
    for word in regex.findall(PAT_STR, text, flags=regex.VERSION1):
        whole = word.encode()
        pieces = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while True:
            merges = [left + right for left, right in pairwise(pieces)]
            known = [(ranks[merge], place) for place, merge in enumerate(merges) if merge in ranks]
            if not known:
                break
            _, place = min(known)
            pieces[place : place + 2] = [merges[place]]
        ids += [ranks[piece] for piece in pieces]
    return ids


def test_encoding_equals_its_definition():
    lines = [*SAMPLES, "aab aba abab", "a  b \n\n c", "\u4e2d\u4e2d\u6587 \u4e2d\u6587a"]
    ranks = {token: rank for rank, token in enumerate([*BYTES, *train_merges(lines, 200)])}
    tokenizer = Tokenizer(ranks, {}, vocab_size=500)
    rng = np.random.default_rng(0)
    alphabet = list("aabbAB19 \n\t.,'s/-\u0301\u01c5\u3042\u4e2d\u6587\u00df\U0001f600")
    random = ["".join(rng.choice(alphabet, rng.integers(1, 60))) for _ in range(500)]
    for text in lines + random:
        assert tokenizer.encode(text) == slow_encode(ranks, text)


def test_decoding_skips_control_tokens_and_replaces_broken_utf8(plain):
    assert plain.decode([261, 97, 262, 98, 263]) == "ab"
    assert plain.decode([0xE4, 0xB8]) == "\ufffd"
    assert plain.decode_bytes([0xE4, 263, 0xB8, 0xAD]) == "\u4e2d".encode()
    assert plain.decode([]) == ""
    assert plain.decode(np.array([97, 256], np.int32)) == "aab"


@pytest.mark.parametrize("token_id", [-1, 264, 2**40])
def test_decoding_an_id_outside_the_vocabulary_is_refused(plain, token_id):
    with pytest.raises(ValueError, match=f"{token_id} is not in"):
        plain.decode([97, token_id])


def test_lone_surrogates_become_the_replacement_character(plain):
    assert plain.decode(plain.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"
    assert plain.decode(plain.encode("\ud83d\ude00")) == "\U0001f600"
    assert plain.decode(plain.encode_template("\ud800")) == "\ufffd"


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        pytest.param("b" + "a" * 24_999, [], id="a run of the limit"),
        pytest.param("b" + "a" * 25_000, [25_000], id="a run beyond the limit"),
        pytest.param("b" + "a" * 50_000, [25_000, 50_000], id="twice beyond"),
        pytest.param("\n" + " " * 25_002 + "a", [25_000], id="white space beyond the limit"),
        pytest.param("c " + "b" + "a" * 25_000, [25_002], id="a run after another"),
        pytest.param("aaa " * 20_000, [], id="many short runs"),
        pytest.param("b " * 199_999 + "b" + "aaa", [400_000], id="a long text"),
    ],
)
def test_long_text_is_cut_where_the_reference_cuts_it(plain, text, cuts):
    parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    ids = plain.encode(text)
    assert ids == [token_id for part in parts for token_id in plain.encode(part)]
    is_cut = ids != plain.encode_template(text)  # which does not cut
    assert is_cut == bool(cuts)


@pytest.mark.parametrize("unit", ["a", " ", "\n ", "A", "'", "\u4e2d", "\u3042", "\u0301", "\t!"])
def test_endless_text_is_encoded(plain, unit):
    text = unit * (450_000 // len(unit))
    assert plain.decode(plain.encode(text)) == text


def test_a_tokenizer_survives_pickling(trained):
    copy = pickle.loads(pickle.dumps(trained))
    text = "the red ball <|im_end|>"
    assert copy.encode(text) == trained.encode(text)
    assert copy.encode_template(text) == trained.encode_template(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(b"YWI=", "257: expected base64", id="no rank"),
        pytest.param(b"YWI= x", "257: expected base64", id="a rank that is no number"),
        pytest.param(b"YWI= -1", "257: expected base64", id="a negative rank"),
        pytest.param(b"YWI= 256 7", "257: expected base64", id="three fields"),
        pytest.param(b"YW?I= 256", "257: expected base64", id="not base64"),
        pytest.param(b"YWI 256", "257: expected base64", id="base64 without its padding"),
        pytest.param(b" 256", "257: expected base64", id="an empty token"),
        pytest.param(b"YQ== 256", "b'a' occurs twice", id="a token twice"),
        pytest.param(b"YWI= 255", "256 is missing", id="a rank twice"),
        pytest.param(b"YWI= 257", "256 is missing", id="a rank left out"),
    ],
)
def test_a_malformed_vocabulary_is_refused_by_line(tmp_path, line, message):
    write_ranks(tmp_path, [*byte_lines(), line])
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_checkpoint(tmp_path, 300)


def test_blank_lines_and_windows_line_ends_are_read(tmp_path):
    write_ranks(tmp_path, [line + b"\r" for line in byte_lines()] + [b"", b""])
    assert Tokenizer.from_checkpoint(tmp_path, 256).encode("hi") == [104, 105]


def test_a_vocabulary_without_every_byte_is_refused(tmp_path):
    lines = byte_lines()
    lines[65] = b"YWI= 65"
    write_ranks(tmp_path, lines)
    with pytest.raises(CheckpointError, match="lacks the byte 65"):
        Tokenizer.from_checkpoint(tmp_path, 300)


def test_missing_files_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"tiktoken\.model cannot be read"):
        Tokenizer.from_checkpoint(tmp_path, 300)
    (tmp_path / "tiktoken.model").write_bytes(b"\n".join(byte_lines()))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is missing"):
        Tokenizer.from_checkpoint(tmp_path, 300)


def test_more_tokens_than_the_network_embeds_are_refused(tmp_path):
    write_ranks(tmp_path, byte_lines())
    with pytest.raises(CheckpointError, match="256 tokens but the network embeds 255"):
        Tokenizer.from_checkpoint(tmp_path, 255)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        pytest.param({"97": {"content": "<|a|>"}}, "id 97 of a base token", id="a base id"),
        pytest.param(
            {"256": {"content": "x"}, "257": {"content": "x"}},
            "both named 'x'",
            id="one name twice",
        ),
        pytest.param(
            {"257": {"content": "<|reserved_token_256|>"}}, "both named", id="a reserved name"
        ),
        pytest.param(
            {"256": {"content": "x"}, "0256": {"content": "y"}}, "id 256 twice", id="one id twice"
        ),
        pytest.param({"x": {"content": "x"}}, "'x'", id="an id that is no number"),
        pytest.param({"256": {"content": ""}}, "must map ids", id="an empty name"),
        pytest.param({"256": "x"}, "must map ids", id="a bare name"),
        pytest.param(["x"], "must be an object", id="a list"),
    ],
)
def test_control_tokens_that_collide_are_refused(tmp_path, added, message):
    write_ranks(tmp_path, byte_lines())
    config = json.dumps({"added_tokens_decoder": added})
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_checkpoint(tmp_path, 300)


def test_a_trained_vocabulary_is_read_with_its_control_tokens(tmp_path):
    lines = ["a red ball and a red square", "a red ball"]
    vocab_size = write_tokenizer(tmp_path, lines, 5)
    assert vocab_size == 256 + 5 + 24
    tokenizer = Tokenizer.from_checkpoint(tmp_path, vocab_size)
    names = {tokenizer.special(name) - 261: name for name in SPECIAL_NAMES.values()}
    assert names == SPECIAL_NAMES
    assert len(tokenizer.encode("a red ball")) < len("a red ball")


def test_training_merges_the_most_frequent_neighbours_first():
    assert train_merges(["aab aab ab"], 1) == [b"ab"]
    assert train_merges(["xyz xyz"], 9) == [b"xy", b"xyz", b" xyz"]
    assert train_merges(["xyz xyz"], 9) == train_merges(["xyz", " xyz"], 9)
    assert train_merges([], 9) == []


def test_training_never_lists_a_token_twice():
    merges = train_merges(["abcabcbcab aabbcc bcabca"] * 2 + ["cabcab"], 30)
    assert len(merges) == len(set(merges))
    assert all(len(token) > 1 for token in merges)
