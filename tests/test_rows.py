"""Rows on disk survive a kill at any byte, and those of another run are refused."""

import json

import pytest

from memo.errors import SettingsError
from memo.evaluate.rows import Rows

ABOUT = {"model": "abc", "ratios": (2, 4), "seed": 0}


def test_units_are_there_again_after_opening_the_file_again(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    rows = Rows(path, ABOUT)
    assert rows.done == {}
    rows.add("a", [{"loss": 0.1 + 0.2, "places": (1, 2)}, {"loss": 1.0}])
    rows.add("b", [])
    again = Rows(path, ABOUT)
    assert again.done == rows.done == {"a": [{"loss": 0.1 + 0.2, "places": [1, 2]}, {"loss": 1.0}], "b": []}
    assert json.loads(path.read_bytes().splitlines()[0]) == {"about": {**ABOUT, "ratios": [2, 4]}}


def test_without_a_file_they_are_kept_in_memory():
    rows = Rows(None, ABOUT)
    rows.add("a", [{"text": "가나다"}])
    assert rows.done == {"a": [{"text": "가나다"}]}


def test_a_kill_at_any_byte_loses_the_last_unit_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = Rows(path, ABOUT)
    whole.add("a", [{"text": "방앗간\u2028\n"}])
    first = path.stat().st_size
    whole.add("b", [{"loss": 2.5}])
    held = path.read_bytes()
    for cut in range(first, len(held)):
        path.write_bytes(held[:cut])
        resumed = Rows(path, ABOUT)
        assert resumed.done == {"a": [{"text": "방앗간\u2028\n"}]}
        resumed.add("b", [{"loss": 2.5}])
        assert path.read_bytes() == held
        assert Rows(path, ABOUT).done == whole.done


def test_a_kill_while_the_first_line_is_written_starts_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    Rows(path, ABOUT)
    header = path.read_bytes()
    for cut in range(len(header)):
        path.write_bytes(header[:cut])
        assert Rows(path, ABOUT).done == {}
        assert path.read_bytes() == header


def test_rows_of_another_run_are_refused_and_left_as_they_are(tmp_path):
    path = tmp_path / "rows.jsonl"
    Rows(path, ABOUT).add("a", [{"loss": 1.0}])
    path.write_bytes(path.read_bytes() + b'{"key": "b", "ro')
    held = path.read_bytes()
    with pytest.raises(SettingsError, match=r"another run \(limit, seed differ\).*Delete it"):
        Rows(path, {**ABOUT, "seed": 1, "limit": 3})
    assert path.read_bytes() == held


@pytest.mark.parametrize(
    "held", [b"hello\n", b"[1]\n", b"{}\n", b'{"about": 1}\n', b'{"about": {}}\n{"key": \n', b"\xff\xfe\n"]
)
def test_another_kind_of_file_is_refused_and_left_as_it_is(tmp_path, held):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(held)
    with pytest.raises(SettingsError, match="not a file of measured rows"):
        Rows(path, {})
    assert path.read_bytes() == held
