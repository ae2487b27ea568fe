"""What can be known of a Hugging Face Space without one: `python -m memo.space_check [folder]`.

In: the repository. Out: a line for each check; exit status 1 if one fails. Checked are the front matter, the sizes of
the files that git knows, the app's start, and a document read and asked about on two threads, in a folder that
is empty as a Space's disk is after a restart, with its peak memory against that of the free hardware.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

FREE_MEMORY = 16 << 30  # bytes, of the free hardware
LARGEST = 10_000_000  # bytes of a file that plain git takes; larger ones need LFS
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
WORK = """
import resource, sys, torch
from pathlib import Path
import memo
torch.set_num_threads(2)
with memo.open_library(sys.argv[1]) as rag:
    for step in rag.memorize([Path(sys.argv[2])]):
        if step.error:
            raise step.error
    answers = memo.finish(rag.compare("How long is the cord?", ["memorag", "rag"]))
assert answers["memorag"].passages and answers["rag"].text
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def front_matter(root: Path) -> dict[str, str]:
    """The keys of README's front matter; empty if there is none."""
    import yaml

    parts = (root / "README.md").read_text(encoding="utf-8").split("---\n")
    found = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else {}
    return {key: str(value) for key, value in found.items()}


def check_front_matter(root: Path) -> str:
    """What a Space reads first. Returns what was found; raises AssertionError, as every check does."""
    found = front_matter(root)
    assert found.get("sdk") == "gradio", "README's front matter must say sdk: gradio"
    assert (root / found.get("app_file", "")).is_file(), "app_file is not there"
    assert {found.get("colorFrom"), found.get("colorTo")} <= COLOURS, "a colour that Spaces do not know"
    assert 0 < len(found.get("short_description", "")) <= 60, "short_description: 60 characters at most"
    wanted = next(line for line in (root / "requirements.txt").read_text().splitlines() if line.startswith("gradio"))
    lower = re.search(r">=([\d.]+)", wanted)
    version = found.get("sdk_version", "")
    assert lower and version.startswith(lower[1]), f"sdk_version {version} is not the gradio of requirements.txt"
    return f"gradio {version}, Python {found.get('python_version', '?')}, {found['app_file']}"


def check_sizes(root: Path) -> str:
    """Every file small enough for plain git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    sizes = {name: (root / name).stat().st_size for name in listed.split("\0") if name and (root / name).is_file()}
    large = [name for name, size in sizes.items() if size > LARGEST]
    assert not large, f"too large for plain git: {', '.join(large)}"
    return f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.0f} MB, the largest {max(sizes.values()) / 1e6:.1f} MB"


def check_start(root: Path) -> str:
    """`app.py` can be imported as a Space does, and takes its settings from it."""
    code = "import app; settings = app.settings(); assert settings.host == '0.0.0.0'; print(settings.port)"
    return f"listens on port {_run(root, code, SYSTEM='spaces')}"


def check_work(root: Path) -> str:
    """A document is read and asked about on an empty disk, within the memory there is."""
    document = root / "assets" / "examples" / "kettlewick-manual.pdf"
    with tempfile.TemporaryDirectory() as folder:
        peak = int(_run(root, WORK, str(Path(folder) / "library"), str(document))) << 10
    assert peak < FREE_MEMORY / 2, f"{peak / 2**30:.1f} GB for one visitor"
    return f"peak memory {peak / 2**30:.1f} of {FREE_MEMORY >> 30} GB"


def _run(root: Path, code: str, *arguments: str, **environment: str) -> str:
    """The last word that a Python of its own prints."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True,
        env=os.environ | environment | {"PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert result.returncode == 0, (result.stderr.strip().splitlines() or ["it ended"])[-1]
    return result.stdout.split()[-1]


CHECKS: tuple[Callable[[Path], str], ...] = (check_front_matter, check_sizes, check_start, check_work)


def run(root: Path) -> Iterator[tuple[str, bool, str]]:
    """Name of each check, whether it passed, and what was found or is wrong."""
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            yield name, True, check(root)
        except (AssertionError, OSError, subprocess.SubprocessError, StopIteration) as error:
            yield name, False, str(error) or type(error).__name__


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    passed = True
    for name, good, told in run(root):
        print(f"{'ok  ' if good else 'FAIL'}  {name}: {told}", flush=True)
        passed &= good
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
