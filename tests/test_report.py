"""The HTML report: one page that needs nothing else, says the same as the cells, and lets no text become markup."""

import base64
import hashlib
import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from results import report
from results.address import select
from results.cell import STATUSES, Cell
from results.collect import Collection, collect
from results.figure import choose
from results.fill import Sheet, fill
from results.published import parse
from results.record import Record, Whole
from results.render import html
from results.render.report import agreement, alternative, embedded, picture
from results.series import plot
from tests.test_results_cells import SET90, write_table
from tests.test_results_records import fake_compose, write_run

ROOT = Path(__file__).resolve().parents[1]
Place = tuple[str, str]
INJECTIONS = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "\"'><b onclick=alert(3)>&amp; ]]>")
VOID = {"meta", "link", "input", "br", "img", "hr"}


# Pages to look at


def sheet(papers: Path, changes: Mapping[Place, Mapping[str, Any]], name: str = "toys/first", **table: Any) -> Sheet:
    """The toy table (tests.test_results_cells) with `table`'s fields, its cells with `changes`."""
    write_table(papers, name, **table)
    (selection,) = select([name], papers)
    blank = fill(selection, Collection({}), None, fake_compose, papers)
    return replace(blank, cells={place: replace(cell, **changes.get(place, {})) for place, cell in blank.cells.items()})


def measured(*values: float, **more: Any) -> dict[str, Any]:
    """What a cell with these values has."""
    seeds = tuple(range(len(values)))
    runs = {seed: Path(f"/elsewhere/seed{seed}") for seed in seeds}
    states = dict.fromkeys(seeds, "completed")
    return {"seeds": seeds, "states": states, "values": dict(enumerate(values)), "runs": runs, **more}


def record(key: str, seed: int, path: Path | str = "/elsewhere", dirty: bool = False, **summary: Any) -> Record:
    environment = {
        "python": "3.11.7",
        "packages": {"torch": "2.15.0"},
        "git": {"commit": "0123456789abcdef", "dirty": dirty},
        "device": "cpu",
    }
    config = fake_compose([*SET90, f"seed={seed}"])
    content = Whole(config, (), environment, {"wall_s": 1.5, **summary}, ())
    return Record(str(path), False, key, seed, "completed", None, content)


def every_status(papers: Path) -> Sheet:
    """A cell of each status and of each verdict."""
    states = {status: {"values": {}, "states": dict.fromkeys((0, 1, 2), status)} for status in STATUSES}
    cells: dict[str, dict[str, Any]] = {
        "agrees": measured(
            98.0, 98.4, 98.2, published=parse("98.3 ± 0.1", "x"), best=True, footnotes=("mixed versions",)
        ),
        "near": measured(98.0, 98.1, 98.2, published=parse("98.5", "x")),
        "off": measured(90.0, 90.1, 90.2, published=parse("98.5", "x")),
        "partial": {**measured(97.0), "seeds": (0, 1), "states": {0: "completed", 1: "missing"}},
        **{name: {**states[name], "published": parse("97.1", "x")} for name in ("missing", "running", "failed")},
        "diverged": {**states["diverged"], "published": parse("diverged", "x")},
        "blocked": states["blocked"],
        "uncalibrated": {**states["missing"], "fixed_status": "uncalibrated"},
        "same": {"kind": "config", "text": "10^{-5}", "fixed_status": "ok", "published": parse("10^{-5}", "x")},
        "differs": {"kind": "config", "text": "71.1%", "fixed_status": "differs", "published": parse("71.4%", "x")},
        "absent": {"fixed_status": "absent", "published": parse("absent", "x")},
        "needs": {"fixed_status": "needs", "needs": ("method=dpf",), "published": parse("illegible", "x")},
        "beyond": {**states["beyond"], "kind": "derived"},
    }
    rows = [{"id": name, "title": name.capitalize(), "section": "All"} for name in cells]
    columns = [{"id": "s90", "title": "90 %", "overrides": ["method=set", "method.sparsity=0.9"]}]
    changes = {(name, "s90"): change for name, change in cells.items()}
    return sheet(papers, changes, rows=rows, columns=columns, notes=["A note on 10^{-5}."])


