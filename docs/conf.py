"""Builds these pages on their own; on pyterrier.readthedocs.io the same pt_docs are built by PyTerrier."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pyterrier_tasb

project = 'pyterrier-tasb'
author = 'the pyterrier-tasb authors'
version = release = pyterrier_tasb.__version__

extensions = ['sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.mathjax', 'myst_parser', 'pyterrier_directives']
default_role = 'code'   # what docstrings put between single backticks
html_theme = 'furo'
html_title = f'pyterrier-tasb {release}'
myst_heading_anchors = 3

autoclass_content = 'both'
autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
autodoc_typehints = 'description'
suppress_warnings = ['toc.not_readable']
