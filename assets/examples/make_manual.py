"""Makes kettlewick-manual.pdf from kettlewick-manual.txt: python make_manual.py [output.pdf]

The source is plain text with a little markup. "# " and "## " and "### " are headings, "1. " is a numbered step,
"| a | b |" is a table row (the first row of a table is its head), "! " is a warning, "**word**" is bold, "---" starts
a new page and "%" a comment. The same source always gives the same bytes with the same version of reportlab.
"""

import re
import sys
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "kettlewick-manual.txt"
PDF = HERE / "kettlewick-manual.pdf"

INK = colors.HexColor("#22303a")
ACCENT = colors.HexColor("#8a3b12")
PALE = colors.HexColor("#f4ece4")
WIDTH = A4[0] - 40 * mm

TEXT = ParagraphStyle("text", fontName="Helvetica", fontSize=10.6, leading=14.4, textColor=INK, spaceAfter=5)
CELL = ParagraphStyle("cell", parent=TEXT, fontSize=9.6, leading=12, spaceAfter=0)
STEP = ParagraphStyle("step", parent=TEXT, leftIndent=16, bulletIndent=2, spaceAfter=3)
WARNING = ParagraphStyle(
    "warning", parent=TEXT, backColor=PALE, borderPadding=5, leftIndent=6, rightIndent=6, spaceBefore=7, spaceAfter=10
)
HEADINGS = {
    "#": ParagraphStyle(
        "h1", parent=TEXT, fontName="Helvetica-Bold", fontSize=19, leading=23, textColor=ACCENT, spaceAfter=8
    ),
    "##": ParagraphStyle("h2", parent=TEXT, fontName="Helvetica-Bold", fontSize=13, leading=17, spaceAfter=6),
    "###": ParagraphStyle(
        "h3",
        parent=TEXT,
        fontName="Helvetica-Bold",
        fontSize=11,
        leading=14,
        textColor=ACCENT,
        spaceBefore=7,
        spaceAfter=4,
    ),
}


def rich(text: str) -> str:
    """The text as reportlab markup, with **bold** as the only thing that is not literal."""
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))


def table(lines: list[str]) -> Table:
    """A table with columns as wide as their longest words and cells need."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    weights = [max(max(len(row[i]) for row in rows) ** 0.6, 3.2) for i in range(len(rows[0]))]
    widths = [WIDTH * weight / sum(weights) for weight in weights]
    head = [Paragraph(f"<b>{rich(cell)}</b>", CELL) for cell in rows[0]]
    body = [[Paragraph(rich(cell), CELL) for cell in row] for row in rows[1:]]
    style = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("BACKGROUND", (0, 0), (-1, 0), PALE),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, colors.HexColor("#c9b8a8")),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
    ]
    return Table([head, *body], colWidths=widths, style=style, repeatRows=1, spaceBefore=4, spaceAfter=8)


def flowables(source: str) -> list[Flowable]:
    """The whole manual as a list of reportlab's building blocks."""
    story: list[Flowable] = []
    lines = [line.strip() for line in source.splitlines() if not line.startswith("%")]
    for is_row, group in groupby(lines, key=lambda line: line.startswith("|")):
        if is_row:
            story.append(table(list(group)))
            continue
        for line in group:
            mark, _, rest = line.partition(" ")
            if not line:
                story.append(Spacer(1, 1))
            elif line == "---":
                story.append(PageBreak())
            elif mark in HEADINGS:
                story.append(Paragraph(rich(rest), HEADINGS[mark]))
            elif mark == "!":
                story.append(Paragraph(rich(rest), WARNING))
            elif re.fullmatch(r"\d+\.", mark):
                story.append(Paragraph(rich(rest), STEP, bulletText=mark))
            else:
                story.append(Paragraph(rich(line), TEXT))
    return story


def footer(canvas: Canvas, doc: SimpleDocTemplate) -> None:
    canvas.saveState()
    canvas.setFont("Helvetica", 8)
    canvas.setFillColor(INK)
    canvas.drawString(20 * mm, 12 * mm, "Kettlewick K2 owner's manual")
    canvas.drawRightString(A4[0] - 20 * mm, 12 * mm, f"Page {doc.page}")
    canvas.restoreState()


def make(target: Path = PDF) -> Path:
    """Writes the PDF to target and returns that path."""
    doc = SimpleDocTemplate(
        str(target),
        pagesize=A4,
        leftMargin=20 * mm,
        rightMargin=20 * mm,
        topMargin=16 * mm,
        bottomMargin=20 * mm,
        title="Kettlewick K2 owner's manual",
        author="Kettlewick",
        lang="en",
        invariant=1,
    )
    doc.build(flowables(SOURCE.read_text(encoding="utf-8")), onFirstPage=footer, onLaterPages=footer)
    return target


if __name__ == "__main__":
    print(make(Path(sys.argv[1]) if len(sys.argv) > 1 else PDF))
