"""Figures hold the numbers they are given, and do without those that are missing."""

import pytest

from memo import plots, plots_speed, plots_style


def value(mean, low, high, n=20):
    return {"mean": mean, "low": low, "high": high, "n": n}


SQUAD = {
    "strategies": {
        "closed_book": {"f1": value(0.1, 0.05, 0.2), "prompt_tokens": value(50, 48, 52)},
        "rag": {
            "recall@1": value(0.4, 0.3, 0.5), "recall@3": value(0.6, 0.5, 0.65), "f1": value(0.3, 0.2, 0.4),
            "prompt_tokens": value(870, 860, 880),
        },
        "memorag": {"recall@1": value(0.5, 0.4, 0.55), "recall@3": value(0.7, 0.6, 0.85), "f1": value(0.2, 0.1, 0.3)},
    },
    "against_rag": {
        "closed_book": {"f1": value(-0.2, -0.3, -0.1)},
        "memorag": {"recall@3": value(0.1, 0.02, 0.2), "f1": value(-0.1, -0.3, 0.1)},
        "memorag-draft": {"recall@3": value(-0.06, -0.1, -0.02)},
        "pointers": {},
    },
}  # fmt: skip
MUSIQUE = {
    "strategies": {"bm25": {"recall@1": value(0.3, 0.2, 0.4)}},
    "against_rag": {"memorag": {"recall@3": value(0.01, -0.1, 0.1)}},
}
BARE = {"strategies": {"closed_book": {}}, "against_rag": {}}
SETS = {"squad": SQUAD, "musique": MUSIQUE, "bare": BARE}


def memory_row(measure, method, **more):
    return {"measure": measure, "method": method, "tokens": 4096, "n": 8, **more}


MEMORY = {
    "what": {"base": {"ratio": 8, "window": 512, "tokens": 4096}},
    "rows": [
        memory_row("loss", "none", recovery=value(0, 0, 0)),
        memory_row("copy", "none", copy=value(0.3, 0.2, 0.4), facts=value(0.01, 0, 0.02)),
        memory_row("copy", "full", copy=value(0.9, 0.8, 1), facts=value(0.88, 0.8, 0.9)),
        memory_row("loss", "memory", ratio=8, wanted_ratio=8, window=512, recovery=value(0.6, 0.5, 0.8)),
        memory_row("loss", "memory", ratio=4, wanted_ratio=4, window=512, recovery=value(0.7, 0.6, 0.8)),
        memory_row("loss", "memory", ratio=8, wanted_ratio=8, window=1024, recovery=value(0.65, 0.6, 0.7)),
        memory_row("copy", "memory", ratio=8, wanted_ratio=8, window=512, copy=value(0.5, 0.4, 0.6),
                   facts=value(0.4, 0.3, 0.5)),
        memory_row("copy", "memory", ratio=16, wanted_ratio=8, window=512, copy=value(0.4, 0.3, 0.6))
        | {"tokens": 65536},
        memory_row("loss", "snapkv", ratio=8, wanted_ratio=8, recovery=value(0.3, 0.2, 0.4)),
        memory_row("composition", "none", recovery=value(0, 0, 0)),
        memory_row("composition", "memory", documents=1, place="first", recovery=value(0.5, 0.4, 0.6)),
        memory_row("composition", "memory", documents=4, place="drawn", recovery=value(0.4, 0.3, 0.6)),
        memory_row("composition", "memory", documents=4, place="first", recovery=value(0.45, 0.3, 0.6)),
        memory_row("lookup", "memory", kind="fact", depth=None, ratio=8, wanted_ratio=8, share=value(0.75, 0.5, 1)),
        memory_row("lookup", "memory", kind="fact", depth=0, ratio=8, wanted_ratio=8, share=value(0.5, 0.2, 0.8)),
        memory_row("lookup", "memory", kind="fact", depth=100, ratio=8, wanted_ratio=8, share=value(1, 1, 1)),
        memory_row("lookup", "full", kind="fact", depth=100, share=value(0.9, 0.8, 1)),
        memory_row("lookup", "full", kind="passkey", depth=25, share=value(0.9, 0.8, 1)),
    ],
}  # fmt: skip

