"""The leaderboard's charts: heat maps, C-Acc against ASR, and ASR against the poisoning ratio, as plotly figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from backdoor.report.tables import TITLES, by_defense, goal_text, setting_text, spread_text

Cell = Mapping[str, Any]
Panel = dict[str, Any]
SCALES = {"asr_worst": "OrRd", "c_acc": "YlGnBu"}
# Okabe and Ito's colours, black as grey so that it shows on a dark page; symbols and dashes say it a second time.
COLORS = ("#808080", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#B8A900")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
CLEAR = "rgba(0,0,0,0)"
ROW_HEIGHT = 24


def heat_map(cells: Sequence[Cell], metric: str) -> go.Figure:
    """Attack and ratio down, defense across, one data set and model at a time; the colour is the mean over seeds."""

    def panel(chosen: Sequence[Cell]) -> Panel:
        defenses = defenses_of(chosen)
        rows: dict[str, dict[str, Cell]] = {}
        for cell in chosen:
            rows.setdefault(label(f"{cell['attack']} {setting_text(cell)}"), {})[cell["defense"]] = cell
        grid = [[found.get(defense) for defense in defenses] for found in rows.values()]
        z = [[None if cell is None else percent(cell, metric) for cell in line] for line in grid]
        hover = [["" if cell is None else describe(cell) for cell in line] for line in grid]
        return {"x": [[label(name) for name in defenses]], "y": [list(rows)], "z": [z], "customdata": [hover]}

    panels = split(cells, ("data", "model"), panel)
    figure = go.Figure(
        go.Heatmap(
            colorscale=SCALES[metric],
            zmin=0 if metric == "asr_worst" else None,
            zmax=100 if metric == "asr_worst" else None,
            hoverongaps=False,
            texttemplate="%{z:.1f}",
            hovertemplate="%{customdata}<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0},
            xgap=1,
            ygap=1,
        )
    )
    show(figure, next(iter(panels.values())))
    figure.update_yaxes(autorange="reversed", type="category", ticksuffix=" ")
    figure.update_xaxes(type="category", tickangle=-40)
    tallest = max(len(values["y"][0]) for values in panels.values())
    return dressed(figure, panels, f"{TITLES[metric]} in percent", max(360, 190 + ROW_HEIGHT * tallest))


def scatter(cells: Sequence[Cell]) -> go.Figure:
    """C-Acc against ASR, a point a cell of the grid, a colour a defense; below on the right is best."""
    defenses = defenses_of(cells)

    def panel(chosen: Sequence[Cell]) -> Panel:
        kinds = [
            [cell for cell in chosen if cell["defense"] == name and cell["asr_worst_mean"] is not None]
            for name in defenses
        ]
        return {
            "x": [[percent(cell, "c_acc") for cell in kind] for kind in kinds],
            "y": [[percent(cell, "asr_worst") for cell in kind] for kind in kinds],
            "customdata": [[describe(cell) for cell in kind] for kind in kinds],
        }

    panels = split(cells, ("data", "model"), panel)
    figure = go.Figure([go.Scatter(mode="markers", **style(name, place)) for place, name in enumerate(defenses)])
    show(figure, next(iter(panels.values())))
    figure.update_xaxes(title="C-Acc (%)")
    figure.update_yaxes(title="ASR (%)", range=[-4, 104])
    return dressed(figure, panels, "C-Acc and ASR: below on the right is best")


def against_ratio(cells: Sequence[Cell]) -> go.Figure | None:
    """ASR against the poisoning ratio for one attack at a time, a line a defense, bars of one standard deviation.

    None if no cell has a ratio.
    """
    known = [cell for cell in cells if cell["ratio"] and cell["asr_worst_mean"] is not None]
    base = {None: "", "train": ""}
    cells = [
        {**cell, "of": base.get(cell["ratio_of"], f"of {cell['ratio_of']}"), "goal": " ".join(goal_text(cell))}
        for cell in known
    ]
    if not cells:
        return None
    defenses = defenses_of(cells)

    def panel(chosen: Sequence[Cell]) -> Panel:
        kinds = [sorted((c for c in chosen if c["defense"] == name), key=lambda c: c["ratio"]) for name in defenses]
        return {
            "x": [[cell["ratio"] for cell in kind] for kind in kinds],
            "y": [[percent(cell, "asr_worst") for cell in kind] for kind in kinds],
            "error_y.array": [[round(100 * (cell["asr_worst_std"] or 0), 2) for cell in kind] for kind in kinds],
            "customdata": [[describe(cell) for cell in kind] for kind in kinds],
        }

    panels = split(cells, ("data", "model", "attack", "of", "goal"), panel)
    figure = go.Figure([go.Scatter(mode="lines+markers", **style(name, place)) for place, name in enumerate(defenses)])
    show(figure, next(iter(panels.values())))
    figure.update_xaxes(title="poisoning ratio", type="log", tickvals=sorted({cell["ratio"] for cell in cells}))
    figure.update_yaxes(title="ASR (%)", range=[-4, 104])
    return dressed(figure, panels, "ASR against the poisoning ratio")


def defenses_of(cells: Sequence[Cell]) -> list[str]:
    """The defenses' names, none first."""
    return list(dict.fromkeys(str(cell["defense"]) for cell in sorted(cells, key=by_defense)))


