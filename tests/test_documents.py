"""Files become documents: offsets, pages and encodings are right, and every bad file is refused by type."""

import codecs
import io
import random
import shutil
import struct
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import docx
import pptx
import pytest
from PIL import Image
from pypdf import PdfReader, PdfWriter
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from memo import documents
from memo.documents import clean_name, read_bytes, read_document
from memo.errors import (
    CorruptDocument,
    DocumentError,
    DocumentTooLarge,
    EmptyDocument,
    EncryptedDocument,
    ExpandingArchive,
    NoTextInDocument,
    TooManyPages,
    UnsupportedDocument,
)

LIMITS = {"max_bytes": 20 * 1024**2, "max_pages": 100}
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
PNG = b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(2000)


def read(data, name, **limits):
    return read_bytes(data, name, **{**LIMITS, **limits})


def make_pdf(*pages):
    """One line of text a page; an empty string leaves the page empty."""
    pdfmetrics.registerFont(UnicodeCIDFont("HYSMyeongJo-Medium"))
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for text in pages:
        canvas.setFont("Helvetica" if text.isascii() else "HYSMyeongJo-Medium", 12)
        canvas.drawString(72, 700, text)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def make_scan():
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    canvas.drawImage(ImageReader(Image.new("RGB", (40, 40), "gray")), 72, 400, 200, 200)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def make_raw_pdf(content):
    """A PDF of one page whose content stream is `content`, compressed."""
    packed = zlib.compress(content, 9)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R/Resources<</Font<<>>>>>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(packed), packed),
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer<</Size 5/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(out)
    return out + b"xref\n0 5\n0000000000 65535 f \n" + table + end


def encrypt(data, user, owner="owner"):
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(user, owner, algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def make_docx(*paragraphs, heading="Report"):
    document = docx.Document()
    if heading:
        document.add_heading(heading, 1)
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def make_pptx(*slides):
    presentation = pptx.Presentation()
    for title, body in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, body
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_epub(*chapters, extra=None):
    items = "".join(
        f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    return make_zip(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="b.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
            "b.opf": '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata xmlns:dc='
            '"http://purl.org/dc/elements/1.1/"><dc:title>The Book</dc:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
            **{f"c{n}.xhtml": f"<html><body>{chapter}</body></html>" for n, chapter in enumerate(chapters)},
            **(extra or {}),
        }
    )


# Text and encodings


def test_text_is_kept_but_for_line_ends_and_controls():
    document = read(
        b"\xef\xbb\xbfOne\r\nTwo\rThree\x0cFour\x00\x07\x1b \ttab\xe2\x80\xa8end \xf0\x9f\x98\x80\n", "a.txt"
    )
    assert document.text == "One\nTwo\nThree\nFour \ttab\nend 😀\n"
    assert document.pages == () and document.page_of(0) is None


def test_markdown_is_kept_as_it_is():
    text = "# Title\n\n* item **bold** <b>html</b> [link](http://x.y)\n\n| a | b |\n|---|---|\n"
    assert read(text.encode(), "notes.MD").text == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "déjà vu – 안녕하세요 😀"),
        ("utf-8-sig", "déjà vu – 안녕하세요 😀"),
        ("utf-16", "déjà vu – 안녕하세요 😀"),
        ("utf-32", "déjà vu – 안녕하세요 😀"),
        ("cp1252", "déjà vu"),
        ("cp1252", "“Größe” – naïve café, señor Ñuñez: 100 € for 20 °C; it’s Ça va? ÄÖÜ äöü ß"),
        ("cp1252", "Configurações e seleção: lisää rivi alapuolelle, smörgåsbord"),
        ("euc-kr", "안녕하세요"),
        ("cp949", "똠방각하 펲시콜라"),
        ("cp949", "회의는 수요일 오후 3시에 시작합니다.\n점심은 12시, 장소는 2층 회의실입니다.\n" * 40),
        ("cp949", "AI 모델 평가 결과 보고서 v2.1: 대한민국(大韓民國)은 민주공화국이다."),
        ("shift-jis", "会議は水曜日の午後三時に始まります。"),
        ("cp932", "カタカナとAPIを介して使用"),
        ("gb18030", "会议将于星期三下午三点开始。"),
        ("gb18030", "你好，世界。我们的人工智能模型"),
    ],
)
def test_usual_encodings_round_trip(encoding, text):
    assert read(text.encode(encoding), "a.txt").text == text


