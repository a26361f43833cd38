"""PDFs for tests, written object by object; some are attacks."""

import zlib
from collections.abc import Callable, Mapping, Sequence

A4 = (595, 842)


def make_pdf(
    texts: Sequence[str] = ("Hello",),
    *,
    size: tuple[float, float] = A4,
    catalog: str = "",
    page: str = "",
    more: Sequence[bytes] = (),
    trailer: str = "",
    kids: str | None = None,
    count: int | None = None,
    content: str | None = None,
) -> bytes:
    """A page for each text, in large letters; `more` are the objects before them, from 3 on."""
    first = 3 + len(more)
    count = len(texts) if count is None else count
    numbers = [first + 2 * index for index in range(len(texts))]
    refs = kids if kids is not None else " ".join(f"{number} 0 R" for number in numbers)
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        f"<< /Type /Pages /Kids [{refs}] /Count {count} >>".encode(),
        *more,
    ]
    for number, text in zip(numbers, texts, strict=True):
        drawn = content or f"BT /F 48 Tf 60 {size[1] / 2} Td ({text}) Tj ET"
        objects.append(
            (
                f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] "
                f"/Contents {number + 1} 0 R /Resources << /Font << /F << /Type /Font "
                f"/Subtype /Type1 /BaseFont /Helvetica >> >> /XObject << /X 3 0 R >> >> {page} >>"
            ).encode()
        )
        objects.append(stream(drawn.encode()))
    return _written(objects, trailer)


def stream(content: bytes, entries: str = "") -> bytes:
    """A stream object."""
    head = f"<< /Length {len(content)} {entries} >>\nstream\n".encode()
    return head + content + b"\nendstream"


def _written(objects: Sequence[bytes], trailer: str) -> bytes:
    data = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, each in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n" % number + each + b"\nendobj\n"
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        data += b"%010d 00000 n \n" % offset
    entries = f"/Size {len(objects) + 1} /Root 1 0 R {trailer}"
    data += f"trailer\n<< {entries} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(data)


_FONTS = "/DR << /Font << /Helv 4 0 R /ZaDb 5 0 R >> >> /DA (/Helv 12 Tf 0 g)"
FIELDS = (  # of a filled-in form on a page of 300 x 200 points
    "/FT /Tx /T (name) /V (ADA LOVELACE) /Rect [80 160 260 184]",
    "/FT /Tx /T (lines) /Ff 4096 /V (two lines of\nwords) /Rect [80 100 260 150]",
    "/FT /Ch /T (town) /V (Oslo) /Opt [(Oslo) (Bergen)] /Rect [10 60 70 100]",
    "/FT /Btn /T (ok) /V /Yes /AS /Yes /Rect [80 20 100 40] /DA (/ZaDb 0 Tf 0 g) /MK << /CA (4) >>",
    "/FT /Tx /T (hidden) /F 2 /V (HIDDEN) /Rect [120 10 260 34]",
)


def make_form(
    fields: Sequence[str] = FIELDS, *, form: str = "", look: str | None = None, catalog: str = ""
) -> bytes:
    """A page of 300 x 200 points with fields; `form` are entries of /AcroForm.

    `look` is what is drawn for each field (/AP), 14 points high; None leaves that to the reader.
    """
    numbers = range(7, 7 + len(fields))
    refs = " ".join(f"{number} 0 R" for number in numbers)
    font = "<< /Type /Font /Subtype /Type1 /BaseFont"
    drawn = stream(
        f"BT /Helv 14 Tf 2 6 Td ({look}) Tj ET".encode(),
        "/Type /XObject /Subtype /Form /BBox [0 0 180 24] /Resources << /Font << /Helv 4 0 R >> >>",
    )
    appearance = "" if look is None else "/AP << /N 6 0 R >>"
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog or _acro_form(refs, form)} >>".encode(),
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Annots [{refs}] >>".encode(),
        f"{font} /Helvetica /Encoding /WinAnsiEncoding >>".encode(),
        f"{font} /ZapfDingbats >>".encode(),
        drawn,
        *(f"<< /Type /Annot /Subtype /Widget {_DEFAULT_TEXT if '/DA' not in field else ''} {field} "
          f"{appearance} >>".encode() for field in fields),
    ]  # fmt: skip
    return _written(objects, "")


_DEFAULT_TEXT = "/DA (/Helv 14 Tf 0 g)"


def _acro_form(refs: str, form: str) -> str:
    return f"/AcroForm << /Fields [{refs}] {_FONTS} {form} >>"


def encrypted() -> bytes:
    """A PDF that opens with a password only."""
    keys = f"/O <{'41' * 32}> /U <{'42' * 32}>"
    return make_pdf(
        trailer=f"/Encrypt << /Filter /Standard /V 1 /R 2 {keys} /P -4 >> /ID [<00> <00>]"
    )


