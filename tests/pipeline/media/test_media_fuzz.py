import pytest

from pipeline.status import ErrorCode
from tests.pipeline.fuzz_media import fuzz


@pytest.mark.slow
def test_every_mutated_file_is_answered():
    """This tries a few mutations; `python -m tests.pipeline.fuzz_media` tries 2,000."""
    found = fuzz(num_files=150, seed=1)
    assert found["files"] == 150
    assert isinstance(found["ends"], dict)
    assert {"ok", "damaged", "media_corrupt"} <= set(found["ends"]) <= {"ok", "damaged", *ErrorCode}
