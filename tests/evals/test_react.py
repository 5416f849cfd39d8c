"""Descriptions and code correspond one to one, what is held out stays out, and code is harmless."""

import itertools
import random
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt3jax.evals import jsx, react
from gpt3jax.evals.jsx import CodeError, Element, Handler, Style, parse, render, write
from gpt3jax.evals.react import DIALECTS, HOUSE, Dialect, Thing

SEND = Thing("button", "red", ("Send",))
BOX = Thing("box", "blue", (), (SEND, Thing("list", None, ("Milk", "Bread", "Eggs"))))


def drawn(count, *, held_out, seed=5):
    draw = random.Random(seed)
    return [react.draw_thing(draw, held_out=held_out) for _ in range(count)]


@pytest.mark.parametrize(
    ("dialect", "code"),
    [
        (HOUSE, "<button style={{background: 'red'}} onClick={press}>Send</button>"),
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
    assert react.describe(SEND) == 'a red button that says "Send"'
    assert react.code(SEND, dialect) == code
    assert render(parse(code)) == (
        '<button type=button style="background:red;color:white">Send</button>'
    )


def test_a_box_with_things_in_it():
    assert react.describe(BOX) == (
        'a blue box with a red button that says "Send" and a list of "Milk", "Bread" and "Eggs"'
    )
    assert react.code(BOX, HOUSE) == (
        "<div style={{background: 'blue'}}>"
        "<button style={{background: 'red'}} onClick={press}>Send</button>"
        "<ul><li>Milk</li><li>Bread</li><li>Eggs</li></ul></div>"
    )


def test_descriptions_and_code_correspond_one_to_one():
    things = set(drawn(2000, held_out=False) + drawn(500, held_out=True))
    assert {each.kind for thing in things for each in thing.all} == {*react.LINKS}
    assert len({react.describe(thing) for thing in things}) == len(things)
    for dialect in (HOUSE, *DIALECTS[::7]):
        assert len({react.code(thing, dialect) for thing in things}) == len(things)


def test_a_dialect_shows_in_the_code_and_not_in_what_it_draws():
    assert len(set(DIALECTS)) == 72
    assert len({react.code(BOX, dialect) for dialect in DIALECTS}) == 72
    for thing in drawn(30, held_out=True):
        assert len({render(parse(react.code(thing, dialect))) for dialect in DIALECTS}) == 1


def test_different_things_draw_differently():
    things = set(drawn(2000, held_out=True))
    assert len({render(parse(react.code(thing, HOUSE))) for thing in things}) == len(things)


LABEL = re.compile('"(.*?)"')
PAIR = re.compile(rf"a ({'|'.join(jsx.COLOURS)}) ({'|'.join(react.LINKS)}) ")


def described(texts):
    return [line for text in texts for line in text.splitlines() if line.startswith("description:")]


def test_nothing_held_out_is_in_the_training_text_or_among_what_is_shown():
    shown = [each.shown for each in react.task(few=4).demonstrations]
    tuned = [each["prompt"] for each in react.pairs(500)]
    for texts in (list(react.documents(1500)), shown, tuned):
        lines = described(texts)
        assert len(lines) >= 200
        for line in lines:
            labels = LABEL.findall(line)
            assert labels and not any(map(react.is_held_out_label, labels)), line
            assert not any(react.is_held_out_pair(*pair) for pair in PAIR.findall(line)), line


def test_what_is_asked_is_held_out_but_made_of_what_was_seen():
    text = "".join(react.documents(1500))
    for line in described(each.contexts[0] for each in react.task(few=4).examples):
        labels, pairs = LABEL.findall(line), PAIR.findall(line)
        assert all(map(react.is_held_out_label, labels)), line
        assert any(react.is_held_out_pair(*pair) for pair in pairs), line
        for word in " ".join(labels).split():
            syllables = re.findall("..", word.lower())
            assert word in text or all(each in react.SYLLABLES for each in syllables)
        for colour, kind in pairs:
            assert f" {colour} " in text and f" {kind} " in text


def test_the_rule_holds_out_the_shares_it_says():
    words = [f"{a} {b}" for a, b in itertools.product(react.WORDS, repeat=2)]
    assert sum(map(react.is_held_out_label, words)) / len(words) == pytest.approx(1 / 5, abs=0.03)
    pairs = list(itertools.product(jsx.COLOURS, react.LINKS))
    assert sum(react.is_held_out_pair(*pair) for pair in pairs) == 18 and len(pairs) == 84
    assert react.is_held_out_pair("teal", "heading")
    assert not any(react.is_held_out_pair(None, kind) for kind in react.LINKS)


def test_a_document_keeps_to_one_dialect_and_none_to_the_one_that_is_asked_for(monkeypatch):
    used = []
    monkeypatch.setattr(react, "code", lambda thing, dialect: used.append(dialect) or "<p />")
    for _ in react.documents(1500):
        assert len(set(used[-3:])) == 1
    assert set(used) == {*DIALECTS} - {HOUSE}


def test_every_call_gives_the_same_and_hardly_anything_twice():
    assert list(react.documents(20)) == list(react.documents(20))
    assert len(set(react.documents(500))) == 500
    assert react.task(few=4) == react.task(few=4)
    assert len({each.shown for each in react.task(few=4).examples}) > 190


def test_a_prompt_is_written_as_the_training_text_is():
    """Demonstrations, a context and its answer, joined, are a document of that dialect."""
    task = react.task(few=2)
    prompt = task.prompt(task.demonstrations[:2], task.examples[0].contexts[0])
    whole = prompt + task.examples[0].completions[0] + task.stop
    form = re.compile(r"(\ndescription: a .+\ncode: <.+>)+\n")
    assert form.fullmatch(whole)
    assert all(map(form.fullmatch, react.documents(20)))


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
def test_checks_say_how_far_an_answer_came(code, passed):
    found = react.check(code, react.code(SEND, HOUSE))
    assert list(found) == ["parses", "renders", "as described"]
    assert list(found.values()) == [True] * passed + [False] * (3 - passed)


# Trees of any shape, of names and words that are listed or not.
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


# Two texts side by side would be read as one.
trees = st.recursive(
    elements(st.lists(words, max_size=1).map(tuple)),
    lambda inner: elements(st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(trees, st.sampled_from(["'", '"']), st.booleans())
def test_what_is_written_is_parsed_to_the_same_tree(tree, quote, braces):
    assert parse(write(tree, quote=quote, braces=braces)) == tree


class Seen(HTMLParser):
    """Elements and attributes that a reader of HTML finds, and the text."""

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
def test_what_is_drawn_is_on_the_list_whatever_the_tree(tree):
    try:
        drawn = render(tree)
    except CodeError:
        return
    assert_harmless(drawn)


PIECES = ["<", ">", "</", "/>", "{", "}", "{{", "}}", "'", '"', " ", "=", ":", ", ", "\\", "&lt;",
          "button", "div", "script", "style", "onClick", "onError", "href", "src", "press", "red",
          "() => ", "()", "alert(1)", "javascript:", "\n", "\0", "é", "Send"]  # fmt: skip
GOOD = [react.code(BOX, dialect) for dialect in DIALECTS[::11]]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_text_is_parsed_or_refused_and_never_does_harm(data):
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
        "<p>" + "a" * jsx.LONGEST + "</p>",
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
