"""A decoding process gives the same frames; whatever happens to it fails one row at most."""

import io
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import pipeline.media.sandbox
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.status import ErrorCode
from tests.clips import make_audio, make_video, real_clips
from tests.pipeline.decoding import decode_in, decode_video
from tests.pipeline.fits import Misbehave
from tests.pipeline.media.pictures.test_picture import bomb
from tests.pipeline.media.test_media_refused import ATTACKS, empty_picture, listener  # noqa: F401, a fixture

FOUR = FrameSampling(num_frames=4)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def clip():
    return make_video(numbers=range(20))


@pytest.fixture
def decoder():
    decoder = SandboxedDecoder()
    yield decoder
    decoder.close()


def refusal(decoder, source, **options) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode_in(decoder, source, FOUR, **options)
    return caught.value


def pid_of(decoder) -> int:
    return decoder._process._popen.pid


def test_the_frames_are_those_of_this_process(decoder, clip):
    expected = decode_video(clip, FOUR, span_s=(0.5, 1.5))
    with tempfile.TemporaryFile() as file:
        file.write(clip)
        file.flush()
        for source in (clip, file):
            frames = decode_in(decoder, source, FOUR, span_s=(0.5, 1.5))
            assert np.array_equal(frames.rgb, expected.rgb)
            assert np.array_equal(frames.timestamps_s, expected.timestamps_s)
            assert frames.facts == expected.facts


def test_rows_share_a_process_until_it_is_replaced(clip):
    decoder = SandboxedDecoder(max_rows=2)
    pids = []
    for _ in range(4):
        decode_in(decoder, clip, FOUR)
        pids.append(decoder._process and pid_of(decoder))
    decoder.close()
    assert pids[0] is not None
    assert pids[1] is pids[3] is None
    assert pids[2] not in (None, pids[0])


def test_its_memory_is_told_while_it_lives(decoder, clip):
    assert decoder.peak_bytes == 0
    decode_in(decoder, clip, FOUR)
    assert 10e6 < decoder.peak_bytes < 1e9
    decoder.close()
    assert decoder.peak_bytes == 0


def test_a_bad_row_does_not_cost_the_process(decoder, clip):
    decode_in(decoder, clip, FOUR)
    pid = pid_of(decoder)
    assert refusal(decoder, b"junk" * 100).code == ErrorCode.MEDIA_CORRUPT
    assert refusal(decoder, b"").code == ErrorCode.MEDIA_CORRUPT
    assert refusal(decoder, clip, span_s=(2.0, 1.0)).code == ErrorCode.BAD_SPAN
    assert pid_of(decoder) == pid


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("die", "was ended by SIGSEGV"),
        ("exit", "ended with exit code 3"),
    ],
)
def test_a_row_that_kills_two_processes_fails_alone(decoder, clip, what, how, capfd):
    decode_in(decoder, clip, FOUR)
    error = refusal(decoder, clip, fit=Misbehave(what))
    assert error.code == ErrorCode.DECODER_DIED
    assert how in error.message
    assert len(decode_in(decoder, clip, FOUR).rgb) == 4


def test_an_exception_that_nobody_expects_is_named_and_costs_no_process(decoder, clip):
    decode_in(decoder, clip, FOUR)
    pid = pid_of(decoder)
    error = refusal(decoder, clip, fit=Misbehave("raise"))
    assert error.code == ErrorCode.MEDIA_CORRUPT
    assert "ZeroDivisionError" in error.message
    assert "fits.py:" in error.message
    assert pid_of(decoder) == pid


def test_a_row_that_kills_one_process_is_tried_again_alone(decoder, clip, tmp_path):
    once = tmp_path / "once"
    once.touch()
    frames = decode_in(decoder, clip, FOUR, fit=Misbehave("die", once))
    assert len(frames.rgb) == 4
    assert not once.exists()


def test_a_process_killed_between_rows_is_replaced(decoder, clip):
    decode_in(decoder, clip, FOUR)
    os.kill(pid_of(decoder), signal.SIGKILL)
    assert len(decode_in(decoder, clip, FOUR).rgb) == 4


def test_cpu_time_is_limited(clip):
    decoder = SandboxedDecoder(MediaLimits(max_decode_s=0.3))
    error = refusal(decoder, clip, fit=Misbehave("compute"))
    assert error.code == ErrorCode.DECODE_TIMEOUT
    assert error.message == ("decoding takes more CPU time, the limit is 0.3 s (--max-decode-s)")
    assert len(decode_in(decoder, clip, FOUR).rgb) == 4
    decoder.close()


