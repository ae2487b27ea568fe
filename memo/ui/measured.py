"""What is measured, for the tab Results: Markdown and figures.

In: a folder of results (`memo.evaluate.report.load`), a section, names of question sets and strategies. Out: Markdown,
figures, a zip of the files. Nothing is computed by a model.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.plots_style import Results
from memo.ui.texts import say

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SECTIONS = ("questions", "memory", "clues", "study", "decoder", "speed", "downstream", "scaling", "reliability")
FIGURES = "figures"  # in place of a section: the figures of all of them
SINGLE = {  # section -> its files
    "memory": ("memory", "memory-pretrained", "memory-trained", "memory-8k"), "clues": ("clues",), "study": ("study",),
    "speed": ("speed",), "downstream": ("downstream",), "scaling": ("scaling",), "reliability": ("reliability",),
}  # fmt: skip


def contents(folder: Path, section: str) -> dict[str, Any]:
    """{name of the file: its content} of a section; what is missing is left out.

    Raises:
        SettingsError: a file is none of results.
    """
    from memo.evaluate.report import SINGLE as KINDS
    from memo.evaluate.report import read

    if section in SINGLE:
        paths = {folder / f"{name}.json": KINDS.get(name, section) for name in SINGLE[section]}
    else:
        kind = {"questions": "qa"}.get(section, section)
        paths = dict.fromkeys(sorted((folder / kind).glob("*.json")), kind)
    return {path.stem: read(path, kind) for path, kind in paths.items() if path.exists()}


def names(folder: Path) -> tuple[list[str], list[str]]:
    """The question sets and the strategies there are, to choose from. A file that cannot be read has none."""
    sets, strategies = [], dict[str, None]()
    for path in sorted((folder / "qa").glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["results"]["strategies"]
        except (ValueError, KeyError, TypeError):
            continue
        sets.append(path.stem)
        strategies |= dict.fromkeys(found)
    return sets, list(strategies)


def chosen(files: Mapping[str, Any], sets: Sequence[str], strategies: Sequence[str]) -> dict[str, Results]:
    """The results of these sets, with these strategies only; nothing named: all of them."""
    out = {}
    for name, content in files.items():
        if not sets or name in sets:
            results = content["results"]
            parts = {
                part: {s: v for s, v in results[part].items() if not strategies or s in strategies}
                for part in ("strategies", "against_rag")
            }
            out[name] = results | parts
    return out


def tables(section: str, found: Mapping[str, Results], language: str = "en") -> str:
    """The tables of a section as Markdown; of question sets and files with headings in the visitor's language."""
    from memo.evaluate import report_tables
    from memo.evaluate.report_decoder import beyond, decoders
    from memo.evaluate.report_reliability import reliable
    from memo.evaluate.report_scaling import scaled

    if section == "questions":
        return _questions(found, language)
    if section == "decoder":
        return "\n\n".join(decoders(found))
    make = {
        "memory": report_tables.kept, "clues": report_tables.recalled, "study": report_tables.studied,
        "speed": report_tables.fast, "downstream": beyond, "scaling": scaled,
        "reliability": reliable,
    }[section]  # fmt: skip
    parts = []
    for name, results in found.items():
        heading = [f"# {say(language, f'results.file.{name}')}"] if section == "memory" else []  # it has several files
        parts += heading + make(results)
    return "\n\n".join(parts)


def metric_name(metric: str, language: str) -> str:
    """What a metric is, in words."""
    name, _, k = metric.partition("@")
    return say(language, f"metric.{name}", k=k)


def _questions(sets: Mapping[str, Results], language: str) -> str:
    from memo.evaluate.report_tables import difference, interval, table

    out = []
    metrics = dict.fromkeys(m for r in sets.values() for values in r["strategies"].values() for m in values)
    for part, cell in (("strategies", interval), ("against_rag", difference)):
        for metric in metrics:
            some = {name: r[part] for name, r in sets.items() if any(metric in v for v in r[part].values())}
            columns = [
                (s, lambda row, s=s, m=metric, c=cell: c(row[1].get(s, {}).get(m)))
                for s in dict.fromkeys(s for values in some.values() for s in values if metric in values[s])
            ]
            if some:
                title = metric_name(metric, language)
                title = title if part == "strategies" else say(language, "metric.less", metric=title)
                first = (say(language, "metric.set"), lambda row: row[0])
                out += [f"### {title}", table(some.items(), first, *columns)]
    return "\n\n".join(out)


def figures(section: str, found: Mapping[str, Results]) -> list[Figure]:
    """The figures of a section."""
    from memo import plots, plots_decoder, plots_speed

    if not found:
        return []
    if section == "questions":
        each = [plots.recall, plots.answers] if len(found) == 1 else []
        return [plots.difference(found), plots.ablation(found)] + [draw(r) for draw in each for r in found.values()]
    if section == "memory":
        ratios = {name: {row.get("wanted_ratio") for row in r["rows"]} - {None} for name, r in found.items()}
        kept = [plots.by_ratio(r, value).update_layout(title=f"{name}: {title}", margin_t=60)
                for name, r in found.items() if len(ratios[name]) > 1
                for value, title in plots.VALUES.items()]  # fmt: skip
        if main := found.get("memory"):  # the only file that is measured over more than ratios
            kept += [draw(main) for draw in (plots.by_window, plots.by_length, plots.composition)]
            kept += [plots.lookup(main, kind) for kind in ("passkey", "fact")]
        return kept
    if section == "decoder":
        return [plots_decoder.perplexities(found)]
    if section == "speed":
        draws = (plots_speed.against_prefill, plots_speed.size, plots_speed.loading, plots_speed.first_clue,
                 plots_speed.memorizing, plots_speed.compare, plots_speed.visitors, plots_speed.search,
                 plots_speed.peak)  # fmt: skip
        return [draw(found["speed"]) for draw in draws]
    return []


def every_figure(folder: Path) -> list[Figure]:
    """The figures of all sections.

    Raises:
        SettingsError: a file is none of results.
    """
    found = {one: {name: content["results"] for name, content in contents(folder, one).items()} for one in SECTIONS}
    return [figure for section, results in found.items() for figure in figures(section, results)]


def zipped(folder: Path) -> str:
    """All JSON files as a zip, in base 64."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.json")):
            archive.write(path, path.relative_to(folder))
    return base64.b64encode(out.getvalue()).decode()
