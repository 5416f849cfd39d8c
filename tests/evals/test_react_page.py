"""The page of answers: its content, and in a real browser, that hostile code does nothing."""

import itertools
import json
import re
import sys
from pathlib import Path

from browser import needs_browser, opened

from gpt3jax.user_code import load_module

from react import widgets
from react.page import Answer, Question, render_page
from react.widgets import DIALECTS, TARGET, Widget

RGB = {
    "red": "rgb(255, 0, 0)", "blue": "rgb(0, 0, 255)", "teal": "rgb(0, 128, 128)",
    "white": "rgb(255, 255, 255)", "black": "rgb(0, 0, 0)",
}  # fmt: skip
WIDGET = Widget(
    "box", "blue", (),
    (Widget("button", "red", ("Send",)), Widget("list", "teal", ("Milk", "Bread")),
     Widget("field", None, ("Name",)), Widget("heading", None, ("Welcome Home",))),
)  # fmt: skip
HOSTILE = [
    "<script>document.title='taken'</script>",
    "<img src='/taken.png' onError={press} />",
    "<p style={{background: 'url(/taken.png)'}}>Send</p>",
    "</pre></article><script>document.title='taken'</script>",
    "<p>{\"<script>document.title='taken'</script>\"}</p>",
    "<button onClick={() => press()}>Send</button>",
]


def answers(code, other):
    primer = "\ndescription: a text that says Tea\ncode: <p>Tea</p>"
    return (Answer("zero-shot", "", other), Answer("few-shot", primer, code))


def questions():
    """A widget in every dialect, then hostile code; the first is also answered as expected."""
    expected = " " + widgets.to_code(WIDGET, TARGET)
    codes = [widgets.to_code(WIDGET, dialect) for dialect in DIALECTS]
    return [
        Question(widgets.describe(WIDGET), expected, answers(expected, code)) for code in codes
    ] + [Question(f"{code} <b>", expected, answers(expected, code)) for code in HOSTILE]


WATCHER = """<!doctype html><meta charset=utf-8>
<iframe style="width:1200px;height:800px" srcdoc="{page}"></iframe><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const inside = frame.contentDocument, drawn = [];
  for (const box of inside.querySelectorAll(".drawn"))
    drawn.push([...box.querySelectorAll("*")].map((each) => {
      const style = frame.contentWindow.getComputedStyle(each), at = each.getBoundingClientRect();
      return {tag: each.tagName.toLowerCase(), background: style.backgroundColor,
        color: style.color, text: each.textContent, placeholder: each.placeholder,
        handlers: each.getAttributeNames().filter((name) => name.startsWith("on")),
        visible: at.width > 10 && at.height > 10};
    }));
  const found = {drawn, title: inside.title, scripts: inside.scripts.length,
    overflows: inside.documentElement.scrollWidth > inside.documentElement.clientWidth};
  document.body.dataset.found = JSON.stringify(found);
});
</script>"""


@needs_browser
def test_a_browser_renders_every_dialect_and_nothing_hostile(tmp_path):
    found, fetched, log = opened(render_page("React", questions()), WATCHER, tmp_path)
    assert "CONSOLE" not in log, log
    assert found["title"] == "React"
    assert not fetched and found["scripts"] == 0 and not found["overflows"]
    drawn = found["drawn"]
    assert len(drawn) == 2 * (72 + len(HOSTILE))
    for each in drawn[: 2 * 72]:
        box, button, items, milk, _, field, heading = each
        assert [node["tag"] for node in each] == ["div", "button", "ul", "li", "li", "input", "h1"]
        assert (box["background"], box["color"]) == (RGB["blue"], RGB["white"])
        assert (button["background"], button["color"]) == (RGB["red"], RGB["white"])
        assert items["color"] == milk["color"] == RGB["teal"]
        assert (button["text"], milk["text"], heading["text"]) == ("Send", "Milk", "Welcome Home")
        assert field["placeholder"] == "Name" and heading["color"] == RGB["white"]
        assert all(node["visible"] and not node["handlers"] for node in each)
    hostile = drawn[2 * 72 :: 2]
    assert hostile[:4] == [[]] * 4
    assert hostile[4][0]["text"] == "<script>document.title='taken'</script>"
    assert hostile[5][0]["tag"] == "button" and not hostile[5][0]["handlers"]


WITH_HARM = (
    "<script>document.title = 'taken'; console.log('here')</script><img src='/taken.png'>"
    "<div class=drawn><p onclick=press() style='width:999vw'>Send</p></div>"
)


@needs_browser
def test_the_watcher_detects_harm_and_the_policy_blocks_it(tmp_path):
    """Otherwise the previous test could pass on a harmful page."""
    text = render_page("React", questions()[:1]) + WITH_HARM
    found, fetched, log = opened(
        re.sub("<meta http-equiv.*>", "", text), WATCHER, tmp_path / "open"
    )
    assert found["title"] == "taken" and found["scripts"] == 1 and "CONSOLE" in log
    assert fetched == {"/taken.png"} and found["overflows"]
    assert found["drawn"][-1][0]["handlers"] == ["onclick"]
    found, fetched, _ = opened(text, WATCHER, tmp_path / "guarded")
    assert found["title"] == "React" and not fetched


def test_the_page_reports_a_verdict_for_each_answer():
    text = render_page("React & <co>", questions())
    assert "React &amp; &lt;co&gt;" in text
    rows = re.findall(r"<th scope=row>(.*?)</th>((?:<td>\d+</td>)+)", text)
    counts = {name: list(map(int, re.findall(r"\d+", cells))) for name, cells in rows}
    # One dialect is the one expected; of the hostile, one is malformed, and two are drawn.
    assert counts == {"zero-shot": [1, 77, 74, 72], "few-shot": [78, 78, 78, 78]}
    assert text.count("as described, in another dialect") == 71
    assert text.count("<details>") == 78


def test_the_page_is_self_contained():
    outside = r"https?:|//\w|@import|url\(|src=|href=|<script"
    assert not re.search(outside, render_page("React", questions()[:72]))


def test_the_experiment_writes_a_page_of_an_evaluation(tmp_path, monkeypatch):
    script = load_module(Path(__file__).parents[2] / "experiments/describe_to_react.py")
    task, results, out = script.task(), tmp_path / "results.json", tmp_path / "page.html"
    answer = " <button style={{background: 'red'}} onClick={press}>Send</button>"
    settings = []
    for shots in (0, 2):
        primer = "".join(each.shown for each in task.demonstrations[:shots])
        prompts = [primer + each.contexts[0] for each in task.examples[:3]]
        examples = [{"prompts": [prompt], "answer": answer} for prompt in prompts]
        settings.append({"task": task.name, "shots": shots, "examples": examples})
    results.write_text(json.dumps({"experiment": "base", "settings": settings}))
    monkeypatch.setattr(sys, "argv", ["x", str(results), "--count", "3", "--out", str(out)])
    script.main()
    text = out.read_text()
    assert text.count("<section>") == 3 and text.count("<article") == 6
    assert text.count("<details>") == 3 and "base, 2-shot" in text
    assert text.count('<button type=button style="background:red;color:white">Send</button>') == 6


def test_the_experiment_trains_and_tunes_on_generated_pairs():
    script = load_module(Path(__file__).parents[2] / "experiments/describe_to_react.py")
    assert list(itertools.islice(script.pairs(), 20)) == list(widgets.pairs(20))
    assert list(itertools.islice(script.documents(), 20)) == list(widgets.documents(20))
