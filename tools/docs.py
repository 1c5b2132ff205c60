"""The documentation site from the notebooks: `python tools/docs.py [--out _site] [--nbs nbs]`

1. prepare: copy the notebooks to a temporary folder, hidden cells dropped, directives stripped, links made to point within the site;
   write the home page, the reference pages (commands, API, platforms) and the sidebar beside them.
2. Sphinx (docs/conf.py), warnings as errors.
3. check: every internal link and #anchor of every built page leads somewhere, and no page loads anything from another machine.

The site is put in place only when all three went well. It needs no network, to build or to read.
"""
import argparse
import ast
import contextlib
import copy
import importlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pages import NBS, ROOT, Page, directives, pages

# The sidebar: folder or file of nbs/ → caption, in its order. A folder that does not exist is left out.
FLOORS = {
    '90_learn': 'Learn',          # who comes to learn begins here
    '00_core': 'The ground floor', '10_envs': 'Worlds', '20_buffers': 'Buffers', '30_agents': 'Agents', '40_runs': 'Runs',
    '45_evaluation': 'Evaluation', '50_train': 'Training', '60_search': 'Search', '70_flow': 'Pipelines and clouds', '80_panels': 'Panels',
    '': 'From the outside',       # notebooks that stand in nbs/ itself: the command line, the public names
}
PROJECT = {'docs/results.md': 'results', 'docs/troubleshooting.md': 'troubleshooting', 'CONTRIBUTING.md': 'contributing', 'CHANGELOG.md': 'changelog'}
INI = ConfigParser(delimiters=['='])
INI.read(ROOT / 'settings.ini', encoding='utf-8')
SET = INI['DEFAULT']


# ---- 1. prepare
def room(p: Page, nbs: Path) -> str:
    "The folder that a page stands in, '' for nbs/ itself"
    return '' if p.path.parent == nbs else p.path.parent.relative_to(nbs).as_posix()


def docname(p: Page, nbs: Path) -> str:
    return p.path.relative_to(nbs).with_suffix('').as_posix()


def plain(source: str) -> str:
    "A cell without its directives"
    return '\n'.join(s for s in source.splitlines() if not re.match(r'#\|', s)).strip('\n')


def redirect(text: str, path: Path, nbs: Path) -> str:
    "Relative links of a file of the repository as they stand on the site: pages within it, everything else at the project's address"
    out = path.parent.relative_to(nbs) if path.is_relative_to(nbs) else Path()
    text = re.sub(r'!\[([^\]]*)\]\(https?://[^)]*\)', r'\1', text)      # a badge lives on another machine: its words stay

    def one(m: re.Match) -> str:
        url, anchor = (m[2].split('#', 1) + [''])[:2]
        if not url or re.match(r'[a-z]+:', url):
            return m[0]
        file = (path.parent / unquote(url)).resolve()
        tail = f'#{anchor}' if anchor else ''
        if file.is_relative_to(nbs) and file.suffix in ('.ipynb', '.png', '.svg'):
            goal = file.relative_to(nbs).as_posix()
        elif file.is_relative_to(ROOT) and file.relative_to(ROOT).as_posix() in PROJECT:
            goal = PROJECT[file.relative_to(ROOT).as_posix()] + '.md'
        elif file == ROOT / 'README.md':
            goal = 'index.md'
        elif file.is_relative_to(ROOT) and file.exists():
            kind = 'tree' if file.is_dir() else 'blob'
            return f"{m[1]}{SET['git_url']}/{kind}/{SET['branch']}/{file.relative_to(ROOT).as_posix()}{tail}{m[3]}"
        else:
            return m[0]
        return f'{m[1]}{Path(os.path.relpath(goal, out)).as_posix()}{tail}{m[3]}'
    return re.sub(r'(\]\()([^)\s]+)((?:\s+"[^"]*")?\))', one, text)


def outside_code(f, text: str) -> str:
    "Apply f to Markdown, not to the code in it"
    parts = re.split(r'(^ *(?:```|~~~).*?^ *(?:```|~~~) *$|`[^`\n]+`)', text, flags=re.S | re.M)
    return ''.join(s if i % 2 else f(s) for i, s in enumerate(parts))


