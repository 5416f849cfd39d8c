"""A parser, a printer and an HTML renderer for a small subset of JSX.

Code that a model wrote is untrusted. It is never executed and never inserted
into a page: it is parsed, checked against an allowlist of elements, attributes
and values, and written again as HTML with all text escaped.

    element    <button style={{background: 'red'}} onClick={press}>Send</button>
    attribute  name="text", name={{key: 'text', ...}}, name={word}, name={() => word()}
    child      an element, plain text, or {'text'}
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LENGTH = 10_000
"""In characters; longer code is refused."""
MAX_DEPTH = 32
"""Of nested elements."""

COLOURS = (
    "red", "blue", "green", "purple", "teal", "navy", "maroon", "sienna", "gray", "brown",
    "crimson", "black",
)  # fmt: skip
"""CSS colour names; each has enough contrast with white, as background and as text."""

COMPONENTS = {
    "Box": "div", "Heading": "h1", "Text": "p", "Button": "button", "Field": "input",
    "List": "ul", "Steps": "ol", "Item": "li",
}  # fmt: skip
"""Components of a design system, with the HTML element that each renders."""

_TEXT = frozenset({"text"})
_BLOCKS = frozenset({"div", "h1", "p", "button", "input", "ul", "ol"})
CONTENT = {
    "div": _BLOCKS, "h1": _TEXT, "p": _TEXT, "button": _TEXT, "li": _TEXT,
    "ul": frozenset({"li"}), "ol": frozenset({"li"}), "input": frozenset(),
}  # fmt: skip
"""The children that each element may have, such that an HTML parser rebuilds the same tree."""


class CodeError(ValueError):
    """The code is malformed, or uses something that is not on the allowlist."""


@dataclass(frozen=True)
class Style:
    """The object in `style={{...}}`."""

    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Handler:
    """An event handler: `press`, or as an arrow function `() => press()`."""

    name: str
    is_arrow: bool = False


@dataclass(frozen=True)
class Element:
    """A node of the syntax tree; a child of type str is text."""

    tag: str
    attributes: tuple[tuple[str, str | Style | Handler], ...] = ()
    children: tuple[Element | str, ...] = ()


_OPEN = re.compile(r"<([A-Za-z][A-Za-z0-9]*)")
_ATTRIBUTE = re.compile(r" +([A-Za-z]+)=")
_CLOSED = re.compile(r" *(/?)>")
_END = re.compile(r"</([A-Za-z][A-Za-z0-9]*)>")
_TEXT_RUN = re.compile(r"[^<>{}&]+")
_QUOTED = re.compile(r"\"([^\"\\&]*)\"|'([^'\\&]*)'")
_EXPRESSION = re.compile(r"\{(?:\"([^\"\\]*)\"|'([^'\\]*)')\}")
_HANDLER = re.compile(r"\{(?:([a-z][A-Za-z]*)|\(\) => ([a-z][A-Za-z]*)\(\))\}")
_PAIR = re.compile(r"([A-Za-z]+): (?:\"([^\"\\]*)\"|'([^'\\]*)')")


def parse(code: str) -> Element:
    """Parse one element, which spaces may surround.

    Raises:
      CodeError: the code is not well-formed, or outside this subset.
    """
    code = code.strip(" ")
    if len(code) > MAX_LENGTH:
        raise CodeError(f"the code has {len(code)} characters, more than {MAX_LENGTH}")
    if not code.isprintable():
        raise CodeError("the code has non-printable characters or several lines")
    tree, end = _element(code, 0, MAX_DEPTH)
    if end < len(code):
        raise CodeError(f"character {end}: something follows the element")
    return tree


def _element(code: str, at: int, depth: int) -> tuple[Element, int]:
    """Parse the element at an offset, at most `depth` deep; return it and its end offset."""
    if not depth:
        raise CodeError(f"character {at}: elements are nested more than {MAX_DEPTH} deep")
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
            child, at = _child(code, at, depth)
            children.append(child)
        if end[1] != opened[1]:
            raise CodeError(f"character {at}: </{end[1]}> ends <{opened[1]}>")
        at = end.end()
    return Element(opened[1], tuple(attributes.items()), tuple(children)), at


def _child(code: str, at: int, depth: int) -> tuple[Element | str, int]:
    if match := _TEXT_RUN.match(code, at):
        return match[0], match.end()
    if match := _EXPRESSION.match(code, at):
        return _string(match, 1), match.end()
    return _element(code, at, depth - 1)


def _value(code: str, at: int) -> tuple[str | Style | Handler, int]:
    if match := _QUOTED.match(code, at):
        return _string(match, 1), match.end()
    if code.startswith("{{", at):
        return _style(code, at + 2)
    match = _expect(_HANDLER, code, at, "a value")
    return Handler(match[1] or match[2], is_arrow=match[1] is None), match.end()


def _style(code: str, at: int) -> tuple[Style, int]:
    """Parse `key: 'value', ...}}`."""
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
    match = pattern.match(code, at)
    if not match:
        raise CodeError(f"character {at}: {what} is missing")
    return match


def _string(match: re.Match[str], group: int) -> str:
    """The text in double quotes (`group`) or in single quotes (`group + 1`)."""
    return match[group] if match[group] is not None else match[group + 1]


def write(tree: Element, *, quote: str = "'", braces: bool = False) -> str:
    """The code of a tree, the inverse of `parse`.

    Args:
      tree: its strings are printable, without quotes, backslashes, `<>{}` and `&`.
      quote: the quote character around strings.
      braces: write text as `{'Send'}`.
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
        write(child, quote=quote, braces=braces)
        if isinstance(child, Element)
        else f"{{{quote}{child}{quote}}}"
        if braces
        else child
        for child in tree.children
    )
    return " ".join(words) + f">{inner}</{tree.tag}>"


def render(tree: Element) -> str:
    """The tree as HTML of allowed elements and styles, without handlers, with all text escaped.

    Equivalent code in different dialects renders to the same HTML.

    Raises:
      CodeError: an element, attribute or value is not on the allowlist, or is misplaced.
    """
    tag = COMPONENTS.get(tree.tag, tree.tag)
    if tag not in CONTENT:
        raise CodeError(f"<{tree.tag}> is not an allowed element")
    attributes = "".join(sorted(_attribute(tag, name, value) for name, value in tree.attributes))
    inner = ""
    for child in tree.children:
        kind = "text" if isinstance(child, str) else COMPONENTS.get(child.tag, child.tag)
        if kind not in CONTENT[tag]:
            raise CodeError(f"<{tree.tag}> must not contain {kind[:50]}")
        inner += html.escape(child) if isinstance(child, str) else render(child)
    if tag == "input":
        return f"<input{attributes}>"
    # type=button: it must not submit a form.
    return f"<{tag}{' type=button' * (tag == 'button')}{attributes}>{inner}</{tag}>"


def _attribute(tag: str, name: str, value: str | Style | Handler) -> str:
    """One attribute as HTML with a leading space, or "" for a handler."""
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
    raise CodeError(f"{name} is not an allowed attribute of <{tag}>")


def _coloured(values: Sequence[tuple[str, str]]) -> str:
    """A style attribute; text on a background is white unless it has a colour."""
    style: dict[str, str] = {}
    for key, colour in values:
        key = "background" if key == "backgroundColor" else key
        if key not in ("background", "color") or colour not in COLOURS or key in style:
            raise CodeError(f"{key[:50]}: {colour[:50]} is not an allowed style")
        style[key] = colour
    style = {"color": "white"} | style if "background" in style else style
    return ' style="' + ";".join(f"{key}:{style[key]}" for key in sorted(style)) + '"'
