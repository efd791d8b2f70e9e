"""The leaderboard: one HTML file with the table of all runs and the charts, which needs no network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

import plotly.graph_objects as go
import polars as pl
from plotly.offline import get_plotlyjs

from backdoor.report.charts import against_ratio, heat_map, scatter
from backdoor.report.tables import setting_text

os.environ.setdefault("ITABLES_CONFIG", "")  # else the table would look as some file above the working directory says
import itables
from itables.javascript import generate_init_offline_itables_html

PERCENTS = {"c_acc": "C-Acc", "asr": "ASR", "asr_worst": "ASR worst", "r_acc": "R-Acc", "der": "DER"}
COSTS = ("Min", "RAM GB", "GPU GB")
NAMES = ("Attack", "Defense", "Ratio", "Data", "Model", "Seed")
COLUMNS = ("Attack", "Defense", *PERCENTS.values(), "Ratio", "Data", "Model", "Seed", *COSTS, "Run")
# Nothing is fetched from anywhere. The libraries' own scripts are inline, made from blobs, and compile one renderer.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
# The charts' library is large: it waits until the table is there and somebody scrolls to the charts.
DRAW = """function () {
    const later = document.getElementById("later"), charts = document.getElementById("charts");
    if (later === null) return;
    later.remove();
    new IntersectionObserver((seen, observer) => {
        if (!seen.some(one => one.isIntersecting)) return;
        observer.disconnect();
        charts.append(document.importNode(later.content, true));
    }).observe(charts);
}"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{css}</style>
<script>
// DataTables looks for this class alone.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();
</script>
</head>
<body>
<h1>{title}</h1>
<p>{lead}</p>
<noscript><p>Table and charts need JavaScript; report.md beside this file has the numbers as text.</p></noscript>
<div id="table">{table}</div>
<div id="charts"></div>
<template id="later">{charts}</template>
</body>
</html>
"""
LEAD = (
    "{runs:,} run{plural}{skipped}. Sort by a click on a heading, filter with the signs beside it; a click on a row "
    "opens that run's figures. All in percent but times and memory; the charts show means over seeds."
)


def leaderboard(runs: pl.DataFrame, cells: pl.DataFrame, out: Path, skipped: int = 0) -> str:
    """The page as text.

    Args:
        runs, cells: as `tables.frame_of` and `tables.cells_of` make them; at least one run.
        out: the folder where the page will lie, to see which runs have a page of figures.
        skipped: how many records could not be used.
    """
    plural, left_out = "s" * (runs.height != 1), f"; {skipped:,} records could not be used" if skipped else ""
    return PAGE.format(
        policy=POLICY,
        title="backdoor leaderboard",
        css=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
        lead=LEAD.format(runs=runs.height, plural=plural, skipped=left_out),
        table=table(runs, out),
        charts=charts(cells),
    )


def table(runs: pl.DataFrame, out: Path) -> str:
    """The table with the script that makes it sortable, and that script's library."""
    rows = runs.to_dicts()
    shown = pl.DataFrame(
        {
            **{name: [escape(str(row[name.lower()])) for row in rows] for name in NAMES},
            "Ratio": [escape(setting_text(row)) for row in rows],
            "Seed": runs["seed"],
            **{title: runs[name] * 100 for name, title in PERCENTS.items()},
            "Min": runs["seconds"] / 60,
            "RAM GB": runs["ram"] / 1e9,
            "GPU GB": runs["gpu"] / 1e9,
            "Run": [link(row["run"], out) for row in rows],
        }
    ).select(COLUMNS)
    with pl.Config(float_precision=1):
        made = itables.to_html_datatable(
            shown,
            table_id="runs",
            connected=False,
            allow_html=True,  # all text is escaped above
            show_dtypes=False,
            display_logo_when_loading=False,
            text_in_header_can_be_selected=False,  # or a click on it would not sort
            maxBytes=0,
            classes="display nowrap compact",
            style="width:100%",
            pageLength=25,
            autoWidth=False,  # else the widest text of each column is looked for in all rows
            ordering={"indicators": False, "handler": True},
            columnDefs=[
                {"targets": places(NAMES), "columnControl": ["order", ["searchList"]]},
                {"targets": places(PERCENTS.values()), "columnControl": ["order", "searchDropdown"]},
                # Else the library guesses the types by looking at all rows, and keeps all cells' text for searching.
                {"targets": places(("Attack", "Defense", "Data", "Model")), "type": "string"},
                {"targets": places(("Run",)), "type": "html"},
                {"targets": places((*PERCENTS.values(), "Seed")), "type": "num"},
                {"targets": places(COSTS), "type": "num", "searchable": False},
                {"targets": "_all", "columnControl": ["order"]},
            ],
            drawCallback=itables.JavascriptFunction(DRAW),
            language={"search": "Search all columns"},
        )
    return generate_init_offline_itables_html(itables.options.dt_bundle) + made


def places(names: Iterable[str]) -> list[int]:
    """Where columns stand."""
    return [COLUMNS.index(name) for name in names]


def link(run: str, out: Path) -> str:
    """A link from the page to the run's figures: their page, or the folder if the run made none."""
    page = f"{run}/figures/index.html"
    target = page if (out / page).is_file() else f"{run}/figures/"
    return f'<a href="{escape(quote(target))}" target="_blank" rel="noopener">{escape(Path(run).name)}</a>'


def charts(cells: pl.DataFrame) -> str:
    """All charts, each in a box of its own, and their library once."""
    found = cells.to_dicts()
    figures = {
        "heat-asr": heat_map(found, "asr_worst"),
        "heat-c-acc": heat_map(found, "c_acc"),
        "scatter": scatter(found),
        "ratio": against_ratio(found),
    }
    boxes = (f"<div>{box(name, figure)}</div>" for name, figure in figures.items() if figure is not None)
    return f"<script>{get_plotlyjs()}</script>" + "".join(boxes)


def box(name: str, figure: go.Figure) -> str:
    """One chart as HTML."""
    # The first would send the numbers to a server.
    unneeded = ["sendChartToCloud", "zoom2d", "pan2d", "select2d", "lasso2d", "autoScale2d"]
    config = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": unneeded}
    html = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
    return str(html)