def filled(text: str) -> str:
    return text.replace('{repo}', f"{SET['user']}/{SET['repo']}").replace('{branch}', SET['branch'])


def label(module: str, name: str) -> str:
    kind = '' if name == name.lower() else '-constant' if name == name.upper() else '-class'      # labels know no case: `welch` is not `Welch`
    return f'{module}.{name}'.replace('_', '-').lower() + kind


def title(p: Page) -> tuple[str, str]:
    "Heading and subtitle of a page"
    text = p.cells[0]['source'] if p.cells else ''
    head = re.match(r'#\s+(.+)', text)
    sub = re.findall(r'^>\s?(.+)', text, re.M)
    return head[1].strip() if head else p.path.stem, ' '.join(sub)


def headed(source: str, p: Page, nbs: Path) -> str:
    "The first cell: title, subtitle, and where the page goes to and comes from"
    m = re.match(r'(#\s+.+\n?)((?:>.*\n?)*)', source)
    if not m:
        return source
    sub = ' '.join(re.findall(r'^>\s?(.+)', m[2], re.M))
    home = p.path == nbs / 'index.ipynb'
    facts = [f'exports to `{p.module}`'] if p.exported and p.module else []
    facts += [] if home else [f'{{download}}`the notebook </_notebooks/{docname(p, nbs)}.ipynb>`']
    parts = [m[1].strip(), f'{{.subtitle}}\n{sub}' if sub else '', '{.facts}\n' + ' · '.join(facts) if facts else '', source[m.end():].strip()]
    return '\n\n'.join(s for s in parts if s)


def definitions(source: str) -> list[ast.AST]:
    "What an exported cell defines at the top"
    return [n for n in ast.parse('\n'.join('pass' if re.match(r'\s*[%!]', s) else s for s in source.splitlines())).body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign))]


def patched(n: ast.AST) -> str:
    "The class that a @patch function belongs to, else ''"
    if not (isinstance(n, ast.FunctionDef) and n.args.args and any(ast.unparse(d).split('(')[0] == 'patch' for d in n.decorator_list)):
        return ''
    a = n.args.args[0].annotation
    return a.id if isinstance(a, ast.Name) else str(a.value) if isinstance(a, ast.Constant) else ''


def named(n: ast.AST) -> str:
    "The public name that a definition makes, else ''"
    if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
        name = '' if patched(n) else n.name
    else:
        t = n.targets[0] if isinstance(n, ast.Assign) else n.target
        name = t.id if isinstance(t, ast.Name) else ''
    return '' if name.startswith('_') else name


def cells(p: Page, nbs: Path, seen: set[str]) -> list[dict]:
    "The cells that a reader sees"
    out = []
    for i, c in enumerate(p.cells):
        tags = directives(c['source'])
        if 'hide' in tags or c['cell_type'] == 'raw':
            continue
        if c['cell_type'] == 'markdown':
            text = filled(c['source']) if p.path.name == 'index.ipynb' else c['source']
            text = outside_code(lambda s: redirect(s, p.path, nbs), text)
            text = headed(text, p, nbs) if i == 0 else text
            out.append(dict(cell_type='markdown', metadata=dict(origin=i), source=text))
            continue
        exported, source = bool(tags & {'export', 'exports', 'exporti'}), plain(c['source'])
        labels = [s for n in definitions(source) if (s := named(n)) and label(p.module, s) not in seen] if exported and p.module else []
        seen |= {label(p.module, s) for s in labels}
        if labels:
            out.append(dict(cell_type='markdown', metadata=dict(origin=i), source='\n\n'.join(
                f'({label(p.module, s)})=\n```{{index}} ! {s}\n```' for s in labels)))      # the search finds the name, then its page
        tagged = ['export'] * exported + ['remove-input'] * ('echo: false' in tags or not source)
        meta = dict(origin=i, tags=[*c['metadata'].get('tags', []), *tagged])
        outputs = [o for o in c.get('outputs', []) if 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})]
        if source or outputs:
            out.append(dict(cell_type='code', metadata=meta, source=source, outputs=outputs, execution_count=None))
    return out


def written(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding='utf-8', newline='\n')


