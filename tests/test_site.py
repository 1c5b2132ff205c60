"The site: built from the notebooks as they are, offline, every link leading somewhere; and what is planted wrong is seen"
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from pages import NBS, ROOT, pages

pytest.importorskip('myst_nb')
# not by its name: a folder of the same name stands beside it
spec = importlib.util.spec_from_file_location('rlnb_docs', ROOT / 'tools' / 'docs.py')
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)
sys.path.insert(0, str(ROOT / 'docs'))
texmath = pytest.importorskip('texmath')


def run(out, nbs=NBS):
    return subprocess.run([sys.executable, 'tools/docs.py', '--out', out, '--nbs', nbs], cwd=ROOT, capture_output=True, text=True,
                          encoding='utf-8', timeout=300)


def inputs():
    "A hash of everything that the site is made from"
    files = [f for d in ('nbs', 'docs', 'tools', 'rlnb') for f in (ROOT / d).rglob('*') if f.is_file() and '__pycache__' not in f.parts]
    h = hashlib.sha256()
    for f in sorted([*files, *ROOT.glob('*.md'), ROOT / 'settings.ini', ROOT / 'constraints.txt']):
        h.update(f.relative_to(ROOT).as_posix().encode() + b'\0' + f.read_bytes())
    return h.hexdigest()


@pytest.fixture(scope='session')
def built():
    "The site as it is now; the parts `tests` and `browser` look at the same one"
    out, key = ROOT / '.pytest_cache' / 'site', inputs()
    if not (out / '.inputs').exists() or (out / '.inputs').read_text() != key:
        r = run(out)
        assert r.returncode == 0, r.stderr
        (out / '.inputs').write_text(key)
    return out


def scratch(tmp_path, *cells):
    "A house of one page"
    made = [dict(cell_type='markdown', metadata={}, id=f'm{i}', source=c[3:]) if c.startswith('md ') else
            dict(cell_type='code', metadata={}, id=f'c{i}', source=c, outputs=[], execution_count=None) for i, c in enumerate(cells)]
    f = tmp_path / 'nbs' / '00_core' / '10_planted.ipynb'
    f.parent.mkdir(parents=True, exist_ok=True)
    f.write_text(json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)), encoding='utf-8')
    return tmp_path / 'nbs'


# ---- the site that is
def test_every_page_is_there(built):
    for p in pages():
        assert (built / p.path.relative_to(NBS).with_suffix('.html')).exists(), p.name
    for name in ('index', 'api', 'commands', 'settings', 'platforms', 'troubleshooting', 'search', 'contributing', 'changelog'):
        assert (built / f'{name}.html').exists()


def test_no_broken_link_and_nothing_from_outside(built):
    assert site.check(built) == []


def test_mathematics_is_mathml(built):
    html = ''.join(f.read_text(encoding='utf-8') for f in built.rglob('*.html'))
    dollars = sum(len(re.findall(r'\$\$.+?\$\$', c['source'], re.S)) for p in pages() for c in p.prose)
    assert html.count('<math display="block">') >= dollars > 0
    assert not re.search('<script[^>]*mathjax', html, re.I)


def test_hidden_cells_and_directives_are_gone(built):
    for p in pages():
        html = (built / p.path.relative_to(NBS).with_suffix('.html')).read_text(encoding='utf-8')
        assert '#|' not in re.sub(r'<[^>]+>', '', re.sub(r'<code.*?</code>', '', html, flags=re.S)), p.name
        if p.exported and p.module:
            assert f'>{p.module}</span>' in html and 'tag_export' in html


def test_search_knows_the_exported_names(built):
    index = (built / 'searchindex.js').read_text(encoding='utf-8').lower()
    assert all(word in index for word in ('rlnberror', 'badinput'))


def test_names_in_prose_lead_to_their_pages(built):
    html = (built / 'api.html').read_text(encoding='utf-8')
    assert 'href="00_core/00_errors.html#rlnb-core-errors-badinput-class"' in html


def test_every_setting_is_in_the_quick_reference(built):
    html = (built / 'settings.html').read_text(encoding='utf-8')
    from rlnb.agents.ppo import PPOConfig
    assert all(f'>{f.name}</span>' in html and f.doc.split(';')[0] in html for f in PPOConfig.fields())


def test_the_commands_come_from_the_table_of_verbs(monkeypatch):
    from types import SimpleNamespace as Verb
    flags = ((('--steps',), dict(help='how many|steps')),)
    verbs = dict(train=Verb(name='train', help='Train an agent', usage='rlnb train [--steps N]', args=flags))
    monkeypatch.setattr(site, 'optional', lambda *specs: verbs if 'VERBS' in specs[0] else lambda: {64: 'Bad input'})
    text = site.commands()
    assert '## `rlnb train`' in text and 'rlnb train [--steps N]' in text and r'| `--steps` | how many\|steps |' in text and '| `64` | Bad input |' in text
    monkeypatch.setattr(site, 'optional', lambda *specs: None)
    assert site.commands() == site.platforms() == ''


# ---- what is planted is seen
GOOD = ['md # A page\n> what it is', '#| hide\n#| default_exp core.planted', '#| export\ndef twice(x):\n    "Double x"\n    return 2*x',
        '#| export\nclass Twice:\n    "What was doubled; its name differs from the function by its case only"', 'Twice()',
        'md See `twice`: $2x$.\n\n## More\n\n[up](#more)', 'twice(2)']


