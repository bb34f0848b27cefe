"""The report in headless Chromium: no network, keys reach everything, no text becomes script, phones, dark mode."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.collect import Collection
from results.render import html
from tests.test_report import every_status, hostile, many, toy_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium in PATH"),
]

Page = Any
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Containers give a browser neither the right to its own sandbox nor much shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visitor:
    """Opens pages from files; notes what they say on the console, ask of the user or want to load."""

    def __init__(self, chromium: Any, folder: Path) -> None:
        self.chromium, self.folder = chromium, folder
        self.contexts: list[Any] = []
        self.complaints: list[str] = []

    def __call__(self, text: str, fragment: str = "", **options: Any) -> Page:
        path = self.folder / "report.html"
        path.write_text(text, encoding="utf-8")
        context = self.chromium.new_context(**options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", self.refuse)
        page.on("request", self.note)
        page.goto(f"{path.as_uri()}{fragment}")
        return page

    def refuse(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def note(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.complaints.append(f"request: {request.url}")


@pytest.fixture
def visit(chromium: Any, tmp_path: Path) -> Iterator[Visitor]:
    """(HTML, fragment, context options) -> the page. Whatever it complains of fails the test."""
    visitor = Visitor(chromium, tmp_path)
    yield visitor
    for context in visitor.contexts:
        context.close()
    assert visitor.complaints == []


@pytest.fixture
def statuses(tmp_path: Path) -> str:
    """A page with a cell of every status."""
    return html.render([every_status(tmp_path / "papers")], Collection({}), findings=["Problem: a: is odd."])


def cell(page: Page, row: str) -> Any:
    return page.locator(f'tr[data-id="{row}"] button.cell')


def expect_focus(page: Page, text: str) -> None:
    """A closed dialog gives the focus back a moment later."""
    page.wait_for_function("text => document.activeElement.textContent.startsWith(text)", arg=text)


def expect_hash(page: Page, text: str) -> None:
    """The dialog's close event, which takes the address back, comes a moment after the key."""
    page.wait_for_function("text => location.hash === text", arg=text)


# Keys


def test_tab_enter_escape(visit: Visitor, statuses: str) -> None:
    page = visit(statuses)
    page.locator("#filter-more").focus()
    for _ in range(20):  # the table's address lies between
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('cell')"):
            break
    expect_focus(page, "98.20")
    dialog = page.locator("#details")
    assert not dialog.is_visible()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    text = dialog.inner_text()
    for words in (
        "toys/first/agrees/s90",
        "Agrees · 90 %",
        "Ours (%)",
        "98.20 ± 0.20",
        "mean of n = 3 of 3 seeds",
        "98.3 ± 0.1",
        "−0.10",
        "inside our 95 % interval",
        "98.4000",
        "seed1",
        "python -m runner cell=toys/first/agrees/s90 seed=0",
        "python scripts/submit.py toys/first/agrees/s90",
        "97.70 to 98.70",
        "mixed versions",
        "method=set method.sparsity=0.9",
    ):
        assert words in text, words
    expect_hash(page, "#toys/first/agrees/s90")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    expect_focus(page, "98.20")
    expect_hash(page, "")


def test_focus_stays_in_the_dialog_and_follows_it_to_the_next_cell(visit: Visitor, statuses: str) -> None:
    page = visit(statuses)
    cell(page, "near").focus()
    page.keyboard.press("Enter")
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("ArrowRight")
    assert page.locator("#details-address").inner_text() == "toys/first/off/s90"
    page.keyboard.press("Escape")
    expect_focus(page, "90.10")


def test_arrow_keys_move_between_cells(visit: Visitor, tmp_path: Path) -> None:
    sheets, runs = many(tmp_path / "papers", tables=1, rows=3, columns=3)
    page = visit(html.render(sheets, runs))
    page.locator("button.cell").first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.cell") == "6"


