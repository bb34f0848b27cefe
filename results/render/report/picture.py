"""A drawn figure as SVG that can stand inside the page: small, without ids that clash, in the page's own colours."""

from __future__ import annotations

import io
import re
import textwrap
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas

from results import draw
from results.figure import Plotted

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
# All that is needed of what matplotlib writes; metadata, links and styles that would reach the whole page are dropped.
_DRAWN = ("svg", "g", "defs", "path", "clipPath", "rect", "circle", "use", "text", "tspan", "image")

# Inches: text of 10 pt stays legible when a phone's width is all there is. What needs more keeps its own size.
_WIDTH, _HEIGHT, _LEGEND_LINE = 4.8, 3.2, 0.19
_MANY = 12  # names below an axis that need more than that
_X_LABEL, _Y_LABEL = 50, 34  # characters of a line of a label
_LEGEND = 62  # characters, handles included, that a line of the legend holds

# The page's light and dark colours stand in for these; a heat map keeps its own, whose texts fit its ground.
_VARIABLES = {"#000000": "currentColor", "#dddddd": "var(--grid)"}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r"(?P<weight>bold|[6-9]00)?\s*(?P<size>[\d.]+px)")


def wide(plotted: Plotted) -> bool:
    """Whether the picture would be crammed in half of a page's width; on a phone it scrolls."""
    return plotted.grid is not None or len(plotted.names) > _MANY


def inline(plotted: Plotted, prefix: str) -> str:
    """The figure as an <svg> element for HTML. `prefix` begins every id in it, so give each figure another."""
    with rc_context(draw.STYLE):
        canvas = draw.draw(plotted)
        for axes in canvas.axes:
            axes.set_title("", loc="left")  # the caption says it
            axes.patch.set_visible(plotted.grid is not None)
        canvas.patch.set_visible(False)
        if not wide(plotted):
            _narrow(canvas)
        target = io.StringIO()
        canvas.savefig(target, format="svg", metadata={"Date": None})
    return cleaned(target.getvalue(), prefix, recolour=plotted.grid is None)


def cleaned(svg: str, prefix: str, recolour: bool = True) -> str:
    """`svg` as matplotlib writes it, less what a page does not need, in the page's colours if `recolour`."""
    root = ElementTree.fromstring(svg)
    used = set(_REFERENCE.findall(svg)) | {element.get(_LINK, "").removeprefix("#") for element in root.iter()}
    _keep_drawn(root)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {
            name.replace(_LINK, "href"): _attribute(name, value, prefix, recolour)
            for name, value in element.attrib.items()
            if (not name.startswith("{") or name == _LINK) and (name != "id" or value in used)
        }
        # White space between elements is layout of the file, not of the picture.
        element.tail = None
        if element.tag not in ("text", "tspan"):
            element.text = None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    if recolour:
        root.set("fill", "currentColor")  # what has no colour is black by default
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _keep_drawn(element: ElementTree.Element) -> None:
    for child in list(element):
        if child.tag not in {_SVG + name for name in _DRAWN}:
            element.remove(child)
        else:
            _keep_drawn(child)


def _attribute(name: str, value: str, prefix: str, recolour: bool) -> str:
    if name == _LINK:
        return f"#{prefix}{value[1:]}" if value.startswith("#") else value if value.startswith("data:image/") else ""
    if name == "id":
        return prefix + value
    if name == "style":
        return _style(value, prefix, recolour)
    return _referring(_rounded(" ".join(value.split())), prefix)


def _style(text: str, prefix: str, recolour: bool) -> str:
    """Font families are left to the page, whose text the picture's should look like."""
    kept = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = (part.strip() for part in entry.partition(":"))
        if name == "font" and (font := _FONT.search(value)):
            kept += [f"font-size:{font['size']}"] + ([f"font-weight:{font['weight']}"] if font["weight"] else [])
        elif name in ("fill", "stroke") and recolour:
            kept.append(f"{name}:{_colour(value.lower())}")
        elif name != "font-family":
            kept.append(f"{name}:{_referring(_rounded(value), prefix)}")
    return ";".join(kept)


def _referring(text: str, prefix: str) -> str:
    return _REFERENCE.sub(lambda match: f"url(#{prefix}{match[1]})", text)


def _colour(value: str) -> str:
    """The page may set --ink-0072b2 to what shows well on its ground."""
    if value in _VARIABLES:
        return _VARIABLES[value]
    return f"var(--ink-{value[1:]},{value})" if value.startswith("#") else value


def _rounded(text: str) -> str:
    return _DECIMALS.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), text)


def _narrow(canvas: Canvas) -> None:
    """Half a page wide: long labels on several lines, and the legend below, where it takes no width."""
    for axes in canvas.axes:
        axes.set_xlabel(textwrap.fill(axes.get_xlabel(), _X_LABEL))
        axes.set_ylabel(textwrap.fill(axes.get_ylabel(), _Y_LABEL))
    found = [axes.get_legend_handles_labels() for axes in canvas.axes]
    handles, labels = ([each for part in parts for each in part] for parts in zip(*found, strict=True))
    lines = 0
    if canvas.legends:
        for legend in list(canvas.legends):
            legend.remove()
        columns = max(1, min(len(labels), _LEGEND // (max(map(len, labels)) + 7)))
        lines = -(-len(labels) // columns)
        canvas.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2, handlelength=1.8)
    canvas.set_size_inches(_WIDTH, _HEIGHT + lines * _LEGEND_LINE)
