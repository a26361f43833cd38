"""The configuration of a checkpoint: read once, and refused where it is not implemented.

Only `KimiVLConfig.from_checkpoint` reads `config.json`, `preprocessor_config.json` and
`generation_config.json`. It refuses every key and value that this package does not know, by name: a
network that silently ignores a setting gives captions that are silently wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from model.json_values import (
    is_finite,
    is_integer,
    read_json,
    refuse_missing,
    refuse_unknown,
    require,
    require_false,
    require_positive,
    require_types,
    section,
    within,
)

BLOCK_SIZE = 16  # tokens of one block of the kv cache
IM_END_TOKEN_ID = 163586  # <|im_end|>, which ends texts in the whole family

# These keys describe files, training or the serving library, not the network.
_INERT = frozenset(
    """
    _name_or_path architectures auto_map model_type torch_dtype dtype transformers_version
    ignore_index initializer_range use_cache attention_dropout aux_loss_alpha seq_aux ep_size
    pretraining_tp bos_token_id eos_token_id pad_token_id return_dict output_attentions
    output_hidden_states use_return_dict _attn_implementation attn_implementation
    _attn_implementation_autoset
    """.split()
)
_INERT_OF_IMAGES = frozenset(
    "auto_map image_processor_type feature_extractor_type processor_class num_pooled_tokens".split()
)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder of the DeepSeek-V3 family; the names are those of `text_config`.

    `kv_lora_rank=None` means plain multi-head attention with heads of width `head_dim`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int

    kv_lora_rank: int | None
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    first_k_dense_replace: int
    moe_layer_freq: int
    scoring_func: Literal["sigmoid", "softmax"]
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"]
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float

    def __post_init__(self) -> None:
        require_positive(
            self,
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
            "num_key_value_heads max_position_embeddings rms_norm_eps rope_theta "
            "moe_layer_freq v_head_dim qk_rope_head_dim".split(),
        )
        require(self.scoring_func in ("sigmoid", "softmax"), "scoring_func", self.scoring_func)
        require(
            self.topk_method in ("noaux_tc", "greedy", "group_limited_greedy"),
            "topk_method",
            self.topk_method,
        )
        require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", self.qk_rope_head_dim)
        require(self.qk_nope_head_dim >= 0, "qk_nope_head_dim", self.qk_nope_head_dim)
        require(self.n_routed_experts >= 0, "n_routed_experts", self.n_routed_experts)
        if self.kv_lora_rank is None:
            heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
            require(self.q_lora_rank is None, "q_lora_rank", self.q_lora_rank)
            require(heads % kv_heads == 0, "num_key_value_heads", kv_heads)
        else:
            require(self.kv_lora_rank > 0, "kv_lora_rank", self.kv_lora_rank)
            low_rank = self.q_lora_rank
            require(low_rank is None or low_rank > 0, "q_lora_rank", low_rank)
            require(
                self.num_key_value_heads == self.num_attention_heads,
                "num_key_value_heads",
                self.num_key_value_heads,
            )
        if any(self.is_moe_layer(layer) for layer in range(self.num_hidden_layers)):
            self._check_experts()

    def _check_experts(self) -> None:
        require_positive(
            self, ["moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "n_group"]
        )
        experts, groups = self.n_routed_experts, self.n_group
        require(experts % groups == 0, "n_group", groups)
        require(0 < self.topk_group <= groups, "topk_group", self.topk_group)
        require(self.n_shared_experts >= 0, "n_shared_experts", self.n_shared_experts)
        selectable = experts // groups * self.topk_group
        require(
            self.num_experts_per_tok <= selectable, "num_experts_per_tok", self.num_experts_per_tok
        )
        if self.topk_method == "greedy":
            require(groups == 1, "n_group", groups)

    def is_moe_layer(self, layer: int) -> bool:
        """Say whether layer number `layer` has routed experts, as in `DeepseekV3DecoderLayer`."""
        return (
            self.n_routed_experts > 0
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @property
    def qk_head_dim(self) -> int:
        """The width of a query or key head."""
        if self.kv_lora_rank is None:
            return self.v_head_dim
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """The factor on attention scores; rope is not scaled, so it has no term for that."""
        return self.qk_head_dim**-0.5


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """MoonViT; names are those of `vision_config`, defaults those of the published class."""

    patch_size: int = 14
    num_attention_heads: int = 16
    num_hidden_layers: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    init_pos_emb_height: int = 64
    init_pos_emb_width: int = 64
    merge_kernel_size: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        require_positive(
            self, [field.name for field in fields(self) if field.name != "merge_kernel_size"]
        )
        require(self.merge_kernel_size == (2, 2), "merge_kernel_size", self.merge_kernel_size)
        require(self.hidden_size % self.num_attention_heads == 0, "hidden_size", self.hidden_size)
        # Half of the pairs of channels of a head are rotated by column, the other half by row.
        require(self.head_dim % 4 == 0, "hidden_size", self.hidden_size)

    @property
    def head_dim(self) -> int:
        """The width of an attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes patches, from `preprocessor_config.json`."""

    in_token_limit: int  # patches; images may exceed it slightly, see model/inputs/images.py
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    patch_size: int = 14
    merge_size: int = 2

    def __post_init__(self) -> None:
        require_positive(self, ["in_token_limit", "patch_size"])
        require(self.merge_size == 2, "merge_kernel_size", self.merge_size)
        require(len(self.image_mean) == 3, "image_mean", self.image_mean)
        std = self.image_std
        require(len(std) == 3 and all(each > 0 for each in std), "image_std", std)


@dataclass(frozen=True, kw_only=True)
class KimiVLConfig:
    """Everything that the published JSON files of a checkpoint say about the network."""

    text: TextConfig
    vision: VisionConfig
    image: ImageConfig
    media_token_id: int
    stop_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        pad = self.media_token_id
        is_token = is_integer(pad) and 0 <= pad < self.text.vocab_size
        require(is_token, "config.json: media_placeholder_token_id", pad)
        require(
            self.image.patch_size == self.vision.patch_size,
            "preprocessor_config.json: patch_size",
            self.image.patch_size,
        )

    @classmethod
    def from_checkpoint(cls, directory: Path) -> Self:
        """Read a checkpoint's JSON files, or raise `CheckpointError` with the file and the key."""
        config = read_json(directory / "config.json")
        image = read_json(directory / "preprocessor_config.json")
        generation_file = directory / "generation_config.json"
        generation = read_json(generation_file) if generation_file.exists() else {}
        with within(f"{directory}"):
            return cls._from_dicts(config, image, generation)

    @classmethod
    def _from_dicts(
        cls, config: Mapping[str, Any], image: Mapping[str, Any], generation: Mapping[str, Any]
    ) -> Self:
        with within("config.json"):
            _check_top_level(config)
            text, vision = section(config, "text_config"), section(config, "vision_config")
        with within("text_config of config.json"):
            text_config = _text_config(text)
            ends = _named_ends(text)
        with within("vision_config of config.json"):
            vision_config = _vision_config(vision)
        with within("preprocessor_config.json"):
            image_config = _image_config(image)
        with within("generation_config.json"):
            ends |= _named_ends(generation)
        vocab_size = config.get("vocab_size", text_config.vocab_size)
        require(vocab_size == text_config.vocab_size, "config.json: vocab_size", vocab_size)
        if vocab_size > IM_END_TOKEN_ID:
            ends.add(IM_END_TOKEN_ID)
        return cls(
            text=text_config,
            vision=vision_config,
            image=image_config,
            media_token_id=config.get("media_placeholder_token_id", 163605),
            stop_token_ids=tuple(sorted(ends)),
        )


