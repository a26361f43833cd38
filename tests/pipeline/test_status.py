"""Every error code, by a row that earns it: in time, without a file or a server that it names."""

import os

import pyarrow as pa
import pytest

from model.inputs.processor import Processor
from parallel.groups.errors import DeadGroupError
from parallel.ranks.requests import Failure
from pipeline.fetch.media_access import MediaAccess
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prepare import Prepare
from pipeline.schema import InputColumns, check_input
from pipeline.status import ErrorCode
from tests.clips import make_audio, make_video
from tests.pipeline.decoding import decode_in
from tests.pipeline.fits import Misbehave
from tests.pipeline.media.pictures.test_picture import bomb
from tests.pipeline.media.test_media_refused import listener, playlist, sdp  # noqa: F401, a fixture
from tests.pipeline.stages.test_generate import Groups, generate, make_prompt, prepared
from tests.tiny import tiny_checkpoint

COLUMNS = InputColumns(prompt="ask", start_s="from", end_s="to")
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("video", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("ask", pa.string()),
        ("from", pa.float64()),
        ("to", pa.float64()),
    ]
)
CLIP = make_video(numbers=range(20))  # 2 s

# The media as bytes or path, for a folder and a port, and the rest of the row.
PREPARED = {
    ErrorCode.MEDIA_NULL: (lambda *_: None, {}),
    ErrorCode.MEDIA_MISSING: (lambda *_: "nothing.mp4", {}),
    ErrorCode.MEDIA_UNREADABLE: (lambda *_: "pipe", {}),
    ErrorCode.URI_NOT_ALLOWED: (lambda _, port: f"http://127.0.0.1:{port}/clip.mp4", {}),
    ErrorCode.MEDIA_TOO_LARGE: (lambda *_: bomb(9500, 9500), {}),
    ErrorCode.MEDIA_UNSUPPORTED: (lambda _, port: sdp(port), {}),
    ErrorCode.MEDIA_CORRUPT: (lambda folder, _: playlist(f"{folder}/secret.mp4"), {}),
    ErrorCode.NO_VIDEO_STREAM: (lambda *_: make_audio(), {}),
    ErrorCode.NO_FRAMES: (lambda *_: CLIP, {"from": 9.0}),
    ErrorCode.BAD_SPAN: (lambda *_: CLIP, {"from": 1.0, "to": 0.5}),
    ErrorCode.DECODE_TIMEOUT: (lambda *_: bomb(5900, 5900), {}),
    ErrorCode.BAD_PROMPT: (lambda *_: CLIP, {"ask": "  "}),
    ErrorCode.PROMPT_TOO_LONG: (lambda *_: CLIP, {"ask": "long " * 5000}),
}
GENERATED = {
    ErrorCode.SCHEMA_FAILED: Failure(code="schema_failed", message="too much"),
    ErrorCode.OUT_OF_MEMORY: Failure(code="out_of_memory", message="9 GiB"),
    ErrorCode.POISON_ROW: DeadGroupError("signal 11"),
    ErrorCode.ENGINE_ERROR: Failure(code="odd", message="?"),
}


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return Processor.from_checkpoint(directory)


@pytest.fixture(scope="module")
def decoder():
    decoder = SandboxedDecoder(MediaLimits(max_decode_s=0.05))
    decode_in(decoder, CLIP, Instructions().frames)  # starts the process
    yield decoder
    decoder.close()


def test_no_code_is_missing():
    # Below, and in test_documents and test_http.
    elsewhere = {ErrorCode.DECODER_DIED, ErrorCode.MEDIA_ENCRYPTED, ErrorCode.FETCH_FAILED}
    assert {*PREPARED, *GENERATED} == set(ErrorCode) - elsewhere


@pytest.mark.parametrize("code", PREPARED)
def test_a_row_is_answered_by_prepare(code, processor, decoder, tmp_path, listener):  # noqa: F811
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "secret.mp4")  # a reader would hang
    make, more = PREPARED[code]
    media = make(tmp_path, listener)
    is_path = isinstance(media, str)
    value = media and {"bytes": None if is_path else media, "path": media if is_path else None}
    rows = pa.Table.from_pylist([{"row_id": "0", "video": value, **more}], SCHEMA)
    row_schema = check_input(SCHEMA.remove(0), COLUMNS, carry=())
    access = MediaAccess(base=str(tmp_path))
    stage = Prepare(processor, row_schema, Instructions(), access.open, decoder=decoder)
    (row,) = stage(rows).to_pylist()
    assert (row["status"], row["error_code"]) == ("error", code)
    assert row["error"]


def test_a_row_that_kills_processes_is_answered(decoder):
    with pytest.raises(MediaError) as caught:
        decode_in(decoder, CLIP, Instructions().frames, fit=Misbehave("die"))
    assert caught.value.code == ErrorCode.DECODER_DIED


@pytest.mark.parametrize("code", GENERATED)
def test_a_row_is_answered_by_generate(code):
    def answer(*_):
        outcome = GENERATED[code]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    out = generate(Groups(answer), prepared(make_prompt(1)))
    assert (out["status"][0].as_py(), out["error_code"][0].as_py()) == ("error", code)
