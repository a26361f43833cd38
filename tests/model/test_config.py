import json
import math

import pytest

from model.config import KimiVLConfig
from model.engine.config import EngineConfig
from model.json_values import CheckpointError
from tests.tiny import write_published_configs


def edit(directory, file_name, **changes):
    path = directory / file_name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_published_files_are_read(tmp_path):
    write_published_configs(tmp_path)
    config = KimiVLConfig.from_checkpoint(tmp_path)
    assert config.text.kv_lora_rank == 512
    assert config.text.qk_head_dim == 192
    assert config.text.softmax_scale == pytest.approx(0.07216878364870322, abs=1e-16)
    assert config.vision.head_dim == 72
    assert config.vision.head_dim**-0.5 == pytest.approx(0.1178511, abs=1e-7)
    assert config.media_token_id == 163605
    assert config.image.in_token_limit == 4096
    assert [layer for layer in range(27) if not config.text.is_moe_layer(layer)] == [0]


def test_stop_tokens_are_the_union_of_the_files_and_im_end(tmp_path):
    write_published_configs(tmp_path)
    assert KimiVLConfig.from_checkpoint(tmp_path).stop_token_ids == (163585, 163586)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 163586]}')
    assert KimiVLConfig.from_checkpoint(tmp_path).stop_token_ids == (7, 163585, 163586)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"topk_method": "lottery"}, "topk_method='lottery'", id="routing method"),
        pytest.param({"scoring_func": "tanh"}, "scoring_func='tanh'", id="scores"),
        pytest.param({"rope_scaling": {"type": "yarn"}}, "rope_scaling", id="scaled rope"),
        pytest.param({"hidden_act": "gelu"}, "hidden_act='gelu'", id="activation"),
        pytest.param({"attention_bias": True}, "attention_bias=True", id="biases"),
        pytest.param({"tie_word_embeddings": True}, "tie_word_embeddings", id="tied head"),
        pytest.param({"sliding_window": 512}, "sliding_window=512", id="unknown key"),
        pytest.param({"n_group": 5}, "n_group=5", id="groups that do not divide"),
        pytest.param({"num_experts_per_tok": 65}, "num_experts_per_tok=65", id="too many experts"),
        pytest.param({"hidden_size": "2048"}, "hidden_size='2048'", id="a string for a number"),
        pytest.param({"hidden_size": 0}, "hidden_size=0", id="zero width"),
        pytest.param({"num_key_value_heads": 4}, "num_key_value_heads=4", id="shared latent heads"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, change, named):
    write_published_configs(tmp_path, **change)
    with pytest.raises(CheckpointError, match=named):
        KimiVLConfig.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"kv_lora_rank": "512"}, "kv_lora_rank='512'", id="a string for the latent"),
        pytest.param({"kv_lora_rank": 32.0}, "kv_lora_rank=32.0", id="a fraction for the latent"),
        pytest.param({"q_lora_rank": "x"}, "q_lora_rank='x'", id="a string for the query"),
        pytest.param({"q_lora_rank": -8}, "q_lora_rank=-8", id="a negative width"),
        pytest.param({"qk_nope_head_dim": -8}, "qk_nope_head_dim=-8", id="a negative part"),
        pytest.param({"num_attention_heads": 0}, "num_attention_heads=0", id="no heads"),
        pytest.param({"rope_theta": math.inf}, "rope_theta=inf", id="infinite theta"),
        pytest.param({"rope_theta": True}, "rope_theta=True", id="a claim for a number"),
        pytest.param({"rope_theta": 10**400}, "rope_theta=1000", id="too large for a float"),
        pytest.param({"routed_scaling_factor": math.nan}, "factor=nan", id="no factor"),
        pytest.param({"eos_token_id": "163586"}, "eos_token_id='163586'", id="a string for an id"),
        pytest.param({"eos_token_id": [True]}, r"eos_token_id=\[True\]", id="a claim for an id"),
        pytest.param(
            {"kv_lora_rank": None, "num_attention_heads": 0}, "num_attention_heads=0", id="plain"
        ),
        pytest.param({"kv_lora_rank": None, "head_dim": "8"}, "head_dim='8'", id="plain width"),
        pytest.param(
            {"kv_lora_rank": None, "hidden_size": "8"}, "hidden_size='8'", id="plain hidden size"
        ),
    ],
)
def test_numbers_of_the_decoder_are_checked(tmp_path, change, named):
    write_published_configs(tmp_path, **change)
    with pytest.raises(CheckpointError, match=f"text_config of config.json: .*{named}"):
        KimiVLConfig.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file_name", "change", "named"),
    [
        ("preprocessor_config.json", {"in_token_limit": "4096"}, "in_token_limit='4096'"),
        ("preprocessor_config.json", {"in_token_limit": None}, "in_token_limit=None"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "image_mean=0.5"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, r"image_mean=\(0.5, 0.5\)"),
        ("preprocessor_config.json", {"image_mean": [math.inf] * 3}, r"image_mean=\[inf"),
        ("preprocessor_config.json", {"image_std": ["0.5"] * 3}, r"image_std=\['0.5'"),
        ("preprocessor_config.json", {"image_std": [math.nan] * 3}, r"image_std=\[nan"),
        ("preprocessor_config.json", {"image_std": [0.5, 0, 0.5]}, r"image_std=\(0.5, 0, 0.5\)"),
        ("preprocessor_config.json", {"merge_kernel_size": 2}, "merge_kernel_size=2"),
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size=16"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale=False"),
        (
            "preprocessor_config.json",
            {"rescale_factor": 1.0, "resample": 2},
            "resample=2, rescale_factor=1.0",
        ),
        ("config.json", {"media_placeholder_token_id": None}, "media_placeholder_token_id=None"),
        (
            "config.json",
            {"media_placeholder_token_id": 163840},
            "media_placeholder_token_id=163840",
        ),
        ("config.json", {"vocab_size": "163840"}, "vocab_size='163840'"),
        ("config.json", {"text_config": 7}, "an object 'text_config' is needed, got 7"),
        ("config.json", {"vision_config": {"merge_kernel_size": 2}}, "merge_kernel_size=2"),
        ("config.json", {"vision_config": {"num_attention_heads": 0}}, "num_attention_heads=0"),
        ("generation_config.json", {"eos_token_id": [7, "8"]}, r"eos_token_id=\[7, '8'\]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_file_and_key(tmp_path, file_name, change, named):
    write_published_configs(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    edit(tmp_path, file_name, **change)
    with pytest.raises(CheckpointError, match=f"{file_name}: {named}") as error:
        KimiVLConfig.from_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_keys_that_say_nothing_of_the_images_are_read_over(tmp_path):
    write_published_configs(tmp_path)
    expected = KimiVLConfig.from_checkpoint(tmp_path)
    edit(
        tmp_path,
        "preprocessor_config.json",
        auto_map={"AutoImageProcessor": "image_processing_kimi_vl.KimiVLImageProcessor"},
        image_processor_type="KimiVLImageProcessor",
        num_pooled_tokens=1024,
    )
    assert KimiVLConfig.from_checkpoint(tmp_path) == expected


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        KimiVLConfig.from_checkpoint(tmp_path)
    write_published_configs(tmp_path)
    edit(tmp_path, "preprocessor_config.json", pad_input=False)
    with pytest.raises(CheckpointError, match="pad_input=False"):
        KimiVLConfig.from_checkpoint(tmp_path)
    write_published_configs(tmp_path)
    edit(tmp_path, "config.json", quantization_config={"bits": 4})
    with pytest.raises(CheckpointError, match="quantization_config"):
        KimiVLConfig.from_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        KimiVLConfig.from_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        KimiVLConfig.from_checkpoint(tmp_path)


def test_a_missing_key_is_named(tmp_path):
    write_published_configs(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["text_config"]["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"text_config of config\.json: rope_theta is missing"
    ):
        KimiVLConfig.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dtype", "int8"),
        ("max_batch_size", 0),
        ("cache_gib", 0.0),
        ("cache_fraction", 1.5),
        ("max_model_len", 1),
    ],
)
def test_engine_budgets_are_checked(setting, value):
    with pytest.raises(ValueError, match=setting):
        EngineConfig(**{setting: value})
