"""`python -m backdoor.report` on many records: time to collect them, and to open and sort the page in Chromium.

The records are synthetic (BackdoorBench's grid: 4 data sets, 5 models, 8 attacks, 5 ratios, 10 defenses; more runs
are more seeds) but of the length of real ones. `tests/helpers/browser.py` speaks to the browser. The collecting is
compared with reading the same files and parsing them, which no reader can leave out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.browser import PROGRAM, Browser

AXES = {
    "data": ("cifar10", "cifar100", "gtsrb", "tiny_imagenet"),
    "model": ("preact_resnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large", "densenet161"),
    "attack": ("badnets", "blended", "inputaware", "lf", "ssba", "trojannn", "wanet", "sig"),
    "ratio": (0.001, 0.005, 0.01, 0.05, 0.1),
    "defense": ("none", "abl", "ac", "anp", "dbd", "fp", "ft", "nad", "nc", "spectral"),
}
FILLER = {f"setting_{number}": {"_target_": "some.class.of.a.config", "value": number} for number in range(60)}
TABLE = "document.querySelectorAll('#runs tbody tr').length > 1"
CHARTS = "document.querySelectorAll('#charts .main-svg').length > 3"
SORT = """(() => {
    const heading = [...document.querySelectorAll('#runs thead th')].find(th => th.innerText.trim() == 'ASR');
    const start = performance.now();
    heading.querySelector('.dt-column-title').click();
    return new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))));
})()"""


def write_records(folder: Path, count: int) -> int:
    """Make the records; the bytes of one."""
    draw = random.Random(0)
    grid = itertools.product(range(count), *AXES.values())  # the seed changes last
    for number, (seed, data, model, attack, ratio, defense) in enumerate(itertools.islice(grid, count)):
        metrics = {name: draw.random() for name in ("c_acc", "c_acc_non_target", "asr", "r_acc", "der")}
        stages = [{"name": name, **metrics, "seconds": 9.5, "stored": False} for name in ("victim", "mask", "tune")]
        record = {
            "schema": 2,
            **{"data": data, "model": model, "attack": attack, "defense": defense, "seed": seed},
            "stages": stages,
            "final": metrics,
            "started": "2026-11-21T10:00:00+00:00",
            "seconds": 1000 * draw.random(),
            "peak_memory": {"ram": 2_000_000_000, "gpu": 1_000_000_000},
            "environment": {"git": {"commit": "0" * 40}, "packages": dict.fromkeys("abcdefghijkl", "1.2.3")},
            "config": {
                "attack": {"ratio": ratio, "ratio_of": "train"},
                "names": [data, model, attack, defense],
                **FILLER,
            },
        }
        run = folder / f"{number}-{attack}-{defense}"
        run.mkdir()
        (run / "result.json").write_text(json.dumps(record, indent=2))
    return len(json.dumps(record, indent=2))


def main() -> None:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8000)
    parser.add_argument("--turns", type=int, default=3, help="times that each candidate is measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs, out = Path(name) / "runs", Path(name) / "out"
        runs.mkdir()
        size = write_records(runs, args.records)
        floors, times = [], []
        for _ in range(args.turns):
            start = time.perf_counter()
            for path in runs.glob("*/result.json"):
                json.loads(path.read_bytes())
            floors.append(time.perf_counter() - start)
            start = time.perf_counter()
            command = [sys.executable, "-m", "backdoor.report", str(runs), f"out={out}"]
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        page = out / "index.html"
        floor, whole = median(floors), median(times)
        print(f"{args.records:,} records of {size:,} bytes; the page has {page.stat().st_size / 1e6:.1f} MB")
        print(f"read and parse alone: {floor:.2f} s; backdoor.report, a process: {whole:.2f} s ({whole / floor:.1f}x)")
        if PROGRAM is not None:
            measure_page(page, args.turns)


def measure_page(page: Path, turns: int) -> None:
    """Print the times in Chromium: until the table is there, until the charts are, and of a sort."""
    with Browser() as browser:
        browser.open(page, until=TABLE)  # the first page that a browser opens pays for the browser's start
        tables, charts, sorts = [], [], []
        for _ in range(turns):
            tables.append(browser.open(page, until=TABLE))
            sorts.append(browser.value(SORT) / 1000)
            start = time.perf_counter()
            browser.value("document.getElementById('charts').scrollIntoView()")
            browser.wait(CHARTS)
            charts.append(time.perf_counter() - start)
    print(
        f"page: table {median(tables):.2f} s, sort {median(sorts):.2f} s, "
        f"charts once scrolled to {median(charts):.2f} s"
    )


if __name__ == "__main__":
    main()
