"""What may happen to a notebook that shows a run, in a real JupyterLab with a real worker: the kernel restarted, the kernel killed, a run that fails, a cell
that is busy, two panels, a notebook that was closed. Nightly: `python tools/nightly.py` runs them. Pictures go where RLNB_SHOTS says"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import labs
import nbformat
import pytest
import rlnb.runs.control     # noqa: F401  gives a run its commands
from conftest import ROOT

from rlnb.runs.run import find, runs
from rlnb.runs.state import LIVE

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WAIT = 120_000          # milliseconds, for what never comes
BUSY = 'import time\nfrom pathlib import Path\nwhile not Path("go").exists(): time.sleep(.1)'
BEGIN = f'import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom rlnb.all import *\n'


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    work = tmp_path_factory.mktemp('work')
    with labs.lab(work, tmp_path_factory.mktemp('home')) as address: yield address, work


@pytest.fixture
def nb(lab, request):
    "A notebook in the lab, as a person would use it; at the end its kernel and all runs are gone"
    with labs.browser(lab[0], 1280, 1400) as page:
        nb = Notebook(*lab, page, request.node.name)
        yield nb
        nb.shot('end')
        page.evaluate('jupyterapp.shell.currentWidget?.context.sessionContext.shutdown()')
    for run in runs(nb.work / 'runs'):
        if run.phase in LIVE: run.kill()


class Notebook:
    def __init__(self, address, work, page, name):
        self.address, self.work, self.page, self.name = address, work, page, name

    def write(self, *cells):
        spec = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (BEGIN, *cells)], metadata=spec)
        nbformat.write(made, self.work / f'{self.name}.ipynb')

    def open(self):
        labs.begin(self.page, self.address, f'{self.name}.ipynb')
        self.page.evaluate('jupyterapp.shell.collapseLeft()')

    def run_all(self): labs.run_all(self.page)
    def wait(self, js): return self.page.wait_for_function(js, timeout=WAIT)
    def badges(self): return self.page.evaluate('[...document.querySelectorAll(".jp-OutputArea-output .rlnb-badge")].filter(e => e.offsetParent).map(e => e.innerText)')
    def badge(self, word, n=1):
        "So many panels say this"
        self.wait(f'() => [...document.querySelectorAll(".jp-OutputArea-output .rlnb-badge")].filter(e => e.offsetParent && e.innerText === {word!r}).length >= {n}')

    def text(self, words): self.wait(f'() => document.querySelector(".jp-Notebook").innerText.includes({json.dumps(words)})')
    def points(self): return self.page.evaluate(POINTS)
    def grows(self):
        "The curve gets new points"
        seen = self.points()
        self.wait(f'() => ({POINTS})() > {seen}')

    def button(self, word, i=-1): return self.page.locator(f'.jp-OutputArea-output button.jupyter-button:text-is("{word}"):not([disabled])').nth(i)
    def press(self, word, i=-1): self.button(word, i).click(timeout=WAIT)
    def busy(self):
        "Is a cell running?"
        return any(p.inner_text() == '[*]:' for p in self.page.locator('.jp-InputPrompt').all())

    def shot(self, what):
        if where := os.environ.get('RLNB_SHOTS'): self.page.screenshot(path=str(Path(where) / f'{self.name}-{what}.png'))

    def kernel(self):
        "The number of the kernel's process"
        return int(self.page.evaluate("""async () => {
            const k = jupyterapp.shell.currentWidget.context.sessionContext.session.kernel; let out = '';
            const f = k.requestExecute({code: 'import os; print(os.getpid())', silent: false, store_history: false});
            f.onIOPub = m => { if (m.header.msg_type === 'stream') out += m.content.text };
            await f.done; return out }""").strip())


POINTS = '() => Math.max(0, ...[...document.querySelectorAll(".jp-OutputArea-output .rlnb-live[data-points], .jp-OutputArea-output svg[data-points]")].filter(e => e.getBoundingClientRect().height > 200).map(e => Number(e.dataset.points)))'


def until(f, seconds=120.):
    end = time.monotonic() + seconds
    while not f():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(.05)


def still_trains(run, pid):
    step = run.state['step']
    until(lambda: run.state['step'] > step)
    assert run.state['pid'] == pid and run.phase == 'running'


def started(nb, name):
    "A launcher, its Start pressed, a curve that grows; the run"
    nb.write(f"Panel(agent='ppo', env='rlnb/CartPole-v1', steps=10**9)   # {name}")
    nb.open()
    nb.run_all()
    nb.press('Start')
    nb.badge('running')
    nb.grows()
    return runs(nb.work / 'runs')[-1]


def test_the_kernel_is_restarted(nb):
    "The run goes on; the same cell run again shows it, and begins no second one; its buttons steer it"
    run = started(nb, 'restarted')
    pid, before = run.state['pid'], len(runs(nb.work / 'runs'))
    nb.page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()')
    still_trains(run, pid)
    nb.page.evaluate(labs.READY)
    nb.run_all()
    nb.badge('running')
    nb.grows()
    nb.shot('again')
    nb.press('Pause')
    nb.badge('paused')
    nb.press('Stop')
    nb.text('checkpoint saved at step')
    assert run.phase == 'stopped' and len(runs(nb.work / 'runs')) == before


def test_the_kernel_is_killed(nb):
    "With -9, as the system does when memory runs out: the run does not notice; the cell run again has it back"
    run = started(nb, 'killed')
    pid, before, kernel = run.state['pid'], len(runs(nb.work / 'runs')), nb.kernel()
    os.kill(kernel, signal.SIGKILL)
    still_trains(run, pid)
    nb.page.wait_for_timeout(3000)                # the lab tells of it in a dialog, and begins another kernel
    nb.shot('killed')
    for b in nb.page.locator('.jp-Dialog button.jp-mod-accept').all(): b.click()
    nb.page.evaluate(labs.READY)
    until(lambda: nb.kernel() != kernel)
    nb.run_all()
    nb.badge('running')
    nb.grows()
    nb.press('Stop')
    nb.text('checkpoint saved at step')
    assert run.phase == 'stopped' and len(runs(nb.work / 'runs')) == before


def test_a_run_that_fails(nb):
    "The card says what happened, with the traceback folded away; one press on a fix begins a run that goes on"
    nb.write("run = launch('ppo', steps=10**6, name='hasty', lr=.05, epochs=10)\nPanel(run)")
    nb.open()
    nb.run_all()
    nb.badge('failed')
    run = find('hasty', nb.work / 'runs')
    nb.text('what shows it')
    nb.text('traceback')
    nb.shot('card')
    folded = nb.page.evaluate('[...document.querySelectorAll(".rlnb-note.bad details")].filter(e => e.offsetParent).map(e => e.open)')
    assert folded == [False, False]
    assert nb.page.locator('.jp-OutputArea-output button:has-text("Resume"):not([disabled])').count()
    nb.page.locator('.jp-OutputArea-output button:has-text("Fork:")').first.click()
    nb.text('done: ')
    children = [r for r in runs(nb.work / 'runs') if (r.config.get('parent') or {}).get('run') == run.name or r.name.startswith('hasty-again')]
    assert len(children) == 1 and children[0].phase != 'new' and children[0].config['experiment']['agent_cfg'] != run.config['experiment']['agent_cfg']


def test_a_cell_is_busy(nb):
    "While a cell runs the panel goes on; the way round the kernel stands there from the start, and works"
    nb.write("run = launch('ppo', steps=10**9, name='busy')\nPanel(run)", BUSY)
    (nb.work / 'go').unlink(missing_ok=True)
    nb.open()
    nb.run_all()
    nb.badge('running')
    words = 'rlnb stop busy --root '
    nb.text(words)
    nb.grows()
    nb.grows()                                    # the second cell is running all the while
    assert nb.busy()
    nb.shot('busy')
    command = nb.page.evaluate(f'[...document.querySelectorAll(".jp-OutputArea-output code")].map(e => e.innerText).find(t => t.startsWith({words!r}))').split()
    r = subprocess.run([sys.executable, '-c', 'import sys; from rlnb.cli import main; sys.exit(main(sys.argv[1:]))', *command[1:]], cwd=nb.work, env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, r.stderr
    nb.badge('stopped')
    assert nb.busy() and find('busy', nb.work / 'runs').phase == 'stopped'
    (nb.work / 'go').touch()


def test_a_press_while_a_cell_is_busy(nb):
    "Stop is heard at the latest when the cell has ended"
    nb.write("run = launch('ppo', steps=10**9, name='late')\nPanel(run)", BUSY)
    (nb.work / 'go').unlink(missing_ok=True)
    nb.open()
    nb.run_all()
    nb.badge('running')
    nb.grows()
    nb.press('Stop')
    nb.page.wait_for_timeout(1000)
    assert nb.busy()
    (nb.work / 'go').touch()
    nb.text('checkpoint saved at step')
    assert find('late', nb.work / 'runs').phase == 'stopped'


def test_two_panels_on_one_run(nb):
    "What is done in one is seen in the other"
    nb.write("run = launch('ppo', steps=10**9, name='two')\nPanel(run)", "Panel('two')")
    nb.open()
    nb.run_all()
    nb.badge('running', 2)
    nb.press('Pause', 0)
    nb.badge('paused', 2)
    nb.shot('paused')
    nb.press('Continue', -1)
    nb.badge('running', 2)
    nb.press('Checkpoint', 0)
    nb.text('saved at step')
    nb.press('Stop', -1)
    nb.badge('stopped', 2)
    assert [e['kind'] for e in find('two', nb.work / 'runs').events if e['kind'] in ('pause', 'continue', 'stop')] == ['pause', 'continue', 'stop']


def test_a_notebook_is_closed_and_opened_again(nb):
    "Without a kernel there is the still picture and a sentence, and no dead button; the cell run again is alive"
    nb.write("run = launch('ppo', steps=10**9, name='closed')\nPanel(run)", "Panel('closed')")
    nb.open()
    nb.page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    nb.run_all()
    nb.badge('running', 2)
    nb.grows()
    run = find('closed', nb.work / 'runs')
    pid = run.state['pid']
    nb.wait('() => document.querySelectorAll(".rlnb-twin img").length === 2')     # the still pictures have a curve by now; they are hidden
    assert not nb.page.locator('.rlnb-twin').first.is_visible()
    nb.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    nb.page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.shutdown()')
    nb.page.goto('about:blank')
    still_trains(run, pid)
    nb.open()
    nb.text('run this cell again to get the live panel')
    nb.shot('without')
    assert not nb.page.locator('.jp-OutputArea-output button.jupyter-button').count()
    assert nb.page.locator('.rlnb-twin').first.is_visible() and nb.page.locator('.rlnb-twin img').first.is_visible()
    again = nb.page.locator('.jp-CodeCell').nth(2)
    again.click()
    nb.page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    nb.page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
    nb.page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 2")
    nb.page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
    nb.badge('running')
    nb.press('Stop')
    nb.text('checkpoint saved at step')
    nb.shot('with')
    assert run.phase == 'stopped'


def test_without_a_mouse(nb):
    "Enter presses; the button that went off hands the focus to one that is on; Space presses that; Tab leads on"
    nb.write("run = launch('ppo', steps=10**9, name='keys')\nPanel(run)")
    nb.open()
    nb.run_all()
    nb.badge('running')
    nb.grows()
    focus = 'document.activeElement.closest("button.jupyter-button:not([disabled])")?.innerText'
    nb.button('Pause').focus()
    nb.page.keyboard.press('Enter')
    nb.badge('paused')
    nb.wait(f'() => {focus} === "Continue"')
    nb.page.keyboard.press('Space')
    nb.badge('running')
    nb.wait(f'() => {focus} === "Pause"')
    nb.page.keyboard.press('Tab')
    assert nb.page.evaluate(focus) == 'Checkpoint'
    nb.page.keyboard.press('Tab')
    nb.page.keyboard.press('Enter')
    nb.text('checkpoint saved at step')
    assert find('keys', nb.work / 'runs').phase == 'stopped'
