"""What a checkpoint directory says about itself, read once and refused where it is not implemented.

`KimiVLConfig.from_checkpoint` is the only reader of `config.json`, `preprocessor_config.json` and
`generation_config.json`. A key or value that this package does not know is refused by name, because
a network that silently ignores a setting gives captions that are silently wrong.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, cast

IM_END_TOKEN_ID = 163586  # <|im_end|>; part of the stop set of the whole family

# Keys that describe files, training or the serving library, not the network.
_INERT = frozenset(
    """
    _name_or_path architectures auto_map model_type torch_dtype dtype transformers_version
    ignore_index initializer_range use_cache attention_dropout aux_loss_alpha seq_aux ep_size
    pretraining_tp bos_token_id eos_token_id pad_token_id return_dict output_attentions
    output_hidden_states use_return_dict _attn_implementation attn_implementation
    _attn_implementation_autoset
    """.split()
)


class CheckpointError(ValueError):
    """The checkpoint cannot be used as it is; the message names the file and the key or tensor."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder of the DeepSeek-V3 family, named as in `text_config` of `config.json`.

    `kv_lora_rank=None` means plain multi-head attention with `head_dim` wide heads.
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
        _require_positive(
            self,
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
            "num_key_value_heads max_position_embeddings rms_norm_eps rope_theta "
            "moe_layer_freq v_head_dim qk_rope_head_dim".split(),
        )
        _require(self.scoring_func in ("sigmoid", "softmax"), "scoring_func", self.scoring_func)
        _require(
            self.topk_method in ("noaux_tc", "greedy", "group_limited_greedy"),
            "topk_method",
            self.topk_method,
        )
        _require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", self.qk_rope_head_dim)
        if self.kv_lora_rank is None:
            heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
            _require(self.q_lora_rank is None, "q_lora_rank", self.q_lora_rank)
            _require(heads % kv_heads == 0, "num_key_value_heads", kv_heads)
        else:
            _require(self.kv_lora_rank > 0, "kv_lora_rank", self.kv_lora_rank)
            _require(
                self.num_key_value_heads == self.num_attention_heads,
                "num_key_value_heads",
                self.num_key_value_heads,
            )
        if any(self.is_moe_layer(layer) for layer in range(self.num_hidden_layers)):
            self._check_experts()

    def _check_experts(self) -> None:
        _require_positive(
            self, ["moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "n_group"]
        )
        experts, groups = self.n_routed_experts, self.n_group
        _require(experts % groups == 0, "n_group", groups)
        _require(0 < self.topk_group <= groups, "topk_group", self.topk_group)
        _require(self.n_shared_experts >= 0, "n_shared_experts", self.n_shared_experts)
        selectable = experts // groups * self.topk_group
        _require(
            self.num_experts_per_tok <= selectable, "num_experts_per_tok", self.num_experts_per_tok
        )
        if self.topk_method == "greedy":
            _require(groups == 1, "n_group", groups)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer number `layer` has routed experts, as `DeepseekV3DecoderLayer` decides."""
        return (
            self.n_routed_experts > 0
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""
        if self.kv_lora_rank is None:
            return self.v_head_dim
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on the attention scores; there is no extra term because rope is not scaled."""
        return self.qk_head_dim**-0.5


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """MoonViT, named as in `vision_config`; defaults are those of the published config class."""

    patch_size: int = 14
    num_attention_heads: int = 16
    num_hidden_layers: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    init_pos_emb_height: int = 64
    init_pos_emb_width: int = 64
    merge_kernel_size: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        _require_positive(
            self, [field.name for field in fields(self) if field.name != "merge_kernel_size"]
        )
        _require(self.merge_kernel_size == (2, 2), "merge_kernel_size", self.merge_kernel_size)
        _require(self.hidden_size % self.num_attention_heads == 0, "hidden_size", self.hidden_size)
        # Each head is split into pairs that turn by column and pairs that turn by row.
        _require(self.head_dim % 4 == 0, "hidden_size", self.hidden_size)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes patches, from `preprocessor_config.json`."""

    in_token_limit: int  # patches; a soft cap, see model/images.py
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    patch_size: int = 14
    merge_size: int = 2

    def __post_init__(self) -> None:
        _require_positive(self, ["in_token_limit", "patch_size"])
        _require(self.merge_size == 2, "merge_kernel_size", self.merge_size)
        _require(len(self.image_mean) == 3, "image_mean", self.image_mean)
        _require(len(self.image_std) == 3 and all(self.image_std), "image_std", self.image_std)


@dataclass(frozen=True, kw_only=True)
class KimiVLConfig:
    """Everything that the published JSON files of a checkpoint say about the network."""

    text: TextConfig
    vision: VisionConfig
    image: ImageConfig
    media_token_id: int
    stop_token_ids: tuple[int, ...]
    dtype: str  # of the stored weights: "bfloat16", "float16" or "float32"

    def __post_init__(self) -> None:
        _require(
            0 <= self.media_token_id < self.text.vocab_size,
            "media_placeholder_token_id",
            self.media_token_id,
        )
        _require(self.dtype in ("bfloat16", "float16", "float32"), "torch_dtype", self.dtype)
        _require(self.image.patch_size == self.vision.patch_size, "patch_size", self.vision)

    @classmethod
    def from_checkpoint(cls, directory: Path) -> Self:
        """Read the JSON files of a checkpoint directory.

        Raises:
            CheckpointError: a file is missing or not JSON, a key is missing, or a key or value is
                not implemented; the message names it.
        """
        config = read_json(directory / "config.json")
        image = read_json(directory / "preprocessor_config.json")
        generation_file = directory / "generation_config.json"
        generation = read_json(generation_file) if generation_file.exists() else {}
        try:
            return cls._from_dicts(config, image, generation)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from error

    @classmethod
    def _from_dicts(
        cls, config: Mapping[str, Any], image: Mapping[str, Any], generation: Mapping[str, Any]
    ) -> Self:
        text = _section(config, "text_config")
        top_level = "text_config vision_config media_placeholder_token_id vocab_size".split()
        _refuse_unknown("config.json", config, [*top_level, "tie_word_embeddings"])
        _require(
            config.get("model_type", "kimi_vl") == "kimi_vl", "model_type", config.get("model_type")
        )
        _require_false(config, "tie_word_embeddings")
        text_config = _text_config(text)
        vocab_size = config.get("vocab_size", text_config.vocab_size)
        _require(vocab_size == text_config.vocab_size, "vocab_size", vocab_size)
        stored = config.get("torch_dtype") or config.get("dtype") or text.get("torch_dtype")
        return cls(
            text=text_config,
            vision=_vision_config(_section(config, "vision_config")),
            image=_image_config(image),
            media_token_id=config.get("media_placeholder_token_id", 163605),
            stop_token_ids=_stop_token_ids(text, generation, text_config.vocab_size),
            dtype=stored or "bfloat16",
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint file, or raise `CheckpointError` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _text_config(text: Mapping[str, Any]) -> TextConfig:
    names = {field.name for field in fields(TextConfig)}
    checked = "hidden_act attention_bias rope_scaling tie_word_embeddings head_dim use_mla".split()
    _refuse_unknown("text_config", text, [*names, *checked])
    _require(text.get("hidden_act", "silu") == "silu", "hidden_act", text.get("hidden_act"))
    _require(text.get("rope_scaling") is None, "rope_scaling", text.get("rope_scaling"))
    _require_false(text, "attention_bias", "tie_word_embeddings")
    has_latent = text.get("kv_lora_rank") is not None
    _require(text.get("use_mla", has_latent) == has_latent, "use_mla", text.get("use_mla"))
    defaults: dict[str, Any] = {
        "kv_lora_rank": None,
        "q_lora_rank": None,
        "num_key_value_heads": text.get("num_attention_heads"),
        "n_group": 1,
        "topk_group": 1,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 0,
    }
    # Config classes of this family write null for "none of these".
    zeros = ("n_shared_experts", "n_routed_experts", "n_group", "topk_group")
    values = {**defaults, **{name: text[name] for name in names if name in text}}
    values |= {name: defaults.get(name, 0) for name in zeros if values.get(name) is None}
    if has_latent:
        _require("head_dim" not in text, "head_dim", text.get("head_dim"))
    else:
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        values |= {"v_head_dim": head_dim, "qk_nope_head_dim": 0, "qk_rope_head_dim": head_dim}
    missing = sorted(names - values.keys())
    if missing:
        raise CheckpointError(f"text_config lacks {', '.join(missing)}")
    _require_types(TextConfig, values)
    return TextConfig(**values)


def _vision_config(vision: Mapping[str, Any]) -> VisionConfig:
    names = [field.name for field in fields(VisionConfig)]
    _refuse_unknown("vision_config", vision, names)
    _require(
        vision.get("model_type", "moonvit") == "moonvit", "model_type", vision.get("model_type")
    )
    values: dict[str, Any] = {name: vision[name] for name in names if name in vision}
    if "merge_kernel_size" in values:
        values["merge_kernel_size"] = tuple(values["merge_kernel_size"])
    _require_types(VisionConfig, values)
    return VisionConfig(**values)


def _image_config(image: Mapping[str, Any]) -> ImageConfig:
    missing = {"in_token_limit", "image_mean", "image_std"} - image.keys()
    if missing:
        raise CheckpointError(f"preprocessor_config.json lacks {', '.join(sorted(missing))}")
    # Cropping instead of padding exists in the published class and in no published checkpoint.
    _require(image.get("pad_input") is True, "pad_input", image.get("pad_input"))
    _require(
        list(image.get("merge_kernel_size", [2, 2])) == [2, 2],
        "merge_kernel_size",
        image.get("merge_kernel_size"),
    )
    return ImageConfig(
        in_token_limit=image["in_token_limit"],
        image_mean=tuple(image["image_mean"]),
        image_std=tuple(image["image_std"]),
        patch_size=image.get("patch_size", 14),
    )


def _stop_token_ids(
    text: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int
) -> tuple[int, ...]:
    """The union of what the files name as the end, and `<|im_end|>` where the vocabulary has it."""
    ids: set[int] = {IM_END_TOKEN_ID} if vocab_size > IM_END_TOKEN_ID else set()
    for source in (text, generation):
        named = source.get("eos_token_id")
        ids.update(named if isinstance(named, list) else [] if named is None else [named])
    return tuple(sorted(ids))


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = config.get(key)
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json needs an object {key!r}, got {section!r}")
    return cast("Mapping[str, Any]", section)


def _refuse_unknown(where: str, config: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(config.keys() - _INERT - set(known))
    if unknown:
        raise CheckpointError(
            f"{where} has {', '.join(f'{key}={config[key]!r}' for key in unknown)}, which is not "
            "implemented; remove the key if you know that it does not change the network"
        )


def _require(condition: bool, key: str, value: object) -> None:
    if not condition:
        raise CheckpointError(
            f"{key}={value!r} is not implemented or does not fit the other values"
        )


def _require_false(config: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        _require(not config.get(key, False), key, config.get(key))


def _require_positive(config: object, keys: Iterable[str]) -> None:
    for key in keys:
        _require(getattr(config, key) > 0, key, getattr(config, key))


def _require_types(config_class: type, values: Mapping[str, Any]) -> None:
    """Refuse a string where a number belongs, before arithmetic fails on it without a name."""
    for field in fields(config_class):
        value = values.get(field.name)
        if field.type is bool or str(field.type) == "bool":
            _require(isinstance(value, bool), field.name, value)
        elif field.type is int and field.name in values:
            _require(isinstance(value, int) and not isinstance(value, bool), field.name, value)
        elif field.type is float:
            _require(isinstance(value, int | float), field.name, value)
