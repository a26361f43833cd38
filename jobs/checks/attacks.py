"""Check that hostile media is refused, which tries to read files, open sockets or exhaust memory.

The result depends on the installed FFmpeg and Pillow, so the attacks are tried on this machine.
Each attack is fetched and decoded as in a job. The files are in a temporary directory; a port of
this machine is opened for the check and counts the connections to it.
"""

import io
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pyarrow as pa
from av.video.stream import VideoStream
from PIL import Image

from jobs.checks.finding import Finding
from model.inputs.processor import Processor
from pipeline.fetch.media_access import MediaAccess
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prepare import Prepare
from pipeline.schema import InputColumns, check_input

_SLOW_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The outcome of one attack."""

    error_code: str | None  # None if the attack was decoded
    seconds: float
    num_connections: int

    @property
    def is_refused(self) -> bool:
        """Tell whether the attack gave no frame, opened no connection and took little time."""
        return self.error_code is not None and not self.num_connections and self.seconds < _SLOW_S


def findings(processor: Processor) -> Iterator[Finding]:
    """Try all attacks and report those that were not refused."""
    answers = try_all(processor)
    bad = {name: answer for name, answer in answers.items() if not answer.is_refused}
    for name, answer in bad.items():
        what = f"gave {answer.error_code}" if answer.error_code else "was decoded"
        text = (
            f"{name} {what} after {answer.seconds:.1f} s and {answer.num_connections} connections; "
            f"install the versions of PyAV and Pillow that pyproject.toml names"
        )
        yield Finding("BAD", "attacks", text)
    if not bad:
        slowest = max(answer.seconds for answer in answers.values())
        text = f"all of {len(answers)} refused, the slowest after {slowest:.2f} s"
        yield Finding("ok", "attacks", text)


def try_all(processor: Processor) -> dict[str, Answer]:
    """Give each attack to the prepare stage of a job, as the only row of its table."""
    media_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("row_id", pa.string()), ("video", media_type)])
    with TemporaryDirectory() as folder, _listener() as (port, connections):
        row_schema = check_input(schema.remove(0), InputColumns(), carry=())
        prepare = Prepare(processor, row_schema, Instructions(), MediaAccess(base=folder).open)

        def try_one(media: bytes | str) -> Answer:
            name = "bytes" if isinstance(media, bytes) else "path"
            value = {"bytes": None, "path": None, name: media}
            rows = pa.Table.from_pylist([{"row_id": "0", "video": value}], schema)
            num_before, started = len(connections), time.perf_counter()
            code = prepare(rows)["error_code"][0].as_py()
            return Answer(
                error_code=code,
                seconds=time.perf_counter() - started,
                num_connections=len(connections) - num_before,
            )

        try_one(_video())  # starts the decoding process, which is not part of an attack's time
        all_attacks = attacks(Path(folder), port)
        answers = {name: try_one(media) for name, media in all_attacks.items()}
    return answers


def attacks(folder: Path, port: int) -> Mapping[str, bytes | str]:
    """Make all attacks by name, as bytes or as the text of a path column; write files they need."""
    secret = folder / "secret.mp4"
    secret.write_bytes(_video())
    (folder / "img1.png").write_bytes(_png(8))
    (folder / "list.m3u8").write_bytes(_playlist(str(secret)))
    (folder / "list.mp4").write_bytes(_playlist(str(secret)))
    (folder / "concat.mp4").write_bytes(b"ffconcat version 1.0\nfile secret.mp4\n")
    (folder / "net.m3u8").write_bytes(_playlist(f"http://127.0.0.1:{port}/a.ts"))
    return {
        "HLS playlist of a local file, as a path": "list.m3u8",
        "HLS playlist of a local file, named as a video": "list.mp4",
        "HLS playlist of a local file, as bytes": _playlist(str(secret)),
        "HLS playlist of a server, as a path": "net.m3u8",
        "HLS playlist of a server, as bytes": _playlist(f"http://127.0.0.1:{port}/a.ts"),
        "ffconcat list of a local file": f"ffconcat version 1.0\nfile {secret}\n".encode(),
        "ffconcat list of a relative file": b"ffconcat version 1.0\nfile secret.mp4\n",
        "ffconcat list, named as a video": "concat.mp4",
        "SDP that opens a socket": (
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
        ).encode(),
        "DASH manifest of a server": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
            f"<AdaptationSet><Representation><BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL>"
            "</Representation></AdaptationSet></Period></MPD>"
        ).encode(),
        "pattern of image files": "img%d.png",
        "URL of a server": f"http://127.0.0.1:{port}/a.mp4",
        "FTP URL": f"ftp://127.0.0.1:{port}/a.mp4",
        "concat protocol": f"concat:{secret}|{secret}",
        "subfile protocol": f"subfile,,start,0,end,0,,:{secret}",
        "cache protocol": f"cache:http://127.0.0.1:{port}/a.mp4",
        "async protocol": f"async:{secret}",
        "path out of the folder to a device": "../../../../../../dev/zero",
        "data URI": "data:video/mp4;base64,AAAA",
        "PostScript, which Pillow gives to Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n"
        b"%%BoundingBox: 0 0 9 9\nshowpage\n",
        "PNG of 11 kB that unfolds to 270 MB": _png(9500),
        "JPEG cut in two": _picture("JPEG")[:600],
        "GIF of 2,000 pages": _picture("GIF", 2000),
        "video of 8192 x 8192 pixels": _video("avi", "mjpeg", side_px=8192, times_s=(0,)),
        "video of 94 million seconds": _video("matroska", "mjpeg", times_s=(0, 94_608_000)),
        "codec that is not on the list": _video("avi", "ffvhuff"),
        "video header without a video": _video()[:200],
        "nothing": b"",
        "noise": np.random.default_rng(0).bytes(4096),
    }


@contextmanager
def _listener() -> Iterator[tuple[int, list[str]]]:
    """Open a port of this machine; yield it and the list of clients that connected to it."""
    connections: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        is_over = threading.Event()

        def listen() -> None:
            while not is_over.is_set():
                try:
                    client, address = server.accept()
                except TimeoutError:
                    continue
                connections.append(str(address))
                client.close()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield server.getsockname()[1], connections
        finally:
            is_over.set()
            thread.join()


def _playlist(target: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n".encode()


def _video(
    container: str = "mp4",
    codec: str = "mpeg4",
    *,
    side_px: int = 64,
    times_s: Sequence[int] = range(5),
) -> bytes:
    """Encode grey frames, by default as MPEG-4, which every FFmpeg can write."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=1)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = side_px
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for time_s in times_s:
            frame = av.VideoFrame(side_px, side_px, stream.pix_fmt)
            frame.pts, frame.time_base = time_s, Fraction(1)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _picture(kind: str, num_pages: int = 1) -> bytes:
    """Encode noise as an image, or as an animation of several different frames."""
    random = np.random.default_rng(0)
    pages = [Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)) for _ in range(num_pages)]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if num_pages > 1 else {}
    pages[0].save(file, kind, **more)
    return file.getvalue()


def _png(side_px: int) -> bytes:
    """Encode a black image with one bit per pixel."""
    file = io.BytesIO()
    Image.new("1", (side_px, side_px)).save(file, "PNG", compress_level=9)
    return file.getvalue()
