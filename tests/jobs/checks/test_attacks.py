"""Each attack on a reader of media, through the fetching and decoding of a job."""

import ctypes
import os
import struct
from contextlib import suppress

import pytest

from jobs.checks import attacks
from jobs.cli.checkpoint import DEMO
from model.inputs.processor import Processor

EXPECTED = {
    "HLS playlist of a local file, as a path": "media_corrupt",
    "HLS playlist of a local file, named as a video": "media_corrupt",
    "HLS playlist of a local file, as bytes": "media_corrupt",
    "HLS playlist of a server, as a path": "media_corrupt",
    "HLS playlist of a server, as bytes": "media_corrupt",
    "ffconcat list of a local file": "media_unsupported",
    "ffconcat list of a relative file": "media_unsupported",
    "ffconcat list, named as a video": "media_unsupported",
    "SDP that opens a socket": "media_unsupported",
    "DASH manifest of a server": "media_corrupt",
    "pattern of image files": "media_missing",
    "URL of a server": "uri_not_allowed",
    "FTP URL": "uri_not_allowed",
    "concat protocol": "media_missing",
    "subfile protocol": "media_missing",
    "cache protocol": "media_missing",
    "async protocol": "media_missing",
    "path out of the folder to a device": "uri_not_allowed",
    "data URI": "media_corrupt",
    "PostScript, which Pillow gives to Ghostscript": "media_corrupt",
    "PNG of 11 kB that unfolds to 270 MB": "media_too_large",
    "JPEG cut in two": "media_corrupt",
    "GIF of 2,000 pages": "media_too_large",
    "video of 8192 x 8192 pixels": "media_too_large",
    "video of 94 million seconds": "media_too_large",
    "codec that is not on the list": "media_unsupported",
    "video header without a video": "media_corrupt",
    "nothing": "media_corrupt",
    "noise": "media_corrupt",
}
IN_OPEN = 0x20  # inotify(7)


class Opened:
    """Which files of a folder any process opens."""

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, folder):
        assert self._libc.inotify_add_watch(self._watch, os.fsencode(folder), IN_OPEN) >= 0

    def names(self):
        found = []
        with suppress(BlockingIOError):  # there is no more
            while content := os.read(self._watch, 1 << 16):
                while content:
                    *_, length = struct.unpack_from("iIII", content)
                    found.append(content[16 : 16 + length].rstrip(b"\0").decode())
                    content = content[16 + length :]
        return set(found) - {""}  # the folder itself


@pytest.fixture(scope="module")
def tried():
    """What became of each attack; which files were opened that no row names."""
    opened, named = Opened(), set()
    make = attacks.attacks

    def watched(folder, port):
        made = make(folder, port)
        opened.watch(folder)
        named.update(media for media in made.values() if isinstance(media, str))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "attacks", watched)
        answers = attacks.try_all(Processor.from_checkpoint(DEMO))
    return answers, opened.names() - named


@pytest.mark.parametrize("name", EXPECTED)
def test_an_attack_is_answered_with_its_code_and_reaches_nobody(tried, name):
    answer = tried[0][name]
    assert answer.error_code == EXPECTED[name]
    assert answer.num_connections == 0
    assert answer.is_refused


def test_all_attacks_are_known_here_and_none_opens_another_file(tried):
    answers, opened = tried
    assert answers.keys() == EXPECTED.keys()
    assert opened == set()


def test_an_opened_file_would_be_seen(tmp_path):
    (tmp_path / "secret.mp4").touch()
    opened = Opened()
    opened.watch(tmp_path)
    (tmp_path / "secret.mp4").read_bytes()
    assert opened.names() == {"secret.mp4"}
