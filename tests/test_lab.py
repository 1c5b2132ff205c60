"""JupyterLab in a real browser: `dev.py lab`'s server opens the quick start, its cells run, the curve is there, and nothing
is asked of any other machine"""
import json
import shutil

import labs
import pytest
from conftest import ROOT
from labs import begin, run_all

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
    press = lambda what: page.locator(f'.jp-OutputArea-output button.jupyter-button:has-text("{what}")').last.click()
    badge = lambda word: page.wait_for_function(f'() => document.querySelector(".rlnb-badge")?.innerText === "{word}"', timeout=60_000)
    page.wait_for_selector('.jp-OutputArea-output button:has-text("Start")', timeout=60_000)
    press('Start')
    badge('running')
    points = '() => Number(document.querySelector(".jp-OutputArea-output svg[data-points]")?.dataset.points || 0)'
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
