"""Notebooks: each runs top to bottom, its solutions included, and was committed with the outputs of such a run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 600  # five minutes on two cores, and the tests run in a process a core
# folders that only some machine has; the pictures are left out, base64 may hold any letters
MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|Users|usr|opt|tmp|var|mnt|private)/\w|\b[A-Z]:\\+(?:Users|Program|Windows)"
)
FIGURE, PICTURE = "application/vnd.plotly.v1+json", "image/png"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def solutions(notebook):
    """The code of the exercises' solutions, which are folded in markdown."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    folded = re.findall(r"<details>.*?</details>", "\n".join(texts), flags=re.DOTALL)
    return [code for text in folded for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)]


def machine_paths(text):
    return MACHINE.findall(text)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.models
@pytest.mark.timeout(SECONDS)
@each
def test_it_runs_top_to_bottom_anywhere(path, tmp_path):
    notebook = read(path)  # a copy in memory; it runs in an empty folder
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert not any(tmp_path.iterdir())  # and leaves nothing behind


@each
def test_it_was_committed_after_a_whole_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    cells = [cell for cell in code_cells(notebook) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2  # the others define and import


@each
def test_its_outputs_hold_no_errors_and_no_warnings(path):
    found = outputs(read(path))
    assert not [output for output in found if output.output_type == "error"]
    assert not [output.text for output in found if output.get("name") == "stderr"]


@each
def test_it_tells_nothing_of_the_machine_it_ran_on(path):
    notebook = read(path)
    for output in outputs(notebook):
        output.get("data", {}).pop(PICTURE, None)
    text = nbformat.writes(notebook)
    assert not machine_paths(text) and str(FOLDER.parent) not in text
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any("execution" in cell.metadata for cell in notebook.cells)


@each
def test_its_figures_have_pictures_for_readers_that_run_no_scripts(path):
    """`python notebooks/execute.py` makes them."""
    for output in outputs(read(path)):
        data = output.get("data", {})
        assert FIGURE not in data or PICTURE in data
        assert "<script" not in "".join(data.get("text/html", ""))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/home/anna/memo", True), ("file '/tmp/x.py'", True), (r"C:\\Users\\anna", True), ("/usr/lib/python3", True),
        ("<details></details>", False), ("https://arxiv.org/abs/2409.05591", False), ("https://x.org/data/set", False),
        ("assets/examples/minutes.md", False), ("memo/data/x", False), ("Q:\\n1", False),
    ],
)  # fmt: skip
def test_machine_paths_are_found(text, found):
    assert bool(machine_paths(text)) is found
