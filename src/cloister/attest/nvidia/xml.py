"""XML as signed documents need it: a small tree, and its canonical form.

A document type declaration, a comment or a processing instruction is refused, and so is any ``xml:``
attribute; none of them occurs in what is read here. That leaves one canonical form, the same in Canonical
XML 1.0 and 1.1.

Source: Canonical XML 1.1 (W3C, 2008), section 2.3; Namespaces in XML 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from cloister.errors import MalformedInput

MAX_DEPTH = 12
MAX_ELEMENTS = 4096


@dataclass(slots=True)
class Element:
    """One element; names are kept as they are written, and resolved through ``scope``."""

    name: str
    scope: Mapping[str, str]
    """Namespace of each prefix in scope; the empty prefix is the default namespace."""
    declared: Mapping[str, str]
    """The prefixes that this element itself declares."""
    written: tuple[tuple[str, str], ...]
    children: list[Element | str] = field(default_factory=list)

    @property
    def qualified(self) -> tuple[str, str]:
        """Namespace and local name."""
        prefix, _, local = self.name.rpartition(":")
        return self.scope.get(prefix, ""), local

    def elements(self) -> list[Element]:
        """Child elements."""
        return [child for child in self.children if isinstance(child, Element)]

    def find(self, namespace: str, local: str) -> Element:
        """The one child element of this name; MalformedInput if there is none, or several."""
        found = [child for child in self.elements() if child.qualified == (namespace, local)]
        if len(found) != 1:
            raise MalformedInput(f"XML: {len(found)} elements {local!r} in {self.name[:40]!r}, expected 1")
        return found[0]

    def attribute(self, local: str, namespace: str = "") -> str | None:
        """An attribute's value; None if it is absent."""
        for name, value in self.written:
            prefix, _, rest = name.rpartition(":")
            if rest == local and (self.scope.get(prefix, "") if prefix else "") == namespace:
                return value
        return None

    def text(self) -> str:
        """The text of an element that has no child elements."""
        if self.elements():
            raise MalformedInput(f"XML: {self.name[:40]!r} has elements, expected text")
        return "".join(str(child) for child in self.children)

    def walk(self) -> Iterator[Element]:
        """This element and all below it."""
        yield self
        for child in self.elements():
            yield from child.walk()


def parse_xml(raw: bytes, what: str) -> Element:
    """The root element of a UTF-8 document.

    Raises:
        MalformedInput: not well-formed, or with something in it that is refused here.
    """
    builder = _Builder(what)
    parser = expat.ParserCreate("utf-8")
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.CommentHandler = builder.refuse
    parser.ProcessingInstructionHandler = builder.refuse
    try:
        parser.Parse(raw, True)
    except (expat.ExpatError, ValueError) as error:
        raise MalformedInput(f"{what} is not well-formed XML") from error
    if builder.root is None:
        raise MalformedInput(f"{what} is empty")
    return builder.root


class _Builder:
    def __init__(self, what: str) -> None:
        self.what = what
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0

    def start(self, name: str, attributes: list[str]) -> None:
        self._count += 1
        if len(self._open) >= MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise MalformedInput(f"{self.what} has more than {MAX_DEPTH} levels or {MAX_ELEMENTS} elements")
        pairs = list(zip(attributes[::2], attributes[1::2], strict=True))
        declared = {
            key.partition(":")[2]: value for key, value in pairs if key == "xmlns" or key.startswith("xmlns:")
        }
        written = tuple((key, value) for key, value in pairs if key.partition(":")[0] != "xmlns")
        scope = {**(self._open[-1].scope if self._open else {}), **declared}
        element = Element(name, scope, declared, written)
        self._check_names(element)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, name: str) -> None:
        self._open.pop()

    def data(self, text: str) -> None:
        self._open[-1].children.append(text)

    def refuse(self, *_: object) -> NoReturn:
        raise MalformedInput(f"{self.what} has a document type, comment or processing instruction")

    def _check_names(self, element: Element) -> None:
        attributes = [name for name, _ in element.written]
        for prefix, value in element.declared.items():
            if prefix in ("xml", "xmlns") or (prefix and not value):
                raise MalformedInput(
                    f"{self.what} declares the prefix {prefix[:20]!r} in a way that is refused"
                )
        for name in [element.name, *attributes]:
            prefix, colon, local = name.partition(":")
            if colon and (not local or ":" in local or prefix not in element.scope):
                raise MalformedInput(f"{self.what}: {name[:40]!r} has a prefix that is not declared")
        expanded = {_attribute_key(element, name) for name in attributes}
        if len(expanded) != len(attributes):
            raise MalformedInput(f"{self.what}: {element.name[:40]!r} has an attribute twice")


def canonicalize(element: Element, *, without: Element | None = None) -> bytes:
    """Canonical XML of an element and what is in it.

    Args:
        without: an element to leave out, as the enveloped-signature transform does.
    """
    pieces: list[str] = []
    # The element on top shows every namespace in scope, also those that its ancestors declare.
    _render(element, dict(element.scope), {}, without, pieces)
    return "".join(pieces).encode("utf-8")


def _render(
    element: Element,
    namespaces: Mapping[str, str],
    shown: Mapping[str, str],
    without: Element | None,
    pieces: list[str],
) -> None:
    pieces.append(f"<{element.name}")
    for prefix, value in sorted(namespaces.items()):
        if shown.get(prefix, "") != value:
            name = f"xmlns:{prefix}" if prefix else "xmlns"
            pieces.append(f' {name}="{_escape_attribute(value)}"')
    for name, value in sorted(element.written, key=lambda item: _attribute_key(element, item[0])):
        pieces.append(f' {name}="{_escape_attribute(value)}"')
    pieces.append(">")
    for child in element.children:
        if isinstance(child, str):
            pieces.append(_escape_text(child))
        elif child is not without:
            _render(child, child.declared, {**shown, **namespaces}, without, pieces)
    pieces.append(f"</{element.name}>")


def _attribute_key(element: Element, name: str) -> tuple[str, str]:
    prefix, colon, local = name.partition(":")
    return (element.scope[prefix], local) if colon else ("", prefix)


def _escape_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#xD;")


def _escape_attribute(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return escaped.replace("\t", "&#x9;").replace("\n", "&#xA;").replace("\r", "&#xD;")
