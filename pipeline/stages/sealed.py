"""Make one row of bytes of a table and its costs, and back: what Ray moves between the stages.

Ray Data would cut and join blocks by their size. Sealed, a batch stays the unit of work, of retry
and of output from its read to its part, a retried task gives as many blocks as the first one, and
no column type of the input has to survive a conversion.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from pipeline.monitor.stage_costs import Cost


def seal(rows: pa.Table, costs: Sequence[Cost] = ()) -> pa.Table:
    """Make one row of a table, and what it has cost; its bytes are copied once."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    content = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    sealed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, content])
    return pa.table({"rows": sealed, "costs": [json.dumps([asdict(cost) for cost in costs])]})


def unseal(block: pa.Table) -> pa.Table:
    """Return the table that `seal` was given, without a copy."""
    return pa.ipc.open_stream(block["rows"][0].as_buffer()).read_all()


def copied(block: pa.Table) -> pa.Table:
    """Do as `unseal`, but what waits for its commit does not fill the object store."""
    return pa.ipc.open_stream(pa.py_buffer(block["rows"][0].as_py())).read_all()


def costs_of(block: pa.Table) -> list[Cost]:
    """Return the costs that `seal` was given."""
    return [Cost(**cost) for cost in json.loads(block["costs"][0].as_py())]
