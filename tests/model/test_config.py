import json

import pytest

from model.config import CheckpointError, KimiVLConfig
from model.engine_config import EngineConfig
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
    with pytest.raises(CheckpointError, match="rope_theta"):
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