def test_the_dialog_of_every_status_says_what_it_is(visit: Visitor, statuses: str) -> None:
    page = visit(statuses)
    expected = {
        "missing": "no completed run",
        "needs": "method=dpf",
        "uncalibrated": "not known yet",
        "differs": "otherwise than printed",
        "same": "as printed",
        "diverged": "does not converge",
        "absent": "the paper prints nothing there",
        "off": "more than 0.5 points",
        "partial": "n = 1 of 2 seeds",
    }
    for row, words in expected.items():
        cell(page, row).click()
        assert words in page.locator("#details").inner_text(), row
        page.keyboard.press("Escape")
    cell(page, "needs").click()
    assert "python -m runner" not in page.locator("#details").inner_text()


def test_an_address_opens_its_cell(visit: Visitor, statuses: str) -> None:
    page = visit(statuses, "#toys/first/off/s90")
    assert page.locator("#details-title").inner_text() == "Off · 90 %"
    page.keyboard.press("Escape")
    expect_focus(page, "90.10")


def test_the_configuration_unfolds(visit: Visitor, statuses: str) -> None:
    page = visit(statuses)
    cell(page, "agrees").click()
    summary = page.locator("#details summary", has_text="Configuration")
    summary.focus()
    page.keyboard.press("Enter")
    text = page.locator("#details pre").last.inner_text()
    assert "method:\n  name: set\n  revision: 1\n  sparsity: 0.9\n" in text
    assert 'lr: "1:2 -> 0.1, 3:3 -> 0.02"' in text and "start: null" in text


# The filter


def visible_rows(page: Page) -> list[str]:
    return list(page.locator("tr[data-id]:visible").evaluate_all("rows => rows.map(row => row.dataset.id)"))


def expect_rows(page: Page, rows: list[str]) -> None:
    """The filter acts a moment after a key; ten seconds are for a machine that does much else."""
    deadline = time.monotonic() + 10
    while visible_rows(page) != rows and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert visible_rows(page) == rows


def test_the_filter_by_text_and_by_status(visit: Visitor, statuses: str) -> None:
    page = visit(statuses)
    every = visible_rows(page)
    count = page.locator("#filter-count")
    assert len(every) > 2 and count.inner_text() == f"{len(every)} cells"
    page.keyboard.press("/")
    page.keyboard.type("FIRST miss")
    playwright.expect(count).to_have_text(f"1 of {len(every)} cells in 1 table")
    expect_rows(page, ["missing"])
    page.keyboard.press("Escape")
    expect_rows(page, every)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens the boxes
    for name in ("off", "needs"):
        page.locator(f'input[value="{name}"]').focus()
        page.keyboard.press("Space")
    expect_rows(page, ["off", "differs", "needs"])
    assert page.locator("#filter-more").inner_text().startswith("Status: 2")
    page.locator("#filter-text").fill("nothing has this name")
    playwright.expect(page.locator("#nothing")).to_be_visible()
    expect_rows(page, [])
    page.locator("#nothing button").click()
    expect_rows(page, every)
    playwright.expect(page.locator("#nothing")).to_be_hidden()


def test_the_filter_over_thousands_of_cells(visit: Visitor, tmp_path: Path) -> None:
    page = visit(html.render(*many(tmp_path / "papers")))
    page.locator("#filter-text").fill("paper2/table3 r7 c1")
    playwright.expect(page.locator("#filter-count")).to_have_text("1 of 4,000 cells in 1 table")
    assert page.locator("td:not(.dim) > button.cell:visible").count() == 1
    assert page.locator("section.paper:visible").count() == 1
    page.locator("td:not(.dim) > button.cell:visible").click()
    assert page.locator("#details-address").inner_text() == "paper2/table3/r7/c1"
    assert "note:\n  place:" in page.locator("#details pre").last.evaluate("pre => pre.textContent")


# No text becomes markup


