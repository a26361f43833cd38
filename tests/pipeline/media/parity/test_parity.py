"""Generated clips of every container show what ffmpeg shows; see `compare` for all 200 of each."""

import pytest

from tests.pipeline.media.parity.clips import CONTAINERS
from tests.pipeline.media.parity.compare import compare


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
def test_what_the_model_sees_is_what_ffmpeg_shows(container):
    ends, found = compare(container, range(12))
    assert found == []
    assert ends["same"] >= 9  # the rest is refused by name
