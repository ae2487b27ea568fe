"""The app. In: settings and sessions. Out: `build` (the page) and `launch` (the server)."""

from memo.ui.app import Running, build, launch

__all__ = ["Running", "build", "launch"]