@pytest.mark.parametrize("bypass", [False, True], ids=["with the policy", "without the policy"])
def test_no_text_runs_as_script(visit: Visitor, tmp_path: Path, bypass: bool) -> None:
    """Escaping alone must hold: the page's policy, which forbids such scripts too, is switched off in one case."""
    sheets, runs, findings = hostile(tmp_path / "papers")
    page = visit(html.render(sheets, runs, findings=findings), bypass_csp=bypass)
    for place in range(page.locator("button.cell").count()):
        page.locator("button.cell").nth(place).click()
        page.locator("#details details").evaluate_all("all => all.forEach(each => { each.open = true; })")
        assert page.locator("#details-title").inner_text() != ""
        page.keyboard.press("Escape")
    assert page.locator("img").count() == 0
    assert page.locator("[onclick], [onerror]").count() == 0
    assert page.locator("script").count() == 2
    assert "<img src=x onerror=alert(1)>" in page.locator("body").inner_text()


def test_the_policy_stops_a_script_that_is_not_the_pages_own(visit: Visitor, statuses: str) -> None:
    page = visit(statuses.replace("</body>", "<script>document.title = 'taken over'</script></body>"))
    assert page.title() != "taken over"
    (complaint,) = visit.complaints
    assert "Content Security Policy" in complaint
    visit.complaints.clear()


# Without scripts, on paper, on a phone, in the dark


def test_all_tables_can_be_read_without_scripts(visit: Visitor, statuses: str) -> None:
    page = visit(statuses, java_script_enabled=False)
    text = page.locator("main").inner_text()
    for words in ("98.20 ± 0.20", "98.3 ± 0.1", "A note on 10", "toys/first", "missing", "is odd"):
        assert words in text, words
    assert not page.locator("#filter").is_visible() and not page.locator("#details").is_visible()


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.screen.width"))


def test_a_phone_scrolls_tables_and_not_the_page(visit: Visitor, tmp_path: Path) -> None:
    sheets, runs = many(tmp_path / "papers", tables=3, rows=5, columns=9)
    long = "Compressed/DeCompressed" * 5
    papers = {"paper0": f"Someone 2021: {long}"}
    page = visit(html.render(sheets, runs, findings=[f"Problem: {long}"], papers=papers), **PHONE)
    assert overflow(page) <= 0
    assert page.evaluate("window.visualViewport.scale") == 1
    box = page.locator("section.table .scroll").first
    assert box.evaluate("each => each.scrollWidth > each.clientWidth + 100")
    box.evaluate("each => { each.scrollLeft = 150; }")
    first = page.locator("section.table tbody th[scope=row]").first
    assert first.evaluate("each => each.getBoundingClientRect().left") == pytest.approx(
        box.evaluate("each => each.getBoundingClientRect().left"), abs=2
    )
    sizes = page.locator("main *:visible").evaluate_all(
        "all => all.filter(each => [...each.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
        ".map(each => [parseFloat(getComputedStyle(each).fontSize), each.tagName])"
    )
    assert min(size for size, tag in sizes if tag != "SUP") >= 12
    assert not page.locator("#contents nav").is_visible()
    page.locator("#contents summary").click()
    page.locator('#contents a[href="#paper0/table2"]').click()
    assert not page.locator("#contents nav").is_visible()
    top = page.locator('[id="paper0/table2"] h3').evaluate("each => each.getBoundingClientRect().top")
    assert 0 < top < 844


def test_a_phone_shows_a_cells_details(visit: Visitor, statuses: str) -> None:
    page = visit(statuses, "#toys/first/agrees/s90", **PHONE)
    assert overflow(page) <= 0
    box = page.locator("#details").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] <= 844
    page.locator("#details-close").click()
    assert not page.locator("#details").is_visible()


