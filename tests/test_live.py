"""The live chart in a browser, by itself on an empty page, with a model that stands for the kernel's; test_lab.py has it in JupyterLab"""
import base64
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from labs import CHROMIUM, FLAGS, at, drawn, span, tip

from rlnb.core.text import si
from rlnb.panels.chart import Curve, ticks
from rlnb.panels.live import packed

pytestmark = pytest.mark.browser
SCRIPT = (ROOT / 'rlnb' / 'panels' / 'live.js').read_text(encoding='utf-8')
NASTY = '<img src=x onerror=alert(1)>"\'`{{x}}'
PAGE = '<!doctype html><meta charset=utf-8><style>body{margin:20px;%s}</style><div id=here></div>'
THEMES = dict(light='background:#fff;color:#111', dark='background:#111;--jp-layout-color0:#111;--jp-layout-color1:#212121;--jp-layout-color2:#333;--jp-border-color1:#777;--jp-ui-font-color1:#eee')
# what anywidget hands to `render`: state, change events, `sent` and `saved` for the test
MODEL = '''([script, given, data]) => import(URL.createObjectURL(new Blob([script], {type: 'text/javascript'}))).then(m => {
  const bytes = text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer)
  const state = {...given, data: bytes(data)}, calls = {}
  window.chart = {sent: [], saved: 0, module: m, state, bytes, close: null}
  const model = {get: k => state[k], on: (k, f) => (calls[k] ??= []).push(f), off: (k, f) => calls[k] = calls[k].filter(g => g !== f), send: x => chart.sent.push(x), save_changes: () => chart.saved++,
                 set(k, v) { state[k] = v; for (const f of calls[`change:${k}`] ?? []) f() }}
  chart.model = model
  chart.close = m.default.render({model, el: document.getElementById('here')})
})'''


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        b = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield b
        b.close()


def curves():
    rng = np.random.default_rng(0)
    x = 1024 * np.arange(2000.)
    mean = 450 * (1 - np.exp(-x / 4e5))
    mean[1200] = np.inf
    return [Curve('training', x, mean, mean - 25, mean + 25, mean + 40 * rng.normal(size=len(x))), Curve('greedy', x[::200], np.linspace(20, 480, 10), at=1)]


@pytest.fixture
def show(chromium):
    "Draw curves on an empty page; the page"
    pages = []

    def draw(lines, theme='light', **kw):
        pages.append(page := chromium.new_page(viewport=dict(width=740, height=300)))
        page.errors = []
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.set_content(PAGE % THEMES[theme])
        spec, data = packed(lines, 'return', **kw)
        page.evaluate(MODEL, [SCRIPT, dict(spec=spec, within=None, off=[]), base64.b64encode(data).decode()])
        page.wait_for_function('() => document.querySelector(".rlnb-live").dataset.drawn')
        return page
    yield draw
    for p in pages: p.close()


def test_the_scripts_are_small_and_keep_to_the_rules():
    "No library, nothing loaded, no markup made of text; as short as a page"
    import re
    for f in (ROOT / 'rlnb' / 'panels').glob('*.js'):
        text = f.read_text(encoding='utf-8')
        assert not re.findall(r'innerHTML|outerHTML|insertAdjacent|createContextualFragment|DOMParser|document\.write|eval\(|new Function|\bimport\b|fetch\(|XMLHttp|WebSocket|localStorage|cookie', text), f
        assert text.count('\n') <= 300 and max(map(len, text.splitlines())) <= 170, f


def test_numbers_are_written_as_python_writes_them(show):
    page = show(curves())
    xs = [0, 1, -1, .5, 123.456, 999.4, 999.6, 1234, -12345, 99_949, 1e6, 3.4e9, 5e14, 1e-3, 1.234e-5, 1e-7, -2.5e-9, 1e300]
    assert page.evaluate('xs => xs.map(chart.module.si)', xs) == [si(x) for x in xs]
    spans = [(0., 1., 5), (-3., 7., 4), (0., 2.048e6, 6), (1e-5, 2e-5, 3), (5., 5., 4), (99_000., 101_000., 5)]
    for s in spans: assert page.evaluate('x => chart.module.ticks(...x)', s) == pytest.approx(ticks(*s))


def test_the_cross_hair_reads_every_line(show):
    "The values under the mouse and the interval around them, those of the rows; a mark's word; gone when the mouse is"
    lines = curves()
    page = show(lines, marks=[(1_024_000., 'lr = 0.0001 (step 1,024,000)')])
    page.mouse.move(*at(page, .5))
    said = tip(page)
    x, y = lines[0].x, lines[0].y
    step = int(said.splitlines()[0].removeprefix('steps ').replace(',', ''))
    i = int(np.flatnonzero(x == step)[0])
    assert abs(step - x[-1] / 2) < x[-1] / 100
    row = next(s for s in said.splitlines() if 'training' in s)
    value, low, high = (float(v) for v in row.split('training ')[1].replace('[', '').replace(']', '').replace(',', '').split())
    assert value == pytest.approx(y[i], rel=1e-3) and low == pytest.approx(value - 25, abs=2) and high == pytest.approx(value + 25, abs=2)
    assert 'greedy' in said and 'lr = 0.0001' in said
    page.mouse.move(5, 5)
    page.wait_for_function('() => document.querySelector(".rlnb-tip").hidden')
    assert not page.errors


