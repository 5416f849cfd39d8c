"""Widgets with a description in English and as React code, in one-to-one correspondence.

    description: a red button that says "Send"
    code: <button style={{background: 'red'}} onClick={press}>Send</button>

The same widget can be coded in many dialects (colours as styles or classes,
quotes, handlers, components). Each training document uses one dialect
throughout, so the context determines the dialect of the next answer, and a
description alone does not. No training document uses `TARGET`, the dialect of
the task's answers.

A portable hash decides what is held out:

    label         one in five, of one or two words; its words occur in other labels
    colour, kind  18 of the 84 pairs: there is never a teal heading

Every label in the task's examples is held out, and so is at least one of their
pairs; the training text has neither.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from gpt3jax.data.corpora.documents import hash_key
from gpt3jax.evals.task import Example, Task

from react.jsx import (
    COLOURS,
    COMPONENTS,
    CodeError,
    Element,
    Handler,
    Style,
    parse,
    render,
    write,
)

LINKS = {
    "button": "that says", "heading": "that says", "text": "that says", "field": "for",
    "list": "of", "numbered list": "of", "box": "with",
}  # fmt: skip
"""Kinds of widgets, with the words between a kind and its content."""

TAGS = {
    "button": "Button", "heading": "Heading", "text": "Text", "field": "Field", "list": "List",
    "numbered list": "Steps", "box": "Box",
}  # fmt: skip

WORDS = (
    "Send", "Stop", "Save", "Open", "Close", "Home", "Next", "Back", "Start", "Search", "Add",
    "Name", "Email", "City", "Phone", "Title", "Note", "Price", "Date", "Photo", "Music", "Mail",
    "Milk", "Bread", "Eggs", "Tea", "Apples", "Rice", "Soup", "Water", "Today", "Later", "Hello",
    "Welcome", "Thanks", "Friends", "Family", "Garden", "Summer", "Winter",
)  # fmt: skip


@dataclass(frozen=True)
class Widget:
    """A UI element: a box has parts, a list several labels, any other kind one label."""

    kind: str
    colour: str | None
    labels: tuple[str, ...] = ()
    parts: tuple[Widget, ...] = ()

    @property
    def all(self) -> Iterator[Widget]:
        """This widget and its descendants."""
        yield self
        for part in self.parts:
            yield from part.all


@dataclass(frozen=True)
class Dialect:
    """A coding style."""

    components: bool = False
    """`<Button>` rather than `<button>`."""
    colours: Literal["background", "backgroundColor", "class"] = "background"
    """`style={{background: 'red'}}`, `style={{backgroundColor: 'red'}}`, `className='bg-red'`."""
    quote: Literal["'", '"'] = "'"
    braces: bool = False
    """`{'Send'}` rather than `Send`."""
    press: Literal["none", "name", "arrow"] = "name"
    """The handler of a button: none, `onClick={press}`, `onClick={() => press()}`."""


TARGET = Dialect()
DIALECTS = [
    Dialect(*choice)
    for choice in itertools.product(
        (False, True), ("background", "backgroundColor", "class"), ("'", '"'), (False, True),
        ("none", "name", "arrow"),
    )
]  # fmt: skip


def describe(widget: Widget) -> str:
    """The English description. It is unambiguous because an inner box comes last."""
    words = ("a", widget.colour, widget.kind, LINKS[widget.kind])
    name = " ".join(word for word in words if word)
    labels = [f'"{label}"' for label in widget.labels]
    *first, last = labels or [describe(part) for part in widget.parts]
    return f"{name} {', '.join(first)} and {last}" if first else f"{name} {last}"


def to_code(widget: Widget, dialect: Dialect) -> str:
    """The widget as one line of code."""
    return write(_tree(widget, dialect), quote=dialect.quote, braces=dialect.braces)


def _tree(widget: Widget, dialect: Dialect) -> Element:
    def tag(component: str) -> str:
        return component if dialect.components else COMPONENTS[component]

    attributes: list[tuple[str, str | Style | Handler]] = []
    is_ink = widget.kind in ("heading", "text", "list", "numbered list")
    if widget.colour and dialect.colours == "class":
        attributes.append(("className", f"{'text' if is_ink else 'bg'}-{widget.colour}"))
    elif widget.colour:
        attributes.append(
            ("style", Style((("color" if is_ink else dialect.colours, widget.colour),)))
        )
    if widget.kind == "button" and dialect.press != "none":
        attributes.append(("onClick", Handler("press", dialect.press == "arrow")))
    children: Iterable[Element | str] = widget.labels
    if widget.kind == "field":
        attributes.append(("placeholder", widget.labels[0]))
        children = ()
    elif widget.kind in ("list", "numbered list"):
        children = (Element(tag("Item"), (), (label,)) for label in widget.labels)
    elif widget.kind == "box":
        children = (_tree(part, dialect) for part in widget.parts)
    return Element(tag(TAGS[widget.kind]), tuple(attributes), tuple(children))


def is_held_out_label(label: str) -> bool:
    """Whether a label is held out, as one in five is, on every kind of widget."""
    return hash_key(f"label:{label}") % 5 == 0


def is_held_out_pair(colour: str | None, kind: str) -> bool:
    """Whether a pair is held out, as about one in five is; a pair without a colour never is."""
    return colour is not None and hash_key(f"pair:{colour}:{kind}") % 6 == 0


def sample_widget(rng: random.Random, *, held_out: bool) -> Widget:
    """A random widget for the task (`held_out`) or for the training text."""
    while True:
        widget = _sample(rng, held_out, boxes=2)
        if any(is_held_out_pair(each.colour, each.kind) for each in widget.all) == held_out:
            return widget


def _sample(rng: random.Random, held_out: bool, boxes: int) -> Widget:
    """A random widget with at most `boxes` levels of boxes."""
    kind = rng.choice(list(LINKS) if boxes else [kind for kind in LINKS if kind != "box"])
    colour = rng.choice((None, *COLOURS))
    if kind == "box":
        parts = [_sample(rng, held_out, 0) for _ in range(rng.randint(1, 2))]
        if boxes > 1 and rng.random() < 0.2:
            parts[-1] = Widget("box", rng.choice(COLOURS), (), (_sample(rng, held_out, 0),))
        return Widget(kind, colour, (), tuple(parts))
    count = rng.randint(2, 3) if "list" in kind else 1
    return Widget(kind, colour, tuple(_label(rng, held_out) for _ in range(count)))


def _label(rng: random.Random, held_out: bool) -> str:
    """A random label of one word, or twice as often of two."""
    while True:
        label = " ".join(rng.choices(WORDS, k=rng.choice((1, 2, 2))))
        if is_held_out_label(label) == held_out:
            return label


CONTEXT = "\ndescription: {}\ncode:"
"""The prompt; its leading newline separates it from the previous pair."""


def example(widget: Widget, dialect: Dialect = TARGET) -> Example:
    """The widget as an example of the task; one answer is accepted."""
    return Example((CONTEXT.format(describe(widget)),), (f" {to_code(widget, dialect)}",))


def check(code: str, expected: str) -> dict[str, bool]:
    """Checks of an answer that are weaker than exact match; each implies the ones before.

    `parses`: the code is well-formed. `renders`: it is on the allowlist.
    `as described`: it renders to the HTML of the expected code, in any dialect.
    """
    checks = {"parses": False, "renders": False, "as described": False}
    try:
        tree = parse(code)
        checks["parses"] = True
        html = render(tree)
        checks["renders"] = True
    except CodeError:
        return checks
    return checks | {"as described": html == render(parse(expected))}


def documents(count: int) -> Iterator[str]:
    """Training documents of pairs in one dialect other than `TARGET`, none of them held out."""
    rng = random.Random(0)
    others = [dialect for dialect in DIALECTS if dialect != TARGET]
    for _ in range(count):
        dialect = rng.choice(others)
        widgets = [sample_widget(rng, held_out=False) for _ in range(rng.randint(3, 8))]
        yield "".join(example(widget, dialect).shown for widget in widgets) + "\n"


def pairs(count: int) -> Iterator[dict[str, str]]:
    """Prompts and completions for fine-tuning, in `TARGET`, none of them held out."""
    rng = random.Random(1)
    for _ in range(count):
        pair = example(sample_widget(rng, held_out=False))
        yield {"prompt": pair.contexts[0], "completion": pair.completions[0]}


def task(few: int) -> Task:
    """200 held-out widgets to code in `TARGET`, and 200 demonstrations that are not held out."""
    rng = random.Random(2)
    examples = [example(sample_widget(rng, held_out=True)) for _ in range(200)]
    demonstrations = [example(sample_widget(rng, held_out=False)) for _ in range(200)]
    return Task(
        name="describe_to_react",
        examples=tuple(examples),
        metric="exact match",
        few=few,
        demonstrations=tuple(demonstrations),
        check=check,
        source="Alammar, How GPT3 Works: priming with descriptions and their React code",
    )
