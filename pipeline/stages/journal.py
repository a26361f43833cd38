"""`Journal`: what the stages need of an `InFlightJournal`, wherever it runs."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pyarrow as pa


class Journal(Protocol):
    """Writes down which rows are being worked on, before a stage works on them."""

    def start_preparing(self, ids: pa.Array) -> int:
        """Note rows; return how many processes have died in this run that prepared one of them."""
        ...

    def end_preparing(self, ids: pa.Array) -> None:
        """Forget rows that are prepared."""
        ...

    def generating(self, ids: pa.Array) -> AbstractAsyncContextManager[None]:
        """Note rows for the time of an `async with`; one that raises leaves them noted."""
        ...

    def begin_quarantine(self) -> None:
        """From now on, let a stage begin rows only when no other rows are being worked on."""
        ...
