"""A description goes in, React code comes out: things, in words and as code, one to one.

    description: a red button that says "Send"
    code: <button style={{background: 'red'}} onClick={press}>Send</button>

The same thing can be coded in many dialects (colours as styles or classes,
quotes, handlers, components). A document of the training text keeps to one
throughout, so what came before tells how to go on; a description alone does
not. `HOUSE`, the dialect that is asked for, is in no such document.

What is held out, by a hash that every machine computes alike:

    label         one in five, of one word or two; its words occur in others
    colour, kind  18 of the 84 pairs: there is never a teal heading

The task asks for things that have nothing but held-out labels and at least one
held-out pair; the training text has neither.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from gpt3jax.data.corpora.documents import hash_key
from gpt3jax.evals.jsx import (
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
from gpt3jax.evals.task import Example, Task

LINKS = {
    "button": "that says", "heading": "that says", "text": "that says", "field": "for",
    "list": "of", "numbered list": "of", "box": "with",
}  # fmt: skip
"""Kinds of things, and the words between a kind and what it holds."""

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
class Thing:
    """What is described: a box has parts, a list several labels, all else one label."""

    kind: str
    colour: str | None
    labels: tuple[str, ...] = ()
    parts: tuple[Thing, ...] = ()

    @property
    def all(self) -> Iterator[Thing]:
        """The thing and all within it."""
        yield self
        for part in self.parts:
            yield from part.all


@dataclass(frozen=True)
class Dialect:
    """How a thing is coded."""

    components: bool = False
    """`<Button>` rather than `<button>`."""
    colours: Literal["background", "backgroundColor", "class"] = "background"
    """`style={{background: 'red'}}`, `style={{backgroundColor: 'red'}}`, `className='bg-red'`."""
    quote: Literal["'", '"'] = "'"
    braces: bool = False
    """`{'Send'}` rather than `Send`."""
    press: Literal["none", "name", "arrow"] = "name"
    """Of buttons: nothing, `onClick={press}`, `onClick={() => press()}`."""


HOUSE = Dialect()
DIALECTS = [
    Dialect(*choice)
    for choice in itertools.product(
        (False, True), ("background", "backgroundColor", "class"), ("'", '"'), (False, True),
        ("none", "name", "arrow"),
    )
]  # fmt: skip


def describe(thing: Thing) -> str:
    """The thing in words. An inner box comes last, so that what follows `with` is its own."""
    named = " ".join(word for word in ("a", thing.colour, thing.kind, LINKS[thing.kind]) if word)
    labels = [f'"{label}"' for label in thing.labels]
    *first, last = labels or [describe(part) for part in thing.parts]
    return f"{named} {', '.join(first)} and {last}" if first else f"{named} {last}"


def code(thing: Thing, dialect: Dialect) -> str:
    """The thing as code, on one line."""
    return write(_tree(thing, dialect), quote=dialect.quote, braces=dialect.braces)


def _tree(thing: Thing, dialect: Dialect) -> Element:
    def tag(component: str) -> str:
        return component if dialect.components else COMPONENTS[component]

    attributes: list[tuple[str, str | Style | Handler]] = []
    is_ink = thing.kind in ("heading", "text", "list", "numbered list")
    if thing.colour and dialect.colours == "class":
        attributes.append(("className", f"{'text' if is_ink else 'bg'}-{thing.colour}"))
    elif thing.colour:
        attributes.append(
            ("style", Style((("color" if is_ink else dialect.colours, thing.colour),)))
        )
    if thing.kind == "button" and dialect.press != "none":
        attributes.append(("onClick", Handler("press", dialect.press == "arrow")))
    children: Iterable[Element | str] = thing.labels
    if thing.kind == "field":
        attributes.append(("placeholder", thing.labels[0]))
        children = ()
    elif thing.kind in ("list", "numbered list"):
        children = (Element(tag("Item"), (), (label,)) for label in thing.labels)
    elif thing.kind == "box":
        children = (_tree(part, dialect) for part in thing.parts)
    return Element(tag(TAGS[thing.kind]), tuple(attributes), tuple(children))


def is_held_out_label(label: str) -> bool:
    """One label in five; by its words alone, whatever it is on."""
    return hash_key(f"label:{label}") % 5 == 0


def is_held_out_pair(colour: str | None, kind: str) -> bool:
    """About one pair of colour and kind in five; without a colour, none."""
    return colour is not None and hash_key(f"pair:{colour}:{kind}") % 6 == 0


def draw_thing(draw: random.Random, *, held_out: bool) -> Thing:
    """A thing of the training text, or of those that the task asks for."""
    while True:
        thing = _draw(draw, held_out, boxes=2)
        if any(is_held_out_pair(each.colour, each.kind) for each in thing.all) == held_out:
            return thing


def _draw(draw: random.Random, held_out: bool, boxes: int) -> Thing:
    """A thing of at most so many boxes within each other."""
    kind = draw.choice(list(LINKS) if boxes else [kind for kind in LINKS if kind != "box"])
    colour = draw.choice((None, *COLOURS))
    if kind == "box":
        parts = [_draw(draw, held_out, 0) for _ in range(draw.randint(1, 2))]
        if boxes > 1 and draw.random() < 0.2:
            parts[-1] = Thing("box", draw.choice(COLOURS), (), (_draw(draw, held_out, 0),))
        return Thing(kind, colour, (), tuple(parts))
    count = draw.randint(2, 3) if "list" in kind else 1
    return Thing(kind, colour, tuple(_label(draw, held_out) for _ in range(count)))


def _label(draw: random.Random, held_out: bool) -> str:
    """One word, or more often two."""
    while True:
        label = " ".join(draw.choices(WORDS, k=draw.choice((1, 2, 2))))
        if is_held_out_label(label) == held_out:
            return label


CONTEXT = "\ndescription: {}\ncode:"
"""What a model reads before it writes the code; a new line separates it from the pair before."""


def example(thing: Thing, dialect: Dialect = HOUSE) -> Example:
    """The thing as a question; one answer is accepted."""
    return Example((CONTEXT.format(describe(thing)),), (f" {code(thing, dialect)}",))


def check(code: str, expected: str) -> dict[str, bool]:
    """What can be said of code beyond whether it is what was expected, by name.

    `parses`: it is well-formed. `renders`: and draws something. `as described`:
    and that is what the expected code draws, in whatever dialect.
    """
    found = {"parses": False, "renders": False, "as described": False}
    try:
        tree = parse(code)
        found["parses"] = True
        drawn = render(tree)
        found["renders"] = True
    except CodeError:
        return found
    return found | {"as described": drawn == render(parse(expected))}


def documents(count: int) -> Iterator[str]:
    """Training documents: pairs in one dialect each, none held out, none in `HOUSE`."""
    draw = random.Random(0)
    others = [dialect for dialect in DIALECTS if dialect != HOUSE]
    for _ in range(count):
        dialect = draw.choice(others)
        things = [draw_thing(draw, held_out=False) for _ in range(draw.randint(3, 8))]
        yield "".join(example(thing, dialect).shown for thing in things) + "\n"


def pairs(count: int) -> Iterator[dict[str, str]]:
    """For fine-tuning: prompt and completion, none held out, all in `HOUSE`."""
    draw = random.Random(1)
    for _ in range(count):
        shown = example(draw_thing(draw, held_out=False))
        yield {"prompt": shown.contexts[0], "completion": shown.completions[0]}


def task(few: int) -> Task:
    """200 held-out things to code in `HOUSE`, after things that are not held out."""
    draw = random.Random(2)
    asked = [example(draw_thing(draw, held_out=True)) for _ in range(200)]
    shown = [example(draw_thing(draw, held_out=False)) for _ in range(200)]
    return Task(
        name="describe_to_react",
        examples=tuple(asked),
        metric="exact match",
        few=few,
        demonstrations=tuple(shown),
        check=check,
        source="Alammar, How GPT3 Works: priming with descriptions and their React code",
    )
