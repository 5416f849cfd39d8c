"""A subset of JSX: parsed, written, and drawn as HTML that can do nothing but be looked at.

Code that a model wrote is anybody's code. It is never run and never put into a
page: it is parsed here, held against a list of elements, attributes and values,
and what is on the list is written anew as HTML, all text escaped.

    element    <button style={{background: 'red'}} onClick={press}>Send</button>
    attribute  name="text", name={{key: 'text', ...}}, name={word}, name={() => word()}
    child      an element, plain text, or {'text'}
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

LONGEST = 10_000
"""Characters of code that are looked at."""
DEEPEST = 32
"""Elements within each other."""

COLOURS = (
    "red", "blue", "green", "purple", "teal", "navy", "maroon", "sienna", "gray", "brown",
    "crimson", "black",
)  # fmt: skip
"""Names that CSS knows. White can be read on each, and each on white."""

COMPONENTS = {
    "Box": "div", "Heading": "h1", "Text": "p", "Button": "button", "Field": "input",
    "List": "ul", "Steps": "ol", "Item": "li",
}  # fmt: skip
"""Components of a design system, and the HTML element that each draws."""

_TEXT = frozenset({"text"})
_BLOCKS = frozenset({"div", "h1", "p", "button", "input", "ul", "ol"})
CONTENT = {
    "div": _BLOCKS, "h1": _TEXT, "p": _TEXT, "button": _TEXT, "li": _TEXT,
    "ul": frozenset({"li"}), "ol": frozenset({"li"}), "input": frozenset(),
}  # fmt: skip
"""What may lie within what: a browser builds the same tree again from the HTML."""


class CodeError(ValueError):
    """Code that is malformed, or asks for what is not on the list."""


@dataclass(frozen=True)
class Style:
    """The object in `style={{...}}`."""

    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Handler:
    """What is called when something happens: `press`, or with an arrow `() => press()`."""

    name: str
    is_arrow: bool = False


@dataclass(frozen=True)
class Element:
    """A node of the tree; a child that is a string is text."""

    tag: str
    attributes: tuple[tuple[str, str | Style | Handler], ...] = ()
    children: tuple[Element | str, ...] = ()


_OPEN = re.compile(r"<([A-Za-z][A-Za-z0-9]*)")
_ATTRIBUTE = re.compile(r" +([A-Za-z]+)=")
_CLOSED = re.compile(r" *(/?)>")
_END = re.compile(r"</([A-Za-z][A-Za-z0-9]*)>")
_WORDS = re.compile(r"[^<>{}&]+")
_QUOTED = re.compile(r"\"([^\"\\&]*)\"|'([^'\\&]*)'")
_EXPRESSION = re.compile(r"\{(?:\"([^\"\\]*)\"|'([^'\\]*)')\}")
_HANDLER = re.compile(r"\{(?:([a-z][A-Za-z]*)|\(\) => ([a-z][A-Za-z]*)\(\))\}")
_PAIR = re.compile(r"([A-Za-z]+): (?:\"([^\"\\]*)\"|'([^'\\]*)')")


def parse(code: str) -> Element:
    """The tree of one element, space around it aside.

    Raises:
      CodeError: it is not well-formed, or not of this subset.
    """
    code = code.strip(" ")
    if len(code) > LONGEST:
        raise CodeError(f"it has {len(code)} characters, over {LONGEST}")
    if not code.isprintable():
        raise CodeError("it has characters that do not print; it is one line")
    tree, end = _element(code, 0, DEEPEST)
    if end < len(code):
        raise CodeError(f"character {end}: something follows the element")
    return tree


def _element(code: str, at: int, deepest: int) -> tuple[Element, int]:
    """The element that begins at a character, and where it ends."""
    if not deepest:
        raise CodeError(f"character {at}: elements lie over {DEEPEST} deep")
    opened = _expect(_OPEN, code, at, "an element")
    attributes: dict[str, str | Style | Handler] = {}
    at = opened.end()
    while named := _ATTRIBUTE.match(code, at):
        if named[1] in attributes:
            raise CodeError(f"character {at}: {named[1]} is given twice")
        attributes[named[1]], at = _value(code, named.end())
    closed = _expect(_CLOSED, code, at, "an attribute or the tag's end")
    at = closed.end()
    children: list[Element | str] = []
    if not closed[1]:
        while not (end := _END.match(code, at)):
            child, at = _child(code, at, deepest)
            children.append(child)
        if end[1] != opened[1]:
            raise CodeError(f"character {at}: </{end[1]}> ends <{opened[1]}>")
        at = end.end()
    return Element(opened[1], tuple(attributes.items()), tuple(children)), at


def _child(code: str, at: int, deepest: int) -> tuple[Element | str, int]:
    if found := _WORDS.match(code, at) or _EXPRESSION.match(code, at):
        return (found[0] if found.re is _WORDS else _string(found, 1)), found.end()
    return _element(code, at, deepest - 1)


def _value(code: str, at: int) -> tuple[str | Style | Handler, int]:
    if found := _QUOTED.match(code, at):
        return _string(found, 1), found.end()
    if code.startswith("{{", at):
        return _style(code, at + 2)
    found = _expect(_HANDLER, code, at, "a value")
    return Handler(found[1] or found[2], is_arrow=found[1] is None), found.end()


def _style(code: str, at: int) -> tuple[Style, int]:
    """`key: 'value', ...}}`."""
    values: dict[str, str] = {}
    while True:
        pair = _expect(_PAIR, code, at, "a key and its value")
        if pair[1] in values:
            raise CodeError(f"character {at}: {pair[1]} is given twice")
        values[pair[1]] = _string(pair, 2)
        at = pair.end()
        if code.startswith("}}", at):
            return Style(tuple(values.items())), at + 2
        if not code.startswith(", ", at):
            raise CodeError(f"character {at}: the style does not end")
        at += 2


def _expect(pattern: re.Pattern[str], code: str, at: int, what: str) -> re.Match[str]:
    found = pattern.match(code, at)
    if not found:
        raise CodeError(f"character {at}: {what} is missing")
    return found


def _string(found: re.Match[str], group: int) -> str:
    """What stands in double quotes (a group), or in single ones (the next)."""
    return found[group] if found[group] is not None else found[group + 1]


def write(tree: Element, *, quote: str = "'", braces: bool = False) -> str:
    """The code of a tree; `parse` gives the tree back.

    Args:
      tree: Its strings print, and have neither quotes, backslashes, `<>{}` nor `&`.
      quote: Around strings.
      braces: Text as `{'Send'}`.
    """
    words = [f"<{tree.tag}"]
    for name, value in tree.attributes:
        if isinstance(value, Style):
            pairs = ", ".join(f"{key}: {quote}{each}{quote}" for key, each in value.values)
            words.append(f"{name}={{{{{pairs}}}}}")
        elif isinstance(value, Handler):
            called = f"() => {value.name}()" if value.is_arrow else value.name
            words.append(f"{name}={{{called}}}")
        else:
            words.append(f"{name}={quote}{value}{quote}")
    if not tree.children:
        return " ".join(words) + " />"
    inner = "".join(
        write(child, quote=quote, braces=braces) if isinstance(child, Element)
        else f"{{{quote}{child}{quote}}}" if braces else child
        for child in tree.children
    )  # fmt: skip
    return " ".join(words) + f">{inner}</{tree.tag}>"


def render(tree: Element) -> str:
    """The tree as HTML of listed elements and styles; handlers do nothing, all text is escaped.

    Code in different manners that means the same is the same HTML.

    Raises:
      CodeError: an element, attribute or value is not on the list, or lies where it must not.
    """
    tag = COMPONENTS.get(tree.tag, tree.tag)
    if tag not in CONTENT:
        raise CodeError(f"<{tree.tag}> is not an element that is drawn")
    drawn = "".join(sorted(_attribute(tag, name, value) for name, value in tree.attributes))
    inner = ""
    for child in tree.children:
        kind = "text" if isinstance(child, str) else COMPONENTS.get(child.tag, child.tag)
        if kind not in CONTENT[tag]:
            raise CodeError(f"<{tree.tag}> does not hold {kind[:50]}")
        inner += html.escape(child) if isinstance(child, str) else render(child)
    if tag == "input":
        return f"<input{drawn}>"
    # A button sends nothing.
    return f"<{tag}{' type=button' * (tag == 'button')}{drawn}>{inner}</{tag}>"


def _attribute(tag: str, name: str, value: str | Style | Handler) -> str:
    """One attribute as HTML, with a space before it; empty for a handler."""
    if name == "style" and isinstance(value, Style):
        return _coloured(value.values)
    if name == "className" and isinstance(value, str):
        keys = {"bg": "background", "text": "color"}
        split = [word.partition("-") for word in value.split(" ")]
        return _coloured([(keys.get(key, ""), colour) for key, _, colour in split])
    if name == "placeholder" and tag == "input" and isinstance(value, str):
        return f' placeholder="{html.escape(value)}"'
    if name == "onClick" and tag == "button" and isinstance(value, Handler):
        return ""
    raise CodeError(f"{name} of <{tag}> is not an attribute that is drawn")


def _coloured(values: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    """A style attribute; what lies on a colour, and has none, is white."""
    found: dict[str, str] = {}
    for key, colour in values:
        key = "background" if key == "backgroundColor" else key
        if key not in ("background", "color") or colour not in COLOURS or key in found:
            raise CodeError(f"{key[:50]}: {colour[:50]} is not a style that is drawn")
        found[key] = colour
    found = {"color": "white"} | found if "background" in found else found
    return ' style="' + ";".join(f"{key}:{found[key]}" for key in sorted(found)) + '"'
