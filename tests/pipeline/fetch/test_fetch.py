import errno
import os
import pickle
import socket
from contextlib import closing
from unicodedata import normalize

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from pipeline.fetch.media_access import MediaAccess
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError
from pipeline.schema import ErrorCode
from tests.clips import make_video, real_clips
from tests.pipeline.decoding import decode_video

CLIP = b"the bytes of a clip"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    (tmp_path / "100% \u00dcmlaut #1?.mp4").write_bytes(CLIP)
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty.mp4").touch()
    return tmp_path


def read(media: object, access: MediaAccess) -> bytes:
    opened = access.open(media)
    if isinstance(opened, bytes):
        return opened
    with closing(opened):
        return opened.read()


def refusal(media: object, access: MediaAccess) -> MediaError:
    with pytest.raises(MediaError) as caught:
        access.open(media)
    return caught.value


# Local media


def test_bytes_come_back_as_they_are():
    assert MediaAccess().open(CLIP) is CLIP


@pytest.mark.parametrize(
    "media",
    [
        pytest.param("clip.mp4", id="relative path"),
        pytest.param("sub/../clip.mp4", id="relative path with dots"),
        pytest.param("100% \u00dcmlaut #1?.mp4", id="odd name"),
        pytest.param({"bytes": None, "path": "clip.mp4"}, id="struct with a path"),
        pytest.param({"bytes": CLIP, "path": "no such file"}, id="struct with both"),
        pytest.param({"bytes": CLIP}, id="struct with bytes alone"),
        pytest.param({"path": "clip.mp4"}, id="struct with a path alone"),
    ],
)
def test_local_media(media, folder):
    assert read(media, MediaAccess(base=str(folder))) == CLIP


def test_absolute_paths_and_file_uris(folder):
    access = MediaAccess(base="/nowhere", allowed_folders=("/elsewhere", str(folder)))
    assert read(str(folder / "clip.mp4"), access) == CLIP
    assert read((folder / "clip.mp4").as_uri(), access) == CLIP
    assert read((folder / "100% \u00dcmlaut #1?.mp4").as_uri(), access) == CLIP


@pytest.mark.parametrize("form", ["file:{}", "FILE://{}", "file://localhost{}", " file://{}\n"])
def test_forms_of_file_uris(form, folder):
    assert read(form.format(folder / "clip.mp4"), MediaAccess(base=str(folder))) == CLIP


def test_a_file_uri_of_another_machine_is_refused(folder):
    error = refusal("file://clip.mp4", MediaAccess(base=str(folder)))
    assert error.code == ErrorCode.URI_NOT_ALLOWED
    assert "names the machine 'clip.mp4'" in error.message


ZURICH = "Z\u00fcrich \u00e9.mp4"


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        pytest.param("clip.mp4", "clip.mp4\n", id="line break after it"),
        pytest.param("clip.mp4", "\t clip.mp4", id="white space before it"),
        pytest.param(" clip.mp4 ", " clip.mp4 ", id="a name that has white space"),
        pytest.param(normalize("NFD", ZURICH), normalize("NFC", ZURICH), id="stored as NFD"),
        pytest.param(normalize("NFC", ZURICH), normalize("NFD", ZURICH), id="stored as NFC"),
        pytest.param("a b.mp4", "a%20b.mp4", id="percent-encoded"),
        pytest.param("a%20b.mp4", "a%20b.mp4", id="a name that has a percent sign"),
    ],
)
def test_other_spellings_of_a_name_are_tried(stored, named, tmp_path):
    (tmp_path / stored).write_bytes(CLIP)
    assert read(named, MediaAccess(base=str(tmp_path))) == CLIP

    filesystem = fsspec.filesystem("memory")
    filesystem.pipe(f"/spelled/{stored}", CLIP)
    try:
        if named.lstrip() == named:
            assert read(f"memory://spelled/{named}", MediaAccess(base="memory://spelled")) == CLIP
        assert read(named, MediaAccess(base="memory://spelled")) == CLIP
    finally:
        filesystem.rm("/spelled", recursive=True)


