"""Shared style of all figures, HTML pages and printed tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Okabe and Ito's palette, which is safe for colour-blind readers. With more lines than colours, the
# stroke changes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STROKES = ("-", "--", ":", "-.")
GREY = "#666666"

# Small figures with large type are legible on a phone.
STYLE: dict[Any, Any] = {
    "figure.figsize": (5.0, 3.5), "figure.constrained_layout.use": True, "savefig.dpi": 200,
    "font.size": 10.5, "legend.fontsize": 10, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.linewidth": 0.6, "axes.axisbelow": True, "axes.grid": True, "axes.labelcolor": "#333333",
    "grid.color": "#e3e3e3", "grid.linewidth": 0.5, "lines.linewidth": 1.5,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "xtick.labelcolor": "#333333", "ytick.labelcolor": "#333333",
}  # fmt: skip

CSS = """
:root{color-scheme:light dark;--ink:#222;--soft:#666;--line:#ddd;--paper:#fff}
@media(prefers-color-scheme:dark){
:root{--ink:#ddd;--soft:#999;--line:#3a3a3a;--paper:#121212}
img{filter:invert(.93) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:72rem;background:var(--paper);
color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0 1.5rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.5rem 0 .5rem}
h3{font-size:.9rem;margin:1rem 0 0;overflow-wrap:anywhere}
p,figcaption{color:var(--soft);font-size:.85rem;max-width:40rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem 0 .3rem 1.5rem;text-align:right;vertical-align:top;
border-bottom:1px solid var(--line)}
th:first-child{padding-left:0;text-align:left;font-weight:400;color:var(--soft);
position:sticky;left:0;background:var(--paper)}
small{color:var(--soft)} .time{white-space:nowrap}
.why{text-align:left;color:var(--soft);min-width:14rem}
@media(min-width:40rem){th:first-child{white-space:nowrap}}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));
gap:0 2.5rem}
figure{margin:0} img{display:block;width:100%;height:auto}
pre{margin:0 0 1.5rem;padding:.8rem 1rem;border:1px solid var(--line);border-radius:4px;
max-height:24rem;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;
font:.8rem/1.45 ui-monospace,monospace}
"""


def pluralize(number: int, noun: str) -> str:
    """`1 shot`, `2,000 shots`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def html_page(title: str, kind: str, body: str, css: str = "") -> str:
    """A self-contained page without scripts. The title is escaped; `body` is HTML."""
    title = html.escape(title)
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}: gpt3jax {kind}</title><style>{CSS}{css}</style>
<h1>{title}</h1>
{body}"""


def html_cells(values: Iterable[Any], tag: str = "td") -> str:
    """Cells of a table's row; the values are escaped. `tag` may have attributes."""
    end = tag.split()[0]
    return "".join(f"<{tag}>{html.escape(str(value))}</{end}>" for value in values)


def html_figure(file: Path, caption: str, name: str = "") -> str:
    """A PNG file, embedded under its name, by default that of the file. `caption` is HTML."""
    name = html.escape(name or file.stem.replace("_", " "))
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f"<figure><h2>{name.capitalize()}</h2><img alt='Figure: {name}' "
        f"src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>\n"
    )


def wide_console(soft_wrap: bool = False) -> Console:
    """A console for tables, which are only wrapped on a terminal; with `soft_wrap` by itself."""
    from rich.console import Console  # A local import: `--help` needs none of it.

    console = Console(highlight=False, markup=False, soft_wrap=soft_wrap)
    if not console.is_terminal:
        console.width = 10_000
    return console