def test_drag_wheel_and_double_click_look_closer_and_back(show):
    page = show(curves())
    whole = span(page)
    page.mouse.move(*at(page, .25))
    page.mouse.down()
    page.mouse.move(*at(page, .5), steps=4)
    page.mouse.up()
    part = span(page)
    assert part == pytest.approx([whole[1] * .25, whole[1] * .5], rel=.01)
    page.wait_for_function('() => chart.saved === 1')
    assert page.evaluate('() => chart.state.within') == pytest.approx(part, abs=1)
    labels = page.locator('.rlnb-steps').text_content()
    page.mouse.wheel(0, -100)                                                  # the click above has given it the focus
    page.wait_for_function(f'() => Number(document.querySelector(".rlnb-live").dataset.range.split(",")[0]) > {part[0] + 1}')
    a, b = span(page)
    assert (b - a) == pytest.approx(.8 * (part[1] - part[0]), rel=.01) and page.locator('.rlnb-steps').text_content() != labels
    page.mouse.dblclick(*at(page, .5))
    page.wait_for_function('() => chart.state.within === null')
    assert span(page) == whole
    page.evaluate('document.activeElement.blur()')
    page.mouse.wheel(0, -100)                                                  # without focus the page scrolls, and the chart stays
    assert span(page) == whole
    spec, data = packed(curves(), 'return', within=(2e5, 3e5))                 # the kernel's answer, and a part that another view chose
    page.evaluate('([s, d]) => { chart.state.data = chart.bytes(d); chart.model.set("spec", s); chart.model.set("within", [2e5, 3e5]) }', [spec, base64.b64encode(data).decode()])
    assert span(page) == [2e5, 3e5]
    page.mouse.dblclick(*at(page, .5))                                         # before the kernel has answered: the last look from afar, and not a stub
    drawn(page)
    xs = page.evaluate('() => document.querySelector("[data-line] path:last-of-type").getAttribute("d").match(/[ML][0-9.]+/g).map(s => Number(s.slice(1)))')
    assert min(xs) < 60 and max(xs) > 660


def test_a_name_hides_its_line_and_keeps_the_focus(show):
    page = show(curves())
    line = page.locator('[data-line="1"]')
    button = page.get_by_role('button', name='greedy')
    assert line.count() == 1 and button.get_attribute('aria-pressed') == 'true'
    button.focus()
    page.keyboard.press('Space')
    drawn(page)
    assert line.count() == 0 and page.evaluate('() => [chart.state.off, chart.saved]') == [[1], 1] and button.get_attribute('aria-pressed') == 'false'
    assert page.evaluate('() => document.activeElement.dataset.at') == '1'
    page.mouse.move(*at(page, .5))
    assert 'greedy' not in tip(page)
    button.click()
    drawn(page)
    assert line.count() == 1


def test_the_keyboard_reads_and_looks_closer(show):
    "Arrow keys walk from point to point, and what they find is said aloud; + - Escape; a picture with a name"
    page = show(curves())
    page.get_by_role('group', name='return').focus()
    page.keyboard.press('ArrowLeft')
    said = lambda: page.locator('.rlnb-spoken').text_content()
    last = said()
    assert last.startswith('steps 2,046,976; training') and 'greedy' not in last.split(';')[0]
    page.keyboard.press('Shift+ArrowLeft')
    assert said() != last
    whole = span(page)
    page.keyboard.press('+')
    assert span(page)[1] - span(page)[0] < .8 * whole[1]
    page.keyboard.press('Escape')
    assert span(page) == whole
    assert page.get_by_role('img', name='return: training from').count() == 1 and page.locator('[data-lm-suppress-shortcuts]').count() == 1


def test_nothing_of_a_name_is_markup(show):
    lines = curves()
    lines[0].name = NASTY
    page = show(lines, marks=[(1_024_000., NASTY)])
    page.mouse.move(*at(page, .5))
    assert tip(page).count('<img src=x') == 2 and '<img' in page.locator('.rlnb-legend').inner_text()
    assert page.locator('img').count() == 0 and not page.errors
    page = show([])
    assert 'no data yet' in page.locator('.rlnb-live > svg').text_content()


