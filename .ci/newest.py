"""Try the newest release of everything in a second environment, and report; nothing that breaks there fails a merge.

    .ci/newest.py WORK      WORK/tests.xml: what pytest wrote of the main run (--junitxml, xunit1)

The tests are those files that took least time in the main run, up to a budget, so that no list of them can grow old.
No line that this prints begins like pytest's own closing line.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
BUDGET_S = 300.0  # of the main run's seconds; two workers share them
INSTALL_S, TESTS_S = 600, 420  # longer ones are ended


def quickest(report: Path, budget_s: float) -> list[str]:
    """The test files that together took at most `budget_s` seconds, the quickest first."""
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        seconds[case.attrib["file"]] += float(case.attrib["time"])
    chosen: list[str] = []
    for file, taken in sorted(seconds.items(), key=lambda pair: pair[1]):
        budget_s -= taken
        if budget_s < 0:
            break
        chosen.append(file)
    return chosen


def versions(lines: str) -> dict[str, str]:
    """Name -> version of `name==version` lines; local versions (+cpu) do not count."""
    pairs = (line.split("==") for line in lines.splitlines() if "==" in line and not line.startswith("#"))
    return {name: version.partition("+")[0] for name, version in pairs}


def differing(pinned: dict[str, str], newest: dict[str, str]) -> list[str]:
    """`name 1.0 -> 1.1` for what is pinned and not the newest; `name 1.0 -> none` for what is needed no more."""
    return [f"{name} {old} -> {newest.get(name, 'none')}" for name, old in pinned.items() if newest.get(name) != old]


def broken(report: Path) -> tuple[int, list[str]]:
    """How many tests a run had, and a line for each that broke."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    lines = []
    for case in cases:
        for fault in (*case.findall("failure"), *case.findall("error")):
            first = " ".join((fault.get("message") or "").split())[:160]
            lines.append(f"{case.get('file') or case.get('classname')}::{case.get('name')}: {first}")
    return len(cases), lines


def call(limit_s: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends after `limit_s` seconds, with all that it started."""
    return subprocess.run(["timeout", "-k", "10", str(limit_s), *words], cwd=ROOT, capture_output=True, text=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Why a command failed, as far as its last line tells."""
    lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    return f"status {done.returncode}: {lines[-1][:200]}"


def try_newest(work: Path, say: Callable[[str], None]) -> None:
    """Install, compare versions, run the fast half of the tests."""
    venv, report = work / "newest", work / "newest.xml"
    installed = call(INSTALL_S, "make", "install", f"VENV={venv}", "NEWEST=1")
    if installed.returncode:
        say(f"not tried, as installing it failed ({last_line(installed)})")
        return
    frozen = call(60, f"{venv}/bin/python", "-m", "pip", "freeze", "--all")
    changed = differing(versions((ROOT / "constraints.txt").read_text()), versions(frozen.stdout))
    say(f"not as in constraints.txt: {', '.join(changed) or 'none'}")
    files = quickest(work / "tests.xml", BUDGET_S)
    form = (f"--junitxml={report}", "-o", "junit_family=xunit1", "--durations=0", "-p", "no:cacheprovider")
    done = call(TESTS_S, f"{venv}/bin/python", "-m", "pytest", *form, *files)
    if not report.exists():
        say(f"the tests did not get to their end ({last_line(done)})")
        return
    count, faults = broken(report)
    for fault in faults:
        say(f"breaks {fault}")
    say(f"{len(files)} test files with {count} tests, of which {len(faults)} break")


def main() -> None:
    """Whatever happens, the exit status is 0 and the environment goes."""
    work = Path(sys.argv[1])
    try:
        try_newest(work, lambda line: print(f"newest: {line}", flush=True))
    except Exception as error:
        print(f"newest: not tried to its end ({type(error).__name__}: {error})")
    finally:
        shutil.rmtree(work / "newest", ignore_errors=True)


if __name__ == "__main__":
    main()
