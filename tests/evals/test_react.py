"""Descriptions and code correspond one to one, the split is disjoint, rendered code is harmless."""

import itertools
import random
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from react import jsx, widgets
from react.jsx import CodeError, Element, Handler, Style, parse, render, write
from react.widgets import DIALECTS, TARGET, Dialect, Widget

SEND = Widget("button", "red", ("Send",))
BOX = Widget("box", "blue", (), (SEND, Widget("list", None, ("Milk", "Bread", "Eggs"))))


def sample(count, *, held_out, seed=5):
    rng = random.Random(seed)
    return [widgets.sample_widget(rng, held_out=held_out) for _ in range(count)]


@pytest.mark.parametrize(
    ("dialect", "code"),
    [
        (TARGET, "<button style={{background: 'red'}} onClick={press}>Send</button>"),
        (
            Dialect(True, "class", '"', True, "arrow"),
            '<Button className="bg-red" onClick={() => press()}>{"Send"}</Button>',
        ),
        (
            Dialect(False, "backgroundColor", "'", False, "none"),
            "<button style={{backgroundColor: 'red'}}>Send</button>",
        ),
    ],
)
def test_a_red_button_that_says_send(dialect, code):
    assert widgets.describe(SEND) == 'a red button that says "Send"'
    assert widgets.to_code(SEND, dialect) == code
    assert render(parse(code)) == (
        '<button type=button style="background:red;color:white">Send</button>'
    )


def test_a_box_with_things_in_it():
    assert widgets.describe(BOX) == (
        'a blue box with a red button that says "Send" and a list of "Milk", "Bread" and "Eggs"'
    )
    assert widgets.to_code(BOX, TARGET) == (
        "<div style={{background: 'blue'}}>"
        "<button style={{background: 'red'}} onClick={press}>Send</button>"
        "<ul><li>Milk</li><li>Bread</li><li>Eggs</li></ul></div>"
    )


def test_descriptions_and_code_correspond_one_to_one():
    sampled = set(sample(2000, held_out=False) + sample(500, held_out=True))
    assert {each.kind for widget in sampled for each in widget.all} == {*widgets.LINKS}
    assert len({widgets.describe(widget) for widget in sampled}) == len(sampled)
    for dialect in (TARGET, *DIALECTS[::7]):
        assert len({widgets.to_code(widget, dialect) for widget in sampled}) == len(sampled)


def test_dialects_differ_in_code_and_render_alike():
    assert len(set(DIALECTS)) == 72
    assert len({widgets.to_code(BOX, dialect) for dialect in DIALECTS}) == 72
    for widget in sample(30, held_out=True):
        assert len({render(parse(widgets.to_code(widget, dialect))) for dialect in DIALECTS}) == 1


def test_different_widgets_render_differently():
    sampled = set(sample(2000, held_out=True))
    pages = {render(parse(widgets.to_code(widget, TARGET))) for widget in sampled}
    assert len(pages) == len(sampled)


LABEL = re.compile('"(.*?)"')
PAIR = re.compile(rf"a ({'|'.join(jsx.COLOURS)}) ({'|'.join(widgets.LINKS)}) ")


def described(texts):
    return [line for text in texts for line in text.splitlines() if line.startswith("description:")]


def test_training_text_pairs_and_demonstrations_have_nothing_held_out():
    shown = [each.shown for each in widgets.task(few=4).demonstrations]
    tuned = [each["prompt"] for each in widgets.pairs(500)]
    for texts in (list(widgets.documents(1500)), shown, tuned):
        lines = described(texts)
        assert len(lines) >= 200
        for line in lines:
            labels = LABEL.findall(line)
            assert labels and not any(map(widgets.is_held_out_label, labels)), line
            assert not any(widgets.is_held_out_pair(*pair) for pair in PAIR.findall(line)), line


def test_examples_are_held_out_combinations_of_seen_words():
    text = "".join(widgets.documents(1500))
    for line in described(each.contexts[0] for each in widgets.task(few=4).examples):
        labels, pairs = LABEL.findall(line), PAIR.findall(line)
        assert all(map(widgets.is_held_out_label, labels)), line
        assert any(widgets.is_held_out_pair(*pair) for pair in pairs), line
        for word in " ".join(labels).split():
            assert word in text
        for colour, kind in pairs:
            assert f" {colour} " in text and f" {kind} " in text


