"""Define the published shape of Kimi-VL-A3B."""

from model.config import ImageConfig, KimiVLConfig, TextConfig, VisionConfig


def moonlight(num_layers: int) -> KimiVLConfig:
    """Return the published widths of Kimi-VL-A3B with fewer layers, in decoder and MoonViT."""
    text = TextConfig(
        vocab_size=163840, hidden_size=2048, intermediate_size=11264,
        num_hidden_layers=num_layers, num_attention_heads=16, num_key_value_heads=16,
        rms_norm_eps=1e-5, rope_theta=800000.0, max_position_embeddings=131072,
        kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, moe_intermediate_size=1408, n_routed_experts=64,
        num_experts_per_tok=6, n_shared_experts=2, first_k_dense_replace=1, moe_layer_freq=1,
        scoring_func="sigmoid", topk_method="noaux_tc", n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=2.446,
    )  # fmt: skip
    half = (0.5, 0.5, 0.5)
    return KimiVLConfig(
        text=text,
        vision=VisionConfig(num_hidden_layers=num_layers),
        image=ImageConfig(in_token_limit=4096, image_mean=half, image_std=half),
        media_token_id=text.vocab_size - 1,
        stop_token_ids=(),
    )
