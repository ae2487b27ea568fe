"""Inputs that are broken in every way that chance finds: what their readers make of them.

In: a number and a seed. Out: how many were read, refused with a typed error, crashed the reader or hung, for each kind
(documents here, what memo wrote itself and requests in `bad_parts`):

    small valid files of every kind ──> bytes flipped, cut, repeated, put in, numbers made huge; inside of archives too

A crash is any exception but the errors of `memo.errors`; a hang is more than 10 seconds.
"""

from __future__ import annotations

import io
import random
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from memo.documents import read_bytes
from memo.errors import MemoError

LIMITS = {"max_bytes": 4 << 20, "max_pages": 200}
HANG = 10.0  # seconds
TEXT = "The pump stands behind the old chapel. It was bought in 1987 for 412 crowns.\n\nNobody knows who sold it."


# --- small valid files -----------------------------------------------------------------------------------------------


def pdf() -> bytes:
    """One page with a line of text."""
    stream = b"BT /F1 12 Tf 50 700 Td (The pump stands behind the old chapel.) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return out + head + table + b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)


def archive(members: Mapping[str, str | bytes]) -> bytes:
    """A zip."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return held.getvalue()


def docx() -> bytes:
    """A Word file of two paragraphs."""
    office = "http://schemas.openxmlformats.org"
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    paragraphs = "".join(f"<w:p><w:r><w:t>{part}</w:t></w:r></w:p>" for part in TEXT.split("\n\n"))
    return archive({
        "[Content_Types].xml": f'<Types xmlns="{office}/package/2006/content-types"><Default Extension="rels"'
        ' ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override'
        f' PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{office}/package/2006/relationships"><Relationship Id="rId1" Type='
        f'"{office}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{office}/wordprocessingml/2006/main"><w:body>{paragraphs}</w:body>'
        "</w:document>",
    })  # fmt: skip


def pptx() -> bytes:
    """A slide with a title."""
    from pptx import Presentation

    deck, held = Presentation(), io.BytesIO()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = TEXT.splitlines()[0]
    deck.save(held)
    return held.getvalue()


def epub() -> bytes:
    """A book of one chapter."""
    return archive({
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles><rootfile full-path="content.opf" media-type="application/oebps-package+xml"/></rootfiles>'
        "</container>",
        "content.opf": '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata/><manifest><item id="c"'
        ' href="c.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine></package>',
        "c.xhtml": f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{TEXT}</p></body></html>',
    })  # fmt: skip


def originals() -> dict[str, bytes]:
    """A valid file of each kind, by its ending."""
    return {".txt": TEXT.encode(), ".md": f"# Pump\n\n{TEXT}".encode(), ".html": f"<h1>Pump</h1><p>{TEXT}</p>".encode(),
            ".pdf": pdf(), ".docx": docx(), ".pptx": pptx(), ".epub": epub()}  # fmt: skip


# --- what breaks them ------------------------------------------------------------------------------------------------


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 1 + len(data) // 50)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def repeated(data: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.sample(range(len(data) + 1), 2))
    return data[:end] + data[start:end] * draw.choice((1, 2, 50)) + data[end:]


def put_in(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    hostile = (draw.randbytes(40), b"\x00" * 60, b"<" * 300, b"\xff\xfe", "\u202e".encode("utf-16"), b"[" * 5000)
    some = draw.choice(hostile)
    return data[:place] + some + data[place:]


def huge_numbers(data: bytes, draw: random.Random) -> bytes:
    digits = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
    if not digits:
        return put_in(data, draw)
    place = draw.choice(digits)
    return data[:place] + draw.choice((b"99999999999", b"-1", b"4294967296", b"1e999")) + data[place + 1 :]


BREAKS: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, cut, repeated, put_in, huge_numbers)


def broken(data: bytes, draw: random.Random) -> bytes:
    """A file with one or two things wrong; of an archive often one of its members."""
    if data.startswith(b"PK") and draw.random() < 0.6:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {name: file.read(name) for name in file.namelist()}
        name = draw.choice([name for name, content in members.items() if content])
        members[name] = draw.choice(BREAKS)(members[name], draw)
        return archive(members)
    for _ in range(draw.choice((1, 1, 2))):
        data = draw.choice(BREAKS)(data, draw) or b"\x00"
    return data


# --- what becomes of them --------------------------------------------------------------------------------------------


def outcome(work: Callable[[], object]) -> tuple[str, str, float]:
    """"read", "refused" or "crashed"; the type of the error; seconds."""
    began, error = time.monotonic(), ""
    try:
        work()
        became = "read"
    except MemoError as refused:
        became, error = "refused", type(refused).__name__
    except Exception as crash:  # which is what is looked for
        became, error = "crashed", f"{type(crash).__name__}: {crash}"[:200]
    return became, error, time.monotonic() - began


def reading(ending: str, data: bytes) -> Callable[[random.Random], object]:
    """Breaks a file of that kind and has it read."""
    return lambda draw: read_bytes(broken(data, draw), f"broken{ending}", **LIMITS)


def evaluate(folder: Path, count: int, seed: int, cache: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """`count` bad inputs, of all kinds in turn."""
    from memo.evaluate import bad_parts

    for ending, data in originals().items():
        read_bytes(data, f"whole{ending}", **LIMITS)
    with bad_parts.trials(folder, cache) as parts:
        files = {ending: reading(ending, data) for ending, data in originals().items()}
        return measured({**files, **parts}, count, random.Random(seed), tell)


def measured(
    trials: Mapping[str, Callable[[random.Random], object]], count: int, draw: random.Random,
    tell: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """What became of `count` trials: each breaks one input of its kind and has it read."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in trials}
    errors, crashes, longest = Counter[str](), list[dict[str, Any]](), 0.0
    for number in range(count):
        kind = list(trials)[number % len(trials)]
        became, error, seconds = outcome(partial(trials[kind], draw))
        found[kind][became] += 1
        found[kind]["hung"] += seconds > HANG
        errors[error] += became == "refused"
        longest = max(longest, seconds)
        if became == "crashed" or seconds > HANG:
            crashes.append({"number": number, "kind": kind, "error": error, "seconds": round(seconds, 1)})
            tell(f"{number}: {kind} {error} ({seconds:.1f} s)")
        if (number + 1) % 100 == 0:
            tell(f"{number + 1} of {count}")
    return {"count": count, "kinds": found, "errors": {name: n for name, n in errors.items() if n},
            "crashes": crashes, "longest_seconds": round(longest, 2)}  # fmt: skip
