"""Configuration of Sphinx. The build executes every example, and fails on a warning."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# With more threads, batched LAPACK calls of jaxlib 0.10 can wait for each other for ever.
os.environ.setdefault("NPROC", "1")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "iterdiff"
author = "The iterdiff authors"
copyright = author
release = version = installed_version("iterdiff")

extensions = [
    "mathml",
    "measured",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_ext", "generated/**/*.ipynb", "generated/**/*.py.md5", "generated/**/*.json"]
suppress_warnings = ["config.cache"]

# Two hyphens begin an option of a command: only quotes and ellipses are made typographic.
smartquotes_action = "qe"

html_theme = "furo"
html_title = "iterdiff"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# In docstrings, single backticks mark arguments: code, not links.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["generated/examples"],
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "min_reported_time": 60,
    "show_memory": False,
    "remove_config_comments": True,
    "write_computation_times": False,
    "within_subsection_order": "FileNameSortKey",
}


def skip_fields(_app, _what, _name, member, _skip, _options):
    """Leave out the fields of named tuples, which the docstrings of their classes describe."""
    return True if "Alias for field number" in (getattr(member, "__doc__", "") or "") else None


def setup(app):
    """Register the function that leaves members out."""
    app.connect("autodoc-skip-member", skip_fields)
