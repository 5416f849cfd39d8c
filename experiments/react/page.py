"""An HTML page of descriptions, with each answer's code and what it renders.

The page is self-contained and has no scripts. A model's code appears only as
the output of `jsx.render`, and the page's Content-Security-Policy blocks
scripts, images and requests should that ever fail.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from react.jsx import CodeError, parse, render
from react.widgets import check


@dataclass(frozen=True)
class Answer:
    """The code that one model wrote in one setting."""

    setting: str
    """For example `base, few-shot`."""
    primer: str
    """The prompt up to the description; empty in the zero-shot setting."""
    code: str


@dataclass(frozen=True)
class Question:
    """A description, the expected code, and the answers."""

    description: str
    expected: str
    answers: tuple[Answer, ...]
    """One of each setting, in the same order in every question."""


def render_page(title: str, questions: Sequence[Question]) -> str:
    """The questions as one HTML page; all text is escaped.

    Args:
      title: the page's heading, as plain text.
      questions: at least one, all with the same settings.
    """
    return TEMPLATE.format(
        title=html.escape(title),
        style=CSS,
        scores=_scores(questions),
        sections="".join(map(_section, questions)),
    )


def _scores(questions: Sequence[Question]) -> str:
    """A table with a row for each setting: the number of answers that pass each check."""
    rows, names = "", ["exact match", *check("", questions[0].expected)]
    for answers in zip(*(question.answers for question in questions), strict=True):
        results = [
            {"exact match": _is_exact(answer, question.expected)}
            | check(answer.code, question.expected)
            for answer, question in zip(answers, questions, strict=True)
        ]
        cells = "".join(f"<td>{sum(each[name] for each in results)}</td>" for name in names)
        rows += f"<tr><th scope=row>{html.escape(answers[0].setting)}</th>{cells}</tr>\n"
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    return (
        f"<table><caption>answers of {len(questions)} that pass</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _is_exact(answer: Answer, expected: str) -> bool:
    return answer.code.strip() == expected.strip()


def _section(question: Question) -> str:
    answers = "".join(_answer(answer, question.expected) for answer in question.answers)
    return (
        f"<section><h2>{html.escape(question.description)}</h2>"
        f"<p>expected <code>{html.escape(question.expected.strip())}</code></p>"
        f"<div class=answers>{answers}</div></section>\n"
    )


def _answer(answer: Answer, expected: str) -> str:
    try:
        rendered, error = render(parse(answer.code)), None
    except CodeError as refusal:
        rendered, error = "", refusal
    if _is_exact(answer, expected):
        verdict = "as expected"
    elif error:
        verdict = f"not rendered: {error}"
    elif check(answer.code, expected)["as described"]:
        verdict = "as described, in another dialect"
    else:
        verdict = "not as described"
    primer = (
        f"<details><summary>primer</summary><pre>{html.escape(answer.primer.strip())}</pre></details>"
        if answer.primer
        else ""
    )
    return (
        f"<article class='{'right' if _is_exact(answer, expected) else 'other'}'>"
        f"<h3>{html.escape(answer.setting)}</h3><p>{html.escape(verdict)}</p>"
        f"<div class=drawn>{rendered}</div><pre>{html.escape(answer.code.strip())}</pre>"
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
{sections}"""
