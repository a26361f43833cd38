"""Digests the rows of an input, by which rows of a changed file are recognized.

A digest depends on the values of the columns that a run reads, not on the row's place, on the
layout of its file, or on the versions of the libraries here.
"""

import hashlib
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.column_types import is_bytes, is_list, is_text, members
from pipeline.schema import DIGEST_FIELD

_DIGEST_BYTES = 8  # rows are compared within one file, so 64 bits tell them apart


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def row_digests(rows: pa.Table) -> pa.Array:
    """Return the digest of each row over all columns of a table, as hexadecimal text."""
    columns = [(name, rows[name]) for name in sorted(rows.column_names)]
    digests = []
    for index in range(rows.num_rows):
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for name, column in columns:
            digest.update(f"{len(name)}:{name}".encode())
            _feed(digest, column[index])
        digests.append(digest.hexdigest())
    return pa.array(digests, DIGEST_FIELD.type)


def _feed(digest: _Hash, value: pa.Scalar) -> None:
    """Add a value, with a mark of its kind and its length, so that no two values look alike."""
    kind = value.type
    if not value.is_valid:
        digest.update(b"-")
    elif is_text(kind) or is_bytes(kind):
        content = value.as_buffer()  # without a copy, which may be a whole video
        digest.update(b"b%d:" % content.size)
        digest.update(content)
    elif pa.types.is_struct(kind):
        digest.update(b"s%d:" % kind.num_fields)
        for member in sorted(members(kind), key=lambda each: each.name):
            digest.update(f"{len(member.name)}:{member.name}".encode())
            _feed(digest, value[member.name])
    elif is_list(kind):
        _feed_list(digest, value.values)
    else:
        _feed_plain(digest, value)


def _feed_list(digest: _Hash, values: pa.Array) -> None:
    digest.update(b"l%d:" % len(values))
    if pa.types.is_floating(values.type) and not values.null_count:  # such as an embedding
        digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False), np.float64))
    else:
        for value in values:
            _feed(digest, value)


def _feed_plain(digest: _Hash, value: pa.Scalar) -> None:
    """Add a number, a time or another value that has a short text."""
    try:
        text = repr(value.as_py())
    except (ValueError, OverflowError, pa.ArrowException):  # such as a time that Python cannot hold
        text = repr(getattr(value, "value", None))
    digest.update(f"p{len(text)}:{text}".encode())
