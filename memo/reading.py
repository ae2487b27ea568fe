"""The child process that parses untrusted containers: one request on standard input, one answer on standard output.

In: a line of JSON (`kind`, `name`, `max_pages`, `max_characters`, `memory`, `seconds`), then the file's bytes. Out:
JSON, either `parts` (the text of each page, or of the whole) with `paged`, or `error` (the name of a class in
`memo.errors`) with `message` and `hint`. `memo.documents` starts it as `python -m memo.reading`; nothing else does. It
is a process of its own because the parsers are large and the files are strangers': a crash, a memory bomb or an endless
loop ends here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import zipfile
from typing import Any

from memo.errors import (
    CorruptDocument,
    DocumentError,
    DocumentTooLarge,
    EncryptedDocument,
    ExpandingArchive,
    TooManyPages,
)

UNPACKED_BYTES = 200 * 1024**2  # the most that all members of a zip container may say they unpack to
UNPACKED_RATIO = 200  # and how many times the container's own size, where it matters:
HARMLESS_BYTES = 10 * 1024**2  # a short, repetitive document may well shrink 300 times
MEMBERS = 10_000  # no office document has nearly as many parts
OUT_OF_MEMORY = 77  # exit status

REQUIRED = {"docx": "word/", "pptx": "ppt/", "epub": "META-INF/container.xml"}  # a member that starts so must be there
SLIDE = re.compile(r"ppt/slides/slide\d+\.xml")
SLIDE_MARK = re.compile(r"<!-- Slide number: (\d+) -->\n?")
IMAGE = re.compile(r'!\[([^\]\n]*)\]\(([^()\s]*)(?: "[^"\n]*")?\)')
AGAIN = "Open it in the program that made it, save it again and try once more."


def limit_process(memory: int, seconds: int) -> None:
    """Let the operating system end this process when it wants too much; best effort where that is not to be had."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no `resource` on Windows; macOS refuses RLIMIT_AS
        import resource

        # Processor time as well: the parent, which watches the clock, may be gone.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def check_archive(data: bytes, kind: str, name: str, max_pages: int) -> None:
    """Judge a zip container by its table of contents, before anything is unpacked.

    Sizes in the table may lie, but `zipfile` never unpacks more of a member than the table says. Archives inside the
    archive count as what they are, members: no converter opens them.

    Raises:
        CorruptDocument: no zip file, or not of this kind.
        EncryptedDocument: a member, or the whole e-book, is encrypted.
        ExpandingArchive: it would unpack to far too much.
        TooManyPages: more slides than `max_pages`.
    """
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CorruptDocument(f"{name} is damaged or is no {kind.upper()} file.", AGAIN) from None
    total = sum(member.file_size for member in members)
    if (
        len(members) > MEMBERS
        or total > UNPACKED_BYTES
        or (total > HARMLESS_BYTES and total > UNPACKED_RATIO * len(data))
    ):
        raise ExpandingArchive(
            f"{name} would unpack to far more than its size.", "Take out large attachments, or save its text as .txt."
        )
    names = [member.filename for member in members]
    if any(member.flag_bits & 1 for member in members) or "META-INF/rights.xml" in names:
        raise EncryptedDocument(f"{name} is protected.", "Save a copy without a password or copy protection.")
    if not any(member.startswith(REQUIRED[kind]) for member in names):
        raise CorruptDocument(f"{name} is a zip file, but no {kind.upper()} file.", AGAIN)
    check_pages(sum(SLIDE.fullmatch(member) is not None for member in names), name, max_pages)


def check_pages(pages: int, name: str, max_pages: int) -> None:
    """Raise TooManyPages if there are more than `max_pages`."""
    if pages > max_pages:
        raise TooManyPages(
            f"{name} has {pages:,} pages; at most {max_pages:,} are read.", "Split it, or keep only the part you need."
        )