SPEED = {
    "memorize": [
        {"tokens": 1024, "ratio": 0.9, "low": 0.85, "high": 1},
        {"tokens": 8192, "ratio": 1.3, "low": 1.2, "high": 1.6},
    ],
    "bytes": [{"tokens": 4096, "ratio": 0.125}, {"tokens": 131072, "ratio": 0.0625}],
    "load": [
        {"tokens": 4096, "ratio": 0.01, "low": 0.008, "high": 0.02},
        {"tokens": 8192, "ratio": 0.005, "low": 0.004, "high": 0.006},
    ],
    "search": [
        {"passages": 1000, "queries": 1, "ratio": 0.2, "low": 0.1, "high": 0.3},
        {"passages": 1000, "queries": 10, "ratio": 0.1, "low": 0.05, "high": 0.2},
        {"passages": 100000, "queries": 1, "ratio": 0.4, "low": 0.3, "high": 0.8},
    ],
    "peak": [
        {"after": "memorize", "peak_bytes": 900_000_000, "loaded_bytes": 600_000_000, "above_loaded_bytes": 3e8},
        {"after": "search", "peak_bytes": 1_400_000_000, "loaded_bytes": 600_000_000, "above_loaded_bytes": 8e8},
    ],
    "first_clue": [
        {"tokens": 4096, "instead": "reading the text again", "ratio": 20, "low": 18, "high": 25},
        {"tokens": 8000, "instead": "reading the text again", "ratio": 40, "low": 39, "high": 42},
        {"tokens": 16384, "instead": "memorizing anew", "ratio": 70, "low": 60, "high": 80},
    ],
    "exponent": [
        {"tokens": 2048, "memory_ratio": 8, "memorize_seconds": 2.0},
        {"tokens": 8192, "memory_ratio": 8, "memorize_seconds": 8.0},
        {"exponent": 1.0},
    ],
    "compare": [{"over": "the slowest of the four", "together_seconds": 14, "over_seconds": 9, "rag_seconds": 9,
                 "memorag_seconds": 7.5}],
    "visitors": [{"visitors": 1, "of": "median", "ratio": 1, "low": 1, "high": 1},
                 {"visitors": 8, "of": "median", "ratio": 5, "low": 4, "high": 7},
                 {"visitors": 8, "of": "last", "ratio": 7, "low": 6, "high": 8}],
}  # fmt: skip

EVERY = {
    "recall": lambda: plots.recall(SQUAD),
    "difference": lambda: plots.difference(SETS),
    "ablation": lambda: plots.ablation(SETS),
    "answers": lambda: plots.answers(SQUAD),
    "by_ratio": lambda: plots.by_ratio(MEMORY),
    "by_window": lambda: plots.by_window(MEMORY),
    "by_length": lambda: plots.by_length(MEMORY),
    "composition": lambda: plots.composition(MEMORY),
    "lookup": lambda: plots.lookup(MEMORY, "fact"),
} | {
    name: lambda name=name: getattr(plots_speed, name)(SPEED)
    for name in ("against_prefill", "size", "loading", "first_clue", "memorizing", "compare", "visitors", "search",
                 "peak")
}  # fmt: skip


def traces(figure):
    """Name -> x, y, and the ends of the intervals; None where no bar is drawn."""
    found = {}
    for trace in figure.data:
        error = trace.error_x if trace.error_x.array is not None else trace.error_y
        means = trace.x if trace.error_x.array is not None else trace.y
        pieces = zip(means, error.arrayminus, error.array, strict=True)
        ends = [None if below == above == plots_style.NO_BAR else (round(mean - below, 6), round(mean + above, 6))
                for mean, below, above in pieces]  # fmt: skip
        found[trace.name] = (list(trace.x), list(trace.y), ends)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_figures_fit_any_page_and_say_what_their_axes_are(name):
    figure = EVERY[name]()
    layout = figure.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.width is None and layout.height < 700
    assert layout.font.color == plots_style.INK and layout.xaxis.title.text
    assert figure.data and figure.to_json()
    for trace in figure.data:  # categories or numbers on the other axis
        assert trace.type in ("bar", "heatmap") or layout.yaxis.title.text or layout.yaxis.type == "category"