def test_a_good_page_passes(tmp_path):
    r = run(tmp_path / 'out', scratch(tmp_path, *GOOD))
    assert r.returncode == 0, r.stderr
    html = (tmp_path / 'out' / '00_core' / '10_planted.html').read_text(encoding='utf-8')
    assert 'class="subtitle">what it is<' in html and 'default_exp' not in html and '<math>' in html
    assert 'twice(x)' in (tmp_path / 'out' / 'api.html').read_text(encoding='utf-8')


FAULTS = [('[gone](20_missing.ipynb)', '20_missing.ipynb'), ('[gone](#nowhere)', "'nowhere'"), (r'$\fooo x$', r'\fooo is not known'),
          ('<a href="nothing.html">raw</a>', 'nothing.html leads nowhere'), ('<a href="#nothing">raw</a>', '#nothing has no such anchor'),
          ('<img src="https://example.org/a.png">', 'a.png from another machine')]


@pytest.fixture(scope='session')
def faulty(tmp_path_factory):
    d = tmp_path_factory.mktemp('faulty')
    (d / 'out').mkdir()
    (d / 'out' / 'kept').touch()
    return run(d / 'out', scratch(d, *GOOD, *(f'md {c}' for c, _ in FAULTS))), d / 'out'


@pytest.mark.parametrize('said', [w for _, w in FAULTS])
def test_planted_fault_is_seen(faulty, said):
    "In one line, with its page"
    assert any(said in line and '10_planted' in line for line in faulty[0].stderr.splitlines()), faulty[0].stderr


def test_a_failed_build_leaves_the_site_that_was_there(faulty):
    assert faulty[0].returncode == 1 and [f.name for f in faulty[1].iterdir()] == ['kept']


@pytest.mark.parametrize('text', [
    '<link rel="stylesheet" href="https://cdn.example.org/a.css">', '<script src="//cdn.example.org/a.js"></script>',
    '<style>@import "https://example.org/a.css";</style>', '<p style="background: url(https://example.org/a.png)">',
    '<img srcset="a.png 1x, https://example.org/a.png 2x">', '<link rel="icon" href="missing.svg">'])
def test_planted_resource_is_seen(tmp_path, text):
    (tmp_path / 'index.html').write_text(text, encoding='utf-8')
    assert site.check(tmp_path)


# ---- mathematics
def shape(tex):
    "The element names and texts of a formula, without its annotation"
    root = ElementTree.fromstring(texmath.mathml(tex))[0][0]
    return ' '.join(e.tag + (f':{e.text}' if e.text else '') for e in root.iter())


@pytest.mark.parametrize('tex, want', [
    ('x_t^2', 'msubsup mi:x mi:t mn:2'), ("V'_t", 'msubsup mi:V mi:t mo:′'), (r'\tfrac12', 'mstyle mfrac mn:1 mn:2'),
    (r'\mathbb E', 'mi:𝔼'), (r'\mathcal{L}', 'mi:ℒ'), (r'\hat A', 'mover mi:A mo:^'), (r'\mathrm{clip}', 'mi:clip'),
    (r'\mathrm dx', 'mrow mi:d mi:x'), (r'\sum_{k=0}^n k', 'mrow munderover mo:∑ mrow mi:k mo:= mn:0 mi:n mi:k'),
    (r'\max_a Q', 'mrow munder mo:max mi:a mspace mi:Q'), (r'\log\pi', 'mrow mi:log mspace mi:π'),
    (r'\log(x)', 'mrow mi:log mo:( mi:x mo:)'),
    (r'\begin{aligned} a &= b\\ &= c\end{aligned}', 'mrow mtable mtr mtd mi:a mtd mo:= mi:b mtr mtd mtd mo:= mi:c'),
    (r'\begin{cases} 1 & \text{if } x\\ 0\end{cases}', 'mrow mo:{ mtable mtr mtd mn:1 mtd mtext:if\u00a0 mi:x mtr mtd mn:0')])
def test_formula(tex, want):
    assert shape(tex) == want


def test_a_sign_is_unary_where_nothing_stands_before_it():
    assert 'form="prefix"' in texmath.mathml('a = -b') and 'form="prefix"' not in texmath.mathml('a - b')


@pytest.mark.parametrize('tex', [r'\foo x', 'a_', r'\left( x', '{a', 'a}b', 'x_1_2', 'a & b', r'\text{a', r'\begin{foo}\end{foo}',
                                 r'\frac{1}', r'\right)'])
def test_a_formula_that_is_not_understood_is_refused(tex):
    with pytest.raises(ValueError):
        texmath.mathml(tex)


# ---- in a browser
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']


@pytest.mark.browser
def test_in_a_browser(built):
    "From a file: no request leaves, search finds, mathematics has height, nothing is wider than a phone"
    sync = pytest.importorskip('playwright.sync_api')
    chromium = shutil.which('chromium') or pytest.skip('no Chromium')
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=dict(width=390, height=844))
        asked, failed = [], []
        page.on('request', lambda r: asked.append(r.url))
        page.on('pageerror', lambda e: failed.append(str(e)))
        for f in sorted(built.rglob('*.html')):
            page.goto(f.as_uri())
            assert page.evaluate('document.documentElement.scrollWidth') <= 390, f.name
        page.goto((built / '00_core' / '00_errors.html').as_uri())
        assert page.locator('div.math math').first.bounding_box()['height'] > 10
        page.goto((built / 'search.html').as_uri() + '?q=BadInput')
        page.wait_for_selector('#search-results ul.search li a', timeout=10000)
        first = page.locator('#search-results ul.search li a').first.get_attribute('href')
        assert re.fullmatch(r'00_core/00_errors\.html#\S+', first)              # the cell that defines it, before pages that mention it
        browser.close()
    assert not failed and not [u for u in asked if not u.startswith(('file:', 'data:'))]