def many(papers: Path, tables: int = 40, rows: int = 20, columns: int = 5) -> tuple[list[Sheet], Collection]:
    """Thousands of cells of every status, with their runs and a configuration each."""
    chance = random.Random(0)
    sheets, records = [], {}
    for number in range(tables):
        changes: dict[Place, dict[str, Any]] = {}
        for row in range(rows):
            for column in range(columns):
                place, key = (f"r{row}", f"c{column}"), f"{number:04x}{row:04x}{column:04x}"
                config = {**fake_compose(SET90), "note": {"place": f"{number}/{row}/{column}", "weights": [1, 2, 3]}}
                middle = chance.uniform(60, 99)
                if chance.random() < 0.8:
                    change = measured(*(chance.gauss(middle, 0.3) for _ in range(3)), best=chance.random() < 0.1)
                    for seed in range(3):
                        records[key, seed] = record(key, seed, path=f"/runs/{key}/seed{seed}")
                else:
                    change = {"fixed_status": chance.choice(STATUSES[2:])}
                printed = parse(f"{chance.gauss(middle, 0.5):.2f} ± 0.20", "x")
                changes[place] = {**change, "key": key, "config": config, "published": printed}
        sheets.append(
            sheet(
                papers,
                changes,
                name=f"paper{number // 10}/table{number % 10}",
                title=f"Table {number}: a title as long as those of papers are, with some words on the setting",
                rows=[
                    {"id": f"r{row}", "title": f"A method of some name, {row}", "section": f"Section {row // 7}"}
                    for row in range(rows)
                ],
                columns=[{"id": f"c{column}", "title": f"{50 + column} % sparse"} for column in range(columns)],
                overrides=["method=set"],
            )
        )
    return sheets, Collection(records)


class Tags(HTMLParser):
    """The elements of a page; complains of what a browser would have to mend."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.headings: list[int] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("div", "ul", "section", "table"):
            assert "p" not in self.open, f"<{tag}> ends the paragraph around it"
        if re.fullmatch("h[1-6]", tag) and "dialog" not in self.open:
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return content


def expanded(reference: Any, pool: Sequence[Mapping[str, Any]]) -> Any:
    """What the page's script makes of a pooled mapping."""
    if isinstance(reference, dict):
        return {name: expanded(value, pool) for name, value in pool[reference["$"]].items()}
    return [expanded(item, pool) for item in reference] if isinstance(reference, list) else reference


# The page as a whole


def test_the_page_needs_no_network_and_no_other_file(tmp_path: Path) -> None:
    page = html.render([every_status(tmp_path)], Collection({}))
    tags = Tags(page)
    assert [tag for tag, _ in tags.elements if tag in ("img", "iframe", "object", "embed", "base", "audio")] == []
    assert [script.get("src") for script in tags.all("script")] == [None, None]
    assert all((link["href"] or "").startswith("data:image/svg+xml,") for link in tags.all("link"))
    assert all((link["href"] or "").startswith("#") for link in tags.all("a"))
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    page = html.render([every_status(tmp_path)], Collection({}))
    (policy,) = (meta["content"] for meta in Tags(page).all("meta") if "http-equiv" in meta)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in (policy or "")
    assert "default-src 'none'" in (policy or "")


def test_the_page_is_well_formed_and_named(tmp_path: Path) -> None:
    tags = Tags(html.render([every_status(tmp_path)], Collection({}), findings=["Problem: x: is odd.", "Note: y."]))
    ids = [attributes["id"] for _, attributes in tags.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(link["href"] or "")[1:] for link in tags.all("a")}
    assert links <= set(ids) and {"toys", "toys/first"} <= links
    assert tags.headings[0] == 1 and tags.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(tags.headings, tags.headings[1:], strict=False))
    for name, attributes in tags.elements:
        for reference in ("aria-labelledby", "aria-controls", "aria-describedby", "for"):
            if reference in attributes and name != "output":
                assert attributes[reference] in ids
    assert {attributes["scope"] for attributes in tags.all("th")} == {"col", "row", "rowgroup"}