def test_recall_has_each_strategys_means_and_intervals():
    assert traces(plots.recall(SQUAD)) == {
        "rag": (["1", "3"], [0.4, 0.6], [(0.3, 0.5), (0.5, 0.65)]),
        "memorag": (["1", "3"], [0.5, 0.7], [(0.4, 0.55), (0.6, 0.85)]),
    }
    [rag, memorag] = plots.recall(SQUAD).data
    assert rag.customdata[0] == " 0.4 [0.3, 0.5], n = 20" and "recall@%{x}" in rag.hovertemplate
    assert (rag.marker.color, rag.marker.symbol) != (memorag.marker.color, memorag.marker.symbol)


def test_a_strategy_looks_the_same_everywhere():
    styles = [(plots_style.STYLES[name], name) for name in ("memorag", "rag", "bm25", "hyde", "rq_rag", "memory_only")]
    assert len({style for style, _ in styles}) == len({style[1] for style, _ in styles}) == len(styles)
    found = {trace.marker.color for figure in (plots.recall(SQUAD), plots.answers(SQUAD)) for trace in figure.data
             if trace.name == "rag"}  # fmt: skip
    assert found == {plots_style.STYLES["rag"][0]}


def test_the_difference_to_rag_is_filled_beyond_the_interval():
    figure = plots.difference(SETS)
    assert traces(figure)["memorag"] == ([0.1, 0.01], ["squad", "musique"], [(0.02, 0.2), (-0.1, 0.1)])
    assert list(figure.data[0].marker.symbol) == ["circle", "circle-open"]
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 0
    assert traces(plots.difference(SETS, "f1"))["memorag"][:2] == ([-0.1], ["squad"])


def test_the_ablation_has_a_row_a_part_and_a_column_a_set():
    [cells] = plots.ablation(SETS).data
    assert list(cells.x) == ["squad", "musique"]
    assert list(cells.y) == ["memorag", "without draft", "pointers alone"]
    assert [list(row) for row in cells.z] == [[0.1, 0.01], [-0.06, None], [None, None]]
    assert [list(row) for row in cells.text] == [["+10*", "+1"], ["−6*", ""], ["", ""]]
    assert cells.hovertext[0][0] == "memorag, squad<br>recall@3 − rag’s 0.1 [0.02, 0.2], n = 20"


def test_answers_stand_at_the_tokens_that_were_read_for_them():
    found = traces(plots.answers(SQUAD))
    assert found["rag"] == ([870], [0.3], [(0.2, 0.4)])
    assert set(found) == {"closed_book", "rag"}  # of memorag no prompt tokens are known
    assert not plots.answers(SQUAD, "rouge_l").data


def test_ratios_are_those_at_the_base():
    figure = plots.by_ratio(MEMORY)
    assert traces(figure) == {
        "memory": ([4, 8], [0.7, 0.6], [(0.6, 0.8), (0.5, 0.8)]), "snapkv": ([8], [0.3], [(0.2, 0.4)]),
    }  # fmt: skip
    copying = plots.by_ratio(MEMORY, "facts")
    assert [(line.name, line.y0) for line in copying.layout.shapes] == [("full context", 0.88), ("no context", 0.01)]
    assert traces(copying)["memory"][:2] == ([8], [0.4])


def test_windows_lengths_and_documents():
    assert traces(plots.by_window(MEMORY))["recovery"][:2] == ([512, 1024], [0.6, 0.65])
    lengths = traces(plots.by_length(MEMORY))
    assert lengths["copy accuracy"][:2] == ([4096, 65536], [0.5, 0.4])
    assert lengths["recovery"][:2] == ([4096], [0.6])  # no full context beyond the positions
    assert traces(plots.composition(MEMORY)) == {"recovery": ([1, 4], [0.5, 0.4], [(0.4, 0.6), (0.3, 0.6)])}


