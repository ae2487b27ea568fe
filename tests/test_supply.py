"""What memo is made of, and that nothing it reads can run: no unsafe load anywhere, a bill of materials."""

from __future__ import annotations

import ast
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from memo import sbom

ROOT = Path(__file__).parents[1]
SOURCES = sorted({*ROOT.glob("*.py"), *(ROOT / "memo").rglob("*.py"), *(ROOT / "notebooks").rglob("*.py")})
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "np.load",
         "numpy.load", "torch.hub.load", "pd.read_pickle", "torch.jit.load", "tempfile.mktemp"}  # fmt: skip
FLAGS = {"trust_remote_code", "allow_pickle", "shell", "allow_dangerous_deserialization"}


def unsafe(text: str) -> list[str]:
    """What in a source could run something that it reads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            said = {word.arg: word.value for word in node.keywords}
            if called in CALLS:
                found.append(called)
            if called.endswith("torch.load") and not is_true(said.get("weights_only")):
                found.append("torch.load without weights_only")
            found += [f"{name}=…" for name in FLAGS & said.keys() if not is_false(said[name])]
    return found


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import pickle", "pickle"), ("from pickle import loads", "pickle"), ("eval('1')", "eval"),
        ("torch.load(path)", "torch.load"), ("torch.load(path, weights_only=False)", "torch.load"),
        ("yaml.load(text)", "yaml.load"), ("A.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
        ("A.from_pretrained(x, trust_remote_code=flag)", "trust_remote_code"), ("run(x, shell=True)", "shell"),
        ("np.load(path, allow_pickle=True)", "np.load"),
    ],
)  # fmt: skip
def test_the_check_knows_what_is_unsafe(text, what):
    assert unsafe(text) and what in unsafe(text)[0]


def test_the_check_lets_pass_what_is_safe():
    assert not unsafe("torch.load(p, weights_only=True)\nload_file(p)\njson.loads(t)\nmodel.eval()\nre.compile('a')")


def test_nothing_that_is_read_can_run():
    assert len(SOURCES) > 100
    assert not {str(path.relative_to(ROOT)): found for path in SOURCES if (found := unsafe(path.read_text()))}


# --- the bill of materials -------------------------------------------------------------------------------------------


def test_the_bill_of_materials_names_what_is_installed(tmp_path):
    assert sbom.main([str(tmp_path / "sbom.json")]) == 0
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["name"]: part for part in found["components"]}
    for name in ("torch", "transformers", "gradio", "chromadb", "safetensors", "faiss-cpu"):
        assert parts[name]["version"] == version(name)
        assert parts[name]["purl"] == f"pkg:pypi/{name}@{version(name)}"
    assert "pytest" not in parts and "mcp" in parts  # gradio[mcp]: extras are followed
    assert found["metadata"]["component"]["name"] == "memo"


def test_every_dependency_is_a_component_and_nothing_stands_twice():
    found = sbom.bom()
    refs = [found["metadata"]["component"]["bom-ref"], *(part["bom-ref"] for part in found["components"])]
    assert len(refs) == len(set(refs)) == len(found["dependencies"])
    assert {need for one in found["dependencies"] for need in one["dependsOn"]} <= set(refs)
    assert found == sbom.bom()
    everything = {part["name"] for part in sbom.bom(["test"])["components"]}
    assert "pytest" in everything and {part["name"] for part in found["components"]} < everything


def test_where_memo_runs_from_a_folder_the_bill_says_what_to_do(monkeypatch):
    monkeypatch.setattr(sbom, "ROOT", "memo-that-is-nowhere")
    with pytest.raises(SystemExit, match="Install it"):
        sbom.main([])