def copied(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def notebook(cs: list[dict]) -> str:
    meta = dict(kernelspec=dict(display_name='Python 3', language='python', name='python3'), language_info=dict(name='python'))
    return json.dumps(dict(cells=[dict(c, id=f'c{i}') for i, c in enumerate(cs)], metadata=meta, nbformat=4, nbformat_minor=5))


# the reference pages
def md(text: str) -> str:
    "Text as Markdown: nothing in it is markup, except `code`"
    return ''.join(s if i % 2 else re.sub(r'([\\*_<>\[\]$#|{}])', r'\\\1', s) for i, s in enumerate(re.split(r'(`[^`]+`)', text)))


def signature(n: ast.FunctionDef, drop: bool = False) -> str:
    "A function's parameters with their defaults"
    a = copy.deepcopy(n.args)
    for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]:
        x.annotation = None
    text = ast.unparse(a)
    return re.sub(r'^(self|cls)(, )?', '', text) if drop else text


def summary(n: ast.AST) -> str:
    doc = ast.get_docstring(n) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) else ''
    return md(doc.splitlines()[0]) if doc else ''


def decorated(n: ast.FunctionDef, *names: str) -> bool:
    return any(getattr(d, 'id', '') in names for d in n.decorator_list)


def entry(n: ast.AST, module: str, methods: dict[str, list[ast.FunctionDef]]) -> list[str]:
    "A line of the API index, and one for each public method"
    name = named(n)
    if isinstance(n, ast.FunctionDef):
        return [f'- [`{name}({signature(n)})`](#{label(module, name)})  \n  {summary(n)}']
    if not isinstance(n, ast.ClassDef):
        return []
    inside = [f for f in n.body if isinstance(f, ast.FunctionDef)] + methods.get(name, [])
    init = next((signature(f, True) for f in inside if f.name == '__init__'), '')
    bases = [ast.unparse(b) for b in n.bases]
    kind = f' of `{", ".join(bases)}`' if bases else ''
    head = f'- class [`{name}({init})`](#{label(module, name)}){kind}  \n  {summary(n)}'
    rows, known = [head], set()
    for f in inside:
        if f.name.startswith('_') or f.name in known or not ast.get_docstring(f):
            continue
        known.add(f.name)
        shown = f.name if decorated(f, 'property', 'cached_property') else f"{f.name}({signature(f, not decorated(f, 'staticmethod'))})"
        rows.append(f'  - `.{shown}` {summary(f)}')
    return rows


def api(ps: list[Page], nbs: Path) -> str:
    "Every public name by module"
    out = ['# Every name, by module',
           '{.subtitle}\nA name leads to the cell that defines it, between the prose that explains it and the lesson that shows it.']
    for p in ps:
        if not (p.exported and p.module):
            continue
        defs = [n for src in p.exported for n in definitions(plain(src))]
        methods: dict[str, list[ast.FunctionDef]] = {}
        for n in defs:
            if cls := patched(n):
                methods.setdefault(cls, []).append(n)
        rows = [s for n in defs if named(n) for s in entry(n, p.module, methods)]
        if rows:
            out += [f'## {p.module}', f'[{md(title(p)[0])}](/{docname(p, nbs)}.ipynb). {md(title(p)[1])}', '\n'.join(rows)]
    return '\n\n'.join(out) + '\n'


def optional(*specs: str):
    "The first of these attributes that exists, else None: a page of the house may not be written yet"
    for spec in specs:
        module, attr = spec.split(':')
        try:
            found = getattr(importlib.import_module(module), attr, None)
        except ModuleNotFoundError as e:
            if not (e.name or '').startswith('rlnb'):
                raise SystemExit(f'site: {module} cannot be imported: {e}') from None
            continue
        except ImportError as e:
            raise SystemExit(f'site: {module} cannot be imported: {e}') from None
        if found is not None:
            return found
    return None


def grid(headers: list[str], rows: list[list[object]]) -> str:
    cell = lambda x: md(str(x)).replace('\n', ' ')
    line = lambda r: '| ' + ' | '.join(map(cell, r)) + ' |'
    return '\n'.join([line(headers), '|' + ' --- |' * len(headers), *map(line, rows)])


