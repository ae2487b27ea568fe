"""A file becomes a Document: its text, and where each page of it lies.

In: a path, or bytes with a name, and the limits. Out: `Document`, whose text is exactly what every offset elsewhere
points into, or an error of a type from `memo.errors` with a sentence for the person. What a file is must agree with its
bytes as well as with its name. Plain text is read here; everything that needs a parser is read in a child process
(`memo.reading`) under a limit of memory and of time.
"""

from __future__ import annotations

import bisect
import codecs
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from memo import errors
from memo.errors import (
    CorruptDocument,
    DocumentError,
    DocumentTooLarge,
    EmptyDocument,
    EncryptedDocument,
    NoTextInDocument,
    UnsupportedDocument,
)
from memo.reading import AGAIN, OUT_OF_MEMORY, too_much_text

SUPPORTED = (".txt", ".md", ".html", ".htm", ".pdf", ".docx", ".pptx", ".epub")
MEMORY_LIMIT = 2 * 1024**3  # bytes a child may use
TIME_LIMIT = 120  # seconds a child may take
CHILDREN = threading.BoundedSemaphore(4)  # children at a time: many hostile files at once must not sum up either
PAGE_BREAK = "\n\n"

SIGNATURES = (  # how files that are no text begin
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "zip or Office"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office"),
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"\x7fELF", "program"),
    (b"MZ\x90", "program"),
    (b"\xcf\xfa\xed\xfe", "program"),
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf", "7z"),
    (b"Rar!", "RAR"),
    (b"{\\rtf", "rich text (RTF)"),
)
BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The characters that every text in the language is full of.
EVERYDAY = {
    "cp949": frozenset("이다는의에을가은로고하지를한도서사기으인시리자대해있어그나과정일부수"),
    "cp932": frozenset(map(chr, (*range(0x3041, 0x3097), *range(0x30A1, 0x30FD), 0x3001, 0x3002))),  # kana, 、 and 。
    "gb18030": frozenset(
        "的一是不了在人有我他这中大来上个国到说们为和地也子时道出要于就下得可你年生自会那后能对着事其里所去行过家十用"
        "发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从，。、：；（）“”"
    ),
}
# Browsers read the left as the right, of which it is a part.
WIDER = {"iso8859-1": "cp1252", "euc_kr": "cp949", "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030"}
HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
# A letter or sign of cp1252 by itself, or two letters in a word, as in "größer": in Korean, Chinese and Japanese text
# bytes above 127 come in longer runs.
WESTERN = re.compile(
    rb"(?<![\x80-\xff])(?:[\x80\x85\x91-\x97\x99\xa0-\xff]|(?<=[A-Za-z])[\xc0-\xff][\xdf-\xff]"
    rb"|[\xc0-\xff][\xdf-\xff](?=[A-Za-z]))(?![\x80-\xff])"
)
RARE_IN_WESTERN = re.compile(rb"[\x81-\x84\x86-\x90\x98\x9a-\x9f]")
SAMPLE = 20_000  # characters that are enough to tell a language by
# Control characters but for line ends and tabs, which nothing shows and some stores refuse.
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
UNFIT_IN_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # bidi marks too


@dataclass(frozen=True)
class Page:
    """One page: its number, from 1, and the characters of `Document.text` that it is."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A text with a name. The same text under the same name is the same document: it has the same `id`."""

    id: str
    name: str
    text: str
    pages: tuple[Page, ...] = ()

    def page_of(self, offset: int) -> int | None:
        """The number of the page that `offset` is on; None where there are no pages or no such character."""
        if not 0 <= offset < len(self.text):
            return None
        index = bisect.bisect_right(self.pages, offset, key=lambda page: page.start) - 1
        return self.pages[index].number if index >= 0 else None


def read_document(
    path: str | Path, *, name: str | None = None, max_bytes: int, max_pages: int, max_characters: int = 4_000_000
) -> Document:
    """Read the file at `path`, called `name` (its own name if None).

    Raises:
        DocumentError: there is no such file; every other failure as in `read_bytes`.
    """
    shown = clean_name(Path(path).name if name is None else name)
    data = file_bytes(path, shown, max_bytes)
    return read_bytes(data, shown, max_bytes=max_bytes, max_pages=max_pages, max_characters=max_characters)