def test_every_cell_is_a_button_in_reading_order_with_its_status_in_words(tmp_path: Path) -> None:
    filled = every_status(tmp_path)
    page = html.render([filled], Collection({}))
    buttons = [button for button in Tags(page).all("button") if button.get("class") == "cell"]
    assert [button["data-cell"] for button in buttons] == [str(place) for place in range(len(filled.cells))]
    assert [button["data-s"] for button in buttons] == [cell.status for cell in filled.cells.values()]
    assert {button["data-s"] for button in buttons} == set(STATUSES)
    cells = re.findall(r'<td(?: class="([^"]*)")?><button.*?>(.*?)</button></td>', page)
    words = {
        row: (kind, re.sub("<[^>]*>", "", text)) for (row, _), (kind, text) in zip(filled.cells, cells, strict=True)
    }
    assert words["agrees"] == ("agrees", "98.20 ± 0.20★, besta✓, agrees, paper: 98.3 ± 0.1")
    assert words["near"] == ("near", "98.10 ± 0.10≈, near, paper: 98.5")
    assert words["off"] == ("off", "90.10 ± 0.10≠, off, paper: 98.5")
    assert words["partial"] == ("", "97.00n=1")
    assert words["missing"] == ("open", "missing, paper: 97.1")
    assert words["diverged"] == ("agrees open", "diverged✓, agrees, paper: diverged")
    assert words["same"] == ("agrees text", "10−5✓, agrees, paper: as printed")
    assert words["differs"] == ("off text", "71.1%≠, off, paper: 71.4%")
    assert words["absent"] == ("open", "–blank")
    assert words["needs"] == ("open", "needs, paper: illegible")
    assert words["beyond"] == ("open", "beyond")


def test_what_is_open_is_never_filled_from_the_published_value(tmp_path: Path) -> None:
    page = html.render([sheet(tmp_path, {("set", "s90"): {"published": parse("98.5", "x")}})], Collection({}))
    assert '<span class="v"><i class="dot s-missing"></i>missing</span>' in page
    assert page.count("98.5") == page.count("paper: </span>98.5</span>") + page.count('"text":"98.5"') + page.count(
        '"mean":98.5'
    )


def test_without_published_there_is_no_trace_of_the_papers_values(tmp_path: Path) -> None:
    page = html.render([every_status(tmp_path)], Collection({}), published=False)
    for text in ("98.3 ± 0.1", "98.5", "97.1", "71.4%", 'class="agrees', "illegible"):
        assert text not in page, text
    compared = {"published", "difference", "inside", "agreement", "why"}
    assert not [name for each in data_of(page)["cells"] for name in each if name in compared]
    assert "98.20" in page and "71.1%" in page


def test_progress_counts_every_cell_once(tmp_path: Path) -> None:
    filled = every_status(tmp_path)
    progress = html._table(filled, itertools.count(), True)["progress"]
    assert progress.statuses == {"ok": 4, **dict.fromkeys([s for s in STATUSES if s != "ok"], 1)}
    assert (progress.done, progress.wanted, progress.measured) == (4, 13, 3)
    assert progress.agreements == {
        "measured": {"agrees": 2, "near": 1, "off": 1},
        "settings": {"agrees": 1, "off": 1},
    }
    assert sum(share for _, _, share in progress.parts) == pytest.approx(100)
    text = Tags(html.render([filled], Collection({}))).text
    assert "4 of 13 cells are complete: 3 measured, 1 read from the configurations" in text


def test_findings_notes_and_footnotes_are_on_the_page(tmp_path: Path) -> None:
    page = html.render(
        [every_status(tmp_path)], Collection({}), findings=["Problem: a/seed0: is torn.", "Note: 2 agree.", "Else."]
    )
    text = Tags(page).text
    for words in ("problem a/seed0: is torn.", "note 2 agree.", "note Else.", "A note on 10 −5 .", "a mixed versions."):
        assert words in text, words
    assert "Nothing was found wrong" in Tags(html.render([every_status(tmp_path)], Collection({}))).text


def test_a_profile_is_named_and_compares_nothing(tmp_path: Path) -> None:
    write_table(tmp_path / "papers", published={"set": {"s90": "98.5"}})
    write_run(tmp_path / "runs", [*SET90, "profile=short"])
    runs = collect([tmp_path / "runs"])
    (selection,) = select([], tmp_path / "papers")
    page = html.render([fill(selection, runs, "short", fake_compose, tmp_path / "papers")], runs)
    assert "Profile short." in page and "--profile short" in page
    assert 'class="agrees' not in page and 'class="off' not in page


def test_the_same_cells_give_the_same_page(tmp_path: Path) -> None:
    filled = every_status(tmp_path)
    assert html.render([filled], Collection({})) == html.render([filled], Collection({}))


