"A Sphinx extension: `code` in prose that names something exported links to its page; an exported cell says which module it goes to"
import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes


def link_names(app: Any, doctree: nodes.document) -> None:
    "Link literals that are known names, except in titles, in links, and on the page that explains them"
    names, here = app.env.rlnb_names, app.env.docname
    for literal in list(doctree.findall(nodes.literal)):
        goal, above = names.get(literal.astext().removesuffix('()')), literal.parent
        while above is not None and not isinstance(above, (nodes.reference, addnodes.pending_xref, nodes.title)):
            above = above.parent
        if goal and goal['page'] != here and above is None:
            uri = f"{app.builder.get_relative_uri(here, goal['page'])}#{nodes.make_id(goal['label'])}"
            ref = nodes.reference('', '', internal=True, refuri=uri, classes=['known'])
            literal.replace_self(ref)
            ref += literal


def say_module(app: Any, doctree: nodes.document) -> None:
    "A small label on each exported cell"
    module = app.env.rlnb_modules.get(app.env.docname)
    for cell in list(doctree.findall(nodes.container)):
        if module and 'tag_export' in cell.get('classes', ()):
            cell.insert(0, nodes.raw('', f'<span class="module" title="This cell is part of {module}">{module}</span>', format='html'))


def read_names(app: Any) -> None:
    facts = json.loads((Path(app.srcdir) / 'names.json').read_text(encoding='utf-8'))
    app.env.rlnb_names, app.env.rlnb_modules = facts['names'], facts['modules']


def setup(app: Any) -> dict[str, bool]:
    app.connect('builder-inited', read_names)
    app.connect('doctree-read', link_names)
    app.connect('doctree-read', say_module)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
