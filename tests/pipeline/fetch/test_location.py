"""URIs in normal form: equal places are equal texts, and what is judged is what is asked for."""

from unicodedata import normalize

import pytest

from pipeline.fetch.location import is_crooked, normal_uri, shown, spellings
from pipeline.fetch.media_access import MediaAccess
from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        pytest.param("HTTP://Example.ORG:80/A", "http://example.org/A", id="case and port"),
        pytest.param("https://h:443/a", "https://h/a", id="port of https"),
        pytest.param("https://h:80/a", "https://h:80/a", id="another port"),
        pytest.param(
            "http://b\u00fccher.de/\u00fc b", "http://xn--bcher-kva.de/%C3%BC%20b", id="IDN"
        ),
        pytest.param("http://fa\u00df.de/", "http://xn--fa-hia.de/", id="IDNA of 2008"),
        pytest.param("http://h/a/./b/../c", "http://h/a/c", id="dots"),
        pytest.param("http://h/a%2Fb%20c?sig=%2F%3D+", "http://h/a%2Fb%20c?sig=%2F%3D+", id="kept"),
        pytest.param("http://h/100% a%20b", "http://h/100%25%20a%20b", id="stray percent sign"),
        pytest.param("http://h/a#t=1", "http://h/a", id="fragment"),
        pytest.param("http://[::1]:8080/a", "http://[::1]:8080/a", id="IPv6"),
        pytest.param("S3://Bucket/A b\u00fc?c#d", "s3://Bucket/A b\u00fc?c#d", id="object store"),
    ],
)
def test_normal_forms(uri, normal):
    assert normal_uri(uri) == normal
    assert normal_uri(normal) == normal


@pytest.mark.parametrize(
    "uri",
    [
        "http:///a",
        "http://exa mple/a",
        "http://h:99999/a",
        "http://\uff45xample.com/a",
        "http://\u2100evil.com/a",
        "http://a\x00b/c",
    ],
)
def test_hosts_that_none_can_have(uri):
    with pytest.raises(ValueError):  # noqa: PT011  # the message is that of a library
        normal_uri(uri)
    with pytest.raises(MediaError) as caught:
        MediaAccess(allowed_prefixes=("http://h", "http://example.com")).open(f"{uri}/b")
    assert caught.value.code in (ErrorCode.URI_NOT_ALLOWED, ErrorCode.MEDIA_UNREADABLE)
    if "\x00" not in uri:
        with pytest.raises(ValueError, match="is not a prefix of URIs"):
            MediaAccess(allowed_prefixes=(uri,))


def test_a_prefix_may_be_written_in_any_form():
    access = MediaAccess(allowed_prefixes=("HTTP://B\u00dcCHER.de:80/a b/",))
    assert access._prefix_of(normal_uri("http://xn--bcher-kva.de/a%20b/c.mp4"))


def test_spellings_are_those_of_the_name_and_each_comes_once():
    assert list(spellings("clip.mp4")) == ["clip.mp4"]
    assert list(spellings(" a\u00e9.mp4")) == [" a\u00e9.mp4", "a\u00e9.mp4", "ae\u0301.mp4"]
    assert list(spellings(" s3://b/a ")) == ["s3://b/a"]
    assert list(spellings("s3://b/a%20")) == ["s3://b/a%20", "s3://b/a "]
    assert list(spellings("https://h/a%20")) == ["https://h/a%20"]


def test_no_spelling_of_a_letter_is_a_slash_or_a_dot():
    letters = [chr(code) for code in range(0x80, 0x110000)]
    changed = [each for each in letters if normalize("NFD", each) != each]
    assert len(changed) > 10_000
    for letter in changed:
        assert not {*"/.\\%"} & {*"".join(spellings(f"x{letter}"))}, hex(ord(letter))


def test_a_normal_form_shows_every_way_out():
    for path in ("/../x", "/%2e%2e/x", "/..%2fx", "/%5c..%5cx", "/%252e%252e/", "/a%0ab"):
        normal = normal_uri(f"http://h/in{path}")
        assert not normal.startswith("http://h/in/") or is_crooked(normal[len("http://h/in") :])


def test_what_is_shown_has_no_credentials():
    assert shown("s3://KEY:SECRET@bucket/a b.mp4?x=1") == "s3://bucket/a b.mp4?x=1"
    assert shown("https://me:SECRET@h/a?n=1&X-Goog-Signature=SECRET&b=2") == (
        "https://h/a?n=1&X-Goog-Signature=...&b=2"
    )
    assert shown("memory://bucket/in/a b?c#d%2F.mp4") == "memory://bucket/in/a b?c#d%2F.mp4"