def test_papers_come_before_what_is_none_and_buttons_still_name_their_cells(tmp_path: Path) -> None:
    names = ("demo/one", "paper/one", "demo/two")
    sheets = [sheet(tmp_path, {}, name=name) for name in names]
    page = html.render(sheets, Collection({}), papers={"paper": "Someone 2020: Something"})
    content = data_of(page)
    assert [table["address"] for table in content["tables"]] == ["paper/one", "demo/one", "demo/two"]
    assert [attributes["id"] for tag, attributes in Tags(page).elements if attributes.get("data-table")] == [
        table["address"] for table in content["tables"]
    ]
    assert [cell["t"] for cell in content["cells"]] == [0] * 4 + [1] * 4 + [2] * 4


# What the dialogs show


def test_details_are_the_cells_own(tmp_path: Path) -> None:
    filled = every_status(tmp_path)
    key = filled.cells["agrees", "s90"].key or ""
    runs = Collection({(key, seed): record(key, seed, dirty=seed == 2) for seed in range(3)})
    content = data_of(html.render([filled], runs, root=Path("/elsewhere")))
    cell = content["cells"][0]
    assert (cell["r"], cell["c"], cell["status"], cell["n"]) == ("agrees", "s90", "ok", 3)
    assert cell["values"] == [98.0, 98.4, 98.2] and cell["states"] == ["completed"] * 3
    assert cell["mean"] == pytest.approx(98.2) and cell["std"] == pytest.approx(0.2)
    # t(2, 97.5 %) = 4.3027; 4.3027 * 0.2 / sqrt(3) = 0.4968
    assert cell["interval"] == pytest.approx([98.2 - 0.4968, 98.2 + 0.4968], abs=1e-4)
    assert cell["published"] == {"mean": 98.3, "std": 0.1, "text": "98.3 ± 0.1", "mark": None}
    assert cell["difference"] == pytest.approx(-0.1) and cell["inside"] is True and cell["agreement"] == "agrees"
    assert cell["footnotes"] == ["mixed versions"]
    assert cell["overrides"] == SET90 and cell["key"] == key
    run = content["runs"][f"{key}/seed2"]
    made = expanded(run["made"], content["pool"])
    assert (run["path"], run["wall_s"]) == ("seed2", 1.5)
    assert (made["git"]["commit"], made["git"]["dirty"], made["device"]) == ("0123456789abcdef", True, "cpu")
    assert made["packages"] == {"torch": "2.15.0"}
    config = expanded(content["configs"][key], content["pool"])
    assert config == {k: v for k, v in fake_compose(SET90).items() if k not in ("runs", "seed")}
    assert len(content["configs"]) == 1  # all rows of the table run the same
    assert content["meanings"].keys() == set(STATUSES)


def test_zero_false_and_nan_are_told(tmp_path: Path) -> None:
    changes = {
        ("set", "s80"): measured(0.0, digits=0, published=parse("0", "x")),
        ("set", "s90"): measured(math.nan, 1.0, published=parse("50", "x")),
    }
    cells = data_of(html.render([sheet(tmp_path, changes)], Collection({})))["cells"]
    zero, odd = cells[2], cells[3]
    assert (zero["mean"], zero["values"], zero["digits"], zero["difference"]) == (0.0, [0.0], 0, 0.0)
    assert zero["inside"] is None and zero["n"] == 1 and "std" not in zero
    assert (odd["mean"], odd["values"], odd["std"], odd["agreement"]) == ("nan", ["nan", 1.0], "nan", "off")


def test_equal_mappings_are_stored_once() -> None:
    pool = embedded.Pool()
    one = pool.add({"model": {"name": "net", "sizes": [3, {"deep": None}]}, "lr": 0.1})
    two = pool.add({"model": {"name": "net", "sizes": [3, {"deep": None}]}, "lr": 0.2})
    assert len(pool.mappings) == 4
    assert expanded(one, pool.mappings) == {"model": {"name": "net", "sizes": [3, {"deep": None}]}, "lr": 0.1}
    assert expanded(two, pool.mappings)["lr"] == 0.2
    assert expanded(pool.add({"$": 7, "x": {"$": "y"}}), pool.mappings) == {"$": 7, "x": {"$": "y"}}
    assert expanded(pool.add({"a": True}), pool.mappings)["a"] is True
    assert expanded(pool.add({"a": 1}), pool.mappings)["a"] == 1 and pool.add({"a": 1}) != pool.add({"a": True})


def test_json_in_a_script_has_no_character_that_html_reads() -> None:
    content = {"a": "</script><!-- & \u2028\u2029 ± \ud800"}
    text = embedded.as_script(content)
    assert text.isascii() and not set(text) & set("<>&")
    assert json.loads(text) == content