def test_a_file_cut_within_a_character_is_still_read_in_its_encoding():
    text = read("안녕하세요. 회의는 수요일입니다. ".encode() * 20 + "끝".encode()[:2], "a.txt").text
    assert text.startswith("안녕하세요. 회의는") and text.count("\ufffd") == 1


def test_halves_of_characters_are_joined_or_dropped():
    assert documents.clean("a\ud83d\ude00b\ud800c\udc00d\ufeff") == "a😀bcd"


@pytest.mark.parametrize("ending", [".txt", ".md"])
def test_a_million_characters_without_a_space(ending):
    assert len(read(b"x" * 1_000_000, f"a{ending}").text) == 1_000_000


# Containers


def test_pdf_pages_tile_the_text():
    document = read(make_pdf("First page", "", "세 번째 쪽입니다", "Last"), "a.pdf")
    assert [page.number for page in document.pages] == [1, 2, 3, 4]
    texts = [document.text[page.start : page.end] for page in document.pages]
    assert texts == ["First page", "", "세 번째 쪽입니다", "Last"]
    assert document.text == "\n\n".join(texts)
    assert document.page_of(document.text.index("번째")) == 3
    assert document.page_of(0) == 1 and document.page_of(len(document.text) - 1) == 4
    assert document.page_of(-1) is None and document.page_of(len(document.text)) is None


def test_pdf_with_only_an_owner_password_is_read():
    assert read(encrypt(make_pdf("Open to all"), user=""), "a.pdf").text == "Open to all"


def test_docx():
    data = make_docx("Déjà vu 안녕 😀", "Second paragraph")
    assert read(data, "a.docx").text == "# Report\n\nDéjà vu 안녕 😀\n\nSecond paragraph"


def test_pptx_slides_are_pages():
    document = read(make_pptx(("One", "<!-- Slide number: 3 -->"), ("둘", ""), ("Three", "body")), "a.pptx")
    texts = [document.text[page.start : page.end] for page in document.pages]
    assert [page.number for page in document.pages] == [1, 2, 3]
    assert texts[0].startswith("# One") and texts[1] == "# 둘" and texts[2] == "# Three\nbody"
    assert document.page_of(document.text.index("둘")) == 2


def test_epub():
    text = read(make_epub("<h1>One</h1><p>안녕 😀</p>", "<p>Chapter two</p>"), "a.epub").text
    assert "# One\n\n안녕 😀" in text and text.endswith("Chapter two")


@pytest.mark.parametrize("encoding", ["utf-8", "euc-kr", "utf-16"])
def test_html_in_the_encoding_it_declares(encoding):
    page = (
        f"<html><head><meta charset='{encoding}'><style>p {{}}</style><script>bad()</script></head>"
        "<body><h1>제목</h1><p>가나다 <b>bold</b></p><img src='x.png' alt='a cat'></body></html>"
    )
    text = read(page.encode(encoding), "a.html").text
    assert text.startswith("# 제목\n\n가나다 **bold**") and "a cat" in text
    assert "bad()" not in text and "x.png" not in text


@pytest.mark.parametrize("said", ["punycode", "zlib", "no-such", "utf-16", ""])
def test_html_with_a_strange_declaration_is_read_as_utf8(said):
    assert read(f"<meta charset='{said}'><p>안녕</p>".encode(), "a.htm").text == "안녕"


def test_deeply_nested_html():
    assert read(b"<div>" * 20_000 + b"deep", "a.html").text == "deep"


def test_reading_works_from_threads():
    files = [(make_pdf(f"page of {n}"), f"{n}.pdf") for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        texts = [document.text for document in pool.map(lambda file: read(*file), files)]
    assert texts == [f"page of {n}" for n in range(6)]


# Identity and names


def test_the_same_file_twice_is_the_same_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"text\r\n")
    first, again = read_document(path, **LIMITS), read_document(str(path), **LIMITS)
    assert first == again and len(first.id) == 16 and int(first.id, 16) >= 0
    assert read_document(path, name="b.txt", **LIMITS).id != first.id
    assert read(b"other", "a.txt").id != first.id


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("a\x00b\nc\x7f.txt", "abc.txt"),
        ("gpj.\u202etxt.md", "gpj.txt.md"),
        ("한글.txt", "한글.txt"),
        ("\ud800.txt", ".txt"),
        ("x" * 300 + ".pdf", "x" * 116 + ".pdf"),
        ("a/", "document"),
    ],
)
def test_names_are_cleaned(given, cleaned):
    assert clean_name(given) == cleaned


