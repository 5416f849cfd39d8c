"""An HTML page of an evaluation: all scores, and their examples, worst first.

The page is self-contained, has no scripts, and escapes all text.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

from gpt3jax.evals.summary import described
from gpt3jax.serde import short_hash
from gpt3jax.style import CSS, pluralize

SHOWN = 100
"""Maximum examples of each setting on the page; results.json has all."""


def page(
    title: str,
    rows: Sequence[dict[str, Any]],
    settings: Sequence[dict[str, Any]],
    figure: bytes | None = None,
) -> str:
    """The evaluation as one HTML page.

    Args:
      title: of the page.
      rows: the result of `summarise`.
      settings: the results of `evaluate`.
      figure: PNG of the scores, optional.
    """
    image = ""
    if figure:
        data = base64.b64encode(figure).decode()
        image = (
            f"<figure><img alt='Score against shots' src='data:image/png;base64,{data}'></figure>"
        )
    return TEMPLATE.format(
        title=html.escape(title),
        style=CSS + MORE_CSS,
        table=_table(rows),
        figure=image,
        sections="".join(map(_section, settings)),
    )


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A fraction in per cent: `12.3`, or `12.3 (10.9 to 13.8)`; an en dash for None."""
    if value is None:
        return "\u2013"
    between = " to ".join(f"{100 * end:.1f}" for end in interval or ())
    return f"{100 * value:.1f}" + (f" ({between})" if between else "")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("task", "shots", "metric", "score, %", "guessing", "truth, nats", "GPT-3 175B", "asked")
    cells = "".join(f"<th scope=col>{name}</th>" for name in head)
    body = ""
    for row in rows:
        how = row["metric"] + (f", by {row['normalise']}" if "normalise" in row else "")
        protocol = described(row)
        if row["shortened"] or row["cut"]:
            protocol += f"; {row['shortened']} shortened, {row['cut']} cut"
        values = (
            row["shots"], how, percent(row["score"], row["interval"]), percent(row["chance"]),
            f"{row['truth_nats']:.2f}", percent(row.get("paper_175b")), protocol,
        )  # fmt: skip
        anchor = f"<a href='#{_anchor(row)}'>{html.escape(row['task'])}</a>"
        body += f"<tr><th scope=row>{anchor}</th>"
        body += "".join(f"<td>{html.escape(str(value))}</td>" for value in values) + "</tr>\n"
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _anchor(setting: dict[str, Any]) -> str:
    protocol = short_hash(setting.get("asked"))
    return html.escape(f"{setting['task']}-{setting['shots']}-{protocol}", quote=True)


def _section(setting: dict[str, Any]) -> str:
    """One setting with its examples, worst first."""
    examples = sorted(setting["examples"], key=lambda each: (each["score"], each["margin"]))
    left_out = len(examples) - SHOWN
    rest = f"<p>results.json has {left_out:,} more, with better scores.</p>" if left_out > 0 else ""
    draw = f", draw {setting['draw']}" if setting["draw"] else ""
    name = f"{html.escape(setting['task'])}, {pluralize(setting['shots'], 'shot')}"
    return (
        f"<h2 id='{_anchor(setting)}'>{name}{draw}: {percent(setting['score'])}&thinsp;%</h2>"
        + "".join(map(_example, examples[:SHOWN]))
        + rest
    )


def _example(record: dict[str, Any]) -> str:
    truth = record["candidates"][record["truth"]]
    if "choice" in record:
        answer = record["candidates"][record["choice"]]["text"]
    else:
        answer = record.get("answer", "")
    question = " ".join(record["prompts"][0].split())[-80:]
    mark = "right" if record["score"] == 1 else "wrong" if record["score"] == 0 else "partly"
    lines = "".join(_candidate(record, number) for number in range(len(record["candidates"])))
    texts = "".join(f"<pre>{html.escape(text)}</pre>" for text in record["prompts"])
    if "answer" in record:
        texts += f"<p>Answer:</p><pre>{html.escape(record['answer'])}</pre>"
    return (
        f"<details class={mark}><summary><b>{mark}</b> <code>{html.escape(question)}</code>"
        f"<i>{html.escape(answer)}</i>"
        + ("" if mark == "right" else f" instead of <i>{html.escape(truth['text'])}</i>")
        + f" <small>{record['margin']:+.2f} nats</small></summary>{texts}"
        f"<div class=wide><table><thead><tr><th>candidate</th><th>log p by token</th><th>sum</th>"
        f"<th>per token</th><th>per character</th></tr></thead><tbody>{lines}</tbody></table></div>"
        "</details>\n"
    )


def _candidate(record: dict[str, Any], number: int) -> str:
    each = record["candidates"][number]
    by = each["scores"]
    tokens = " ".join(f"{value:.2f}" for value in each["log_probabilities"])
    name = html.escape(each["text"]) + (" (truth)" if number == record["truth"] else "")
    values = (tokens, *(f"{by[name]:.3f}" for name in ("none", "token", "character")))
    return f"<tr><th>{name}</th>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>"


MORE_CSS = """
a{color:inherit}
details{border-bottom:1px solid var(--line);padding:.3rem 0}
summary{cursor:pointer;overflow-wrap:anywhere} summary code{white-space:pre-wrap;color:var(--soft)}
summary i{font-style:normal;border-bottom:2px solid #009E73;white-space:pre-wrap}
.wrong summary i:first-of-type{border-color:#D55E00}
figure{max-width:60rem}
details th:first-child{white-space:pre-wrap}
"""

TEMPLATE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}: gpt3jax evaluation</title><style>{style}</style>
<h1>{title}</h1>
<div class=wide>{table}</div>
<p>Score with Wilson's 95 % interval over examples. Parameters were not updated: the model learns in
context only. GPT-3 175B from Table H.1 of the paper, for tasks that it has.</p>
{figure}
{sections}"""
