"Sphinx's configuration; the pages and the facts about the project are prepared by tools/docs.py, which calls Sphinx with `confdir=docs`"
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
ini = ConfigParser(delimiters=['='])
ini.read(HERE.parent / 'settings.ini', encoding='utf-8')

project, author, version = ini['DEFAULT']['lib_name'], ini['DEFAULT']['author'], ini['DEFAULT']['version']
copyright = ini['DEFAULT']['copyright']
release, language = version, 'en'
extensions = ['myst_nb', 'texmath', 'pagelinks']
exclude_patterns = ['_notebooks', '**/.ipynb_checkpoints']
myst_enable_extensions = ['dollarmath', 'amsmath', 'attrs_block', 'colon_fence', 'deflist']
myst_heading_anchors = 4
myst_update_mathjax = False
myst_dmath_double_inline = True
smartquotes = False                     # quotes are as they were typed: many stand in messages and docstrings
nb_execution_mode = 'off'               # the notebooks were executed by tools/execute.py: their outputs are committed
nb_ipywidgets_js = {}                   # no widget manager from a CDN
nb_merge_streams = True
# Warnings are errors, except these. Each entry says why.
suppress_warnings = [
    'mystnb.unknown_mime_type',         # a rich output without any form that a page can show has its text beside it
]

html_theme = 'furo'
html_title = project
html_math_renderer = 'mathml'
html_static_path = ['_static']
html_css_files = ['site.css']
# opened as a file, a page may not read others: search then lists titles without excerpts
html_js_files = [(None, dict(body="if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;"))]
html_copy_source = html_show_sourcelink = html_show_sphinx = html_use_index = False
html_domain_indices = False
html_last_updated_fmt = None
pygments_style, pygments_dark_style = 'a11y-high-contrast-light', 'a11y-high-contrast-dark'
CODE = 'ui-monospace, "SF Mono", SFMono-Regular, Menlo, "Cascadia Mono", Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace'
html_theme_options = dict(
    light_css_variables={'color-brand-primary': '#0072B2', 'color-brand-content': '#0072B2', 'color-brand-visited': '#0072B2',
                         'font-stack--monospace': CODE},
    dark_css_variables={'color-brand-primary': '#56B4E9', 'color-brand-content': '#56B4E9', 'color-brand-visited': '#56B4E9'},
)