def test_lookup_has_a_row_a_context_and_a_column_a_depth():
    [cells] = plots.lookup(MEMORY, "fact").data
    assert list(cells.x) == ["0", "100", "all"] and list(cells.y) == ["full context", "memory, 8 : 1"]
    assert [list(row) for row in cells.z] == [[None, 0.9, None], [0.5, 1, 0.75]]
    assert cells.hovertext[1][0] == "memory, 8 : 1, 0<br>share of the answer 0.5 [0.2, 0.8], n = 20"


def test_speed():
    clue = traces(plots_speed.first_clue(SPEED))
    assert clue["than reading the text again"] == ([4096, 8000], [20, 40], [(18, 25), (39, 42)])
    assert clue["than memorizing anew"][0] == [16384]
    measured, line = plots_speed.memorizing(SPEED).data
    assert list(measured.y) == [2, 8] and line.name == "seconds ∝ tokens^1.00"
    assert list(line.y) == pytest.approx([2, 8])
    [bars] = plots_speed.compare(SPEED).data
    assert list(zip(bars.y, bars.x, strict=True)) == [("rag", 9), ("memorag", 7.5), ("together", 14)]
    assert traces(plots_speed.visitors(SPEED))["the median visitor"] == ([1, 8], [1, 5], [(1, 1), (4, 7)])


def test_speed_over_lengths():
    [made] = traces(plots_speed.against_prefill(SPEED)).values()
    assert made == ([1024, 8192], [0.9, 1.3], [(0.85, 1), (1.2, 1.6)])
    assert [one.y0 for one in plots_speed.against_prefill(SPEED).layout.shapes] == [1]
    [bytes_] = traces(plots_speed.size(SPEED)).values()
    assert bytes_ == ([4096, 131072], [0.125, 0.0625], [None, None])  # exact: there are no rounds
    [load] = traces(plots_speed.loading(SPEED)).values()
    assert load == ([4096, 8192], [0.01, 0.005], [(0.008, 0.02), (0.004, 0.006)])


def test_a_search_has_a_line_for_each_number_of_queries():
    assert traces(plots_speed.search(SPEED)) == {
        "1 query at once": ([1000, 100000], [0.2, 0.4], [(0.1, 0.3), (0.3, 0.8)]),
        "10 queries at once": ([1000], [0.1], [(0.05, 0.2)]),
    }


def test_the_peak_is_what_the_models_take_and_what_comes_on_top():
    figure = plots_speed.peak(SPEED)
    loaded, above = figure.data
    assert figure.layout.barmode == "stack"
    assert list(loaded.y) == list(above.y) == ["memorize", "search"]
    assert list(loaded.x) == [600, 600] and list(above.x) == [300, 800] and list(above.text) == ["900", "1,400"]


def test_without_an_interval_there_is_a_point_and_no_bar():
    alone = value(0.3, None, None, 2)
    sets = SETS | {"few": {"strategies": {}, "against_rag": {"memorag": {"recall@3": alone}}}}
    figure = plots.difference(sets)
    assert traces(figure)["memorag"][2] == [(0.02, 0.2), (-0.1, 0.1), None]
    assert figure.data[0].marker.symbol[2] == "circle-open"
    assert figure.data[0].customdata[2] == " 0.3, n = 2"
    [cells] = plots.ablation(sets).data
    assert cells.text[0][2] == "+30"
    rows = [memory_row("loss", "memory", ratio=8, wanted_ratio=8, window=512, recovery=alone),
            memory_row("loss", "snapkv", ratio=8, wanted_ratio=8, recovery=None)]  # fmt: skip
    few = {"what": MEMORY["what"], "rows": rows}
    assert traces(plots.by_ratio(few)) == {"memory": ([8], [0.3], [None])}
    assert traces(plots.by_length(few)) == {"recovery": ([4096], [0.3], [None])}


def test_nothing_measured_is_an_empty_figure():
    nothing = {"what": {"base": {"ratio": 8, "window": 512, "tokens": 4096}}, "rows": []}
    for figure in (plots.recall(BARE), plots.answers(BARE), plots.by_ratio(nothing), plots.by_length(nothing),
                   plots.composition(nothing)):  # fmt: skip
        assert not figure.data and figure.to_json()
    for figure in (plots.difference({"bare": BARE}), plots.ablation({}), plots.lookup(nothing, "fact")):
        assert figure.to_json()