def file_bytes(path: str | Path, shown: str, max_bytes: int) -> bytes:
    """The bytes of a file; of one that is too large, one more than is allowed.

    Raises:
        DocumentError: it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except OSError:
        raise DocumentError(f"{shown} cannot be opened.", "Check that it is there and that you may read it.") from None


def files_of(paths: Iterable[str]) -> list[str]:
    """The files; of a folder all that can be read below it, by name."""
    found = []
    for path in paths:
        below = sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]
        found += [str(one) for one in below if below == [Path(path)] or one.suffix.lower() in SUPPORTED]
    return found


def read_bytes(data: bytes, name: str, *, max_bytes: int, max_pages: int, max_characters: int = 4_000_000) -> Document:
    """Read a file's bytes; the ending of `name` says what they should be.

    Raises:
        UnsupportedDocument: an ending that is not in `SUPPORTED`, or an old Office file.
        EmptyDocument: zero bytes, or only white space.
        NoTextInDocument: pages without text.
        EncryptedDocument: a password is needed.
        CorruptDocument: damaged, not what the name says, or too slow to read.
        DocumentTooLarge: more than `max_bytes`, or more text than `max_characters`.
        TooManyPages: more than `max_pages`.
        ExpandingArchive: it would unpack to far more than its size.
    """
    name = clean_name(name)
    ending = os.path.splitext(name)[1].lower()
    if ending not in SUPPORTED:
        raise UnsupportedDocument(f"{name} is of a kind that is not read.", f"Use one of {', '.join(SUPPORTED)}.")
    if not data:
        raise EmptyDocument(f"{name} is empty.", "Choose a file with text in it.")
    if len(data) > max_bytes:
        raise DocumentTooLarge(f"{name} is larger than {max_bytes / 1024**2:g} MB.", "Split it into parts.")
    check_signature(data, ending, name)
    if ending in (".txt", ".md"):
        parts, paged = [decode(data, name)], False
    else:
        kind = {".htm": "html"}.get(ending, ending[1:])
        content = decode(data, name, declared=True).encode() if kind == "html" else data
        parts, paged = read_in_child(content, kind, name, max_pages, max_characters)
    return assemble([clean(part) for part in parts], paged, name, max_characters)


def clean_name(name: str) -> str:
    """The base name, without what could disguise it or break a line, in at most 120 characters with its ending."""
    name = UNFIT_IN_NAME.sub("", re.split(r"[/\\]", name)[-1])
    stem, ending = os.path.splitext(unicodedata.normalize("NFC", name).strip())  # macOS takes Korean letters apart
    return (stem[: max(1, 120 - len(ending))] + ending)[:120] or "document"


def clean(text: str) -> str:
    r"""The text with `\n` line ends and without control characters, byte order marks and halves of characters."""
    text = CONTROLS.sub("", LINE_ENDS.sub("\n", text))
    if not text.isascii() and re.search("[\ud800-\udfff]", text):  # two halves that belong together are joined
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return text


def assemble(parts: list[str], paged: bool, name: str, max_characters: int) -> Document:
    """Put the cleaned parts together, and say where each is if they are pages."""
    pages, start = [], 0
    if paged:
        parts = [part.strip() for part in parts]
        for number, part in enumerate(parts, 1):
            pages.append(Page(number, start, start + len(part)))
            start += len(part) + len(PAGE_BREAK)
    text = PAGE_BREAK.join(parts)
    if not text.strip():
        if paged:
            raise NoTextInDocument(
                f"{name} has pages but no text.", "If it is a scan, run text recognition (OCR) first."
            )
        raise EmptyDocument(f"{name} has no text.", "Choose a file with text in it.")
    if len(text) > max_characters:
        raise too_much_text(name, max_characters)
    return Document(hashlib.sha256(f"{name}\0{text}".encode()).hexdigest()[:16], name, text, tuple(pages))


def check_signature(data: bytes, ending: str, name: str) -> None:
    """Raise if the first bytes contradict the ending."""
    found = next((kind for signature, kind in SIGNATURES if data.startswith(signature)), "")
    if found == "old Office" and ending in (".docx", ".pptx"):
        # Old Office files, and new ones with a password, are containers of named streams; the names are in UTF-16.
        if any(stream.encode("utf-16-le") in data for stream in ("WordDocument", "PowerPoint Document")):
            raise UnsupportedDocument(f"{name} is in the format of old Office.", f"Save it as a new {ending} file.")
        raise EncryptedDocument(f"{name} needs a password.", "Save a copy without a password.")
    if ending == ".pdf":
        fits = b"%PDF-" in data[:1024]  # mail headers and the like may come before it, as every reader allows
    elif ending in (".docx", ".pptx", ".epub"):
        fits = found == "zip or Office"
    else:
        fits = not found
    if not fits:
        hint = f"It looks like a {found} file." if found else ""
        raise CorruptDocument(f"{name} is not a {ending} file, or it is damaged.", hint or AGAIN)


def decode(data: bytes, name: str, declared: bool = False) -> str:
    """The text of a plain-text file in any usual encoding; `declared`: believe what an HTML page says of itself.

    Raises:
        CorruptDocument: the bytes are no text.
    """
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS if data.startswith(mark)), "")
    if not encoding and declared:
        encoding = declared_encoding(data)
    text = decoded(data, encoding) if encoding else None
    if text is None:
        text = decoded(data, "utf-8")
    if text is None:
        text = data.decode(guess_encoding(data), "replace")
    # 12 of 100 random bytes come out as one of these, of a text hardly any; three are let pass in the shortest.
    if (len(re.findall("[\x00-\x08\x0e-\x1a\x1c-\x1f\ufffd\ufffe\uffff]", text)) - 3) * 20 > len(text):
        raise CorruptDocument(f"{name} is not a text file, or it is damaged.", "Save it as text in UTF-8.")
    return text


def declared_encoding(data: bytes) -> str:
    """What an HTML page says its encoding is, read as browsers read it; empty if it says nothing that is known."""
    said = re.search(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", data[:2048], re.IGNORECASE)
    try:
        name = codecs.lookup(said[1].decode("ascii")).name if said else ""
    except (LookupError, ValueError):
        return ""
    # Python also knows encodings that no page is in, and of which some take hours: punycode, for one.
    return (
        WIDER.get(name, name) if re.match(r"utf-8$|iso8859|iso2022_jp$|cp\d|koi8|euc_|shift_jis|gb|big5", name) else ""
    )


def decoded(data: bytes, encoding: str) -> str | None:
    """The text in this encoding, or None. One wrong byte in 50 is let pass: a file may be cut within a character."""
    text = data.decode(encoding, "replace")
    wrong = text.count("\ufffd")
    return text if not wrong or wrong * 50 <= sum(map(len, re.findall("[^\x00-\x7f]+", text))) else None


def guess_encoding(data: bytes) -> str:
    """cp949, cp932, gb18030 or cp1252, for bytes that are not UTF-8.

    charset-normalizer, held to these four, took most longer Korean texts for cp1252 and short Chinese ones for Korean.
    """
    high = b" ".join(islice((run[0] for run in HIGH_BYTES.finditer(data)), SAMPLE))
    runs = high.count(b" ") + 1
    western = sum(1 for _ in islice(WESTERN.finditer(data), SAMPLE))
    if western * 2 >= runs and len(RARE_IN_WESTERN.findall(high)) * 20 <= len(high) - runs + 1:
        return "cp1252"
    best, best_score = "cp1252", 0.0
    for encoding, everyday in EVERYDAY.items():
        text = decoded(data, encoding)
        letters = "".join(islice((run[0] for run in re.finditer("[^\x00-\x7f]+", text or "")), SAMPLE))
        if not letters:
            continue
        plain = {
            "cp949": len(re.findall("[가-힣“”‘’·…]", letters)) / len(letters),  # hardly any hanja in Korean,
            "cp932": 1 - len(re.findall("[｡-ﾟ]", letters)) / len(letters),  # no half-width kana in Japanese
            "gb18030": 0.9,
        }[encoding]
        score = plain + sum(letter in everyday for letter in letters) / len(letters)
        if score > best_score:
            best, best_score = encoding, score
    return best


def read_in_child(data: bytes, kind: str, name: str, max_pages: int, max_characters: int) -> tuple[list[str], bool]:
    """The parts of the text, and whether they are pages; raises what the child found."""
    request = {
        "kind": kind,
        "name": name,
        "max_pages": max_pages,
        "max_characters": max_characters,
        "memory": MEMORY_LIMIT,
        "seconds": math.ceil(TIME_LIMIT),
    }
    here = str(Path(__file__).resolve().parent.parent)  # where `memo` is, installed or not
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))),
        "OPENBLAS_NUM_THREADS": "1",  # numpy, which markitdown imports, else reserves memory for every core
        "OMP_NUM_THREADS": "1",
    }
    try:
        with CHILDREN:
            child = subprocess.run(
                [sys.executable, "-P", "-m", "memo.reading"],
                input=json.dumps(request).encode() + b"\n" + data,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                timeout=TIME_LIMIT,
                check=False,
            )
        if child.returncode == OUT_OF_MEMORY:
            raise DocumentTooLarge(f"{name} needs more memory to read than is allowed.", "Split it into parts.")
        reply = json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        raise CorruptDocument(f"{name} takes too long to read.", "Split it, or save its text as .txt.") from None
    except ValueError:  # the child died before it could answer
        raise CorruptDocument(f"{name} is damaged, or takes too much to read.", AGAIN) from None
    if "error" in reply:
        raise getattr(errors, reply["error"])(reply["message"], reply["hint"])
    return reply["parts"], reply["paged"]