def test_figures_fit_a_phone_and_their_text_is_legible(visit: Visitor, tmp_path: Path) -> None:
    page = visit(toy_page(tmp_path), **PHONE)
    assert overflow(page) <= 0
    pictures = page.locator("figure svg")
    assert pictures.count() == 2
    for place in range(2):
        assert pictures.nth(place).bounding_box()["width"] <= 390
    heights = page.locator("figure svg text").evaluate_all("all => all.map(each => each.getBoundingClientRect())")
    assert min(min(box["width"], box["height"]) for box in heights if box["width"]) >= 9


def test_a_desktop_page_is_no_wider_than_its_window(visit: Visitor, tmp_path: Path) -> None:
    sheets, runs = many(tmp_path / "papers", tables=2, rows=3, columns=25)
    page = visit(html.render(sheets, runs), viewport={"width": 1280, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#contents nav").is_visible()


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of rgb(r, g, b)."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


GROUND = """each => {
  const ink = getComputedStyle(each).color;
  for (let at = each; at; at = at.parentElement) {
    const ground = getComputedStyle(at).backgroundColor;
    if (!ground.startsWith("rgba(0, 0, 0, 0")) return [ink, ground, each.className, each.textContent];
  }
}"""


def test_contrast_by_hand() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit: Visitor, statuses: str, scheme: str) -> None:
    page = visit(statuses, color_scheme=scheme)
    grounds = []
    for selector in (
        "td.agrees span:visible, td.near span:visible, td.off span:visible, td.open span:visible",
        "main :is(h1, h2, h3, p, li, dt, dd, th, code, summary):visible",
        ".contents a:visible, .toc-count:visible, .d:visible, .r:visible, .plain:visible, .chip:visible",
    ):
        found = page.locator(selector)
        assert found.count() > 0
        grounds += [found.nth(place).evaluate(GROUND) for place in range(found.count())]
    cell(page, "agrees").click()
    inside = page.locator("#details :is(h2, h3, p, dt, dd, small, td, th, code, button):visible")
    grounds += [inside.nth(place).evaluate(GROUND) for place in range(inside.count())]
    for ink, ground, name, text in grounds:
        assert contrast(ink, ground) >= 4.5, (ink, ground, name, text[:40])
    dark = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.05
    assert dark == (scheme == "dark")


def test_agreement_differs_in_more_than_colour(visit: Visitor, statuses: str) -> None:
    page = visit(statuses)
    signs = {name: page.locator(f"td.{name} .sign").first.text_content() for name in ("agrees", "near", "off")}
    assert len(set(signs.values())) == 3 and all(signs.values())


def test_controls_have_names(visit: Visitor, statuses: str) -> None:
    page = visit(statuses)
    cell(page, "agrees").click()
    for tag in ("button", "input", "summary", "a"):
        names = page.locator(tag).evaluate_all(
            "all => all.map(each => (each.getAttribute('aria-label') || each.textContent"
            " || [...(each.labels ?? [])].map(label => label.textContent).join()).trim())"
        )
        assert names and all(names), tag
    tree = page.locator("body").aria_snapshot()
    assert 'button "Close"' in tree and "dialog" in tree


def test_on_paper_there_are_tables_and_no_controls(visit: Visitor, statuses: str) -> None:
    page = visit(statuses, color_scheme="dark")
    page.emulate_media(media="print")
    ink, ground, *_ = page.locator("td.open .v").first.evaluate(GROUND)
    assert luminance(ground) > 0.9 and contrast(ink, ground) >= 4.5
    assert not page.locator("#filter").is_visible() and not page.locator(".side").is_visible()
    assert page.locator("button.cell").first.is_visible()
    assert page.locator(".scroll").first.evaluate("each => getComputedStyle(each).overflowX") == "visible"


def test_thousands_of_cells_open_soon(visit: Visitor, tmp_path: Path) -> None:
    """A bound against quadratic work, not a measurement."""
    page = visit(html.render(*many(tmp_path / "papers")))
    took = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
    assert took < 15_000
    page.locator("button.cell").nth(3999).click()
    assert page.locator("#details-address").inner_text() == "paper3/table9/r19/c4"
