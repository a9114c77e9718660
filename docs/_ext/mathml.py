"""Write formulas as MathML, which browsers render natively: the pages load no script."""

import re
from html import escape
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert

# Commands that the converter does not know, in terms of ones that it knows.
REPLACEMENTS = {r"\tfrac": r"\frac", r"\dfrac": r"\frac", r"\top": r"{\mathsf{T}}"}
# What it leaves unconverted: delimiters of a given size, and an operator.
LEFT = {r">\{<": ">{<", r">\}<": ">}<", r">\|<": ">&#x02016;<", r"<mi>\arg</mi>": "<mo>arg</mo>"}

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
PRIMES = "\u2032\u2033\u2034"
LIMITS = ("max", "min", "lim", "sup", "inf", "arg max", "arg min")
"""Operators whose index is below them in a displayed formula."""
BARS = ("|", "\u2016")
UNDER = {"msub": "munder", "msubsup": "munderover"}


def to_mathml(formula: str, display: str) -> str:
    """Return a formula as MathML.

    Raises
    ------
    ValueError
        If the converter does not know one of its commands.
    """
    for command, known in REPLACEMENTS.items():
        formula = formula.replace(command, known)
    formula = re.sub(r"(\\math[a-z]+) (\w)", r"\1{\2}", formula)
    made = convert(formula, display=display)
    for left, known in LEFT.items():
        made = made.replace(left, known)
    if "\\" in made:
        raise ValueError(f"no MathML for all of the formula {formula}: {made}")
    ElementTree.register_namespace("", NAMESPACE)
    tree = ElementTree.fromstring(made)
    for row in list(tree.iter()):
        _join_arg(row)
        _close_up(row)
    for element in list(tree.iter()):
        kind = element.tag.removeprefix(f"{{{NAMESPACE}}}")
        if kind == "mi" and element.text and element.text in PRIMES:
            _place_prime(element)
        elif kind in ("mi", "mo") and (element.text or "").replace(" ", "").isalpha():
            _set_off(element)
        elif kind in UNDER and display == "block" and element[0].text in LIMITS:
            element.tag = _tag(UNDER[kind])
    return ElementTree.tostring(tree, encoding="unicode")


def _tag(kind: str) -> str:
    return f"{{{NAMESPACE}}}{kind}"


def _join_arg(row: ElementTree.Element) -> None:
    """Join "arg" and the following "min" or "max" into one operator, with the index below both."""
    for first, second in zip(list(row), list(row)[1:], strict=False):
        operator = second[0] if len(second) else second
        if first.text == "arg" and operator.text in ("min", "max"):
            operator.text = f"arg {operator.text}"
            row.remove(first)


def _place_prime(element: ElementTree.Element) -> None:
    """Turn a prime into an operator in exponent position; text fonts already raise it."""
    mark, element.tag, element.text = element.text, _tag("mpadded"), None
    element.attrib = {"voffset": "-0.55em", "height": "0.7em"}
    look = {"class": "prime", "lspace": "0", "rspace": "0"}
    ElementTree.SubElement(element, _tag("mo"), look).text = mark


def _set_off(element: ElementTree.Element) -> None:
    """Put space around the name of a function or operator, such as "ln"."""
    if len(element.text or "") > 1:
        element.tag = _tag("mo")
        element.attrib = {"form": "prefix", "lspace": "0.17em", "rspace": "0.17em"} | element.attrib


def _close_up(row: ElementTree.Element) -> None:
    """Remove the space around the bars of a norm, and between a name and its bracket."""
    for element, following in zip(row, [*row, None][1:], strict=True):
        if element.text in BARS and "form" not in element.attrib:
            element.attrib |= {"lspace": "0", "rspace": "0"}
        if following is not None and following.text == "(" and len(element.text or "") > 1:
            element.set("rspace", "0")


def keep_together(_app, doctree: nodes.document, _docname: str) -> None:
    """Prevent a line break between a formula and an adjacent comma or bracket."""
    for formula in list(doctree.findall(nodes.math)):
        whole = _alone(formula)
        parent = whole.parent
        place = parent.index(whole)
        before, after = _taken(parent, place - 1, r"\S+\Z"), _taken(parent, place + 1, r"^\S+")
        if before or after:
            del parent[parent.index(whole)]
            parts = [nodes.Text(before), whole, nodes.Text(after)]
            parent.insert(place, nodes.inline("", "", *parts, classes=["together"]))


def _alone(formula: nodes.math) -> nodes.Node:
    """Return the formula; if it ends an emphasis before a comma, in an emphasis of its own."""
    around = formula.parent
    if not isinstance(around, nodes.strong | nodes.emphasis) or around[-1] is not formula:
        return formula
    beyond = around.parent[around.parent.index(around) + 1 :]
    if not beyond or not re.match(r"\S", beyond[0].astext()):
        return formula
    if len(around) == 1:
        return around
    around.remove(formula)
    own = type(around)("", "", formula)
    around.parent.insert(around.parent.index(around) + 1, own)
    return own


def _taken(parent: nodes.Element, place: int, pattern: str) -> str:
    """Remove the match of `pattern` from the text at `place` of the parent, and return it."""
    text = parent[place] if 0 <= place < len(parent) else None
    found = re.search(pattern, text) if isinstance(text, nodes.Text) else None
    if found is None:
        return ""
    parent[place] = nodes.Text(text[: found.start()] + text[found.end() :])
    return found[0]


def visit_math(self, node):
    """Write an inline formula."""
    self.body.append(to_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_math_block(self, node):
    """Write a displayed formula."""
    identifier = f' id="{escape(node["ids"][0])}"' if node["ids"] else ""
    self.body.append(f'<div class="math"{identifier}>{to_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("doctree-resolved", keep_together)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