@pytest.mark.parametrize(
    ("named", "code"),
    [
        pytest.param("a%00b.mp4", ErrorCode.MEDIA_MISSING, id="a name that none can have"),
        pytest.param("a%2Fb.mp4", ErrorCode.MEDIA_MISSING, id="below a file"),
        pytest.param("a ", ErrorCode.MEDIA_TOO_LARGE, id="too large"),
    ],
)
def test_the_error_is_that_of_the_place_that_exists_or_of_the_name_as_written(
    named, code, tmp_path
):
    (tmp_path / "a").write_bytes(CLIP)
    error = refusal(named, MediaAccess(base=str(tmp_path), max_bytes=len(CLIP) - 1))
    assert error.code == code


def test_the_name_as_it_is_written_wins(tmp_path):
    (tmp_path / " clip.mp4").write_bytes(b"with a space")
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    assert read(" clip.mp4", MediaAccess(base=str(tmp_path))) == b"with a space"


@pytest.mark.parametrize("media", ["..%2Fsecret.mp4", "%2Fetc%2Fpasswd", " ../secret.mp4 "])
def test_no_other_spelling_leads_out_of_the_folder(media, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.mp4").write_bytes(CLIP)
    error = refusal(media, MediaAccess(base=str(tmp_path / "in")))
    assert error.code in (ErrorCode.MEDIA_MISSING, ErrorCode.URI_NOT_ALLOWED)


def test_a_link_to_a_file_is_a_file(folder):
    (folder / "link").symlink_to("clip.mp4")
    assert read("link", MediaAccess(base=str(folder))) == CLIP


@pytest.mark.parametrize(
    "media",
    [
        pytest.param(None, id="null"),
        pytest.param("", id="empty path"),
        pytest.param(" \n", id="white space"),
        pytest.param({"bytes": None, "path": None}, id="struct of nulls"),
        pytest.param({}, id="empty struct"),
    ],
)
def test_rows_without_media(media):
    assert refusal(media, MediaAccess()).code == ErrorCode.MEDIA_NULL


# What FFmpeg would understand as a protocol is, here, the name of a file that does not exist.
@pytest.mark.parametrize(
    "media",
    [
        "no such file",
        "clip.mp4/inside",
        "img%d.png",
        "concat:clip.mp4|clip.mp4",
        "subfile,,start,0,end,5,,:clip.mp4",
        "file:clip.mp4",
        "cache:clip.mp4",
        "async:file:///etc/passwd",
        "concat:http://127.0.0.1/a|http://127.0.0.1/b",
        "pipe:0",
        "-",
        "~/clip.mp4",
        "$HOME/clip.mp4",
    ],
)
def test_names_that_are_no_file_are_missing(media, folder):
    assert refusal(media, MediaAccess(base=str(folder))).code == ErrorCode.MEDIA_MISSING


def test_a_link_to_itself_is_missing(folder):
    (folder / "loop").symlink_to("loop")
    assert refusal("loop", MediaAccess(base=str(folder))).code == ErrorCode.MEDIA_MISSING


def test_what_is_no_regular_file_is_not_opened(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # the names of sockets are short
        server.bind("socket")
        access = MediaAccess(base=str(folder), allowed_folders=("/dev",))
        for media in ("sub", "pipe", "socket", "/dev/zero", "/dev/tty", "/dev"):
            assert refusal(media, access).code == ErrorCode.MEDIA_UNREADABLE, media


def test_a_file_that_becomes_a_pipe_while_it_is_opened_is_refused(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    opened = os.open

    def open_pipe(path, flags):
        return opened(folder / "pipe", flags)

    monkeypatch.setattr("os.open", open_pipe)
    error = refusal("clip.mp4", MediaAccess(base=str(folder)))
    assert error.code == ErrorCode.MEDIA_UNREADABLE


@pytest.mark.parametrize(
    "media",
    [
        pytest.param("/etc/passwd", id="absolute path"),
        pytest.param("file:///etc/passwd", id="file URI"),
        pytest.param("FILE:///etc/passwd", id="file URI in capitals"),
        pytest.param("file:/etc/passwd", id="file URI with one slash"),
        pytest.param("file:///etc/%70asswd", id="encoded file URI"),
        pytest.param(" /etc/passwd", id="white space before it"),
        pytest.param("../../../../../../../../etc/passwd", id="dots"),
        pytest.param("/etc/no-such-file", id="a file that does not exist"),
        pytest.param("/proc/self/environ", id="the environment"),
        pytest.param("/dev/stdin", id="standard input"),
        pytest.param("link", id="a link out of the folder"),
        pytest.param("link/passwd", id="a link to a folder"),
        pytest.param({"bytes": None, "path": "/etc/passwd"}, id="struct"),
    ],
)
def test_files_outside_of_the_allowed_folders_are_not_opened(media, folder, monkeypatch):
    (folder / "link").symlink_to("/etc" if media == "link/passwd" else "/etc/passwd")
    access = MediaAccess(base=str(folder), allowed_folders=(f"{folder}/sub",))
    monkeypatch.setattr("os.open", lambda *_: pytest.fail("a file was opened"))
    error = refusal(media, access)
    assert error.code == ErrorCode.URI_NOT_ALLOWED
    assert "--allow-folder /" in error.message


def test_a_folder_whose_name_begins_alike_is_another(tmp_path):
    for name in ("clips", "clips-secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_bytes(CLIP)
    access = MediaAccess(base=str(tmp_path / "clips"))
    assert refusal("../clips-secret/clip.mp4", access).code == ErrorCode.URI_NOT_ALLOWED


def test_local_files_beside_a_remote_input_need_a_folder_of_their_own(folder):
    media = str(folder / "clip.mp4")
    access = MediaAccess(base="memory://bucket/in")
    assert refusal(media, access).code == ErrorCode.URI_NOT_ALLOWED


def test_names_that_no_file_can_have_are_unreadable(folder):
    error = refusal("clip\0.mp4", MediaAccess(base=str(folder)))
    assert error.code == ErrorCode.MEDIA_UNREADABLE


def test_a_file_without_permission_is_unreadable(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)  # root may read everything
    error = refusal("clip.mp4", MediaAccess(base=str(folder)))
    assert error.code == ErrorCode.MEDIA_UNREADABLE
    assert error.message == "clip.mp4: Permission denied"


def test_media_over_the_limit_are_refused(folder):
    access = MediaAccess(base=str(folder), max_bytes=len(CLIP) - 1)
    assert refusal("clip.mp4", access).code == ErrorCode.MEDIA_TOO_LARGE
    assert refusal(CLIP, access).code == ErrorCode.MEDIA_TOO_LARGE
    assert read(CLIP, MediaAccess(max_bytes=len(CLIP))) == CLIP


def test_other_types_are_refused():
    error = refusal(17, MediaAccess())
    assert error.code == ErrorCode.MEDIA_UNSUPPORTED
    assert "int" in error.message


@pytest.mark.parametrize("as_media", [str, lambda path: {"bytes": path.read_bytes(), "path": "x"}])
def test_real_clips_decode(as_media):
    media = MediaAccess().open(as_media(real_clips()["carphone_pristine"]))
    frames = decode_video(media, FrameSampling(num_frames=2), fit=lambda *_: (32, 32))
    assert frames.rgb.shape == (2, 32, 32, 3)
    if not isinstance(media, bytes):
        media.close()


# Remote media


@pytest.fixture
def store():
    """Put objects into the memory filesystem of fsspec."""
    filesystem = fsspec.filesystem("memory")
    for name in ("/bucket/in/clip.mp4", "/bucket/in/a b?c#d%2F.mp4", "/bucket/secret.mp4"):
        filesystem.pipe(name, CLIP)
    filesystem.pipe("/bucket-evil/clip.mp4", CLIP)
    filesystem.pipe("/bucket/in/folder/clip.mp4", CLIP)
    yield
    filesystem.rm("/", recursive=True)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("slash", ["", "/"])
def test_objects_below_an_allowed_prefix(slash):
    access = MediaAccess(allowed_prefixes=("s3://other", f"memory://bucket/in{slash}"))
    assert read("memory://bucket/in/clip.mp4", access) == CLIP
    assert read(" MEMORY://bucket/in/clip.mp4\n", access) == CLIP
    assert read("memory://bucket/in/a b?c#d%2F.mp4", access) == CLIP
    missing = refusal("memory://bucket/in/no.mp4", access)
    assert missing.code == ErrorCode.MEDIA_MISSING
    assert refusal("memory://bucket/in/folder", access).code == ErrorCode.MEDIA_UNREADABLE


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "media",
    [
        pytest.param("memory://bucket/secret.mp4", id="above the prefix"),
        pytest.param("memory://bucket/in/../secret.mp4", id="dots"),
        pytest.param("memory://bucket/in/./../secret.mp4", id="more dots"),
        pytest.param("memory://bucket/in/%2e%2E/secret.mp4", id="encoded dots"),
        pytest.param("memory://bucket/in/%252e%252e/secret.mp4", id="dots encoded twice"),
        pytest.param("memory://bucket/in/..%2fsecret.mp4", id="encoded slash"),
        pytest.param("memory://bucket/in\\..\\secret.mp4", id="backslashes"),
        pytest.param("memory://bucket/in/..;/secret.mp4", id="dots with a parameter"),
        pytest.param("memory://bucket/in/..", id="dots at the end"),
        pytest.param("memory://bucket/in/a\n.mp4", id="line break"),
        pytest.param("memory://bucket/input/clip.mp4", id="longer folder name"),
        pytest.param("memory://bucket-evil/clip.mp4", id="longer bucket name"),
        pytest.param("memory://bucket@evil/in/clip.mp4", id="user name"),
        pytest.param("memory://bucket/in", id="the prefix itself"),
        pytest.param("memory://bucket/in?endpoint_override=evil/clip.mp4", id="settings"),
        pytest.param("MEMORY://bucket/secret.mp4", id="capitals"),
        pytest.param(" memory://bucket/in/../secret.mp4\n", id="white space around it"),
        pytest.param("simplecache::memory://bucket/in/clip.mp4", id="chained filesystems"),
        pytest.param("s3://bucket/in/clip.mp4", id="other scheme"),
        pytest.param("http://169.254.169.254/latest/meta-data", id="metadata service"),
        pytest.param("ftp://127.0.0.1/clip.mp4", id="ftp"),
    ],
)
def test_other_uris_are_refused(media):
    error = refusal(media, MediaAccess(allowed_prefixes=("memory://bucket/in",)))
    if "::" in media:  # the name of a file that does not exist
        assert error.code == ErrorCode.MEDIA_MISSING
    else:
        assert error.code == ErrorCode.URI_NOT_ALLOWED
        assert "--allow-uri" in error.message


def test_a_refusal_says_what_to_allow():
    error = refusal("s3://clips/a/b.mp4?x=1", MediaAccess())
    assert error.message == (
        "s3://clips/a/b.mp4?x=1 lies below no allowed prefix; allow one, such as "
        "--allow-uri s3://clips/folder"
    )


@pytest.mark.usefixtures("store")
def test_paths_relative_to_a_remote_input(folder):
    access = MediaAccess(base="memory://bucket/in", allowed_folders=(str(folder),))
    assert read("clip.mp4", access) == CLIP
    assert read("folder/clip.mp4", access) == CLIP
    assert read("memory://bucket/in/clip.mp4", access) == CLIP
    assert read(str(folder / "clip.mp4"), access) == CLIP
    assert refusal("../secret.mp4", access).code == ErrorCode.URI_NOT_ALLOWED
    assert refusal("memory://bucket/secret.mp4", access).code == ErrorCode.URI_NOT_ALLOWED


@pytest.mark.usefixtures("store")
def test_remote_media_over_the_limit_are_refused():
    access = MediaAccess(base="memory://bucket/in", max_bytes=len(CLIP) - 1)
    assert refusal("clip.mp4", access).code == ErrorCode.MEDIA_TOO_LARGE


def test_errors_of_rows_say_nothing_of_the_credentials_of_the_input(bucket):
    with bucket.filesystem.open_output_stream(f"{bucket.name}/in/a.mp4") as stream:
        stream.write(CLIP)
    access = MediaAccess(base=bucket.uri("in"), max_bytes=len(CLIP) - 1)

    for name in ("../b.mp4", "a.mp4", "no.mp4"):
        assert "test" not in refusal(name, access).message


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_trouble_of_this_machine_is_no_error_of_a_row(number, monkeypatch):
    def fail():
        raise OSError(number, "trouble")

    monkeypatch.setattr("pipeline.fetch.copying._in_memory", fail)
    with pytest.raises(OSError, match="trouble"):
        MediaAccess(base="memory://bucket/in").open("clip.mp4")


class OddError(Exception):
    """An error of a library that nobody here knows."""


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "trouble", [OSError("When reading: AWS Error SLOW_DOWN"), OddError("?"), None]
)
@pytest.mark.parametrize("num_failures", [3, 4])
def test_an_object_that_breaks_off_is_read_again_from_its_start(num_failures, trouble, monkeypatch):
    opened = []

    class Breaking(MemoryFile):
        def read(self, size: int | None = -1) -> bytes:
            if len(opened) > num_failures:
                return super().read(size)
            if self.tell() == 0:
                return super().read(5)
            if trouble is not None:
                raise trouble
            return b""

    def open_breaking(self, path, *_, **__):
        opened.append(path)
        return Breaking(self, path, CLIP)

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem._open", open_breaking)
    monkeypatch.setattr("time.sleep", lambda _: None)
    access = MediaAccess(base="memory://bucket/in")
    if num_failures == 3:
        assert read("clip.mp4", access) == CLIP
    else:
        error = refusal("clip.mp4", access)
        assert error.code == ErrorCode.FETCH_FAILED
        told = f"it ends after 5 of {len(CLIP)} bytes" if trouble is None else str(trouble)
        assert error.message.startswith("memory://bucket/in/clip.mp4: ")
        assert error.message.endswith(told)
    assert len(opened) == 4


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("trouble", "code", "num_calls"),
    [
        pytest.param(OddError("no login"), ErrorCode.MEDIA_UNREADABLE, 1, id="of a library"),
        pytest.param(PermissionError(13, "no"), ErrorCode.MEDIA_UNREADABLE, 1, id="permission"),
        pytest.param(
            OSError("AWS Error ACCESS_DENIED during HeadObject operation"),
            ErrorCode.MEDIA_UNREADABLE,
            1,
            id="denied by S3",
        ),
        pytest.param(
            OSError("AWS Error NETWORK_CONNECTION during HeadObject operation"),
            ErrorCode.FETCH_FAILED,
            4,
            id="network",
        ),
        pytest.param(ConnectionResetError(104, "reset"), ErrorCode.FETCH_FAILED, 4, id="reset"),
    ],
)
def test_trouble_of_a_filesystem_is_an_error_of_the_row(trouble, code, num_calls, monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise trouble

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.info", fail)
    monkeypatch.setattr("time.sleep", lambda _: None)
    error = refusal("memory://bucket/in/clip.mp4", MediaAccess(base="memory://bucket/in"))
    assert (error.code, len(calls)) == (code, num_calls)


def test_an_object_of_s3_whose_body_is_denied_is_not_asked_for_again(bucket, monkeypatch):
    with bucket.filesystem.open_output_stream(f"{bucket.name}/in/a.mp4") as stream:
        stream.write(CLIP)

    def fail(*_):
        raise OSError("When reading information: AWS Error ACCESS_DENIED during GetObject")

    monkeypatch.setattr("pipeline.fetch.media_access.copy_stream", fail)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits for another attempt"))
    access = MediaAccess(base=bucket.uri("in"))
    assert refusal("a.mp4", access).code == ErrorCode.MEDIA_UNREADABLE


@pytest.mark.usefixtures("store")
def test_remote_videos_decode():
    fsspec.filesystem("memory").pipe("/bucket/in/video.mp4", make_video(numbers=range(4)))
    media = MediaAccess(base="memory://bucket/in").open("video.mp4")
    assert not isinstance(media, bytes)
    with media:
        assert len(decode_video(media, FrameSampling(num_frames=9)).rgb) == 4


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param("bucket/clips", id="no scheme"),
        pytest.param("s3:/bucket", id="one slash"),
        pytest.param("https://", id="no host"),
        pytest.param("file:///data", id="local"),
        pytest.param("s3://bucket/../other", id="dots"),
    ],
)
def test_prefixes_that_are_none_are_refused(prefix):
    with pytest.raises(ValueError, match="is not a prefix of URIs"):
        MediaAccess(allowed_prefixes=(prefix,))


def test_access_goes_to_other_processes():
    access = MediaAccess(base="/data", allowed_prefixes=("s3://bucket",))
    assert pickle.loads(pickle.dumps(access)) == access
