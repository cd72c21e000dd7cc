"""The site of the documentation: ``make docs`` builds it into build/docs, and any warning is an error."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1] / "src")]

project = "Reposer"
author = "the Reposer developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated", "links"]
exclude_patterns = ["_ext"]

html_theme = "furo"
html_title = "Reposer"
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes = False  # an option is written with two hyphens
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
myst_linkify_fuzzy_links = False
highlight_language = "none"  # commands, trees and formulas are shown as they are
suppress_warnings = ["myst.strikethrough"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"
