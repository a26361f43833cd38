"""Numerical parity with independent code: transformers' DeepSeek-V3, Llama and MoonViT."""

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel

from model.network.batch import whole_sequences
from model.network.kimi_vl import KimiVL
from tests.model.stepping import greedy_with_cache
from tests.tiny import tiny_config, tiny_model

PUBLISHED_SHAPE = {
    "num_hidden_layers": 27,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
MODEL_CARD_SHAPE = {
    **PUBLISHED_SHAPE,
    "num_hidden_layers": 24,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "kv_lora_rank": None,
    "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 16,
}
PROMPT_LEN, NEW_TOKENS = 24, 16


def deepseek(config) -> DeepseekV3ForCausalLM:
    text = config.text
    names = """vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers
    num_attention_heads num_key_value_heads n_shared_experts n_routed_experts kv_lora_rank
    q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim n_group topk_group num_experts_per_tok
    first_k_dense_replace norm_topk_prob routed_scaling_factor rms_norm_eps
    max_position_embeddings""".split()
    reference = DeepseekV3Config(
        **{name: getattr(text, name) for name in names},
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    reference._attn_implementation = "eager"
    return DeepseekV3ForCausalLM(reference).eval()


def copy_language_model(model: KimiVL, reference: torch.nn.Module) -> None:
    prefix = "language_model."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
    reference.load_state_dict(state, strict=True)


@torch.no_grad()
def reference_greedy(reference, prompt: list[int]) -> tuple[torch.Tensor, list[int]]:
    """Return logits [PROMPT_LEN + NEW_TOKENS - 1, vocabulary] and the tokens after the prompt."""
    output = reference(torch.tensor([prompt]), use_cache=True)
    logits, tokens = [output.logits[0]], [int(output.logits[0, -1].argmax())]
    for _ in range(NEW_TOKENS - 1):
        output = reference(torch.tensor([tokens[-1:]]), cache=output.cache, use_cache=True)
        logits.append(output.logits[0])
        tokens.append(int(output.logits[0, -1].argmax()))
    return torch.cat(logits), tokens


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(PUBLISHED_SHAPE, id="the published shape"),
        pytest.param({**PUBLISHED_SHAPE, "q_lora_rank": 24}, id="with a low-rank query"),
        pytest.param(
            {**PUBLISHED_SHAPE, "num_hidden_layers": 6, "n_group": 8, "topk_group": 3},
            id="with groups of experts",
        ),
    ],
)
def test_the_decoder_equals_deepseek_v3(shape):
    config = tiny_config(shape)
    model = tiny_model(config)
    reference = deepseek(config)
    copy_language_model(model, reference)
    prompt = torch.randint(0, 318, (PROMPT_LEN,), generator=torch.Generator().manual_seed(3))
    expected_logits, expected_tokens = reference_greedy(reference, prompt.tolist())

    logits, tokens = greedy_with_cache(model, prompt.tolist(), NEW_TOKENS)
    assert (logits - expected_logits).abs().max() <= 1e-4
    assert tokens == expected_tokens
    whole = model.logits(model(whole_sequences([[*prompt.tolist(), *tokens[:-1]]])))
    assert (whole - expected_logits).abs().max() <= 1e-4


def test_plain_multi_head_attention_equals_llama():
    shape = {**MODEL_CARD_SHAPE, "num_hidden_layers": 4, "n_routed_experts": 0}
    config = tiny_config({**shape, "num_key_value_heads": 4})
    model = tiny_model(config)
    text = config.text
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.v_head_dim,
            rms_norm_eps=text.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        )
    ).eval()
    copy_language_model(model, reference)
    prompt = list(range(7, 7 + PROMPT_LEN))
    expected_logits, expected_tokens = reference_greedy(reference, prompt)
    logits, tokens = greedy_with_cache(model, prompt, NEW_TOKENS)
    assert (logits - expected_logits).abs().max() <= 1e-4
    assert tokens == expected_tokens


def test_the_shape_of_public_model_cards_steps_as_the_whole_sequence():
    model = tiny_model(tiny_config(MODEL_CARD_SHAPE))
    prompt = list(range(7, 7 + PROMPT_LEN))
    logits, tokens = greedy_with_cache(model, prompt, NEW_TOKENS)
    whole = model.logits(model(whole_sequences([[*prompt, *tokens[:-1]]])))
    assert (logits - whole).abs().max() <= 1e-4


def test_the_vision_tower_equals_moonvit_with_one_frame():
    config = tiny_config(vision={"hidden_size": 144, "num_attention_heads": 2})
    tower = tiny_model(config).vision_tower
    vision = config.vision
    reference = Kimi_K25VisionModel(
        Kimi_K25VisionConfig(
            patch_size=vision.patch_size,
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            intermediate_size=vision.intermediate_size,
            pos_emb_height=vision.init_pos_emb_height,
            pos_emb_width=vision.init_pos_emb_width,
            rope_parameters={"rope_type": "axial", "rope_theta": 10000.0},
        )
    ).eval()
    load_moonvit(reference, tower.state_dict(), vision.num_attention_heads)
    grids = [(4, 6), (10, 2), (10, 2), (8, 14), (2, 2)]
    num_patches = sum(h * w for h, w in grids)
    pixels = torch.randn(num_patches, 3, 14, 14, generator=torch.Generator().manual_seed(5))
    grid_thw = torch.tensor([(1, h, w) for h, w in grids])
    with torch.no_grad():
        expected = reference(pixels, grid_thw=grid_thw).pooler_output
        actual = tower(pixels, grids)
    assert (actual - expected).abs().max() <= 1e-4


MOONVIT_NAMES = (
    ("patch_embed.pos_emb.weight", "patch_embed.pos_emb.position_embeddings"),
    ("encoder.", ""),
    ("blocks.", "layers."),
    (".norm1.", ".norm2."),
    (".norm0.", ".norm1."),
    (".wo.", ".attn.proj."),
    (".fc1.", ".fc2."),
    (".fc0.", ".fc1."),
)


def load_moonvit(reference, state: dict[str, torch.Tensor], num_heads: int) -> None:
    """Copy our tower's weights under the reference's names; every one must find its place."""
    renamed: dict[str, torch.Tensor] = {}
    for ours, tensor in state.items():
        theirs = ours
        for old, new in MOONVIT_NAMES:
            theirs = theirs.replace(old, new)
        if ".wqkv." not in ours:
            renamed[theirs] = tensor
            continue
        for part, letter in zip(tensor.chunk(3), "qkv", strict=True):
            rows = part if letter == "v" else pairs_to_halves(part, num_heads)
            renamed[theirs.replace(".wqkv.", f".attn.{letter}_proj.")] = rows
    reference.load_state_dict(renamed, strict=True)


def pairs_to_halves(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of each head: pairs (0, 1), (2, 3), ... -> all even rows, then all odd."""
    heads = rows.unflatten(0, (num_heads, -1, 2))
    return heads.transpose(1, 2).flatten(0, 2)
