"""The page that shows what became of descriptions: code as it was written, and what it draws.

It needs nothing outside itself and runs nothing: the code of a model is drawn
only as `jsx.render` writes it anew, and the page's own policy lets no script,
picture or address in, should that ever fail.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from gpt3jax.evals.jsx import CodeError, parse, render
from gpt3jax.evals.react import check


@dataclass(frozen=True)
class Answer:
    """What one model wrote in one setting."""

    setting: str
    """`few-shot`, and of which model."""
    primer: str
    """All that stood before the description; empty in the zero-shot setting."""
    written: str


@dataclass(frozen=True)
class Asked:
    """A description, the code that was expected, and what was written."""

    description: str
    expected: str
    answers: tuple[Answer, ...]
    """One of each setting, in the same order throughout."""


def page(title: str, asked: Sequence[Asked]) -> str:
    """All that was asked as one HTML page; any text is safe in it.

    Args:
      title: The page's heading.
      asked: At least one, all with the same settings.
    """
    shown = "".join(map(_section, asked))
    return TEMPLATE.format(title=html.escape(title), style=CSS, scores=_scores(asked), shown=shown)


def _scores(asked: Sequence[Asked]) -> str:
    """A row for each setting: how many of its answers pass each check."""
    rows, names = "", ["exact match", *check("", asked[0].expected)]
    for answers in zip(*(each.answers for each in asked), strict=True):
        found = [
            {"exact match": _is_exact(answer, each.expected)} | check(answer.written, each.expected)
            for answer, each in zip(answers, asked, strict=True)
        ]
        cells = "".join(f"<td>{sum(each[name] for each in found)}</td>" for name in names)
        rows += f"<tr><th scope=row>{html.escape(answers[0].setting)}</th>{cells}</tr>\n"
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    return (
        f"<table><caption>answers of {len(asked)} that pass</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _is_exact(answer: Answer, expected: str) -> bool:
    return answer.written.strip() == expected.strip()


def _section(asked: Asked) -> str:
    answers = "".join(_answer(answer, asked.expected) for answer in asked.answers)
    return (
        f"<section><h2>{html.escape(asked.description)}</h2>"
        f"<p>expected <code>{html.escape(asked.expected.strip())}</code></p>"
        f"<div class=answers>{answers}</div></section>\n"
    )


def _answer(answer: Answer, expected: str) -> str:
    try:
        drawn, why = render(parse(answer.written)), ""
    except CodeError as error:
        drawn, why = "", f": {error}"
    verdict = (
        "as expected" if _is_exact(answer, expected)
        else f"not drawn{why}" if why
        else "as described, in another dialect" if check(answer.written, expected)["as described"]
        else "not as described"
    )  # fmt: skip
    primer = (
        f"<details><summary>primer</summary><pre>{html.escape(answer.primer.strip())}</pre></details>"
        if answer.primer
        else ""
    )
    return (
        f"<article class='{'right' if _is_exact(answer, expected) else 'other'}'>"
        f"<h3>{html.escape(answer.setting)}</h3><p>{html.escape(verdict)}</p>"
        f"<div class=drawn>{drawn}</div><pre>{html.escape(answer.written.strip())}</pre>"
        f"{primer}</article>"
    )


CSS = """
:root{color-scheme:light dark;--ink:#222;--soft:#5f5f5f;--line:#ddd;--paper:#fff;--right:#00734f}
@media(prefers-color-scheme:dark){
:root{--ink:#ddd;--soft:#a0a0a0;--line:#3a3a3a;--paper:#121212;--right:#3fc59b}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:80rem;background:var(--paper);
color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.5rem 0 .2rem;overflow-wrap:anywhere}
h3{font-size:.9rem;margin:0}
p,summary,caption{color:var(--soft);font-size:.85rem}
p{margin:0 0 .6rem;overflow-wrap:anywhere}
.right>p{color:var(--right)}
caption{text-align:left}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
thead th{font-weight:400;color:var(--soft)}
th,td{padding:.3rem 0 .3rem 1.5rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child{padding-left:0;text-align:left}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr));
gap:1.2rem}
article{min-width:0;border-top:3px solid var(--line);padding-top:.5rem}
article.right{border-color:var(--right)}
pre,code{font:.8rem/1.45 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
pre{margin:.6rem 0;color:var(--ink)}
details pre{max-height:20rem;overflow:auto;color:var(--soft)}
.drawn{color-scheme:light;background:#fff;color:#000;border:1px solid var(--line);
border-radius:4px;padding:.8rem;min-height:4rem;overflow-wrap:anywhere}
.drawn:empty{background:none;border-style:dashed}
.drawn :is(div,button,input){padding:.5rem .8rem;border-radius:4px}
.drawn :is(button,input){font:inherit;border:1px solid #8888;max-width:100%}
.drawn div{border:1px solid #8888}
.drawn div>*{margin:.3rem}
.drawn :is(h1,p){margin:.3rem 0;font-size:1rem;line-height:1.4;color:inherit}
.drawn h1{font-size:1.4rem}
.drawn :is(ul,ol){margin:.3rem 0;padding-left:1.6rem}
.drawn input::placeholder{color:inherit;opacity:1}
"""

TEMPLATE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style>
<h1>{title}</h1>
<div class=wide>{scores}</div>
{shown}"""