def test_a_fifth_of_labels_and_18_of_84_pairs_are_held_out():
    words = [f"{a} {b}" for a, b in itertools.product(widgets.WORDS, repeat=2)]
    assert sum(map(widgets.is_held_out_label, words)) / len(words) == pytest.approx(1 / 5, abs=0.03)
    pairs = list(itertools.product(jsx.COLOURS, widgets.LINKS))
    assert sum(widgets.is_held_out_pair(*pair) for pair in pairs) == 18 and len(pairs) == 84
    assert widgets.is_held_out_pair("teal", "heading")
    assert not any(widgets.is_held_out_pair(None, kind) for kind in widgets.LINKS)


def test_each_document_has_one_dialect_and_none_the_target(monkeypatch):
    used = []
    monkeypatch.setattr(widgets, "to_code", lambda _, dialect: used.append(dialect) or "<p />")
    for _ in widgets.documents(1500):
        assert len(set(used[-3:])) == 1
    assert set(used) == {*DIALECTS} - {TARGET}


def test_generation_is_deterministic_with_few_duplicates():
    assert list(widgets.documents(20)) == list(widgets.documents(20))
    assert len(set(widgets.documents(500))) == 500
    assert widgets.task(few=4) == widgets.task(few=4)
    assert len({each.shown for each in widgets.task(few=4).examples}) > 190


def test_a_prompt_has_the_format_of_the_training_text():
    """Demonstrations, a context and its answer, concatenated, are a training document."""
    task = widgets.task(few=2)
    prompt = task.prompt(task.demonstrations[:2], task.examples[0].contexts[0])
    document = prompt + task.examples[0].completions[0] + task.stop
    form = re.compile(r"(\ndescription: a .+\ncode: <.+>)+\n")
    assert form.fullmatch(document)
    assert all(map(form.fullmatch, widgets.documents(20)))


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        ("<button style={{background: 'red'}} onClick={press}>Send</button>", 3),
        (' <Button className="bg-red">Send</Button>', 3),
        ("<button style={{background: 'red'}} onClick={press}>Sent</button>", 2),
        ("<a>Send</a>", 1),
        ("<button style={{background: 'red'}} onClick={press}>Send", 0),
        ("", 0),
    ],
)
def test_checks_of_an_answer_imply_the_ones_before(code, passed):
    checks = widgets.check(code, widgets.to_code(SEND, TARGET))
    assert list(checks) == ["parses", "renders", "as described"]
    assert list(checks.values()) == [True] * passed + [False] * (3 - passed)


# Trees of any shape, with names and words on the allowlist and outside it.
words = st.text(st.characters(blacklist_categories=["C", "Z"], blacklist_characters="\"'\\<>{}&"),
                min_size=1)  # fmt: skip
names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,8}", fullmatch=True)
keys = st.sampled_from(["background", "color", "style", "className", "placeholder", "onClick"]) | (
    st.from_regex(r"[A-Za-z]{1,8}", fullmatch=True)
)
colours = st.sampled_from([*jsx.COLOURS, "bg-red", "text-blue text-red", "url(x)"]) | words
values = (
    colours
    | st.lists(st.tuples(keys, colours), min_size=1, max_size=3, unique_by=lambda p: p[0]).map(
        lambda pairs: Style(tuple(pairs))
    )
    | st.builds(Handler, st.from_regex(r"[a-z][A-Za-z]{0,5}", fullmatch=True), st.booleans())
)
tags = st.sampled_from([*jsx.CONTENT, *jsx.COMPONENTS, "script", "a", "img", "style"]) | names


def elements(children):
    attributes = st.lists(st.tuples(keys, values), max_size=3, unique_by=lambda pair: pair[0])
    return st.builds(Element, tags, attributes.map(tuple), children)