def test_a_view_says_when_it_is_seen_and_when_not(show):
    "Opened, in the background (of the browser, and of JupyterLab, which takes the notebook out of the layout), back, closed"
    page = show(curves())
    kinds = lambda: page.evaluate('() => chart.sent.map(x => x.kind)')
    hide = 'h => { Object.defineProperty(document, "hidden", {configurable: true, get: () => h}); document.dispatchEvent(new Event("visibilitychange")) }'
    assert kinds() == ['hello']
    page.evaluate(hide, True)
    assert kinds() == ['hello', 'hidden']
    page.evaluate(hide, False)
    page.evaluate('() => document.getElementById("here").style.display = "none"')
    page.wait_for_function('() => chart.sent.length === 4')
    page.evaluate('() => document.getElementById("here").style.display = ""')
    page.wait_for_function('() => chart.sent.length === 5')
    page.evaluate('() => chart.close()')
    assert kinds() == ['hello', 'hidden', 'hello', 'hidden', 'hello', 'hidden'] and len(set(page.evaluate('() => chart.sent.map(x => x.view)'))) == 1


@pytest.mark.parametrize('theme', THEMES)
def test_it_can_be_read_in_both_themes(show, theme, tmp_path):
    page = show(curves(), theme, marks=[(1_024_000., 'lr = 0.0001 (step 1,024,000)')])
    page.mouse.move(*at(page, .5))
    page.screenshot(path=str(Path(os.environ.get('RLNB_PICTURES', tmp_path)) / f'live_{theme}.png'))
    color = page.evaluate('() => getComputedStyle(document.querySelector(".rlnb-tip")).color')
    assert (sum(json.loads(color.replace('rgb(', '[').replace(')', ']'))) > 380) == (theme == 'dark')


# ---- the tree of forks
@pytest.fixture
def tree(chromium):
    rows = [('seed-0', 0, ''), ('slower', 1, 'at 4,096: lr = 0.0001'), ('slower-again', 2, 'at 8,192: no change'), (NASTY, 1, NASTY), ('seed-1', 0, '')]
    page = chromium.new_page(viewport=dict(width=300, height=240))
    page.errors = []
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.set_content(PAGE % THEMES['dark'])
    rows = [dict(name=n, level=k, how=how) for n, k, how in rows]
    page.evaluate(MODEL, [(ROOT / 'rlnb' / 'panels' / 'tree.js').read_text(encoding='utf-8'), dict(rows=rows, chosen='slower'), ''])
    yield page
    page.close()


def test_a_fork_is_chosen_with_mouse_and_keyboard(tree, tmp_path):
    "One stop of the tab key; arrows, home and end walk over what is open; left closes or goes up, right opens or goes down; the mouse too"
    chosen = lambda: (tree.evaluate('() => chart.state.chosen'), tree.locator('[role=treeitem][aria-selected=true]').get_attribute('title').split(' at ')[0].strip())
    seen = lambda: [e.get_attribute('title').split(' at ')[0].strip() for e in tree.query_selector_all('[role=treeitem]') if e.is_visible()]
    assert tree.locator('[role=tree]').count() == 1 and tree.locator('[tabindex="0"]').count() == 1 and tree.evaluate('() => chart.sent[0].kind') == 'hello'
    tree.keyboard.press('Tab')
    for key, name in [('ArrowDown', 'slower-again'), ('ArrowLeft', 'slower'), ('ArrowUp', 'seed-0'), ('End', 'seed-1'), ('Home', 'seed-0'), ('ArrowRight', 'slower')]:
        tree.keyboard.press(key)
        assert chosen() == (name, name), key
    tree.keyboard.press('ArrowLeft')                                           # closes it
    assert 'slower-again' not in seen() and tree.locator('[aria-expanded=false]').count() == 1 and chosen()[0] == 'slower'
    tree.keyboard.press('ArrowDown')
    assert chosen()[0] == NASTY                                                # over what is closed
    tree.keyboard.press('ArrowUp')
    tree.keyboard.press('ArrowRight')
    assert 'slower-again' in seen()
    tree.get_by_role('treeitem', name='seed-1').click()
    assert chosen() == ('seed-1', 'seed-1') and tree.evaluate('() => document.activeElement.title.trim()') == 'seed-1'
    tree.get_by_role('treeitem', name='seed-0').locator('i').click()           # its sign closes it, and chooses nothing
    assert seen() == ['seed-0', 'seed-1'] and chosen()[0] == 'seed-1'
    tree.get_by_role('treeitem', name='seed-0').locator('i').click()
    assert [e.get_attribute('aria-level') for e in tree.query_selector_all('[role=treeitem]')] == ['1', '2', '3', '2', '1']
    assert tree.locator('img').count() == 0 and not tree.errors
    tree.screenshot(path=str(Path(os.environ.get('RLNB_PICTURES', tmp_path)) / 'tree.png'))
    tree.evaluate('() => chart.model.set("rows", [])')
    tree.keyboard.press('ArrowDown')
    assert not seen() and not tree.errors
