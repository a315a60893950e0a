"""Plots of a run, as small SVG files that come out the same each time they are drawn from the same record."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.cases.steady import COMPARED
from benchmarks.harness.databases import POSTGRES, SQLITE
from benchmarks.harness.record import verdicts
from benchmarks.harness.suite import Rounds, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.harness.record import Record, Verdict
    from benchmarks.harness.targets import Target

MET, MISSED, OTHERS, INK = "#2a78b5", "#e07b39", "#9aa5b1", "#222222"
WIDTH_INCHES, BAR_INCHES = 9.0, 0.26
SETTINGS = {
    "svg.hashsalt": "sqlmq",  # or ids would be random
    "svg.fonttype": "none",  # text as text, a tenth of its outlines
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(record: Record, directory: Path) -> list[str]:
    """Draw what *record* has the results for; return the names of the plots."""
    drawn = []
    for name, plot in PLOTS.items():
        with mpl.rc_context(SETTINGS):  # type: ignore[arg-type]
            figure = plot(record)
            if figure is not None:
                figure.savefig(
                    directory / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", facecolor="white"
                )
                drawn.append(name)
    return drawn


def limits(record: Record) -> Figure | None:
    """Ratios that are wanted to come near to 1, or above."""
    return _bars(_measured(record, lambda target: not target.at_most and target.wanted <= 1), "ratio")


def times(record: Record) -> Figure | None:
    """Ratios that are wanted to be large."""
    return _bars(
        _measured(record, lambda target: not target.at_most and target.wanted > 1), "times faster", is_log=True
    )


def costs(record: Record) -> Figure | None:
    """What is wanted to be small, as parts of what it may be."""
    measured = _measured(record, lambda target: target.at_most)
    return _bars(measured, "part of what is allowed", scale=lambda target: target.wanted)


def peers(record: Record) -> Figure | None:
    """The rates of all queues, by turns on one server, and on one kind of file."""
    results = [
        one for one in record.results if one.benchmark == "peers" and one.title.startswith("produced and drained")
    ]
    if not results:
        return None
    figure, axes = _panels([len(result.rates) for result in results])
    for axis, result in zip(axes, results, strict=True):
        names, rounds = list(result.rates), list(result.rates.values())
        colours = [MET if name.startswith("sqlmq") else OTHERS for name in names]
        _draw_bars(axis, names, rounds, colours)
        _make_logarithmic(axis, rounds)
        axis.set_title(result.database, loc="left")
        axis.set_xlabel("messages a second, a logarithmic scale")
    return figure


def snapshot(record: Record) -> Figure | None:
    """Rates over the run, one part after the other, each as a part of the median of its own first."""
    results = [one for one in record.results if one.benchmark == "steady" and one.unit == "transactions/s"]
    if not results:
        return None
    figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, result in zip(axes, results, strict=True):
        for name, rounds in result.rates.items():
            parts = [100 * (i + 0.5) / len(rounds.values) for i in range(len(rounds.values))]
            is_ours = not name.startswith(("by hand", "pgmq"))
            first = statistics.median(rounds.values[:COMPARED])
            axis.plot(parts, [rate / first for rate in rounds.values], label=name, linewidth=2 if is_ours else 1)
        axis.set_ylim(bottom=0)
        axis.set_title(result.database, loc="left")
        axis.set_xlabel("% of the run")
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[0].set_ylabel("rate, as a part of the first")
    return figure


PLOTS: dict[str, Callable[[Record], Figure | None]] = {
    "limits": limits,
    "times": times,
    "costs": costs,
    "peers": peers,
    "snapshot": snapshot,
}


def _measured(record: Record, is_wanted: Callable[[Target], bool]) -> list[Verdict]:
    return [one for one in verdicts(record.results) if one.found is not None and is_wanted(one.target)]


def _bars(
    measured: Sequence[Verdict],
    label: str,
    *,
    is_log: bool = False,
    scale: Callable[[Target], float] = lambda _target: 1,
) -> Figure | None:
    """A bar for each of *measured*, divided by *scale*, with its target as a tick; a panel for each database."""
    kinds = [kind for kind in (POSTGRES, SQLITE) if any(one.target.database == kind for one in measured)]
    if not kinds:
        return None
    by_kind = [[one for one in measured if one.target.database == kind] for kind in kinds]
    figure, axes = _panels([len(some) for some in by_kind])
    for axis, kind, some in zip(axes, kinds, by_kind, strict=True):
        names = [f"{one.target.benchmark}: {one.target.figure}" for one in some]
        rounds = [_scaled(one.found, scale(one.target)) for one in some if one.found is not None]
        _draw_bars(axis, names, rounds, [MET if one.is_met else MISSED for one in some])
        wanted = [one.target.wanted / scale(one.target) for one in some]
        places = range(len(some))
        axis.vlines(wanted, [at - 0.45 for at in places], [at + 0.45 for at in places], colors=INK, linewidth=2)
        if is_log:
            _make_logarithmic(axis, rounds)
        axis.set_title(kind, loc="left")
        axis.set_xlabel(label)
    return figure


def _scaled(rounds: Rounds, by: float) -> Rounds:
    return ratio(rounds, Rounds((by,) * len(rounds.values)))


def _panels(bars: Sequence[int]) -> tuple[Figure, Iterable[Axes]]:
    """A figure with a panel for each number of *bars*, one above the other."""
    figure = Figure(figsize=(WIDTH_INCHES, sum(BAR_INCHES * count + 0.9 for count in bars)), layout="constrained")
    axes = figure.subplots(len(bars), 1, squeeze=False, height_ratios=[count + 2 for count in bars])
    return figure, [row[0] for row in axes]


def _draw_bars(axis: Axes, names: Sequence[str], rounds: Sequence[Rounds], colours: Sequence[str]) -> None:
    """Horizontal bars of medians, from the top down, with whiskers from the lowest to the highest round."""
    places = list(range(len(names)))
    medians = [one.median for one in rounds]
    reach = [[one.median - one.low for one in rounds], [one.high - one.median for one in rounds]]
    axis.barh(places, medians, color=colours, height=0.7)
    axis.errorbar(medians, places, xerr=reach, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
    axis.set_yticks(places, names)
    axis.invert_yaxis()


def _make_logarithmic(axis: Axes, rounds: Sequence[Rounds]) -> None:
    """Let bars begin at 1, or half of the lowest where that is less, and the scale have plain numbers."""
    axis.set_xscale("log")
    axis.set_xlim(left=min(1.0, min(one.low for one in rounds) / 2))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
