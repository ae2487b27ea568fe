"""What tests share: the embedded models (loaded once), settings in a temporary folder, tiny random models."""

from __future__ import annotations

import os

os.environ.update(
    OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false", GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1"
)

import dataclasses

import pytest
import tiny

from memo.library import Library
from memo.pipeline import MemoRAG, Models
from memo.settings import Settings

SMALL = Settings(answer_tokens=24, clue_tokens=24, window=256, context_tokens=400)


FIRST = ("test_notebooks.py", "test_browser.py")  # the longest: begun last, one core would wait for the other


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process takes whole files, as `--dist loadfile` has it, but of the notebooks one at a time."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if FIRST[0] in nodeid else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def models():
    """The embedded models, with short answers; tests share one copy of the weights."""
    return Models(SMALL)


@pytest.fixture
def settings_for(tmp_path):
    """A function: settings with short answers and the sessions' folder below this test's own."""

    def make(**changes):
        return dataclasses.replace(SMALL, **{"data": tmp_path / "sessions", **changes})

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with a tiny random model and its tokenizer, as `Settings.memory_model`."""
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny-llama")


# settings that suit it
TINY = {"dtype": "float32", "window": 64, "ratio": 4, "passage_tokens": 60, "context_tokens": 200, "clue_tokens": 20,
        "answer_tokens": 12, "device": "cpu"}  # fmt: skip


@pytest.fixture
def tiny_settings(settings_for, tiny_folder):
    return settings_for(memory_model=str(tiny_folder), **TINY)


def counting_words(settings):
    """`Models` of these settings with an embedder of word counts."""
    made = Models(settings)
    made.__dict__["_embedder"] = tiny.Embedder()
    return made


@pytest.fixture
def tiny_models(tiny_settings):
    """`Models` of a tiny random model and an embedder of word counts."""
    return counting_words(tiny_settings)


@pytest.fixture
def tiny_rag(tmp_path, tiny_models, tiny_settings):
    """A `MemoRAG` on an empty library, with tiny models."""
    with Library(tmp_path / "library", tiny_models.embedder) as library:
        yield MemoRAG(library, tiny_models, tiny_settings)
