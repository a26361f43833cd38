"""Define the sizes of the demo model, and the stages of its curriculum."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.demo.scenes import Difficulty

# The published decoder at reduced width: latent attention, one dense layer, 16 experts.
TEXT: Mapping[str, Any] = {
    "max_position_embeddings": 8192, "hidden_size": 128, "intermediate_size": 384,
    "moe_intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "n_shared_experts": 1, "n_routed_experts": 16, "ep_size": 1,
    "routed_scaling_factor": 2.446, "kv_lora_rank": 48, "q_lora_rank": None, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "qk_nope_head_dim": 32, "topk_method": "noaux_tc", "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 4, "moe_layer_freq": 1, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "scoring_func": "sigmoid", "aux_loss_alpha": 0.001, "seq_aux": True,
    "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-05, "pretraining_tp": 1,
    "use_cache": True, "rope_theta": 2000.0, "rope_scaling": None, "attention_bias": False,
    "attention_dropout": 0.0, "tie_word_embeddings": False,
}  # fmt: skip
VISION: Mapping[str, Any] = {
    "model_type": "moonvit", "patch_size": 14, "num_attention_heads": 4, "num_hidden_layers": 3,
    "hidden_size": 96, "intermediate_size": 256, "init_pos_emb_height": 16,
    "init_pos_emb_width": 16, "merge_kernel_size": [2, 2],
}  # fmt: skip
IMAGE: Mapping[str, Any] = {
    "patch_size": 14, "pad_input": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "in_token_limit": 48,  # makes the model see any video at about 112 x 84 pixels
    "merge_kernel_size": [2, 2], "num_pooled_tokens": 1024,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the curriculum."""

    goals: Mapping[str, float]  # accuracy by kind of target at which the stage ends
    until: int  # step of the run at which the stage ends at the latest
    conversations: int  # per batch
    sizes: tuple[tuple[int, int], ...]  # width and height of the clips, chosen evenly
    num_frames: tuple[int, ...]
    difficulty: Difficulty
    rate: float = 1.0  # factor on the learning rates
    num_questions: int = 2  # turns besides the caption
    caption: float = 0.6  # probability that a caption comes first; else there are only questions
    still_image: float = 0.0  # probability of a single image instead of a clip
    timestamps: float = 0.3  # probability that frames have their times
    choices: float = 0.3  # share of questions with answers to choose from
    options: tuple[int, ...] = (4,)  # numbers of answers that these offer
    places: float = 0.5  # share of the questions after a caption that ask for a place
    attributes: float = 0.0  # share of the questions about several shapes that ask for attributes
    gives_asked: bool = False  # whether hints contain the colour or shape that is asked about
    in_words: float = 0.0  # share of conversations about a scene that is described in words
    questions_in_words: int = 4  # turns of these


# No clips: scenes described in words, to learn to find an answer, its option and its letter.
_WORDS = Stage(
    goals={"q_letter": 0.95, "q_motion": 0.95, "q_place": 0.9},
    until=700,
    conversations=24,
    sizes=(),
    num_frames=(),
    difficulty=Difficulty(event=0.3, text=0.2),
    in_words=1.0,
    questions_in_words=3,
    choices=0.6,
    options=(2, 3, 4),
)
# One shape, or two, in a few frames: colours, shapes, places, and motion out of places.
_FIRST = replace(
    _WORDS,
    goals={"motion": 0.92, "shape": 0.93, "q_letter": 0.85},
    until=2000,
    sizes=((84, 84), (112, 84)),
    num_frames=(2, 4),
    difficulty=Difficulty(num_shapes=(0.7, 0.3, 0.0), small=0.4, event=0.0, text=0.25),
    rate=1.6,
    in_words=0.25,
)
# All formats, and events: six frames show whether these are early or late.
_MORE = replace(
    _FIRST,
    goals={"motion": 0.95, "shape": 0.97, "q_letter": 0.93, "event": 0.93, "text": 0.93},
    until=2800,
    rate=1.0,
    sizes=((224, 168), (168, 224), (196, 196), (252, 140)),
    num_frames=(6,),
    difficulty=Difficulty(event=0.45, text=0.35),
    timestamps=0.5,
    still_image=0.05,
)
# Number of frames and timestamps as at inference.
_LAST = replace(
    _MORE,
    goals={},
    until=5000,
    num_frames=(4, 8, 8, 8, 8, 8, 8, 16),
    timestamps=0.75,
    num_questions=3,
    options=(2, 3, 4, 4, 4),
)
# More questions for the colour or shape of one among several: their share was too small before.
_WHICH = replace(
    _LAST,
    until=5900,
    difficulty=Difficulty(num_shapes=(0.3, 0.45, 0.25), event=0.4, text=0.6),
    caption=0.45,
    places=0.4,
    attributes=0.4,
)
# The share alone did not suffice, so hints contain what is asked about.
_ASKED = replace(_WHICH, until=10**9, rate=1.8, gives_asked=True)
STAGES = (_WORDS, _FIRST, _MORE, _LAST, _WHICH, _ASKED)