def platforms() -> str:
    "What each system promises, from the code that keeps the promise"
    facts = optional('rlnb.core.platform:platform_facts', 'rlnb.core.io:platform_facts')
    if facts is None:
        return ''
    rows = facts()
    if rows and isinstance(rows[0], dict):
        headers = list(rows[0])
        rows = [[r.get(h, '') for h in headers] for r in rows]
    else:
        headers, rows = list(rows[0]), [list(r) for r in rows[1:]]
    table = grid([str(h).replace('_', ' ') for h in headers], rows)
    return f'# Platforms\n\n{{.subtitle}}\nWhat rlnb promises on each system, and what it cannot.\n\n{table}\n'


def settings(ps: list[Page], nbs: Path) -> str:
    "Every field that can be set, from the line that declares it"
    base = optional('rlnb.core.config:Config')
    out = ['# Settings', '{.subtitle}\nEvery field that can be set, from the line that declares it: in Python, on the command line as '
           '`--set agent.lr=3e-4`, in a YAML file.']
    for p in ps:
        names = [s for src in p.exported for n in definitions(plain(src)) if isinstance(n, ast.ClassDef) and (s := named(n))] if p.module else []
        for cls in (optional(f'{p.module}:{name}') for name in names):
            if base and isinstance(cls, type) and issubclass(cls, base) and cls is not base:
                rows = [[f'`{f.name}`', "the agent's own" if isinstance(f.default, base) else f'`{shown(f.default)}`', f.range, f.doc]
                        for f in cls.fields()]
                out += [f'## {cls.__name__}', f'On the page [{md(title(p)[0])}](/{docname(p, nbs)}.ipynb).',
                        grid(['field', 'default', 'range', 'what it is'], rows)]
    return '\n\n'.join(out) + '\n' if len(out) > 2 else ''


def shown(x: object) -> str:
    return str(x).lower() if x is None or isinstance(x, bool) else str(list(x)) if isinstance(x, tuple) else str(x)


def commands() -> str:
    "The verbs of the command line, from the table that the parser reads"
    verbs = optional('rlnb.cli:VERBS')
    if not verbs:
        return ''
    out = ['# Commands', '{.subtitle}\nEverything that can be typed, from the table that the parser reads.']
    for v in (verbs.values() if isinstance(verbs, dict) else verbs):
        usage = v.usage() if callable(v.usage) else v.usage
        whole = re.sub(r'\[[^\]]*\]', lambda m: m[0].replace(' ', '\0'), usage)        # a flag stays with its value
        usage = textwrap.fill(whole, 88, subsequent_indent=' ' * (6 + len(v.name)), break_long_words=False, break_on_hyphens=False).replace('\0', ' ')
        out += [f'## `rlnb {v.name}`', md(v.help[:1].upper() + v.help[1:]), f'```console\n{usage}\n```']
        flags = [(', '.join(f), kw.get('help', '')) for f, kw in getattr(v, 'args', ())]
        if any(h for _, h in flags):
            out.append(grid(['argument', 'what it is'], [[f'`{f}`', h] for f, h in flags]))
    if codes := optional('rlnb.core.errors:exit_codes'):
        out += ['## Exit codes', grid(['code', 'what it says'], [[f'`{k}`', v] for k, v in codes().items()])]
    return '\n\n'.join(out) + '\n'


def sidebar(ps: list[Page], nbs: Path, reference: list[str], project: list[str]) -> str:
    tree = lambda caption, docs: '```{toctree}\n:hidden:\n:caption: ' + caption + '\n\n' + '\n'.join(docs) + '\n```'
    rooms = [(caption, [docname(p, nbs) for p in ps if room(p, nbs) == folder and p.path.name != 'index.ipynb'])
             for folder, caption in FLOORS.items()]
    return '\n\n'.join(tree(c, d) for c, d in [*rooms, ('Reference', reference), ('The project', project)] if d)


