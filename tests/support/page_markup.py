"""What can be said of a page's accessibility from its markup alone, without a browser."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = frozenset({"meta", "img", "link", "br", "input", "hr"})
FOCUSABLE = frozenset({"a", "button", "input", "textarea", "select", "summary"})


@dataclass(slots=True, repr=False)
class Element:
    """An element of the page with what is inside it."""

    tag: str
    attributes: dict[str, str]
    parent: "Element | None"
    children: list["Element"] = field(default_factory=list)
    text: str = ""

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())

    def descendants(self) -> list["Element"]:
        return [one for child in self.children for one in (child, *child.descendants())]

    def words(self) -> str:
        """What a screen reader says of it: its text and the words of its pictures."""
        own = self.attributes.get("aria-label") or self.attributes.get("title") or self.attributes.get("alt") or ""
        return " ".join([own, self.text, *(child.words() for child in self.children)]).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {}, None)
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs}, self._open[-1])
        self._open[-1].children.append(made)
        if tag not in VOID:
            self._open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].text += data


def read_markup(html: str) -> list[Element]:
    """All elements of a page in their order."""
    reader = _Reader()
    reader.feed(html)
    return reader.root.descendants()


def style_of(html: str) -> str:
    """The style sheets of a page, without comments."""
    sheets = "".join(one.text for one in read_markup(html) if one.tag == "style")
    return re.sub(r"/\*.*?\*/", "", sheets, flags=re.DOTALL)


def find_barriers(html: str) -> list[str]:
    """What stands in the way of a person with a phone, a keyboard or a screen reader; a sentence for each."""
    elements = read_markup(html)
    return [
        *_document(elements),
        *_headings(elements),
        *_names(elements),
        *_references(elements),
        *_scrolling(elements, style_of(html)),
    ]


def _document(elements: list[Element]) -> list[str]:
    found = []
    metas = {one.attributes.get("name", ""): one.attributes.get("content", "") for one in elements if one.tag == "meta"}
    if not any(one.tag == "html" and one.attributes.get("lang") for one in elements):
        found.append("the page does not say its language")
    if not any(one.tag == "title" and one.text.strip() for one in elements):
        found.append("the page has no title")
    if "width=device-width" not in metas.get("viewport", ""):
        found.append("a phone would lay the page out for a desk")
    if re.search(r"user-scalable|maximum-scale", metas.get("viewport", "")):
        found.append("the page cannot be enlarged")
    if metas.get("color-scheme") != "light dark":
        found.append("the page does not follow light and dark")
    if sum(one.tag == "main" for one in elements) != 1:
        found.append("the page has not exactly one main part")
    return found


def _headings(elements: list[Element]) -> list[str]:
    levels = [int(one.tag[1]) for one in elements if re.fullmatch("h[1-6]", one.tag)]
    found = [] if levels.count(1) == 1 and levels[0] == 1 else ["the page does not begin with its one h1"]
    return found + [f"h{after} follows h{before}" for before, after in pairwise(levels) if after > before + 1]


def _names(elements: list[Element]) -> list[str]:
    labelled = {one.attributes.get("for", "") for one in elements if one.tag == "label" and one.words()}
    found = []
    for one in elements:
        parents = set()
        above = one.parent
        while above is not None:
            parents.add(above.tag)
            above = above.parent
        if one.tag == "img" and not one.attributes.get("alt") and "id" not in one.attributes:
            found.append(f"an image has no words: {one.attributes}")
        if one.attributes.get("role") in ("img", "region", "group", "radiogroup") and not (
            one.attributes.get("aria-label") or one.attributes.get("aria-labelledby")
        ):
            found.append(f"a {one.tag} of role {one.attributes['role']} has no name")
        if (
            one.tag in ("input", "textarea")
            and "hidden" not in one.attributes
            and one.attributes.get("id") not in labelled
            and "label" not in parents
        ):
            found.append(f"a field has no label: {one.attributes}")
        if one.tag in ("button", "summary", "a", "nav") and not one.words():
            found.append(f"a {one.tag} has no words: {one.attributes}")
        if one.tag == "th" and not one.attributes.get("scope"):
            found.append(f"a head of a table says not whether it is of a row or a column: {one.words()}")
        if int(one.attributes.get("tabindex", 0)) > 0:
            found.append(f"a {one.tag} jumps the queue of the keyboard")
    return found


def _references(elements: list[Element]) -> list[str]:
    ids = [one.attributes["id"] for one in elements if "id" in one.attributes]
    found = [f"two elements have the id {name}" for name in sorted(set(ids)) if ids.count(name) > 1]
    for one in elements:
        named = [one.attributes.get(key, "") for key in ("for", "aria-labelledby", "aria-describedby", "aria-controls")]
        if one.attributes.get("href", "").startswith("#"):
            named.append(one.attributes["href"][1:])
        found += [f"a {one.tag} refers to {name}, which is not there" for name in named if name and name not in ids]
    return found


def _scrolling(elements: list[Element], style: str) -> list[str]:
    """Boxes that scroll by their style have to be reached with the keyboard, or hold something that is."""
    rules = re.findall(r"([^{}]+)\{[^{}]*overflow(?:-[xy])?: *(?:auto|scroll)", style)
    last = {selector.strip().split()[-1] for rule in rules for selector in rule.split(",")}
    found = []
    for one in elements:
        if not last & {one.tag, *(f".{name}" for name in one.classes)}:
            continue
        inside = [child for child in one.descendants() if child.tag in FOCUSABLE]
        if one.attributes.get("tabindex") != "0" and not inside:
            found.append(f"a {one.tag} of class {sorted(one.classes)} scrolls, and no key leads into it")
        if one.tag not in ("nav", "pre", "dialog") and not one.attributes.get("aria-label"):
            found.append(f"a {one.tag} of class {sorted(one.classes)} scrolls, and has no name")
    return found
