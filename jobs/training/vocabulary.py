"""Write a small tokenizer in the published file layout, for the demo checkpoint and for tests.

`write_tokenizer` trains byte pairs on given lines and writes the files that `model.inputs` reads:
`tiktoken.model`, `tokenizer_config.json` and `chat_template.jinja`. The control tokens have the
published names and follow the base tokens in the published order.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import regex

from model.inputs.tokenizer import PAT_STR

# Names by distance from the first control token. Kimi-VL has the first 22 at these distances, and
# its last two at the end of the vocabulary; distances without a name are reserved.
SPECIAL_NAMES = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    10: "<|im_system|>",
    17: "<|im_middle|>",
    18: "<|media_start|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    22: "[UNK]",
    23: "[PAD]",
}

# Renders the same text as the published template, with nothing between its pieces.
CHAT_TEMPLATE = """\
{%- macro turn(role, content) -%}
  {%- if role in ["system", "user", "assistant"] -%}<|im_{{ role }}|>{%- endif -%}
  {{- role -}}<|im_middle|>
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for item in content -%}
      {%- if item.get("type") == "image" or "image" in item or "image_url" in item -%}
        <|media_start|>image<|media_content|><|media_pad|><|media_end|>
      {%- else -%}
        {{- item.get("text", "") -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  <|im_end|>
{%- endmacro -%}
{%- if messages[0]["role"] != "system" -%}
  {{- turn("system", "You are a helpful assistant") -}}
{%- endif -%}
{%- for message in messages -%}
  {{- turn(message["role"], message["content"]) -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""


def write_tokenizer(directory: Path, lines: Iterable[str], num_merges: int) -> int:
    """Train a vocabulary on `lines` and write the three files into `directory`.

    Returns:
        The size of the vocabulary: 256 bytes, at most `num_merges` merges, the control tokens.
    """
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += train_merges(lines, num_merges)
    ranks = [b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    named = {
        str(len(tokens) + distance): {"content": name, "special": True}
        for distance, name in SPECIAL_NAMES.items()
    }
    config = json.dumps({"added_tokens_decoder": named}, indent=2)
    (directory / "tiktoken.model").write_bytes(b"".join(ranks))
    (directory / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return len(tokens) + max(SPECIAL_NAMES) + 1


def train_merges(lines: Iterable[str], num_merges: int) -> list[bytes]:
    """Merge the most frequent neighbours again and again; return the tokens in order of rank.

    There are fewer than `num_merges` if the lines run out of neighbours. The whole text is counted
    again for each merge, which is slow beyond a few hundred merges of some thousand words.
    """
    words = [
        ([bytes([byte]) for byte in word.encode()], count)
        for word, count in _count_words(lines).items()
    ]
    merged: dict[bytes, None] = {}
    while len(merged) < num_merges:
        # Pairs are counted by their joined bytes, because the encoder knows tokens and not pairs.
        counts: Counter[bytes] = Counter()
        for pieces, count in words:
            for left, right in pairwise(pieces):
                counts[left + right] += count
        if not counts:
            break
        token = min(counts, key=lambda token: (-counts[token], token))
        merged[token] = None
        words = [(_merge(pieces, token), count) for pieces, count in words]
    return list(merged)


def _count_words(lines: Iterable[str]) -> Counter[str]:
    pattern = regex.compile(PAT_STR, flags=regex.VERSION1)  # only V1 supports the intersection `&&`
    return Counter(word for line in lines for word in pattern.findall(line))


def _merge(pieces: Sequence[bytes], token: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for piece in pieces:
        if merged and merged[-1] + piece == token:
            merged[-1] = token
        else:
            merged.append(piece)
    return merged