def read_pdf(data: bytes, name: str, max_pages: int, max_characters: int) -> list[str]:
    """The text of every page.

    Raises:
        CorruptDocument: the file, or one of its pages, cannot be parsed.
        DocumentTooLarge: the pages so far hold more than `max_characters`.
        EncryptedDocument: it does not open without a password.
        ExpandingArchive: a stream unpacks beyond pypdf's limits.
        TooManyPages: more than `max_pages`.
    """
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # many PDFs are locked for editing only and open like this
            raise FileNotDecryptedError
        check_pages(len(reader.pages), name, max_pages)
        texts, characters = [], 0
        for page in reader.pages:
            texts.append(page.extract_text())
            characters += len(texts[-1])
            if characters > max_characters:
                raise too_much_text(name, max_characters)
        if not texts:
            raise CorruptDocument(f"{name} has no pages.", AGAIN)
        return texts
    except (FileNotDecryptedError, DependencyError):  # the second: a kind of encryption that is not known here
        raise EncryptedDocument(f"{name} needs a password.", "Save a copy without a password.") from None
    except LimitReachedError:
        raise ExpandingArchive(
            f"{name} would unpack to far more than its size.", "Print it to a new PDF, or save its text as .txt."
        ) from None


def too_much_text(name: str, max_characters: int) -> DocumentTooLarge:
    """The error for a text of more than `max_characters`."""
    return DocumentTooLarge(f"{name} holds more than {max_characters:,} characters of text.", "Split it into parts.")


def image_text(match: re.Match[str]) -> str:
    """What is written about an image; nothing where that is only the name its program gave it ("Picture 2")."""
    alternative, target = match.groups()
    return "" if re.sub(r"\W", "", alternative) + ".jpg" == target else alternative


def split_slides(markdown: str) -> list[str]:
    """Cut at the converter's slide marks. Only the next number counts: a slide may quote such a mark itself."""
    slides, start = [], 0
    for mark in SLIDE_MARK.finditer(markdown):
        if int(mark[1]) == len(slides) + 1:
            slides.append(markdown[start : mark.start()])
            start = mark.end()
    return [*slides[1:], markdown[start:]] if slides else [markdown]


def read_markup(data: bytes, kind: str) -> list[str]:
    """DOCX, PPTX, EPUB, or HTML in UTF-8, as Markdown; a list of slides, else of one text."""
    from markitdown import StreamInfo
    from markitdown.converters import DocxConverter, EpubConverter, HtmlConverter, PptxConverter

    # The converter itself, not MarkItDown.convert_stream: that guesses again what the file is, and where the converter
    # fails it goes on to the next one, until a damaged DOCX comes out as a list of XML files.
    converter = {"docx": DocxConverter, "epub": EpubConverter, "html": HtmlConverter, "pptx": PptxConverter}[kind]()
    markdown = converter.convert(io.BytesIO(data), StreamInfo(extension=f".{kind}", charset="utf-8")).markdown
    markdown = IMAGE.sub(image_text, markdown)
    return split_slides(markdown) if kind == "pptx" else [markdown]


def answer(request: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The reply to one request; every failure becomes an `error` that a person can read.

    Raises:
        MemoryError: the limit is reached.
    """
    kind, name, max_pages = request["kind"], request["name"], request["max_pages"]
    try:
        if kind == "pdf":
            parts = read_pdf(data, name, max_pages, request["max_characters"])
        else:
            if kind in REQUIRED:
                check_archive(data, kind, name, max_pages)
            parts = read_markup(data, kind)
            if sum(map(len, parts)) > request["max_characters"]:
                raise too_much_text(name, request["max_characters"])
        check_pages(len(parts), name, max_pages)  # a slide may be shown twice
        return {"parts": parts, "paged": kind in ("pdf", "pptx")}
    except DocumentError as error:
        found = error
    except MemoryError:
        raise
    except Exception:  # the parsers raise whatever a broken file makes them stumble over
        found = CorruptDocument(f"{name} is damaged and cannot be read.", AGAIN)
    return {"error": type(found).__name__, "message": found.message, "hint": found.hint}


def main() -> None:
    """Serve one request."""
    request = json.loads(sys.stdin.buffer.readline())
    limit_process(request["memory"], request["seconds"])
    reply = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a parser prints must not end up in the answer
    try:
        reply.write(json.dumps(answer(request, sys.stdin.buffer.read())))
        reply.close()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # there may be no memory left to say it in any other way


if __name__ == "__main__":
    main()