# Two adjacent texts would be parsed as one.
trees = st.recursive(
    elements(st.lists(words, max_size=1).map(tuple)),
    lambda inner: elements(st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(trees, st.sampled_from(["'", '"']), st.booleans())
def test_parse_is_the_inverse_of_write(tree, quote, braces):
    assert parse(write(tree, quote=quote, braces=braces)) == tree


class Seen(HTMLParser):
    """The elements, attributes and text that an HTML parser finds."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = set(), {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            self.attributes.setdefault(name, set()).add(value)

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


STYLE = re.compile(rf"((background|color):({'|'.join((*jsx.COLOURS, 'white'))});?){{1,2}}")


def assert_harmless(drawn):
    seen = Seen(drawn)
    assert seen.tags <= {*jsx.CONTENT}
    assert {*seen.attributes} <= {"type", "style", "placeholder"}
    assert seen.attributes.get("type", set()) <= {"button"}
    assert all(STYLE.fullmatch(each) for each in seen.attributes.get("style", ()))


@settings(max_examples=100, deadline=None)
@given(trees)
def test_any_tree_is_refused_or_renders_to_harmless_html(tree):
    try:
        drawn = render(tree)
    except CodeError:
        return
    assert_harmless(drawn)


PIECES = ["<", ">", "</", "/>", "{", "}", "{{", "}}", "'", '"', " ", "=", ":", ", ", "\\", "&lt;",
          "button", "div", "script", "style", "onClick", "onError", "href", "src", "press", "red",
          "() => ", "()", "alert(1)", "javascript:", "\n", "\0", "é", "Send"]  # fmt: skip
GOOD = [widgets.to_code(BOX, dialect) for dialect in DIALECTS[::11]]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_text_is_refused_or_renders_to_harmless_html(data):
    code = data.draw(st.sampled_from(GOOD) | st.lists(st.sampled_from(PIECES)).map("".join))
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(code)))
        stop = start + data.draw(st.integers(0, 5))
        code = code[:start] + data.draw(st.sampled_from(["", *PIECES])) + code[stop:]
    try:
        drawn = render(parse(code))
    except CodeError:
        return
    assert_harmless(drawn)


@pytest.mark.parametrize(
    "code",
    [
        "<script>alert(1)</script>",
        "<Script>{'alert(1)'}</Script>",
        "<img src='x' onError={press} />",
        "<div><iframe src='//x' /></div>",
        "<a href='javascript:alert(1)'>Send</a>",
        "<button onClick={alert(1)}>Send</button>",
        "<button onClick={() => fetch('//x')}>Send</button>",
        "<button onClick={() => { while (1) {} }}>Send</button>",
        "<button onClick='alert(1)'>Send</button>",
        "<button onMouseOver={press}>Send</button>",
        "<div onClick={press} />",
        "<div dangerouslySetInnerHTML={{__html: '<script>'}} />",
        "<div {...props} />",
        "<div style={{background: 'url(//x)'}} />",
        "<div style={{background: 'red;position:fixed'}} />",
        "<div style={{position: 'fixed'}} />",
        "<div style={{background: 'red', backgroundColor: 'blue'}} />",
        "<div style='background:red' />",
        "<div className='bg-red evil' />",
        "<div className='bg-white' />",
        "<div id='x' />",
        "<p placeholder='x' />",
        "<p><div><p>Send</p></div></p>",
        "<ul>Send</ul>",
        "<ul><p>Send</p></ul>",
        "<input>Send</input>",
        "<p>{alert(1)}</p>",
        "<p>{'a' + 'b'}</p>",
        "<p>{`a`}</p>",
        "<p>{'\\x3cscript\\x3e'}</p>",
        "<p>&lt;script&gt;</p>",
        "<p><!-- x --></p>",
        "<p>Send</p><p>Send</p>",
        "<p>Send</p> alert(1)",
        "<p>Send</div>",
        "<p>Send",
        "<p style={{color: 'red'}>Send</p>",
        "<p style={{color: 'red'}} style={{color: 'blue'}}>Send</p>",
        "<p style={{color: 'red', color: 'blue'}}>Send</p>",
        "<p>Se\nnd</p>",
        "<p>Se\u202end</p>",
        "<div>" * 40 + "</div>" * 40,
        "<div>" * 5000,
        "<p>" + "a" * jsx.MAX_LENGTH + "</p>",
        "",
        "Send",
    ],
)
def test_hostile_and_malformed_code_is_refused(code):
    with pytest.raises(CodeError):
        render(parse(code))


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '" onfocus="alert(1)', "&lt;b&gt;"])
def test_hostile_text_stays_text(text):
    quote = "'" if '"' in text else '"'
    drawn = render(parse(f"<p>{{{quote}{text}{quote}}}</p>"))
    assert_harmless(drawn)
    assert Seen(drawn).tags == {"p"}
    assert Seen(drawn).text == text
    field = render(Element("Field", (("placeholder", text),)))
    assert Seen(field).attributes == {"placeholder": {text}}