def _check_top_level(config: Mapping[str, Any]) -> None:
    top_level = "text_config vision_config media_placeholder_token_id vocab_size".split()
    refuse_unknown(config, [*_INERT, *top_level, "tie_word_embeddings"])
    kind = config.get("model_type", "kimi_vl")
    require(kind == "kimi_vl", "model_type", kind)
    require_false(config, "tie_word_embeddings")


def _text_config(text: Mapping[str, Any]) -> TextConfig:
    names = {field.name for field in fields(TextConfig)}
    checked = "hidden_act attention_bias rope_scaling tie_word_embeddings head_dim use_mla".split()
    refuse_unknown(text, [*_INERT, *names, *checked])
    require(text.get("hidden_act", "silu") == "silu", "hidden_act", text.get("hidden_act"))
    require(text.get("rope_scaling") is None, "rope_scaling", text.get("rope_scaling"))
    require_false(text, "attention_bias", "tie_word_embeddings")
    has_latent = text.get("kv_lora_rank") is not None
    require(text.get("use_mla", has_latent) == has_latent, "use_mla", text.get("use_mla"))
    defaults: dict[str, Any] = {
        "kv_lora_rank": None,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 0,
    }
    # Config classes of this family write null where there are none of these.
    zeros = ("n_shared_experts", "n_routed_experts", "n_group", "topk_group")
    values = {**defaults, **{name: text[name] for name in names if name in text}}
    values |= {name: defaults.get(name, 0) for name in zeros if values.get(name) is None}
    of_heads = {"v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"}
    refuse_missing(values, names - {"num_key_value_heads"} - (set() if has_latent else of_heads))
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    require_types(TextConfig, values)
    if has_latent:
        require("head_dim" not in text, "head_dim", text.get("head_dim"))
    else:
        head_dim = _head_dim(text)
        values |= {"v_head_dim": head_dim, "qk_nope_head_dim": 0, "qk_rope_head_dim": head_dim}
    return TextConfig(**values)


