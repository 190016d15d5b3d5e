"""Sphinx's settings. The pages are put together by `build.py`; Sphinx is started by it, too."""

import os
from importlib import metadata

# The address of the repository, "https://github.com/OWNER/NAME": footers, and the badges of Colab and Binder, need it.
# This is the one place that says it; the workflow that publishes sets MINILORA_REPOSITORY.
REPOSITORY = os.environ.get("MINILORA_REPOSITORY", "")

project = "minilora"
author = "the authors of minilora"
copyright = "the authors of minilora. MIT licence"
release = metadata.version("minilora") if os.environ.get("MINILORA_VERSION") is None else os.environ["MINILORA_VERSION"]
language = "en"

extensions = ["myst_nb", "sphinx.ext.mathjax"]
nb_execution_mode = "off"  # outputs are shown as committed
nb_render_markdown_format = "myst"  # tables that a cell shows may hold formulas
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "html_image"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing", "misc.highlighting_failure", "toc.not_included", "ref.python"]
exclude_patterns = ["_build"]
add_module_names = False
toc_object_entries = False
python_display_short_literal_types = True
maximum_signature_line_length = 100

# MathJax lies in the site, so that the pages need no network.
mathjax_path = "mathjax/MathJax.js"
mathjax2_config = {
    "config": ["TeX-AMS-MML_HTMLorMML-full.js"],
    "jax": ["input/TeX", "output/HTML-CSS"],
    "messageStyle": "none",
    "showMathMenu": False,
    "HTML-CSS": {  # the package has these fonts alone
        "availableFonts": [],
        "preferredFont": None,
        "webFont": "STIX-Web",
        "imageFont": None,
        "linebreaks": {"automatic": True, "width": "container"},
    },
    "tex2jax": {
        "inlineMath": [["\\(", "\\)"]],
        "displayMath": [["\\[", "\\]"]],
        "ignoreClass": ".*",
        "processClass": "math",
    },
}
myst_update_mathjax = False

html_theme = "pydata_sphinx_theme"
html_title = "minilora: LoRA from scratch"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "show_prev_next": True,
    "navbar_persistent": ["search-button"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_center": [],
    "footer_end": [],
    "article_header_end": [],
    **({"icon_links": [{"name": "Source", "url": REPOSITORY, "icon": "fa-brands fa-github"}]} if REPOSITORY else {}),
}
html_sidebars = {"index": []}
html_context = {"default_mode": "auto"}