def home(ps: list[Page], nbs: Path) -> str:
    "A home page for as long as nbs/index.ipynb is missing: the rooms and their pages"
    out = [f"# {SET['lib_name']}", f"{{.subtitle}}\n{SET['description']}"]
    for folder, caption in FLOORS.items():
        mine = [p for p in ps if room(p, nbs) == folder]
        if mine:
            out += [f'## {caption}', '\n'.join(f'- [{md(title(p)[0])}]({docname(p, nbs)}.ipynb) {md(title(p)[1])}' for p in mine)]
    return '\n\n'.join(out) + '\n'


def prepare(src: Path, nbs: Path) -> None:
    "Everything that Sphinx reads"
    ps, seen, index = pages(nbs), set(), None
    if unknown := sorted({room(p, nbs) for p in ps} - set(FLOORS)):
        raise SystemExit(f'site: nbs/{unknown[0]} has no caption: add one to FLOORS in tools/docs.py')
    for p in ps:
        if p.path == nbs / 'index.ipynb':
            index = p
            continue
        written(src, docname(p, nbs) + '.ipynb', notebook(cells(p, nbs, seen)))
        copied(p.path, src / '_notebooks' / p.path.relative_to(nbs))
    for f in sorted(nbs.rglob('*')):
        if f.suffix in ('.png', '.svg') and not any(s.startswith(('.', '_')) for s in f.relative_to(nbs).parts):
            copied(f, src / f.relative_to(nbs))
    made = {'commands': commands(), 'settings': settings(ps, nbs), 'api': api(ps, nbs), 'platforms': platforms()}
    made |= {doc: redirect((ROOT / f).read_text(encoding='utf-8'), ROOT / f, nbs) for f, doc in PROJECT.items() if (ROOT / f).exists()}
    for name, text in made.items():
        if text:
            written(src, name + '.md', text)
    tree = sidebar(ps, nbs, [k for k in ('commands', 'settings', 'api', 'platforms') if made[k]], [k for k in PROJECT.values() if made.get(k)])
    if index:
        written(src, 'index.ipynb', notebook([*cells(index, nbs, set()), dict(cell_type='markdown', metadata={}, source=tree)]))
    else:
        written(src, 'index.md', home(ps, nbs) + '\n' + tree + '\n')
    written(src, 'names.json', json.dumps(names(ps, nbs)))


def names(ps: list[Page], nbs: Path) -> dict:
    "What `code` in prose may link to: name (where only one module has it), module.name, rlnb.part.module.name"
    found: dict[str, list[dict]] = {}
    for p in ps:
        if p.module and p.exported:
            for name in {s for src in p.exported for n in definitions(plain(src)) if (s := named(n))}:
                goal = dict(page=docname(p, nbs), label=label(p.module, name))
                for form in (name, f"{p.module.split('.')[-1]}.{name}", f'{p.module}.{name}', f"{p.module.removeprefix('rlnb.')}.{name}"):
                    found.setdefault(form, []).append(goal)
    one = {k: v[0] for k, v in sorted(found.items()) if len({g['label'] for g in v}) == 1 and len(k) > 2}
    return dict(names=one, modules={docname(p, nbs): p.module for p in ps if p.module})


