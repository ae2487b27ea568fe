"""The handlers of what is measured, in the tab Results. They read files; no model works.

In: the components of `memo.ui.results_layout.ResultsPage`, a folder of results. Out: wired events.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from memo.errors import MemoError
from memo.ui import measured
from memo.ui.ask import DOWNLOAD, QUICK, AskPage
from memo.ui.draw import Updates
from memo.ui.marks import esc
from memo.ui.results_layout import FOLDER
from memo.ui.texts import language_of, say, tell

UNZIP = """(text) => {
  if (!text) return;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], {type: 'application/zip'}));
  link.download = 'memo-results.zip';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


class ResultsTab:
    """Handlers over the tab. Shows every visitor the same."""

    def __init__(self, ask: AskPage, folder: Path = FOLDER) -> None:
        self.page, self.folder = ask.page.results, folder

    def wire(self) -> None:
        """Connects every component to its handler."""
        p, quick = self.page, QUICK
        chosen, drawn = [p.section, p.sets, p.strategies], [p.sets, p.strategies, p.commands, p.tables, *p.plots]
        gr.on([p.tab.select, *(one.input for one in chosen)], self.draw_results, chosen, drawn, **quick)
        p.json.click(lambda: measured.zipped(self.folder), None, p.export, **quick).then(
            None, p.export, None, js=UNZIP, **quick
        )
        p.markdown.click(self.as_report, None, p.export, **quick).then(
            None, p.export, None, js=DOWNLOAD % ("RESULTS.md", "text/markdown"), **quick
        )

    def as_report(self) -> str:
        path = self.folder / "RESULTS.md"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def draw_results(self, request: gr.Request, section: str, sets: list[str], strategies: list[str]) -> Updates:
        p, language, asked = self.page, language_of(request), section == "questions"
        filters = {p.sets: gr.Dropdown(visible=asked), p.strategies: gr.Dropdown(visible=asked)}
        try:
            if section == measured.FIGURES:
                return filters | {p.commands: "", p.tables: ""} | self._plots(measured.every_figure(self.folder))
            files = measured.contents(self.folder, section)
        except MemoError as error:
            why = f'<p class="why">{esc(tell(language, error))}</p>'
            return filters | {p.commands: why, p.tables: ""} | self._plots([])
        if asked:
            found = measured.chosen(files, sets, strategies)
        else:
            found = {name: content["results"] for name, content in files.items()}
        expected = measured.SINGLE.get(section, () if files else (section,))
        missing = [say(language, "results.missing", name=name) for name in expected if name not in files]
        lines = [f'<p class="empty">{esc(line)}</p>' for line in missing]
        if found:
            made = "".join(f"<p><b>{esc(name)}</b> <code>{esc(files[name]['command'])}</code></p>" for name in found)
            title = esc(say(language, "results.commands", names=", ".join(found)))
            lines.append(f"<details><summary>{title}</summary>{made}</details>")
        figures = measured.figures(section, found)
        tables = measured.tables(section, found, language) if found else ""
        return filters | {p.commands: "".join(lines), p.tables: tables} | self._plots(figures)

    def _plots(self, figures: list) -> Updates:
        shown = [gr.Plot(figure, visible=True) for figure in figures]
        rest = len(self.page.plots) - len(shown)
        return dict(zip(self.page.plots, [*shown, *[gr.Plot(None, visible=False)] * rest], strict=True))
