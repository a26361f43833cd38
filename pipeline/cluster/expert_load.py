"""Keeps the record of an output's expert load, `_expert_load.parquet`, with a picture beside it.

Readers of a Parquet directory skip names with a leading underscore. Runs that continue an output
add to its record, so it counts all work that was done for the output, even that of rows that were
computed twice. A driver that is killed adds nothing.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.config import TextConfig
from parallel.experts.load import ExpertLoad, add
from pipeline.filesystems import open_filesystem
from pipeline.output.store import Store

LOAD_FILE, LOAD_PICTURE = "_expert_load.parquet", "_expert_load.png"

_SCHEMA = pa.schema(
    [
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("expert", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)
_ORIGIN = b"moonsweep.checkpoint"  # metadata key of the checkpoint's fingerprint


class LoadPicture:
    """Draws the picture of a record in a thread, which takes seconds, while a run ends."""

    def __init__(self) -> None:
        self._drawing: Future[None] | None = None

    def start(self, store: Store, load: ExpertLoad) -> None:
        """Begin to draw the whole record of an output."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="picture")
        self._drawing = pool.submit(_draw, store, load)
        pool.shutdown(wait=False)  # no more work; the thread ends with this one

    def finish(self) -> None:
        """Wait until the picture is written, if there is one; raise what went wrong."""
        if self._drawing is not None:
            self._drawing.result()


def _draw(store: Store, load: ExpertLoad) -> None:
    # Imported here, since matplotlib takes a moment to load and only the end of a run needs it.
    from pipeline.cluster.heat_map import heat_map_png

    store.write(LOAD_PICTURE, heat_map_png(load))


def record_load(store: Store, load: ExpertLoad, checkpoint: str, picture: LoadPicture) -> None:
    """Add the tokens that a run's experts computed to the record of its output.

    Without any tokens nothing is written. A record of another checkpoint, by its fingerprint, is
    replaced. The picture is complete once it is finished.
    """
    if not any(tokens.any() for tokens in load.values()):
        return
    content = store.read(LOAD_FILE)
    if content is not None:
        before = pq.read_table(pa.BufferReader(content))
        if (before.schema.metadata or {}).get(_ORIGIN) == checkpoint.encode():
            load = add((_from_table(before), load))
    buffer = pa.BufferOutputStream()
    pq.write_table(_to_table(load, checkpoint), buffer)
    store.write(LOAD_FILE, buffer.getvalue())
    picture.start(store, load)


def read_load(uri: str, text: TextConfig) -> ExpertLoad:
    """Read the record of an earlier run, at a path or URI, for a network with the same experts.

    Raises:
        ValueError: the record cannot be read, or is of other layers or experts.
    """
    try:
        filesystem, path = open_filesystem(uri)
        table = pq.read_table(path, filesystem=filesystem)
        load = _from_table(table.select(_SCHEMA.names).cast(_SCHEMA))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise ValueError(
            f"{uri} is not a record of expert load ({reason}); a run writes one to its output, "
            f"{LOAD_FILE}"
        ) from error
    layers = list(filter(text.is_moe_layer, range(text.num_hidden_layers)))
    sizes = sorted({len(tokens) for tokens in load.values()})
    if sorted(load) != layers or sizes != [text.n_routed_experts]:
        raise ValueError(
            f"{uri} is of layers {_span(sorted(load))} with {sizes} experts each; this "
            f"checkpoint has experts in layers {_span(layers)}, {text.n_routed_experts} each"
        )
    return load


def _to_table(load: ExpertLoad, checkpoint: str) -> pa.Table:
    num_experts = len(next(iter(load.values())))
    layers = sorted(load)
    columns = [
        np.repeat(np.array(layers, np.int32), num_experts),
        np.tile(np.arange(num_experts, dtype=np.int32), len(layers)),
        np.concatenate([load[layer] for layer in layers]),
    ]
    schema = _SCHEMA.with_metadata({_ORIGIN: checkpoint.encode()})
    return pa.table(list(map(pa.array, columns)), schema=schema)


def _from_table(table: pa.Table) -> ExpertLoad:
    """Read the tokens of each layer; a `ValueError` says that its experts are not 0, 1, ..."""
    layers, experts, tokens = (table[name].to_numpy() for name in _SCHEMA.names)
    load: dict[int, np.ndarray] = {}
    for layer in np.unique(layers).tolist():
        is_here = layers == layer
        order = np.argsort(experts[is_here])
        if not np.array_equal(experts[is_here][order], np.arange(is_here.sum())):
            raise ValueError(f"layer {layer} has experts {sorted(experts[is_here].tolist())}")
        load[layer] = tokens[is_here][order].astype(np.int64)
    if min((each.min() for each in load.values()), default=0) < 0:
        raise ValueError("a number of tokens is negative")
    return load


def _span(layers: list[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if layers else "none"