def test_waiting_is_limited(clip, monkeypatch):
    monkeypatch.setattr(pipeline.media.sandbox, "_WAIT_S", 0.1)
    decoder = SandboxedDecoder(MediaLimits(max_decode_s=0.1))
    error = refusal(decoder, clip, fit=Misbehave("hang"))
    assert error.code == ErrorCode.DECODE_TIMEOUT
    assert "has not ended after" in error.message
    decoder.close()


def test_memory_is_limited(decoder, clip):
    error = refusal(decoder, clip, fit=Misbehave("allocate"))
    assert error.code == ErrorCode.MEDIA_TOO_LARGE
    assert error.message == (
        "decoding needs more memory, the limit is 1073741824 (--max-decode-bytes)"
    )


def test_the_process_cannot_write_files(decoder, clip):
    frames = decode_in(decoder, clip, FOUR, fit=Misbehave("write"))
    assert frames.rgb.shape[1:3] == (48, 64)
    written = Path("/dev/shm/written")
    assert written.read_bytes() == b""
    written.unlink()


def test_the_process_knows_nothing_of_our_environment(decoder, clip, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    decode_in(decoder, clip, FOUR)
    environment = Path(f"/proc/{pid_of(decoder)}/environ").read_bytes()
    assert b"secret" not in environment
    assert b"PYTHONPATH" in environment


def test_the_process_holds_no_file_of_ours(decoder, clip):
    with tempfile.TemporaryFile():
        decode_in(decoder, clip, FOUR)
        folder = Path(f"/proc/{pid_of(decoder)}/fd")
        kinds = [str(link.readlink()).partition(":")[0] for link in folder.iterdir()]
        assert kinds.count("socket") == 1
        assert not [kind for kind in kinds if kind.startswith(tempfile.gettempdir() + "/tmp")]


OWNER = """
import sys, time
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.frame_sampling import FrameSampling
from tests.pipeline.decoding import decode_in
from tests.pipeline.fits import Misbehave
decoder = SandboxedDecoder()
source = open(sys.argv[1], "rb")
decode_in(decoder, source, FrameSampling())
print(decoder._process._popen.pid, flush=True)
decode_in(decoder, source, FrameSampling(), fit=Misbehave(sys.argv[2]))
"""


@pytest.mark.parametrize("what", ["compute", "hang"])
def test_the_process_goes_with_its_owner_even_while_it_decodes(clip, tmp_path, what):
    (tmp_path / "clip.mp4").write_bytes(clip)
    command = [sys.executable, "-c", OWNER, str(tmp_path / "clip.mp4"), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        owner.kill()
    deadline = time.monotonic() + 10
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_process_that_is_killed_while_it_starts_is_started_again(clip, monkeypatch):
    started = []
    popen = subprocess.Popen

    def start(command, **options):
        started.append(popen(command, **options))
        if len(started) < 3:
            started[-1].kill()
        return started[-1]

    monkeypatch.setattr("subprocess.Popen", start)
    decoder = SandboxedDecoder()
    assert len(decode_in(decoder, clip, FOUR).rgb) == 4
    decoder.close()
    assert [process.wait() for process in started[:2]] == [-signal.SIGKILL] * 2
    assert len(started) == 3


def test_a_process_that_cannot_start_is_no_error_of_a_row(clip, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="does not start: it ended with exit code 1"):
        decode_in(SandboxedDecoder(), clip, FOUR)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"no JSON", id="no JSON"),
        pytest.param(b'{"code": "no such code", "message": ""}', id="code"),
        pytest.param(b'{"shape": [1, 2, 2, 3]}', id="fields"),
        pytest.param(b'{"shape": [1000000, 1000000, 1000, 3]}', id="too many pixels"),
        pytest.param(b'{"shape": [-1, -1, 2, 3]}', id="negative"),
        pytest.param(b"cposix\nsystem\n(S'touch /dev/shm/owned'\ntR.", id="pickle"),
    ],
)
def test_a_process_that_answers_nonsense_counts_as_dead(clip, monkeypatch, answer):
    """A process that an attacker controls can only send data, which is checked."""
    text = struct.pack("<Q", 0) + struct.pack("<Q", len(answer)) + answer + bytes(12)
    fake = (
        "import socket, sys\n"
        "connection = socket.socket(fileno=int(sys.argv[-1]))\n"
        f"connection.sendall({text!r})\n"
        "while connection.recv(1000): pass\n"
    )
    popen = subprocess.Popen

    def start(command, **options):
        return popen([sys.executable, "-c", fake, command[-1]], **options)

    monkeypatch.setattr("subprocess.Popen", start)
    assert refusal(SandboxedDecoder(), clip).code == ErrorCode.DECODER_DIED
    assert not Path("/dev/shm/owned").exists()


