"""JupyterLab in a real browser: `dev.py lab`'s server opens the quick start, its cells run, the curve is there, and nothing
is asked of any other machine"""
import json
import os
import shutil
import time
from pathlib import Path

import labs
import numpy as np
import pytest
from conftest import ROOT
from labs import at, begin, run_all, span, tip

pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A lab with the quick start in its folder; yields (address, folder)"
    work = tmp_path_factory.mktemp('work')
    shutil.copy(ROOT / 'nbs' / '90_learn' / '10_quickstart.ipynb', work)
    with labs.lab(work, tmp_path_factory.mktemp('home')) as address: yield address, work


@pytest.fixture(scope='module')
def page(lab):
    with labs.browser(lab[0]) as page: yield page


def test_the_quick_start_runs_in_the_lab(lab, page):
    address, work = lab
    begin(page, address, '10_quickstart.ipynb')
    run_all(page)
    page.wait_for_function('() => [...document.querySelectorAll(".jp-OutputArea-output")].some(o => o.innerText.includes("result.json"))', timeout=120_000)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000, state='attached')
    assert page.query_selector('.jp-OutputArea-output img')         # the lab draws only the cells that are in sight
    assert not page.query_selector_all('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] .ansi-red-fg')
    result = json.loads(next((work / 'runs').glob('quickstart*/result.json')).read_text())
    assert result['phase'] == 'finished' and result['return']['n'] == 100
    page.screenshot(path=str(work / 'lab.png'))
    assert not page.errors and not page.outside, (page.errors[:3], page.outside[:3])
    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.shutdown()')


def test_a_run_is_started_paused_and_stopped_with_the_mouse(lab, page):
    "Launcher → Start → the curve grows → Pause → Continue → Checkpoint → Stop; a reload of the page keeps the buttons alive"
    import nbformat
    import rlnb.runs.keep     # noqa: F401  gives a run its checkpoints
    from rlnb.runs.run import find
    address, work = lab
    code = "from rlnb.all import *\nPanel(agent='ppo', env='rlnb/CartPole-v1', steps=50_000_000)"
    spec = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=spec), work / 'panel.ipynb')
    begin(page, address, 'panel.ipynb')
    run_all(page)
    press = lambda what: page.locator(f'.jp-OutputArea-output button.jupyter-button:text-is("{what}")').last.click()
    badge = lambda word: page.wait_for_function(f'() => document.querySelector(".rlnb-badge")?.innerText === "{word}"', timeout=60_000)
    page.wait_for_selector('.jp-OutputArea-output button:has-text("Start")', timeout=60_000)
    press('Start')
    badge('running')
    points = '() => Number(document.querySelector(".rlnb-live[data-points], .jp-OutputArea-output svg[data-points]")?.dataset.points || 0)'      # live, or the SVG
    page.wait_for_function(f'() => ({points})() > 5', timeout=60_000)
    run = find('ppo-CartPole-v1-0'.lower(), work / 'runs')
    press('Pause')
    badge('paused')
    seen = page.evaluate(points)
    press('Continue')
    badge('running')
    page.wait_for_function(f'() => ({points})() > {seen}', timeout=60_000)
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.goto(f'{address}lab/tree/panel.ipynb?token=tests')
    page.wait_for_selector('.rlnb-badge', timeout=60_000)
    press('Checkpoint')
    page.wait_for_function('() => document.body.innerText.includes("saved at step")', timeout=60_000)
    press('Stop')
    page.wait_for_function('() => document.body.innerText.includes("checkpoint saved at step")', timeout=60_000)
    assert run.phase == 'stopped' and run.checkpoints()
    roles = page.evaluate('() => [...document.querySelectorAll(".jp-OutputArea-output [role]")].map(e => e.getAttribute("role"))')
    assert {'progressbar', 'img', 'status'} <= set(roles)
    assert not page.errors and not page.outside, (page.errors[:3], page.outside[:3])
    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.shutdown()')


# ---- the live chart
def rows(run, n, first=0):
    "Rows as a run of 1,024 steps an iteration writes them"
    rng = np.random.default_rng(first)
    with (run.path / 'metrics.jsonl').open('a') as f:
        for i in range(first, first + n):
            r = 450 * (1 - np.exp(-i / 2000)) + 30 * rng.normal()
            f.write(json.dumps({'step': 1024 * i, 'iter': i, 'episode/return': dict(mean=r, min=r - 1, max=r + 1, n=3), 'learn/loss': 1 / (1 + i / 500)}) + '\n')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    from rlnb.train.session import train
    run = train('ppo', steps=2048, root=tmp_path_factory.mktemp('runs'), name='long', progress=False, episodes=5)
    (run.path / 'metrics.jsonl').write_text('')
    rows(run, 20_000)
    return run