# ---- 2. build
def build(src: Path, out: Path) -> int:
    "Sphinx, quiet, warnings as errors"
    from sphinx.cmd.build import build_main
    (src / '_doctrees').mkdir(exist_ok=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        rc = build_main(['-q', '--no-color', '-j', '2', '-W', '--keep-going', '-b', 'html', '-c', str(ROOT / 'docs'), '-d', str(src / '_doctrees'),
                         str(src), str(out)])
    for line in said.getvalue().replace(f'{src}{os.sep}', '').splitlines():
        cell = re.match(r'(\S+\.ipynb):(\d+)\d{4}: WARNING:', line)
        print('site: ' + (f'{cell[1]}, cell {origin(src / cell[1], int(cell[2]))}:{line[cell.end():]}' if cell else line), file=sys.stderr)
    return rc


def origin(path: Path, n: int) -> int:
    "Which cell of the author's notebook Sphinx's n-th cell was, both counted from 1"
    cs = json.loads(path.read_text(encoding='utf-8'))['cells']
    return cs[min(max(n, 1), len(cs)) - 1]['metadata'].get('origin', n - 1) + 1


# ---- 3. check
class Reader(HTMLParser):
    "Anchors, links and loaded resources of a page"
    LOADS = {('script', 'src'), ('img', 'src'), ('img', 'srcset'), ('source', 'src'), ('source', 'srcset'), ('iframe', 'src'),
             ('video', 'src'), ('video', 'poster'), ('audio', 'src'), ('embed', 'src'), ('object', 'data'), ('link', 'href'),
             ('image', 'href'), ('image', 'xlink:href'), ('use', 'href')}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.maths = 0
        self.css = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.maths += tag == 'math'
        self.css = tag == 'style'
        for k, v in attrs:
            if k == 'id' or (tag == 'a' and k == 'name'):
                self.ids.add(v or '')
            elif tag == 'a' and k == 'href':
                self.links.append(v or '')
            elif (tag, k) in self.LOADS and ('rel', 'canonical') not in attrs:
                self.loads += [s.split()[0] for s in (v or '').split(',') if s.strip()] if k == 'srcset' else [v or '']
            elif k == 'style':
                self.handle_css(v or '')

    def handle_data(self, data: str) -> None:
        if self.css:
            self.handle_css(data)

    def handle_endtag(self, tag: str) -> None:
        self.css = False

    def handle_css(self, text: str) -> None:
        self.loads += css_loads(text)


def css_loads(text: str) -> list[str]:
    return [m[1] or m[2] for m in re.finditer(r'''url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)''', text)]


def read(path: Path) -> Reader:
    r = Reader()
    r.feed(path.read_text(encoding='utf-8'))
    return r


def check(site: Path) -> list[str]:
    "One line for each link that leads nowhere, each resource that is missing and each that another machine would have to send"
    found = {f.resolve(): read(f) for f in sorted(site.rglob('*.html'))}
    bad = []
    for page, r in found.items():
        where = page.relative_to(site.resolve()).as_posix()
        for url in r.links:
            u = urlsplit(url)
            if u.scheme or u.netloc:
                continue
            goal = (page.parent / unquote(u.path)).resolve() if u.path else page
            goal = goal / 'index.html' if goal.is_dir() else goal
            if not goal.exists():
                bad.append(f'{where}: {url} leads nowhere')
            elif u.fragment and goal in found and unquote(u.fragment) not in found[goal].ids | {'', 'top'}:
                bad.append(f'{where}: {url} has no such anchor')
        bad += loaded(page, where, r.loads)
    for sheet in sorted(site.rglob('*.css')):
        bad += loaded(sheet, sheet.relative_to(site).as_posix(), css_loads(sheet.read_text(encoding='utf-8')))
    return sorted(set(bad))


def loaded(page: Path, where: str, urls: list[str]) -> list[str]:
    bad = []
    for url in urls:
        u = urlsplit(url)
        if u.scheme == 'data' or (not u.path and not u.netloc):
            continue
        if u.scheme or u.netloc:
            bad.append(f'{where}: loads {url} from another machine')
        elif not (page.parent / unquote(u.path)).exists():
            bad.append(f'{where}: {url} is not there')
    return bad


def make(out: Path, nbs: Path = NBS) -> int:
    "All three steps; the exit code"
    then = time.perf_counter()
    nbs, out = nbs.resolve(), out.resolve()
    with tempfile.TemporaryDirectory() as d:
        src, html = Path(d) / 'src', Path(d) / 'html'
        src.mkdir()
        prepare(src, nbs)
        rc = build(src, html)
        bad = check(html) if (html / 'index.html').exists() else ['no page was built']
        for line in bad:
            print(f'site: {line}', file=sys.stderr)
        if rc or bad:
            return 1
        for extra in ('.buildinfo', '.doctrees', 'objects.inv'):
            (html / extra).unlink(missing_ok=True)
        shutil.rmtree(html / '_sources', ignore_errors=True)
        (html / '.nojekyll').touch()
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(html, out)
    n = len(list(out.rglob('*.html')))
    print(f'   {n} pages in {time.perf_counter() - then:.0f} s, every link checked')
    return 0


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=ROOT / '_site')
    p.add_argument('--nbs', type=Path, default=NBS)
    a = p.parse_args()
    sys.path.insert(0, str(ROOT))
    sys.exit(make(a.out, a.nbs))