# Nothing that a text says becomes markup


def hostile(papers: Path) -> tuple[list[Sheet], Collection, list[str]]:
    """Sheets, runs and findings with an injection wherever a text can stand."""
    sheets, records = [], {}
    for number, text in enumerate(INJECTIONS):
        key = f"{number:012x}"
        config = {**fake_compose(SET90), "note": text, text: {"x": text}}
        cell: dict[str, Any] = measured(98.0, published=parse(text, "x"), footnotes=(text,), problems=(text,))
        cell |= {"overrides": (f"x={text}",), "metric": text, "unit": text, "needs": (text,), "operands": (text,)}
        cell |= {"key": key, "config": config, "runs": {0: Path("/elsewhere") / text}}
        other = {"kind": "config", "text": text, "fixed_status": "differs", "published": parse("x", "x")}
        records[key, 0] = record(key, 0, path=f"/elsewhere/{text}", reason=text)
        sheets.append(
            sheet(
                papers,
                {("set", "s90"): cell, ("set", "s80"): other},
                name=f"toys/t{number}",
                title=text,
                notes=[text],
                rows=[{"id": "set", "title": text, "section": text}],
                columns=[{"id": "s80", "title": text}, {"id": "s90", "title": f"{text} 2"}],
            )
        )
    return sheets, Collection(records), [f"Problem: {text}" for text in INJECTIONS]


def test_every_text_is_escaped(tmp_path: Path) -> None:
    sheets, runs, findings = hostile(tmp_path)
    page = html.render(sheets, runs, findings=findings, papers={"toys": INJECTIONS[0]})
    tags = Tags(page)  # checks that what is opened is closed
    assert not tags.all("img") and not tags.all("b onclick")
    assert not [attributes for _, attributes in tags.elements for name in attributes if name.startswith("on")]
    assert len(tags.all("script")) == 2
    for text in INJECTIONS:
        assert tags.text.count(" ".join(text.split())) >= 6, text
    content = data_of(page)
    assert content["cells"][1]["problems"] == [INJECTIONS[0]] and content["cells"][1]["unit"] == INJECTIONS[0]
    assert content["tables"][1]["title"] == INJECTIONS[1]


def test_a_path_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    page = html.render([every_status(tmp_path)], Collection({}), findings=["Problem: \udcff: is odd."])
    assert "\\udcff" in page.encode("utf-8").decode("utf-8")


@pytest.mark.parametrize(
    "text, shown",
    [
        ("10^{-5}", "10<sup>−5</sup>"),
        ("10^{3}, <10^{-4}>", "10<sup>3</sup>, &lt;10<sup>−4</sup>&gt;"),
        ("10^{<b>}", "10^{&lt;b&gt;}"),
    ],
)
def test_powers_are_raised_and_all_else_escaped(text: str, shown: str) -> None:
    assert html.powers(text) == shown


# Agreement


def cell(**changes: Any) -> Cell:
    return Cell(paper="toys", table="toys/first", row="r", column="c", overrides=(), key=None, unit="%", **changes)