def wait(page, what, seconds=20): page.wait_for_function(f'() => {what}', timeout=1000 * seconds)


def test_the_panel_in_jupyterlab(run, lab, page, tmp_path):
    """The live chart takes the SVG's place; hover, a closer look with finer numbers, a line hidden; a press during a long cell; a hidden tab
    gets nothing, and everything when it is back; a reload keeps the part that was looked at"""
    pytest.importorskip('anywidget', reason='anywidget is not installed: the live chart was NOT tested in JupyterLab')
    import nbformat
    address, work = lab
    frames = []
    page.on('websocket', lambda ws: ws.on('framereceived', lambda x: frames.append(x if isinstance(x, bytes) else x.encode())))
    pictures = Path(os.environ.get('RLNB_PICTURES', tmp_path))
    code = f'import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom rlnb.panels.panel import Panel\nPanel({str(run.path)!r})'
    spec = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=spec), work / 'live.ipynb')
    begin(page, address, 'live.ipynb')
    run_all(page)
    chart = 'document.querySelector(".rlnb-live")'
    wait(page, f'{chart}?.dataset.drawn', 60)
    assert not page.locator('.jp-OutputArea-output svg[data-points]').filter(visible=True).filter(has_text='return').count()

    page.locator('.rlnb-live > svg').hover()
    page.mouse.move(*at(page, .7))
    assert 'training' in tip(page) and '[' in tip(page)
    page.screenshot(path=str(pictures / 'lab_light.png'))
    whole = span(page)
    page.mouse.down()
    page.mouse.move(*at(page, .71), steps=3)
    page.mouse.up()
    part = span(page)
    assert part[1] - part[0] == pytest.approx((whole[1] - whole[0]) / 100, rel=.2)
    seen = '[...document.querySelector("[data-line] path:last-of-type").getAttribute("d").matchAll(/[ML]([0-9.]+)/g)].map(m => Number(m[1])).filter(x => x >= 52 && x <= 668)'
    wait(page, f'{seen}.length > 90')                                          # the kernel sent this part's own rows
    page.get_by_role('button', name='training').click()
    wait(page, f'!{chart}.querySelector("[data-line]")')
    page.get_by_role('button', name='training').click()
    wait(page, f'{chart}.querySelector("[data-line]")')

    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.requestExecute({code: "import time; time.sleep(5)"}) && 1')
    then = time.monotonic()
    page.get_by_role('button', name='log', exact=True).click()
    wait(page, 'document.querySelector("pre[aria-label=log]")')
    assert time.monotonic() - then < 3.5, 'the first press of a button waited for the cell'

    hide = 'h => { Object.defineProperty(document, "hidden", {configurable: true, get: () => h}); document.dispatchEvent(new Event("visibilitychange")) }'
    points = page.evaluate(f'() => {chart}.dataset.points')
    page.evaluate(hide, True)
    time.sleep(.5)
    frames.clear()
    rows(run, 50, 20_000)
    time.sleep(3)
    assert not [f for f in frames if b'comm_msg' in f]
    page.evaluate(hide, False)
    wait(page, f'{chart}.dataset.points === "{int(points) + 50}"')
    assert sum(map(len, (f for f in frames if b'comm_msg' in f))) < 40_000

    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.goto(f'{address}lab/tree/live.ipynb?token=tests')
    wait(page, f'{chart}?.dataset.drawn', 60)
    assert span(page) == pytest.approx(part, abs=1)
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    wait(page, 'document.body.dataset.jpThemeLight === "false"')
    page.locator('.rlnb-live').scroll_into_view_if_needed()
    page.locator('.rlnb-live > svg').dblclick()                                # waits until it stands still
    wait(page, f'{chart}.dataset.range.startsWith("0,") && Math.max(...{seen}) - Math.min(...{seen}) > 600')
    page.locator('.rlnb-live > svg').hover()
    page.screenshot(path=str(pictures / 'lab_dark.png'))
    assert not page.errors and not page.outside, (page.errors[:3], page.outside[:3])
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.shutdown()')
