"""The app: one Gradio page over `memo.sessions`, and how it is served.

In: `Settings`. Out: `build`, the page; `launch`, the running server.
"""

from __future__ import annotations

import asyncio
import atexit
import signal
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr

from memo import log
from memo.errors import MemoError, SettingsError
from memo.log import note
from memo.models import UNTRAINED, chosen
from memo.pipeline import Models
from memo.sessions import Sessions
from memo.settings import Settings
from memo.ui import cards, marks, pages
from memo.ui.api import Api
from memo.ui.ask import EVERY, WATCHING, AskPage
from memo.ui.decoder_tab import DecoderTab
from memo.ui.door import door, fetch_nothing
from memo.ui.draw import Drawn
from memo.ui.handing import handing
from memo.ui.inside_tab import InsideTab
from memo.ui.layout import i18n, page
from memo.ui.results_tab import ResultsTab
from memo.ui.testing_tab import EvaluationTab
from memo.ui.texts import ASSETS, language_of, say
from memo.ui.theme import theme
from memo.ui.tour import tour
from memo.ui.training_tab import TrainingTab
from memo.ui.visits import Visit
from memo.ui.warmup import Warmup

# Updates that come before the page is drawn and translated can be lost on a slow machine: wait for its last button.
WHEN_DRAWN = """async () => {
  for (let i = 0; i < 100 && !document.querySelector('#export-json')?.textContent.trim(); i++)
    await new Promise((go) => setTimeout(go, 50));
  return [];
}"""


class Visitors:
    """Opens a session when a page is loaded and closes it when the page is left."""

    def __init__(self, settings: Settings, sessions: Sessions, ask: AskPage, tab: DecoderTab) -> None:
        self.settings, self.sessions, self.ask, self.tab = settings, sessions, ask, tab
        self._by_page: dict[str, str] = {}  # Gradio's hash of a page -> our token

    def wire(self, demo: gr.Blocks) -> None:
        p, private = self.ask.page, WATCHING
        first = [p.token, p.tour, p.documents, p.privacy, p.status, *self.ask.everything(), *self.tab.everything()]
        demo.load(self.open, None, list(dict.fromkeys(first)), queue=False, js=WHEN_DRAWN, **private).then(
            self.ask.told(self.watch_models), p.token, p.status, concurrency_limit=None, **private
        )
        demo.unload(self.leave)

    def open(self, request: gr.Request) -> dict:
        """A new page: a new session. Loading the page again ends the earlier one."""
        language, p = language_of(request), self.ask.page
        self.leave(request)
        try:
            session = self.sessions.open()
        except MemoError:
            return {p.status: cards.notice("error", say(language, "session.too_many"))}
        session.view = visit = Visit(session, language)
        self._by_page[request.session_hash or ""] = session.token
        empty = self.ask.draw(visit, Drawn())
        return {
            p.token: session.token,
            p.documents: cards.documents(visit),
            p.privacy: self.footer(language),
            p.tour: tour(language),
        } | empty | self.tab.draw(visit) | self.tab.fitting(visit)

    def footer(self, language: str) -> str:
        """Which models work here, what stays here, what leaves, when it is deleted."""
        where = "privacy.endpoint" if self.settings.endpoint_url else "privacy.local"
        models = chosen(self.settings)
        memory = "models.untrained" if models["memory_weights"] == UNTRAINED else "models.trained"
        parts = (
            say(language, memory, memory=models["memory_model"]),
            say(language, "models.others", generator=models["generator"], embedder=models["embedder"]),
            say(language, where, endpoint=urlsplit(self.settings.endpoint_url).hostname),
            say(language, "privacy.deleted", minutes=self.settings.session_minutes),
        )
        return "".join(f"<p>{marks.esc(part)}</p>" for part in parts)

    def leave(self, request: gr.Request) -> None:
        """The page is gone: everything of its visitor is deleted."""
        if token := self._by_page.pop(request.session_hash or "", None):
            self.sessions.close(token)

    async def watch_models(self, token: str, request: gr.Request) -> AsyncIterator[dict]:
        """Says that the models are being made ready, until they are."""
        if not token:  # too many visitors, which is said already; yielding nothing would empty what says it
            yield {self.ask.page.status: gr.skip()}
            return
        visit, warmup = self.ask.visit(token, request), self.ask.warmup
        while not (warmup.done or warmup.error or visit.session.closed):
            await asyncio.sleep(EVERY)
        yield {self.ask.page.status: self.ask.status(visit)}