@pytest.mark.parametrize(
    "changes, printed, name",
    [
        # mean 98.2, std 0.2, interval 97.70 to 98.70
        (measured(98.0, 98.4, 98.2), "98.69", "agrees"),
        (measured(98.0, 98.4, 98.2), "98.3 ± 0.1", "agrees"),
        (measured(98.0, 98.4, 98.2), "98.71 ± 0.01", "off"),  # 0.51 > max(2 * 0.2, 0.5)
        (measured(98.0, 98.4, 98.2), "98.71 ± 0.30", "near"),  # 0.51 <= 2 * 0.3
        # mean 98.1, std 0.01, interval 98.075 to 98.125
        (measured(98.09, 98.11, 98.1), "98.13", "near"),
        (measured(98.09, 98.11, 98.1), "98.6", "near"),  # 0.5 points
        (measured(98.09, 98.11, 98.1), "98.61", "off"),
        (measured(98.139, 98.141, 98.14), "98.1", "agrees"),  # outside the interval, but that is how 98.14 is printed
        (measured(98.159, 98.161, 98.16), "98.1", "near"),
        (measured(98.12), "98.1", "agrees"),
        (measured(98.12), "98.3", "near"),
        (measured(98.12), "97.3", "off"),
        (measured(1234.0, unit=""), "1,230", "near"),  # 1 % of the value
        (measured(1234.0, unit=""), "1,234", "agrees"),
        (measured(1250.0, unit=""), "1,230", "off"),
        (measured(0.294, unit="×"), "0.29×", "agrees"),
        (measured(math.nan, 1.0), "50", "off"),
        (measured(50.0), "about 50", None),
        (measured(50.0), "absent", None),
        (measured(50.0), "illegible", None),
        (measured(50.0), "diverged", "off"),
        (measured(50.0, profile="short"), "50", None),
        ({"seeds": (0, 1), "states": {0: "diverged", 1: "diverged"}}, "diverged", "agrees"),
        ({"seeds": (0, 1), "states": {0: "diverged", 1: "missing"}}, "diverged", None),
        ({"seeds": (0, 1), "states": {0: "diverged", 1: "diverged"}}, "50", "off"),
        ({"seeds": (0,), "states": {0: "missing"}}, "50", None),
        ({"kind": "config", "text": "0.10", "fixed_status": "ok"}, "0.10", "agrees"),
        ({"kind": "config", "text": "0.1", "fixed_status": "differs"}, "0.10", "off"),
        ({"kind": "config", "text": "0.1", "fixed_status": "ok"}, "illegible", None),
    ],
)
def test_verdicts(changes: dict[str, Any], printed: str, name: str | None) -> None:
    judged = agreement.verdict(replace(cell(published=parse(printed, "x")), **changes))
    assert judged.name == name
    assert judged.why.endswith(".") and judged.why[0].isupper()


def test_without_a_printed_value_there_is_no_verdict() -> None:
    assert agreement.verdict(replace(cell(), **measured(98.0))).name is None


@pytest.mark.parametrize(
    "text, half", [("76.30 ± 0.1", 0.005), ("76.3", 0.05), ("1,200", 0.5), ("−1.44", 0.005), ("0.29×", 0.005), ("x", 0)]
)
def test_half_a_unit_of_the_last_printed_digit(text: str, half: float) -> None:
    assert agreement.half_unit(text) == pytest.approx(half, rel=1e-12)


# Figures


def write_figure(papers: Path, fields: Mapping[str, Any], name: str = "one") -> None:
    path = papers / "toys" / "figures" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"title": f"Figure {name}", "table": "toys/first", **fields}))  # JSON is YAML


POINTS = {"plot": "points", "xlabel": "sparsity", "ylabel": "accuracy", "rows": ["set"]}


def toy_page(tmp_path: Path) -> str:
    papers = write_table(tmp_path / "papers")
    write_figure(papers, POINTS)
    write_figure(papers, {**POINTS, "title": INJECTIONS[0]}, "two")
    write_figure(papers, {**POINTS, "rows": ["dense"]}, "empty")
    for seed, accuracy in enumerate((97.0, 98.0, 99.0)):
        write_run(tmp_path / "runs", SET90, seed, accuracy=accuracy)
    write_run(tmp_path / "runs", ["method=set", "method.sparsity=0.8"], 0, accuracy=96.5)
    report.write(tmp_path / "page.html", collect([tmp_path / "runs"]), compose=fake_compose, papers=papers)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_figures_stand_below_their_table_and_empty_ones_say_why(tmp_path: Path) -> None:
    page = toy_page(tmp_path)
    tags = Tags(page)
    figures = tags.all("figure")
    assert [figure["id"] for figure in figures] == ["figure/toys/one", "figure/toys/two"]
    assert page.index('id="toys/first"') < page.index('id="figure/toys/one"')
    assert "Not drawn: Figure empty" in tags.text and "would be empty" in tags.text
    ids = [attributes["id"] for _, attributes in tags.elements if "id" in attributes]
    assert len(ids) == len(set(ids))  # also within the two pictures, which matplotlib gives the same
    plots = [attributes for tag, attributes in tags.elements if attributes.get("role") == "img" and tag == "div"]
    assert "Plot: Figure one. accuracy against sparsity, for SET. The numbers follow below." in [
        plot["aria-label"] for plot in plots
    ]
    assert tags.all("img") == []


