import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import model.network.weights
from model.config import KimiVLConfig
from model.json_values import CheckpointError
from model.network.kimi_vl import KimiVL
from model.network.moe import ExpertShard, LocalDispatcher
from model.network.weights import check_checkpoint, destinations, load_model, stored_tensors
from tests.tiny import TEXT, tiny_checkpoint, write_published_configs

PUBLISHED_PARAMETERS = 16_407_656_048


def edit_shard(directory: Path, change) -> str:
    """Apply `change` to the tensors of the first file; return the name of the file."""
    shard = sorted(directory.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    return shard.name


def edit_index(directory: Path, change) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_the_published_config_asks_for_the_published_tensors(tmp_path):
    write_published_configs(tmp_path)
    config = KimiVLConfig.from_checkpoint(tmp_path)
    where = destinations(config)
    assert len(where) == 5652
    sizes = {name: torch.Size(target.shape).numel() for name, target in where.items()}
    assert sum(sizes.values()) == PUBLISHED_PARAMETERS

    def total(prefix):
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    assert total("language_model.") == 15_960_110_208
    assert total("vision_tower.") == 416_866_032
    assert total("vision_tower.encoder.blocks.0.") == 15_239_504
    assert total("multi_modal_projector.") == 30_679_808
    assert total("language_model.model.layers.0.") == 82_973_184
    assert total("language_model.model.layers.26.") == 584_847_936
    assert total("language_model.model.layers.3.self_attn.") == 13_763_072
    assert total("language_model.model.layers.3.mlp.experts.63.") == 8_650_752
    assert total("language_model.model.layers.3.mlp.shared_experts.") == 17_301_504
    assert sum(1 for name in where if not name.startswith("language_model.")) == 335
    assert where["language_model.model.layers.1.mlp.gate.e_score_correction_bias"].shape == (64,)


def test_the_published_network_has_the_published_number_of_parameters(tmp_path):
    write_published_configs(tmp_path)
    with torch.device("meta"):
        network = KimiVL(KimiVLConfig.from_checkpoint(tmp_path))
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED_PARAMETERS
    assert {name.rpartition(".")[2] for name, _ in network.named_buffers()} == {"rows_computed"}


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_parameter_is_the_tensor_of_its_name(tmp_path, num_shards):
    tiny_checkpoint(tmp_path, num_shards=num_shards)
    network = load_model(tmp_path)
    stored = {}
    for shard in tmp_path.glob("*.safetensors"):
        stored |= load_file(shard)
    for name, parameter in network.named_parameters():
        if ".mlp.experts." not in name:
            assert torch.equal(parameter, stored[name]), name
    experts = "language_model.model.layers.2.mlp.experts"
    stacked = dict(network.named_parameters())
    for expert in range(16):
        gate, up = stacked[f"{experts}.gate_up_proj"][expert].chunk(2)
        assert torch.equal(gate, stored[f"{experts}.{expert}.gate_proj.weight"])
        assert torch.equal(up, stored[f"{experts}.{expert}.up_proj.weight"])
        down = stacked[f"{experts}.down_proj"][expert]
        assert torch.equal(down, stored[f"{experts}.{expert}.down_proj.weight"])


def test_only_the_local_experts_are_loaded(tmp_path):
    tiny_checkpoint(tmp_path)
    shard = ExpertShard(range(4, 10), LocalDispatcher())
    whole, part = load_model(tmp_path), load_model(tmp_path, shards=lambda _: shard)
    wanted = dict(part.named_parameters())
    for name, parameter in whole.named_parameters():
        expected = parameter[4:10] if ".mlp.experts." in name else parameter
        assert torch.equal(wanted[name], expected), name


def test_layers_may_hold_different_experts_in_any_order(tmp_path):
    tiny_checkpoint(tmp_path)
    local_experts = {1: (3, 1), 2: (15, 0)}
    whole = dict(load_model(tmp_path).named_parameters())
    part = load_model(
        tmp_path, shards=lambda layer: ExpertShard(local_experts[layer], LocalDispatcher())
    )
    for name, parameter in part.named_parameters():
        if ".mlp.experts." in name:
            layer = int(name.split(".layers.")[1].split(".")[0])
            assert torch.equal(parameter, whole[name][list(local_experts[layer])]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("claimed", [None, "bfloat16", "float32"])
def test_unless_asked_weights_keep_the_dtype_of_their_files(tmp_path, dtype, claimed):
    tiny_checkpoint(tmp_path, dtype=dtype, num_shards=1)
    config = json.loads((tmp_path / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("torch_dtype")
        if claimed is not None:
            part["torch_dtype"] = claimed
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = load_model(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert network.dtype == dtype
    for name in ("vision_tower.patch_embed.proj.weight", "language_model.lm_head.weight"):
        assert torch.equal(network.get_parameter(name), stored[name]), name


def test_weights_are_loaded_in_the_asked_dtype_and_the_router_bias_in_float32(tmp_path):
    tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert load_model(tmp_path).dtype == torch.bfloat16
    wide = load_model(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    half = dict(load_model(tmp_path).named_parameters())
    bias = half["language_model.model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32


def test_a_missing_tensor_is_named(tmp_path):
    tiny_checkpoint(tmp_path)
    name = "vision_tower.encoder.final_layernorm.bias"
    for shard in tmp_path.glob("*.safetensors"):
        tensors = load_file(shard)
        tensors.pop(name, None)
        save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=name):
        check_checkpoint(tmp_path)
    edit_index(tmp_path, lambda weight_map: weight_map.pop(name))
    for refuse in (check_checkpoint, load_model):
        with pytest.raises(CheckpointError, match=f"lacks {name}"):
            refuse(tmp_path)


def test_a_tensor_that_nobody_claims_is_named(tmp_path):
    tiny_checkpoint(tmp_path, num_shards=1)
    edit_shard(tmp_path, lambda tensors: tensors.update({"lora.A": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"lora\.A, which no parameter claims"):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        pytest.param(torch.ones(3), r"shape \[3\].*asks for \[96\]", id="shape"),
        pytest.param(torch.ones(96, dtype=torch.int8), "stored as I8", id="dtype"),
    ],
)
def test_a_wrong_tensor_is_refused(tmp_path, replacement, message):
    tiny_checkpoint(tmp_path, num_shards=1)
    name = "multi_modal_projector.pre_norm.weight"
    edit_shard(tmp_path, lambda tensors: tensors.update({name: replacement}))
    with pytest.raises(CheckpointError, match=f"{name} .*{message}"):
        check_checkpoint(tmp_path)


def test_stale_rotary_buffers_are_ignored(tmp_path):
    tiny_checkpoint(tmp_path)
    stale = [name for name in stored_tensors(tmp_path) if name.endswith("inv_freq")]
    assert len(stale) == 3
    check_checkpoint(tmp_path)


def test_damaged_files_are_named(tmp_path):
    tiny_checkpoint(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=f"{shard.name} is damaged"):
        check_checkpoint(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        check_checkpoint(tmp_path)


def test_an_index_cannot_point_outside_its_directory(tmp_path):
    tiny_checkpoint(tmp_path)
    edit_index(tmp_path, lambda weight_map: weight_map.update({"x": "../other.safetensors"}))
    with pytest.raises(CheckpointError, match=r"'\.\./other\.safetensors'"):
        check_checkpoint(tmp_path)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path):
    tiny_checkpoint(tmp_path)
    edit_index(tmp_path, lambda weight_map: weight_map.pop("language_model.model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"holds language_model\.model\.norm\.weight"):
        check_checkpoint(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path):
    config = tiny_checkpoint(tmp_path)
    assert config.text.vocab_size == check_checkpoint(tmp_path).text.vocab_size
    for file in (*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors\.index\.json"):
        check_checkpoint(tmp_path)


def private_memory() -> int:
    """Return the bytes of this process without pages of files, which the system can drop."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024


def test_loading_needs_about_one_tensor_beyond_the_model(tmp_path, monkeypatch):
    config = tiny_checkpoint(
        tmp_path, text={**TEXT, "moe_intermediate_size": 512}, dtype=torch.bfloat16
    )
    sizes = [torch.Size(target.shape).numel() * 4 for target in destinations(config).values()]
    assert sum(sizes) > 25 << 20
    load_model(tmp_path)  # what the first use of a library leaves behind is not counted
    before = private_memory()
    peak = 0

    def place_and_look(*args):
        nonlocal peak
        place(*args)
        peak = max(peak, private_memory())

    place = model.network.weights._place
    monkeypatch.setattr(model.network.weights, "_place", place_and_look)
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert sum(parameter.nbytes for parameter in loaded.parameters()) == sum(sizes)
    assert peak - before < sum(sizes) + max(sizes) + (4 << 20)