def build(settings: Settings, sessions: Sessions, warmup: Warmup | None = None) -> gr.Blocks:
    """The page. `warmup`: what it waits for; None: models that are loaded at the first question."""
    if warmup is None:
        warmup = Warmup(sessions.models)
        warmup.done = True
    with gr.Blocks(title="memo", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as demo:
        token = gr.State(None, delete_callback=lambda value: sessions.close(value or ""))
        Api(sessions).wire()  # first: handlers of the page have names like its own
        ask = AskPage(page(settings, token), sessions, warmup)
        ask.wire()
        tab = DecoderTab(ask)
        tab.wire()
        InsideTab(ask).wire()
        TrainingTab(ask).wire()
        ResultsTab(ask).wire()
        EvaluationTab(ask).wire()
        Visitors(settings, sessions, ask, tab).wire(demo)
    return demo.queue(max_size=32, default_concurrency_limit=8, api_open=False)


@dataclass
class Running:
    """A served app."""

    demo: gr.Blocks
    sessions: Sessions
    url: str
    sweeper: threading.Event

    def close(self) -> None:
        """Ends what runs, stops serving, and deletes what visitors left."""
        self.sweeper.set()
        self.sessions.stop_all()
        self.demo.close(verbose=False)
        self.sessions.close_all()

    def wait(self) -> None:
        """Serves until the process is told to stop (SIGTERM, Ctrl+C), then closes. Being told twice ends it at once."""
        told = threading.Event()

        def stop(number: int, _: object) -> None:
            signal.signal(number, signal.SIG_DFL)
            told.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        told.wait()
        note("stopping", sessions=len(self.sessions))
        self.close()


def launch(settings: Settings, prevent_thread_lock: bool = False, models: Models | None = None) -> Running:
    """Serves the app on `settings.host` and `settings.port` (0: a free one).

    prevent_thread_lock: come back at once instead of serving until interrupted. models: ones that are loaded already.

    Raises:
        SettingsError: host and port cannot be had, or there is no such log. Found out first: opening `Sessions` clears
            what is in their folder.
    """
    log.start(settings.log)
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError:
        raise SettingsError(
            f"Nothing can be served at {settings.host}, port {settings.port}.", "Is the port in use? Choose another."
        ) from None
    sessions = Sessions(settings, models)
    atexit.register(sessions.close_all)
    warmup = Warmup(sessions.models)
    demo = build(settings, sessions, warmup)
    fetch_nothing()
    _, url, _ = demo.launch(
        server_name=settings.host, server_port=settings.port or None, prevent_thread_lock=True, quiet=True,
        state_session_capacity=pages.MOST,
        theme=theme(), css_paths=[ASSETS / "theme.css"], i18n=i18n, head=head(),
        max_file_size=settings.max_file_mb << 20, show_error=False, run_history=False, enable_monitoring=False,
        footer_links=["api", "gradio"], ssr_mode=False, pwa=False, share=False, mcp_server=True,
        app_kwargs={"middleware": [*door(settings, warmup), *handing(sessions)]},
    )  # fmt: skip
    running = Running(demo, sessions, url, sessions.watch())
    pages.watch(demo, sessions, running.sweeper)
    print(f"memo is at {url}", flush=True)
    warmup.start()
    note("serving")
    if not prevent_thread_lock:
        running.wait()
    return running


def head() -> str:
    """The page's own scripts."""
    scripts = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "tour.js"))
    return "".join(f"<script>{script}</script>" for script in scripts)
