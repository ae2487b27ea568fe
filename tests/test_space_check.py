"""What is known of a Space and of the containers without having either, and the table of settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from memo import space_check
from memo.settings import Settings

ROOT = Path(__file__).parents[1]
NAMES = {f"MEMO_{field.name.upper()}" for field in fields(Settings)} | {"MEMO_PRESET"}


def test_the_repository_is_a_space():
    assert "gradio" in space_check.check_front_matter(ROOT)
    assert "files" in space_check.check_sizes(ROOT)


@pytest.fixture
def broken(tmp_path):
    """A folder with the little that the first two checks read."""
    for name in ("README.md", "requirements.txt", "app.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("sdk: gradio", "sdk: docker", "sdk"), ("app_file: app.py", "app_file: main.py", "app_file"),
        ("colorFrom: indigo", "colorFrom: black", "colour"),
        ("short_description: ", "short_description: " + "x" * 60, "60"),
        ("sdk_version: 6.31.0", "sdk_version: 5.0.0", "requirements"), ("---\n", "", "sdk"),
    ],
)  # fmt: skip
def test_what_a_space_would_not_take_is_told(broken, before, after, said):
    readme = broken / "README.md"
    text = readme.read_text()
    assert before in text
    readme.write_text(text.replace(before, after, 1))
    [(_, good, told), *_] = space_check.run(broken)
    assert not good and said in told


def test_a_file_too_large_is_told(broken):
    (broken / "large.bin").write_bytes(b"x" * (space_check.LARGEST + 1))
    subprocess.run(["git", "add", "."], cwd=broken, check=True)
    with pytest.raises(AssertionError, match=r"large\.bin"):
        space_check.check_sizes(broken)


@pytest.mark.models
def test_the_app_starts_and_works_as_on_a_space():
    assert space_check.check_start(ROOT).endswith("7860")
    assert "GB" in space_check.check_work(ROOT)


def test_every_setting_is_in_the_table_with_its_default():
    rows = re.findall(r"^\| `(MEMO_\w+)` \|([^|]*)\|", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(dict.fromkeys(name for name, _ in rows)) and {n for n, _ in rows} == NAMES
    table = {name: default.strip().strip("`") for name, default in rows}
    for field in fields(Settings):
        default = getattr(Settings(), field.name)
        if isinstance(default, str | int):
            assert table[f"MEMO_{field.name.upper()}"] == str(default), field.name
        elif isinstance(default, float):
            assert float(table[f"MEMO_{field.name.upper()}"]) == default


def test_what_the_containers_name_is_there():
    lines = (ROOT / "Containerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied and set(copied) <= kept and all((ROOT / name).exists() for name in kept)
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert (ROOT / compose["memo"]["build"]["dockerfile"]).exists()
    set_there = set(compose["memo"]["environment"]) | set(re.findall(r"MEMO_\w+", "\n".join(lines)))
    assert set_there <= NAMES
    for address in compose["memo"]["environment"].values():
        if (host := re.match(r"http://(\w+):", address)) is not None:
            assert host[1] in compose
