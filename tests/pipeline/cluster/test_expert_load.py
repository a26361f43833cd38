"""The record of how busy the experts were, and its picture."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cluster.expert_load import (
    LOAD_FILE,
    LOAD_PICTURE,
    LoadPicture,
    read_load,
    record_load,
)
from pipeline.cluster.heat_map import heat_map_png
from pipeline.output.store import LocalStore
from tests.tiny import tiny_config

TEXT = tiny_config().text  # experts in layers 1 and 2, 16 each
LOAD = {1: np.arange(16), 2: np.arange(16)[::-1] * 10}


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def as_lists(load):
    return {layer: tokens.tolist() for layer, tokens in load.items()}


def record(store, load, checkpoint):
    picture = LoadPicture()
    record_load(store, load, checkpoint, picture)
    picture.finish()


def test_runs_of_an_output_add_up_and_another_checkpoint_begins_anew(store, tmp_path):
    path = str(tmp_path / LOAD_FILE)
    record(store, LOAD, "one checkpoint")
    assert as_lists(read_load(path, TEXT)) == as_lists(LOAD)
    record(store, LOAD, "one checkpoint")
    assert as_lists(read_load(path, TEXT)) == {k: (2 * v).tolist() for k, v in LOAD.items()}
    record(store, LOAD, "another")
    assert as_lists(read_load(path, TEXT)) == as_lists(LOAD)
    table = pq.read_table(path)
    assert table.column_names == ["layer", "expert", "tokens"]
    assert table.num_rows == 32


def test_a_run_that_computed_nothing_leaves_no_record(store):
    record(store, {}, "checkpoint")
    record(store, {1: np.zeros(16, int)}, "checkpoint")
    assert store.names() == []


def test_a_picture_that_cannot_be_written_is_told_at_the_end(store, monkeypatch):
    def full(name, content):
        raise OSError(f"no space left for {name}")

    picture = LoadPicture()
    monkeypatch.setattr(LocalStore, "write", lambda self, name, content: full(name, content))
    picture.start(store, LOAD)
    with pytest.raises(OSError, match=LOAD_PICTURE):
        picture.finish()


def test_readers_of_the_output_do_not_see_it(store, tmp_path):
    record(store, LOAD, "checkpoint")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "part-0.parquet")
    assert ds.dataset(tmp_path).to_table().to_pydict() == {"caption": ["a"]}


def test_the_picture_has_a_colour_for_each_expert(store):
    record(store, LOAD, "checkpoint")
    image = Image.open(io.BytesIO(store.read(LOAD_PICTURE) or b"")).convert("RGB")

    def colour(layer: int, expert: int):
        pixel = image.getpixel((78 + 18 * expert + 9, 64 + 18 * (layer - 1) + 9))
        assert isinstance(pixel, tuple)
        return pixel

    red, _, blue = colour(1, 15)  # twice the mean
    assert red > blue + 50
    red, _, blue = colour(2, 15)  # nothing
    assert blue > red + 50
    assert min(colour(1, 7)) > 230  # about the mean


@pytest.mark.parametrize("num_experts", [1, 2, 64, 384])
def test_networks_of_any_size_have_a_picture(num_experts):
    png = heat_map_png({layer: np.ones(num_experts, int) for layer in range(1, 4)})
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert 400 < image.width < 1500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"first_k_dense_replace": 0}, "layers 1 to 2.*layers 0 to 2", id="layers"),
        pytest.param({"n_routed_experts": 32}, r"\[16\] experts each.*, 32 each", id="experts"),
    ],
)
def test_a_record_of_another_network_is_refused(store, tmp_path, change, message):
    record(store, LOAD, "checkpoint")
    with pytest.raises(ValueError, match=message):
        read_load(str(tmp_path / LOAD_FILE), dataclasses.replace(TEXT, **change))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(None, "no such file", id="missing"),
        pytest.param({"layer": [1], "expert": [0]}, "tokens", id="no column"),
        pytest.param({"layer": [1], "expert": ["x"], "tokens": [1]}, "x", id="no number"),
        pytest.param({"layer": [1, 1], "expert": [0, 2], "tokens": [1, 1]}, r"\[0, 2\]", id="gap"),
        pytest.param({"layer": [1], "expert": [0], "tokens": [-1]}, "negative", id="negative"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, table, message):
    path = tmp_path / "load.parquet"
    if table is not None:
        pq.write_table(pa.table(table), path)
    with pytest.raises(ValueError, match=f"is not a record of expert load.*{message}"):
        read_load(str(path), TEXT)