def image_bomb() -> bytes:
    """A PDF with a picture of half a gigapixel in a few kilobytes, because it is deflated twice."""
    rows = zlib.compress(zlib.compress(bytes(24_000 * 24_000 // 8), 9), 9)
    entries = (
        "/Type /XObject /Subtype /Image /Width 24000 /Height 24000 /BitsPerComponent 1 "
        "/ColorSpace /DeviceGray /Filter [/FlateDecode /FlateDecode]"
    )
    return make_pdf(more=[stream(rows, entries)], content="500 0 0 500 0 0 cm /X Do")


def _reference(path: str, port: int) -> bytes:
    """A PDF with everything that can name another file or a server."""
    image = stream(
        b"", f"/Type /XObject /Subtype /Image /Width 8 /Height 8 /BitsPerComponent 8 /F ({path}) "
        "/FFilter /DCTDecode /ColorSpace /DeviceRGB"
    )  # fmt: skip
    reference = f"/Ref << /F << /FS /URL /F (http://127.0.0.1:{port}/x.pdf) >> /Page 0 >>"
    form = stream(b"", f"/Type /XObject /Subtype /Form /BBox [0 0 9 9] {reference}")
    return make_pdf(more=[image, form], content="99 0 0 99 0 0 cm /X Do")


def _action(kind: str, rest: str) -> str:
    return f"<< /Type /Action /S /{kind} {rest} >>"


def _active_form(port: int) -> bytes:
    script = _action("JavaScript", f"/JS (app.launchURL\\('http://127.0.0.1:{port}/'\\);)")
    link = _action("URI", f"/URI (http://127.0.0.1:{port}/)")
    fields = [
        f"/FT /Tx /T (f{event}) /V (1) /Rect [80 160 260 184] /AA << /{event} {script} >> /A {link}"
        for event in ("K", "F", "V", "C", "E", "PO", "PV")
    ]
    return make_form(fields, form="/NeedAppearances true /CO [7 0 R]")


ATTACKS: Mapping[str, tuple[str | None, Callable[[str, int], bytes]]] = {
    # name: (the code, None for a page that is drawn; path of a file, port of a server -> bytes)
    "cut in its first object": ("media_corrupt", lambda path, port: make_pdf()[:40]),
    "header alone": ("media_corrupt", lambda path, port: b"%PDF-1.7\n"),
    "noise after the header": ("media_corrupt", lambda path, port: b"%PDF-1.7\n" + bytes(9999)),
    "encrypted": ("media_encrypted", lambda path, port: encrypted()),
    "no pages": ("no_frames", lambda path, port: make_pdf([])),
    "10,000 pages": ("media_too_large", lambda path, port: make_pdf(["x"] * 10_000)),
    "a page of a million points": (
        "media_too_large", lambda path, port: make_pdf(size=(1e6, 1e6)),
    ),
    "a page tree that contains itself": (
        "media_corrupt", lambda path, port: make_pdf(kids="2 0 R", count=3),
    ),
    "a claim of a billion pages": (
        None, lambda path, port: make_pdf(count=1_000_000_000),
    ),
    "a picture of half a gigapixel": (None, lambda path, port: image_bomb()),
    "a form that draws itself": (
        None,
        lambda path, port: make_pdf(
            more=[stream(b"/X Do", "/Type /XObject /Subtype /Form /BBox [0 0 9 9] "
                         "/Resources << /XObject << /X 3 0 R >> >>")],
            content="/X Do " * 50,
        ),
    ),
    "JavaScript at opening": (
        None,
        lambda path, port: make_pdf(
            catalog="/OpenAction "
            + _action("JavaScript", f"/JS (app.launchURL\\('http://127.0.0.1:{port}/'\\);)")
        ),
    ),
    "launch at opening": (
        None,
        lambda path, port: make_pdf(
            catalog=f"/OpenAction {_action('Launch', f'/F ({path})')}",
            page=f"/AA << /O {_action('Launch', f'/F ({path})')} >>",
        ),
    ),
    "form sent at opening": (
        None,
        lambda path, port: make_pdf(
            catalog="/OpenAction "
            + _action("SubmitForm", f"/F << /FS /URL /F (http://127.0.0.1:{port}/) >>")
        ),
    ),
    "files and servers by name": (None, _reference),
    "fields that act when they are shown, filled in or computed": (
        None,
        lambda path, port: _active_form(port),
    ),
    "a field that is its own parent": (
        None,
        lambda path, port: make_form(["/T (x) /Parent 7 0 R /Kids [7 0 R] /Rect [0 0 9 9]"]),
    ),
    "a thousand fields": (
        None,
        lambda path, port: make_form(
            [f"/FT /Tx /T (f{at}) /V (x) /Rect [0 0 9 9]" for at in range(1000)]
        ),
    ),
}  # fmt: skip
