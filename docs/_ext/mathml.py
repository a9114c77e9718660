"""Write formulas as MathML, which browsers show by themselves: the pages load nothing."""

from html import escape

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

# Commands that the converter does not know, in terms of ones that it does.
REPLACEMENTS = {r"\tfrac": r"\frac", r"\dfrac": r"\frac", r"\top": r"{\mathsf{T}}"}
# What it leaves as it stands: delimiters of a given size, and an operator.
LEFT = {r">\{<": ">{<", r">\}<": ">}<", r">\|<": ">&#x02016;<", r"<mi>\arg</mi>": "<mo>arg</mo>"}


def to_mathml(formula: str, display: str) -> str:
    """Return a formula as MathML.

    Raises
    ------
    ValueError
        If the converter does not know one of its commands.
    """
    for command, known in REPLACEMENTS.items():
        formula = formula.replace(command, known)
    made = convert(formula, display=display)
    for left, known in LEFT.items():
        made = made.replace(left, known)
    if "\\" in made:
        raise ValueError(f"no MathML for all of the formula {formula}: {made}")
    return made


def visit_math(self, node):
    """Write a formula within a line."""
    self.body.append(to_mathml(node.astext(), "inline"))
    raise SkipNode


def visit_math_block(self, node):
    """Write a formula on lines of its own."""
    identifier = f' id="{escape(node["ids"][0])}"' if node["ids"] else ""
    self.body.append(f'<div class="math"{identifier}>{to_mathml(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app):
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