def split(cells: Sequence[Cell], keys: Sequence[str], panel: Callable[[Sequence[Cell]], Panel]) -> dict[str, Panel]:
    """A panel for each value of `keys`, by its title."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    return {label(", ".join(str(word) for word in words if word)): panel(group) for words, group in groups.items()}


def show(figure: go.Figure, panel: Panel) -> None:
    """Put a panel's lists, one a trace, into the figure."""
    for number, trace in enumerate(figure.data):
        for key, lists in panel.items():
            trace[key] = lists[number]


def style(defense: str, place: int) -> dict[str, Any]:
    """How a defense looks in all charts."""
    color = COLORS[place % len(COLORS)]
    return {
        "name": label(defense),
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": color, "size": 9, "symbol": SYMBOLS[place % len(SYMBOLS)]},
        "line": {"color": color, "dash": DASHES[place % len(DASHES)]},
    }


def describe(cell: Cell) -> str:
    """What a pointer over a cell or point shows."""
    numbers = ", ".join(f"{title} {spread_text(cell, metric)}" for metric, title in TITLES.items())
    runs = f"{cell['runs']} run{'s' if cell['runs'] > 1 else ''}" + (", unequal settings" if cell["mixed"] else "")
    words = f"{cell['attack']} {setting_text(cell)}", f"{cell['defense']}", f"{numbers} %", runs
    return "<br>".join(label(word) for word in words)


def percent(cell: Cell, metric: str) -> float | None:
    """A mean in percent; None if it was not measured."""
    mean = cell[f"{metric}_mean"]
    return None if mean is None else round(100 * mean, 2)


def label(text: str) -> str:
    """Text that plotly, which knows some HTML, shows as it is."""
    return escape(text.strip(), quote=False)


def dressed(figure: go.Figure, panels: Mapping[str, Panel], title: str, height: int = 440) -> go.Figure:
    """Title, a choice of panels, and a transparent ground, so that the page's own light or dark one shows."""
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 8}, "font": {"size": 15}},
        dragmode=False,  # a finger's drag scrolls the page
        modebar={"bgcolor": CLEAR, "color": "#8c8c96", "activecolor": "#8c8c96"},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"size": 12},
        height=height,
        margin={"l": 56, "r": 16, "t": 84, "b": 56},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top"},
        showlegend=None if figure.data[0].type == "heatmap" else True,
        updatemenus=[
            {
                "buttons": [{"label": name, "method": "restyle", "args": [panel]} for name, panel in panels.items()],
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": 6},
                "font": {"size": 12},
            }
        ],
    )
    grid = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True, "linecolor": CLEAR}
    figure.update_xaxes(**grid)
    figure.update_yaxes(**grid)
    return figure
