"""`figures/index.html`: the figures of one run on a page, where a leaderboard's click leads."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; height: auto; background: #fff; border-radius: 6px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p><a href="../result.json">result.json</a> · <a href="../config.yaml">config.yaml</a> ·
<a href="../metrics.csv">metrics.csv</a></p>
{figures}
</body>
</html>
"""
FIGURE = '<figure><figcaption>{name}</figcaption><img src="{link}" alt="{name}" loading="lazy"></figure>'


def write_gallery(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write `figures/index.html` into a run's folder; returns its path.

    Args:
        folder: the run's folder; its pictures are those in `figures/`.
        result: the content of result.json.
    """
    pictures = sorted(path for path in (folder / "figures").iterdir() if path.suffix in (".png", ".svg"))
    figures = (FIGURE.format(name=escape(path.stem), link=escape(quote(path.name))) for path in pictures)
    words = (str(result[key]) for key in ("data", "model", "attack", "defense"))
    title = escape(f"{', '.join(words)}, seed {result['seed']}")
    target = folder / "figures" / "index.html"
    target.write_text(PAGE.format(title=title, figures="\n".join(figures)), encoding="utf-8")
    return target
