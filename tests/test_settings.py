"""Settings from the environment: typed, named in every refusal, never guessed."""

import dataclasses
from pathlib import Path

import pytest

from memo.errors import SettingsError
from memo.settings import PRESETS, Settings, default_cache, from_environment


def test_an_empty_environment_gives_the_defaults():
    assert from_environment({}) == Settings()


def test_every_field_can_be_set():
    for field in dataclasses.fields(Settings):
        default = getattr(Settings(), field.name)
        wanted = {int: 7, float: 0.25, str: "float32"}.get(type(default), Path("/somewhere"))
        settings = from_environment({f"MEMO_{field.name.upper()}": str(wanted)})
        assert getattr(settings, field.name) == wanted and type(wanted) is type(getattr(settings, field.name))
        unchanged = dataclasses.replace(settings, **{field.name: default})
        if field.name == "cache":  # the visitors' folder goes with it
            assert settings.data == Path("/somewhere/sessions")
            unchanged = dataclasses.replace(unchanged, data=Settings().data)
        assert unchanged == Settings()  # and nothing else has changed


@pytest.mark.parametrize("value", ["many", "", "3.5", "1e3", "0x10"])
def test_a_number_that_is_none_is_refused_by_the_variables_name(value):
    with pytest.raises(SettingsError, match="MEMO_RATIO") as failure:
        from_environment({"MEMO_RATIO": value})
    assert failure.value.hint


@pytest.mark.parametrize("value", ["0", "-4"])
def test_sizes_below_one_are_refused(value):
    with pytest.raises(SettingsError, match="MEMO_WINDOW"):
        from_environment({"MEMO_WINDOW": value})


def test_port_0_means_any():
    assert from_environment({"MEMO_PORT": "0"}).port == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_variables_win_over_the_preset_and_overrides_over_both(preset):
    environment = {"MEMO_PRESET": preset}
    settings = from_environment(environment)
    for name, value in PRESETS[preset].items():
        assert str(getattr(settings, name)) == value
    assert from_environment(environment | {"MEMO_RATIO": "2"}).ratio == 2
    assert from_environment(environment | {"MEMO_RATIO": "2"}, ratio=64).ratio == 64


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="MEMO_PRESET") as failure:
        from_environment({"MEMO_PRESET": "huge"})
    assert all(preset in failure.value.hint for preset in PRESETS)


def test_a_folder_may_begin_with_the_home():
    assert from_environment({"MEMO_CACHE": "~/there"}).cache == Path.home() / "there"


def test_the_processs_own_environment_is_read(monkeypatch):
    monkeypatch.setenv("MEMO_ANSWER_TOKENS", "77")
    assert from_environment().answer_tokens == 77


def test_the_cache_follows_the_desktops_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "memo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "memo"


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().ratio = 3