def test_a_pictures_numbers_can_be_read(tmp_path: Path) -> None:
    toy_page(tmp_path)
    figure = choose(["toys/one"], tmp_path / "papers")[0]
    plotted = plot(figure, collect([tmp_path / "runs"]), None, fake_compose, tmp_path / "papers")
    table = alternative.numbers(plotted)
    assert (table["corner"], table["head"]) == ("sparsity", ["0.8", "0.9"])
    assert table["rows"] == [("SET", ["96.5", "98 ± 1"])]
    line = replace(
        plotted.series[0],
        x=tuple(map(float, range(1, 21))),
        mean=(5.0, 1.0, math.nan, *[6.0] * 16, 7.0),
        std=(None,) * 20,
        published=((1.0, 4.0, 0.5),),
    )
    level = replace(line, title="Dense", flat=True, x=(math.nan,), mean=(9.0,), std=(0.25,), published=())
    table = alternative.numbers(replace(plotted, series=(line, level)))
    assert table["head"] == ["first", "lowest", "highest", "last"]
    assert table["rows"] == [
        ("SET", ["5 at 1", "1 at 2", "7 at 20", "7 at 20"]),
        ("Dense", ["9 ± 0.25"] * 4),
        ("SET (paper)", ["4 ± 0.5 at 1"] * 4),
    ]


def test_a_picture_takes_the_pages_colours_and_leaves_its_ids_and_fonts() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt" height="9pt" '
        'viewBox="0 0 9 9"><metadata>made by</metadata><defs><style>*{fill:red}</style>'
        '<clipPath id="c"><rect/></clipPath>'
        '<path id="m" d="M 1.23456 2"/></defs><g id="axes_1"><use xlink:href="#m" clip-path="url(#c)" '
        "style=\"stroke: #000000; fill: #0072B2; font: bold 11px 'DejaVu Sans'\"/><script>alert(1)</script>"
        '<a xlink:href="javascript:alert(1)"><text>x &lt; y</text></a><text style="font-family: X">y</text></g></svg>'
    )
    text = picture.cleaned(svg, "f7-")
    assert text == (
        '<svg viewBox="0 0 9 9" fill="currentColor"><defs><clipPath id="f7-c"><rect></rect></clipPath>'
        '<path id="f7-m" d="M 1.23 2"></path></defs><g><use href="#f7-m" clip-path="url(#f7-c)" '
        'style="stroke:currentColor;fill:var(--ink-0072b2,#0072b2);font-size:11px;font-weight:bold"></use>'
        '<text style="">y</text></g></svg>'
    )
    assert "fill:#0072B2" in picture.cleaned(svg, "f7-", recolour=False)


# The whole report


def test_thousands_of_cells_stay_a_small_file(tmp_path: Path) -> None:
    sheets, runs = many(tmp_path)
    page = html.render(sheets, runs)
    content = data_of(page)
    assert len(content["cells"]) == 4000 == page.count('class="cell"')
    assert len(content["configs"]) == 4000
    assert len(page.encode()) < 8e6


def test_a_report_is_written_with_what_was_found(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", SET90, accuracy="high")  # a value that is none
    papers = write_table(tmp_path / "papers")
    torn = write_run(tmp_path / "runs", ["method=dense"])
    (torn / "summary.json").write_text("{")
    sheets = report.write(
        tmp_path / "out" / "page.html", collect([tmp_path / "runs"]), ["toys"], compose=fake_compose, papers=papers
    )
    assert [each.table.address for each in sheets] == ["toys/first"]
    text = Tags((tmp_path / "out" / "page.html").read_text(encoding="utf-8")).text
    assert f"problem {path}: has completed without the metric test/accuracy" in text
    assert f"problem {torn}" in text


def test_settings_that_differ_are_findings(tmp_path: Path) -> None:
    note = "Note: toys/first/differs/s90: the configuration says 71.1%, the paper 71.4%."
    assert report.findings([every_status(tmp_path)], Collection({})) == [note]
    assert report.findings([every_status(tmp_path)], Collection({}), published=False) == []


def test_the_papers_are_named_as_they_are_cited() -> None:
    titles = report.paper_titles()
    assert set(titles) == {"dsr", "dpf", "acdc", "lats", "iterand"}
    assert titles["dpf"] == "Lin et al. 2020: Dynamic Model Pruning with Feedback"
    assert titles["dsr"].startswith("Mostafa & Wang 2019: ")


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from results import report\nfrom results.collect import LOGGED, collect\n"
        f"report.write(Path({str(tmp_path / 'page.html')!r}), collect([LOGGED]), ['dsr/lenet_mnist'])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('torch', 'torchvision', 'timm')]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert data_of(page)["cells"][0]["r"] == "dense" and "<svg" in page
    assert str(ROOT) not in page
