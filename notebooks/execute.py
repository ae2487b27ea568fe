"""Executes the notebooks of this folder and saves them with their outputs: `python notebooks/execute.py [name …]`.

In: all notebooks, or those named. Out: the same files, executed; beside each plotly figure its picture, for readers
that run no scripts (GitHub, nbconvert); nothing of when and where it ran. Run by hand, before committing; needs the
`test` extra and a Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import Page, sync_playwright
from plotly.offline import get_plotlyjs

FOLDER = Path(__file__).parent
FIGURE, PICTURE = "application/vnd.plotly.v1+json", "image/png"
WIDTH = 800  # of figures that fill the page
DRAW = """async ([figure, size]) => {
    const drawn = {data: figure.data, layout: {...figure.layout, ...size}}
    const url = await Plotly.toImage(drawn, {format: "png", scale: 2, ...size})
    return url.split(",")[1]
}"""


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs all cells in an empty folder; the first that fails ends it."""
    metadata = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", record_timing=False, coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()  # fmt: skip
    notebook.metadata = nbformat.from_dict(metadata)  # the kernel adds its version


def add_pictures(notebook: nbformat.NotebookNode, page: Page) -> int:
    """Puts a PNG beside each figure. Returns how many."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output for output in outputs if FIGURE in output.get("data", {})]
    for figure in figures:
        layout = figure.data[FIGURE].layout
        size = {"width": layout.get("width", WIDTH), "height": layout.height}
        figure.data[PICTURE] = page.evaluate(DRAW, [figure.data[FIGURE], size])
        figure.metadata[PICTURE] = size  # it is drawn at twice this size
    return len(figures)


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.add_script_tag(content=get_plotlyjs())
        for name in names:
            path = FOLDER / f"{name.removesuffix('.ipynb')}.ipynb"
            notebook = nbformat.read(path, as_version=4)
            execute(notebook)
            pictures = add_pictures(notebook, page)
            nbformat.write(notebook, path)
            print(f"{name}: {len(notebook.cells)} cells, {pictures} figures")


if __name__ == "__main__":
    main()
