"""Measuring in turns: A, B, A, B … in one process, so that what slows the machine meanwhile slows both.

In: functions to be timed. Out: their seconds, round by round, and how many times one takes the other's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spent(work: Callable[[], Any]) -> dict[str, float]:
    """seconds that `work` takes; core_seconds: of processors at work in this process, which a busy machine changes
    less."""
    began, core = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - core}


def in_turns(repeats: int, *works: Callable[[], Any], warm: bool = True) -> list[list[float]]:
    """For each of `works` its seconds in `repeats` rounds. warm: one round more before them, which is not counted."""
    rounds = [[seconds_of(work) for work in works] for _ in range(repeats + warm)]
    return [list(times) for times in zip(*rounds[warm:], strict=True)]


def short(number: float) -> float:
    """Four digits that count: what a clock on a busy machine can tell."""
    return float(f"{number:.4g}")


def middle(numbers: Sequence[float]) -> float:
    return short(statistics.median(numbers))


def times(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """ratio: the median of `over` / `under`, round by round; low, high: the least and the most of any round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"ratio": middle(ratios), "low": short(min(ratios)), "high": short(max(ratios))}
