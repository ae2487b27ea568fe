"""memo: a model that has read your documents before you ask."""

__version__ = "0.1.0"