# Refusals


def make_locked_epub():
    return make_epub("<p>x</p>", extra={"META-INF/rights.xml": "<rights/>"})


def make_encrypted_zip():
    data = bytearray(make_docx("secret"))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set the flag of the first member
        at = data.index(signature) + place
        data[at : at + 2] = struct.pack("<H", struct.unpack("<H", data[at : at + 2])[0] | 1)
    return bytes(data)


BAD = {
    "zero bytes": (EmptyDocument, "a.txt", lambda: b""),
    "zero bytes of pdf": (EmptyDocument, "a.pdf", lambda: b""),
    "white space": (EmptyDocument, "a.md", lambda: " \r\n\t\u3000\n".encode()),
    "only a mark": (EmptyDocument, "a.txt", lambda: codecs.BOM_UTF8),
    "empty docx": (EmptyDocument, "a.docx", lambda: make_docx(heading="")),
    "empty html": (EmptyDocument, "a.html", lambda: b"<html><body><script>x</script></body></html>"),
    "scanned pdf": (NoTextInDocument, "a.pdf", make_scan),
    "slides without text": (NoTextInDocument, "a.pptx", lambda: make_pptx(("", ""))),
    "pdf with a password": (EncryptedDocument, "a.pdf", lambda: encrypt(make_pdf("secret"), user="word")),
    "docx with a password": (
        EncryptedDocument,
        "a.docx",
        lambda: OLE + bytes(500) + "EncryptedPackage".encode("utf-16-le") + bytes(500),
    ),
    "zip with a password": (EncryptedDocument, "a.docx", make_encrypted_zip),
    "epub with copy protection": (EncryptedDocument, "a.epub", make_locked_epub),
    "old doc named docx": (
        UnsupportedDocument,
        "a.docx",
        lambda: OLE + bytes(500) + "WordDocument".encode("utf-16-le") + bytes(500),
    ),
    "old doc": (UnsupportedDocument, "a.doc", lambda: OLE + bytes(500)),
    "unknown ending": (UnsupportedDocument, "a.xyz", lambda: b"text"),
    "no ending": (UnsupportedDocument, "README", lambda: b"text"),
    "png": (UnsupportedDocument, "a.png", lambda: PNG),
    "png named txt": (CorruptDocument, "a.txt", lambda: PNG),
    "png named html": (CorruptDocument, "a.html", lambda: PNG),
    "pdf named txt": (CorruptDocument, "a.txt", lambda: make_pdf("text")),
    "docx named md": (CorruptDocument, "a.md", lambda: make_docx("text")),
    "docx named pptx": (CorruptDocument, "a.pptx", lambda: make_docx("text")),
    "program named md": (CorruptDocument, "a.md", lambda: b"\x7fELF\x02\x01\x01" + bytes(2000)),
    "windows program named md": (CorruptDocument, "a.md", lambda: b"MZ\x90\0" + bytes(2000)),
    "text named docx": (CorruptDocument, "a.docx", lambda: b"just text"),
    "text named pdf": (CorruptDocument, "a.pdf", lambda: b"just text"),
    "pdf of only its first line": (CorruptDocument, "a.pdf", lambda: b"%PDF-1.7\n"),
    "truncated docx": (CorruptDocument, "a.docx", lambda: make_docx("text")[:-200]),
    "docx with broken xml": (
        CorruptDocument,
        "a.docx",
        lambda: make_zip({"[Content_Types].xml": "<Types/>", "word/document.xml": "<w:document"}),
    ),
    "docx with entities that multiply": (
        CorruptDocument,
        "a.docx",
        lambda: make_zip(
            {
                "[Content_Types].xml": "<Types/>",
                "word/document.xml": '<!DOCTYPE l [<!ENTITY a "lol">'
                + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
                + "]><d>&j;</d>",
            }
        ),
    ),
    "epub without a book": (CorruptDocument, "a.epub", lambda: make_zip({"META-INF/container.xml": "<x/>"})),
    "plain zip named epub": (CorruptDocument, "a.epub", lambda: make_zip({"x.txt": "text"})),
    "zip bomb": (ExpandingArchive, "a.docx", lambda: make_zip({"word/document.xml": bytes(201 * 1024**2)})),
    "small zip bomb": (ExpandingArchive, "a.epub", lambda: make_zip({"META-INF/container.xml": bytes(20 * 1024**2)})),
    "too many members": (ExpandingArchive, "a.pptx", lambda: make_zip({f"ppt/{n}": b"" for n in range(10_001)})),
    "pdf bomb": (ExpandingArchive, "a.pdf", lambda: make_raw_pdf(b" " * 200_000_000)),
    **{
        f"random bytes as {ending}": (CorruptDocument, f"a{ending}", lambda: random.Random(1).randbytes(3000))
        for ending in documents.SUPPORTED
    },
    **{
        f"pdf cut at {tenths}0 percent": (
            CorruptDocument,
            "a.pdf",
            lambda tenths=tenths: (data := make_pdf("One", "Two", "Three"))[: len(data) * tenths // 10],
        )
        for tenths in (1, 5, 9)
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_type(case):
    kind, name, make = BAD[case]
    with pytest.raises(DocumentError) as caught:
        read(make(), name)
    assert type(caught.value) is kind
    assert name in caught.value.message and caught.value.message.endswith(".") and caught.value.hint


def test_the_hint_for_a_scan_says_what_to_do():
    with pytest.raises(NoTextInDocument, match="text recognition"):
        read(make_scan(), "scan.pdf")


def test_too_large(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 101)
    with pytest.raises(DocumentTooLarge):
        read_document(path, max_bytes=100, max_pages=1)
    for data, name in (
        (b"x" * 101, "a.txt"),
        (make_pdf("x" * 60, "y" * 60), "a.pdf"),
        (make_docx("x" * 101), "a.docx"),
    ):
        with pytest.raises(DocumentTooLarge, match=name):
            read(data, name, max_characters=100)
    assert len(read(b"x" * 100, "a.txt", max_bytes=100, max_characters=100).text) == 100


def test_too_many_pages():
    for data, name in ((make_pdf("1", "2", "3"), "a.pdf"), (make_pptx(("1", ""), ("2", ""), ("3", "")), "a.pptx")):
        assert len(read(data, name, max_pages=3).pages) == 3
        with pytest.raises(TooManyPages, match="3 pages"):
            read(data, name, max_pages=2)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(DocumentError, match="cannot be opened"):
            read_document(path, **LIMITS)


def test_a_file_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(documents, "TIME_LIMIT", 0.01)
    with pytest.raises(CorruptDocument, match="too long"):
        read(make_pdf("text"), "a.pdf")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory cannot be limited")
def test_a_file_that_takes_too_much_memory(monkeypatch):
    monkeypatch.setattr(documents, "MEMORY_LIMIT", 400 * 1024**2)
    with pytest.raises((DocumentTooLarge, CorruptDocument)):  # the process may die before it can say why
        read(b"<a " * 1_000_000, "a.html")


def test_a_reader_that_dies(monkeypatch):
    monkeypatch.setattr(documents.sys, "executable", shutil.which("false"))
    with pytest.raises(CorruptDocument):
        read(make_pdf("text"), "a.pdf")


def test_a_reader_sees_the_library_from_anywhere(monkeypatch, tmp_path):
    (tmp_path / "pypdf.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert read(make_pdf("text"), "a.pdf").text == "text"


def test_damaged_containers_never_raise_anything_else():
    """Bytes changed, cut out or doubled at random places: a document or a DocumentError comes back."""
    chance = random.Random(7)
    originals = [
        (make_pdf("One", "Two"), "a.pdf"),
        (make_docx("text"), "a.docx"),
        ("안녕 world".encode("cp949"), "a.txt"),
    ]
    for data, name in originals:
        for _ in range(4):
            damaged = bytearray(data)
            for _ in range(chance.randint(1, 30)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randint(0, 50)] = chance.choice([b"", bytes(damaged[at : at + 80])])
            try:
                document = read(bytes(damaged), name)
            except DocumentError as error:
                assert error.message
            else:
                assert document.text.strip()