def with_sample_count(source: bytes, count: int) -> bytes:
    """An mp4 of a few frames that claims `count` samples of one byte in its first chunk."""
    changed = bytearray(source)
    stsz, stts, stsc = (source.index(name) for name in (b"stsz", b"stts", b"stsc"))
    changed[stsz + 8 : stsz + 16] = struct.pack(">II", 1, count)
    changed[stts + 12 : stts + 20] = struct.pack(">II", count, 1024)
    changed[stsc + 16 : stsc + 20] = struct.pack(">I", count)
    return bytes(changed)


@pytest.mark.parametrize("count", [10_000, 3_000_000, 60_000_000, 2**32 - 1])
def test_a_false_sample_count_is_seen_before_memory_is_taken_for_it(decoder, count):
    hostile = with_sample_count(make_video(numbers=range(8)), count)
    assert len(hostile) < 7000
    error = refusal(decoder, hostile)
    assert error.code == ErrorCode.MEDIA_CORRUPT
    assert f"claims {count} samples" in error.message


def test_a_false_sample_count_that_is_not_seen_meets_the_other_limits(clip):
    """Bytes that FFmpeg skips, in front of the file, make it as large as it claims to be."""
    hostile = with_sample_count(make_video(numbers=range(8)), 9_000_000)
    padding = struct.pack(">I4s", 9_000_000, b"free") + bytes(9_000_000 - 8)
    decoder = SandboxedDecoder(MediaLimits(max_decode_bytes=64 << 20))
    error = refusal(decoder, padding + hostile)
    assert error.code == ErrorCode.MEDIA_TOO_LARGE
    assert len(decode_in(decoder, clip, FOUR).rgb) == 4
    decoder.close()


@pytest.fixture(scope="module")
def shared():
    decoder = SandboxedDecoder()
    decode_in(decoder, make_video(numbers=[0]), FOUR)
    yield decoder
    decoder.close()


HOSTILE = {
    **{name: make for name, make in ATTACKS.items() if name not in ("png", "jpeg", "gif")},
    "a picture that unfolds": lambda *_: bomb(9500, 9500),
    "a video that unfolds": lambda *_: empty_picture("mp4", 8192),
    "a false sample count": lambda *_: with_sample_count(make_video(numbers=range(8)), 50_000_000),
    "94 million seconds": lambda *_: make_video(
        "matroska", numbers=[0, 1], times_s=[0.0, 94_608_000.0]
    ),
    "PostScript": lambda *_: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "sound alone": lambda *_: make_audio(),
    "a header alone": lambda *_: make_video()[:300],
}
TOO_LARGE = ("a picture that unfolds", "a video that unfolds", "94 million seconds")


@pytest.mark.parametrize("name", HOSTILE)
def test_an_attack_is_answered_before_its_time_is_up_and_reaches_nothing(
    name,
    shared,
    tmp_path,
    monkeypatch,
    listener,  # noqa: F811
):
    (tmp_path / "clip.ts").write_bytes(make_video("mpegts", numbers=range(5)))
    monkeypatch.chdir(tmp_path)
    source = HOSTILE[name](tmp_path, listener)
    process = shared._process
    error = refusal(shared, source)
    assert shared._process is process  # it did not die
    if name in TOO_LARGE:
        assert error.code == ErrorCode.MEDIA_TOO_LARGE
    elif name == "sound alone":
        assert error.code == ErrorCode.NO_VIDEO_STREAM
    else:
        assert error.code in (ErrorCode.MEDIA_UNSUPPORTED, ErrorCode.MEDIA_CORRUPT)


def test_files_without_a_descriptor_are_not_taken(decoder, clip):
    with pytest.raises(io.UnsupportedOperation):
        decode_in(decoder, io.BytesIO(clip), FOUR)


def test_real_clips(decoder):
    for path in real_clips().values():
        with path.open("rb") as file:
            frames = decode_in(decoder, file, FOUR)
        assert len(frames.rgb) == 4
        assert frames.facts.num_decode_errors == 0
