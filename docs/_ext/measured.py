"""Numbers and figures that the build of the pages measures: nothing is copied by hand.

``{measured}`` runs its content; the blocks of a page share one namespace. Its output is parsed as
Markdown, and the figures that it passes to ``show`` become images. ``{cell}`` is a cell as in a
notebook: it shows its content, what it prints, and the figures that it leaves open.
``{example-output}`` shows the output and the figure of an example.
"""

import contextlib
import io
import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from matplotlib.figure import Figure
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

FOLDER = "generated"
"""The folder for images, beside the pages; git ignores it."""


class Measured(SphinxDirective):
    """Run the content, and show its output and figures."""

    has_content = True
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return a container of the parsed output, and the images."""
        figures = []
        printed = self.execute({"show": figures.append})
        found = nodes.container()
        lines = StringList(printed.splitlines(), source=self.get_source_info()[0])
        self.state.nested_parse(lines, self.content_offset, found)
        pictures = [self.picture(figure) for figure in figures]
        plt.close("all")
        return [found, *pictures]

    def execute(self, names: dict) -> str:
        """Run the content with these names and those of the page, and return what it prints."""
        source, line = self.get_source_info()
        known = self.env.temp_data.setdefault("measured", {})
        known.update(names)
        # Empty lines before the code make its line numbers those of the page.
        code = compile("\n" * line + "\n".join(self.content), source, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, known)
        return printed.getvalue()

    def picture(self, figure: Figure) -> nodes.Node:
        """Store a figure, and return the image."""
        count = self.env.temp_data.get("pictures", 0) + 1
        self.env.temp_data["pictures"] = count
        file = f"{FOLDER}/{self.env.docname.replace('/', '-')}-{count}.svg"
        path = Path(self.env.srcdir) / file
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        return nodes.image(uri=f"/{file}", alt=self.options.get("alt", "a figure"))


class Cell(Measured):
    """Show the content, what it prints, and the figures that it leaves open."""

    def run(self) -> list[nodes.Node]:
        """Return the code, the output and the images."""
        code = "\n".join(self.content)
        printed = self.execute({}).rstrip()
        shown = [nodes.literal_block(code, code, language="python")]
        if printed:
            shown.append(nodes.literal_block(printed, printed, language="none", classes=["output"]))
        shown.extend(self.picture(plt.figure(number)) for number in plt.get_fignums())
        plt.close("all")
        return shown


class ExampleOutput(SphinxDirective):
    """Show the output and the figure of an example, from the run of the gallery."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the printed text and the first image."""
        name = self.arguments[0]
        folder = Path(self.env.srcdir) / FOLDER / "examples"
        self.env.note_dependency(str(folder / f"{name}.rst"))
        page = (folder / f"{name}.rst").read_text(encoding="utf-8")
        pattern = r"\.\. code-block:: none\n\n((?:(?: .*)?\n)+)"
        printed = [textwrap.dedent(text).strip("\n") for text in re.findall(pattern, page)]
        picture = folder / "images" / f"sphx_glr_{name}_001.png"
        if not printed or not picture.exists():
            logging.getLogger(__name__).warning("the example %s was not run", name)
            return []
        text = "\n\n".join(printed)
        shown = nodes.literal_block(text, text, language="none")
        uri = f"/{FOLDER}/examples/images/{picture.name}"
        return [shown, nodes.image(uri=uri, alt=self.options.get("alt", name))]


def setup(app):
    """Register the directives with Sphinx."""
    app.add_directive("measured", Measured)
    app.add_directive("cell", Cell)
    app.add_directive("example-output", ExampleOutput)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
