"""The leaderboard in a real browser that has no network: it opens, sorts, filters, and leads to a run's figures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backdoor.report.__main__ import report
from helpers.browser import PROGRAM, Browser
from helpers.leaderboard import record, write

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium (Debian: apt-get install chromium)")
TABLE = "document.querySelectorAll('#runs tbody tr').length > 1"
CHARTS = "document.querySelectorAll('#charts .main-svg').length > 3"
NASTY = "<script>document.title='pwned'</script><b>x"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboard")
    for number, attack in enumerate(("badnets", "blended", NASTY)):
        for ratio in (0.01, 0.1):
            for defense in ("none", "abl"):
                run = write(
                    folder / "runs" / f"{number}-{ratio}-{defense}",
                    record(attack=attack, defense=defense, ratio=ratio, asr=(number * 31 + ratio * 300) % 97 / 100),
                )
                (run / "figures").mkdir()
    (folder / "runs" / "0-0.01-none" / "figures" / "index.html").write_text("<title>its figures</title>")
    report([folder / "runs"], folder / "out")
    return folder / "out" / "index.html"


def open_charts(browser: Browser, page: Path, *, width: int = 1280, dark: bool = False) -> None:
    browser.open(page, until=TABLE, width=width, dark=dark)
    browser.value("document.getElementById('charts').scrollIntoView()")
    browser.wait(CHARTS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


def column(browser: Browser, number: int) -> list[str]:
    return browser.value(f"[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[{number}].innerText)")


def test_it_opens_without_a_network(browser: Browser, page: Path) -> None:
    open_charts(browser, page)
    assert browser.errors == []
    assert not [address for address in browser.requests if not address.startswith(("file:", "blob:", "data:"))]
    assert len(column(browser, 0)) == 12
    assert browser.value("document.querySelectorAll('#charts .js-plotly-plot').length") == 4
    buttons = browser.value("[...document.querySelectorAll('#scatter .modebar-btn')].map(one => one.ariaLabel)")
    assert buttons == ["Download plot as a PNG", "Zoom in", "Zoom out", "Reset axes"]  # none that shares or uploads


def test_text_stays_text(browser: Browser, page: Path) -> None:
    open_charts(browser, page)
    assert browser.value("document.title") == "backdoor leaderboard"
    assert NASTY in column(browser, 0)
    labels = browser.value(
        "[...document.querySelectorAll('#heat-asr .ytick text')].map(text => text.textContent.trim())"
    )
    assert f"{NASTY} 0.1" in labels


def test_a_click_on_a_heading_sorts(browser: Browser, page: Path) -> None:
    browser.open(page, until=TABLE)
    place = browser.value(
        "[...document.querySelectorAll('#runs thead th')].findIndex(th => th.innerText.trim() == 'ASR')"
    )
    shown = [float(text) for text in column(browser, place)]
    assert shown != sorted(shown)
    for expected in (sorted(shown), sorted(shown, reverse=True)):
        browser.value(f"document.querySelectorAll('#runs thead th')[{place}].querySelector('.dt-column-title').click()")
        browser.wait(f"document.querySelector('#runs tbody tr').cells[{place}].innerText == '{expected[0]:.1f}'")
        assert [float(text) for text in column(browser, place)] == expected


def test_a_choice_of_ratio_filters(browser: Browser, page: Path) -> None:
    browser.open(page, until=TABLE)
    place = browser.value(
        "[...document.querySelectorAll('#runs thead th')].findIndex(th => th.innerText.trim() == 'Ratio')"
    )
    browser.value(
        f"document.querySelectorAll('#runs thead th')[{place}].querySelector('.dtcc-button_dropdown').click()"
    )
    choice = "[...document.querySelectorAll('.dtcc-dropdown .dtcc-button')].find(one => one.innerText.trim() == '0.01')"
    browser.wait(choice)
    browser.value(f"{choice}.click()")
    browser.wait("document.querySelectorAll('#runs tbody tr').length == 6")
    assert set(column(browser, place)) == {"0.01"}


def test_a_click_on_a_row_leads_to_the_figures(browser: Browser, page: Path) -> None:
    browser.open(page, until=TABLE)
    # Whatever cell is hit, the link lies over it.
    hit = (
        "(() => {{ const box = {row}.cells[1].getBoundingClientRect(); "
        "return document.elementFromPoint(box.x + 9, box.y + 9).href }})()"
    )
    row = "[...document.querySelectorAll('#runs tbody tr')].find(row => row.innerText.includes('{name}'))"
    own = browser.value(hit.format(row=row.format(name="0-0.01-none")))
    assert own == (page.parent.parent / "runs" / "0-0.01-none" / "figures" / "index.html").as_uri()
    assert Path(own.removeprefix("file://")).exists()
    bare = browser.value(hit.format(row=row.format(name="1-0.1-abl")))
    assert bare == (page.parent.parent / "runs" / "1-0.1-abl" / "figures").as_uri() + "/"


def test_it_fits_a_phone_and_the_dark(browser: Browser, page: Path) -> None:
    open_charts(browser, page, width=390, dark=True)
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 26)"
    text = browser.value("getComputedStyle(document.querySelector('#runs td')).color")
    assert min(map(int, re.findall(r"\d+", text))) > 200  # light text
    title = "document.querySelector('#scatter .gtitle')"
    assert browser.value(f"getComputedStyle({title}).fill") == "rgb(230, 230, 234)"
    browser.open(page, until=TABLE)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