def _head_dim(text: Mapping[str, Any]) -> int:
    """Return the width of plain heads: as named, or the hidden size divided by their number."""
    num_heads = text["num_attention_heads"]
    require(num_heads > 0, "num_attention_heads", num_heads)
    head_dim = text.get("head_dim") or text["hidden_size"] // num_heads
    require(is_integer(head_dim), "head_dim", head_dim)
    return head_dim


def _vision_config(vision: Mapping[str, Any]) -> VisionConfig:
    names = {field.name for field in fields(VisionConfig)}
    refuse_unknown(vision, [*_INERT, *names])
    kind = vision.get("model_type", "moonvit")
    require(kind == "moonvit", "model_type", kind)
    _check_merge(vision)
    sizes = names - {"merge_kernel_size"}
    values = {name: vision[name] for name in sizes if name in vision}
    require_types(VisionConfig, values)
    return VisionConfig(**values)


def _image_config(image: Mapping[str, Any]) -> ImageConfig:
    needed = ("in_token_limit", "image_mean", "image_std")
    known = (*needed, "patch_size", "merge_kernel_size", "pad_input")
    refuse_unknown(image, [*_INERT_OF_IMAGES, *known])
    refuse_missing(image, needed)
    # Without it the published class crops images; no published checkpoint does.
    require(image.get("pad_input") is True, "pad_input", image.get("pad_input"))
    _check_merge(image)
    values = {
        "in_token_limit": image["in_token_limit"],
        "image_mean": _numbers(image, "image_mean"),
        "image_std": _numbers(image, "image_std"),
        "patch_size": image.get("patch_size", 14),
    }
    require_types(ImageConfig, values)
    return ImageConfig(**values)


def _check_merge(config: Mapping[str, Any]) -> None:
    merge = config.get("merge_kernel_size", [2, 2])
    require(merge == [2, 2], "merge_kernel_size", merge)


def _numbers(config: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = config[key]
    require(isinstance(value, list) and all(map(is_finite, value)), key, value)
    return tuple(value)


def _named_ends(config: Mapping[str, Any]) -> set[int]:
    """Read which tokens end a text by one of the files: one, several or none."""
    named = config.get("eos_token_id")
    ends = named if isinstance(named, list) else [] if named is None else [named]
    require(all(is_integer(each) and each >= 0 for each in ends), "eos_token_id", named)
    return set(ends)
