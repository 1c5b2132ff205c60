"""Panels without a browser: what they may be given, what they send, what they cost, and what they survive"""
import ast
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

pytestmark = pytest.mark.usefixtures('watched')
PAGES = sorted((ROOT / 'rlnb' / 'panels').glob('*.py'))


def until(f, seconds=120., what=''):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if f(): return
        time.sleep(.05)
    raise AssertionError(what or 'it did not happen')


def in_thread(f):
    "Run it beside; `.done()` waits and raises what it raised"
    from concurrent.futures import ThreadPoolExecutor
    pool = ThreadPoolExecutor(1)
    job = pool.submit(f)
    pool.shutdown(wait=False)
    return job


# ---- one door for markup
def other_doors(name: str, src: str) -> list[str]:
    "Where a page gives a widget of text its value, or calls a text safe, by itself"
    bad = []
    for n in ast.walk(ast.parse(src)):
        where = f'{name}:{getattr(n, "lineno", 0)}'
        if isinstance(n, ast.Call):
            who = ast.unparse(n.func)
            if who.split('.')[-1] in ('HTML', 'HTMLMath', 'Output') and name != 'markup.py': bad.append(f'{where}: {who}')
            if who == 'Html' and name not in ('markup.py',) and not _safe(n): bad.append(f'{where}: {ast.unparse(n)[:60]}')
            if who == 'setattr': bad.append(f'{where}: setattr')
        if isinstance(n, (ast.Assign, ast.AugAssign)):
            for t in n.targets if isinstance(n, ast.Assign) else [n.target]:
                if isinstance(t, ast.Attribute) and t.attr == 'value' and name not in ('markup.py', 'form.py', 'player.py'): bad.append(f'{where}: {ast.unparse(t)} = …')
    return bad


def _safe(n: ast.Call) -> bool:
    "A constant, a table (which escapes), or what drew itself with `svg`"
    text = ast.unparse(n.args[0])
    return isinstance(n.args[0], ast.Constant) or bool(re.match(r"table\(.*fmt='html'\)$|found\.table\('html'\)$", text, re.S)) or text.endswith('._repr_svg_()')


def test_one_door_for_markup():
    "Widgets of text get their value from `show`, which escapes; and the walk sees who does otherwise"
    assert not (bad := [b for p in PAGES for b in other_doors(p.name, p.read_text(encoding='utf-8'))]), '\n'.join(bad)
    planted = 'w.HTML("<b>")\nself.head.value = f"<b>{name}</b>"\nHtml(name)\nsetattr(w, "value", name)'
    assert len(other_doors('monitor.py', planted)) == 4


NASTY = '<img src=x onerror=alert(1)>"\'`{{x}}$y$</script>'


def test_nothing_that_was_typed_becomes_markup(tmp_path):
    "A run's name, its group, its log, an error and an event hold markup; the panel shows it as text"
    from rlnb.core.io import write_json
    from rlnb.panels.compare import Comparer
    from rlnb.panels.monitor import Monitor
    from rlnb.panels.panes import PANES
    from rlnb.panels.twin import Twin
    from rlnb.train.session import train
    run = train('ppo', steps=4096, root=tmp_path, name='x', progress=False, episodes=5, group=NASTY)
    config = run.config
    config['name'] = NASTY
    write_json(run.path / 'config.json', config)
    (run.path / 'log.txt').write_text(NASTY * 3)
    (run.path / 'error.txt').write_text(NASTY)
    state = run.state | dict(phase='failed', error=dict(cause=NASTY, code=70, where='error.txt', card=dict(kind=NASTY, cause=NASTY, evidence={NASTY: 1.}, advice=[NASTY], step=1)))
    write_json(run.path / 'state.json', state)
    panel = Monitor(run)
    shown = [panel.head.value, panel.card.value, panel.picture.value, panel.word.value, Comparer([run]).head.value, Twin(run).html()]
    for which in PANES:
        panel.which.value = which
        shown.append(panel.pane.value)
    assert 'onerror' in ''.join(shown)                                     # it is there, as text
    for text in shown: assert '<img src=x' not in text and '</script>' not in text and '{{x}}' not in text


# ---- what it costs
@pytest.fixture
def long(tmp_path):
    "A folder as a run of fifty thousand rows leaves it"
    from rlnb.train.session import train
    run = train('ppo', steps=2048, root=tmp_path, name='long', progress=False, episodes=5)
    rng = np.random.default_rng(0)
    with (run.path / 'metrics.jsonl').open('w') as f:
        for i, (r, k) in enumerate(rng.normal(size=(50_000, 2)).round(3).tolist()):        # fewer than 16 MB, or a sample would be shown
            ret = dict(mean=r, min=r - 1, max=r + 1, n=3)
            f.write(json.dumps({'step': 1024 * (i + 1), 'iter': i, 'episode/return': ret, **{f'learn/{name}': round(n*k, 3) for n, name in enumerate(('loss', 'entropy', 'kl', 'lr', 'clipped', 'value'))}}, separators=(',', ':')) + '\n')
    assert (run.path / 'metrics.jsonl').stat().st_size < 16 << 20
    return run


def test_a_refresh_of_a_long_run_stays_small(long, watched):
    "At fifty thousand rows: at most ten kilobytes a refresh (what it costs in time is measured by tools/panels.py)"
    from rlnb.panels.monitor import Monitor
    panel = Monitor(long)
    with watched.lock: watched.due.clear()                                      # looked at here, and nowhere else
    sent: list[int] = []
    for i in range(6):
        panel.drawn = time.monotonic() if i % 2 else 0.                         # the turn of the curve, of the pane
        more = {f'learn/{k}': .5*i for k in ('loss', 'entropy', 'kl', 'lr', 'clipped', 'value')}
        with (long.path / 'metrics.jsonl').open('a') as f: f.write(json.dumps({'step': 60_000_000 + i, 'iter': i, 'episode/return': dict(mean=1., min=0, max=2, n=1), **more}) + '\n')
        before = {id(w): w.value for w in (panel.head, panel.picture, panel.pane, panel.word)}
        panel.look()
        sent.append(sum(len(w.value.encode()) for w in (panel.head, panel.picture, panel.pane, panel.word) if w.value != before[id(w)]))
    assert max(sent) <= 10_000 and min(sent) > 4_000, sent                    # the curve with its noise and band, or six small curves, and the head


def test_nothing_new_sends_nothing(long):
    from rlnb.panels.monitor import Monitor
    panel = Monitor(long)
    panel.look()
    changed = []
    for w in (panel.picture, panel.pane, panel.word, panel.card): w.observe(lambda c: changed.append(c), 'value')
    for _ in range(5): panel.look()
    assert not changed


@pytest.fixture
def page(monkeypatch):
    "A page that can draw scripts, as far as the kernel can tell; `hello` and `hidden` come on a thread of their own, as in JupyterLab"
    import ipywidgets

    from rlnb.panels import live
    monkeypatch.setattr(live, '_anywidget', lambda: ipywidgets.DOMWidget)
    return lambda panel, kind, name='a': in_thread(lambda: panel.curve._hear(None, dict(kind=kind, view=name))).result(10)


def append(run, i):
    with (run.path / 'metrics.jsonl').open('a') as f: f.write(json.dumps({'step': 60_000_000 + i, 'iter': i, 'episode/return': dict(mean=1., min=0, max=2, n=1)}) + '\n')


def test_a_refresh_of_the_live_chart_stays_small(long, page):
    "At fifty thousand rows, and for ten of them over each other: at most ten kilobytes a refresh; of a part, its own rows"
    from rlnb.panels.compare import Comparer, line_of
    from rlnb.panels.monitor import Monitor
    panel = Monitor(long)
    page(panel, 'hello')
    for i in range(3):
        append(long, i)
        panel.look()
        assert 4_000 < len(json.dumps(panel.curve.touch.spec)) + len(panel.curve.touch.data) < 7_000
    many = Comparer([long])
    page(many, 'hello')
    many.curve.draw([line_of(f'run {i}', many.feeds, .05, i) for i in range(10)], 'return')
    assert len(many.curve.touch.spec['curves']) == 10 and len(json.dumps(many.curve.touch.spec)) + len(many.curve.touch.data) < 12_000
    panel.curve.touch.within = [1e6, 1.1e6]
    x = panel.feed.rows.get('episode/return')[0]                            # of a long file a sample of its rows
    assert panel.curve.touch.spec['first'] == 1e6 and panel.curve.touch.spec['curves'][0]['line'] > ((x >= 1e6) & (x <= 1.1e6)).sum() > 3


def test_a_hidden_panel_sends_nothing(long, page):
    "Nobody looks: rows, clicks from Python and the watcher change no widget; one view of two is enough to go on; who comes back gets everything"
    from rlnb.panels.monitor import Monitor
    panel = Monitor(long)
    page(panel, 'hello')
    page(panel, 'hello', 'b')
    assert panel.picture.value == '' and panel.part.layout.display == 'none' and 'double click' in panel.foot.value
    page(panel, 'hidden')
    append(long, 1)
    panel.look()
    seen = panel.curve.touch.spec['points']
    page(panel, 'hidden', 'b')
    sent, todo = [], [panel.box]
    while todo:
        w = todo.pop()
        todo += getattr(w, 'children', ())
        w.observe(lambda c: sent.append(c['name']))
    for i in range(2, 5):
        append(long, i)
        panel.look()
        panel.draw(force=True)
    assert not sent
    page(panel, 'hello', 'b')
    assert panel.curve.touch.spec['points'] == seen + 3 and 'spec' in sent and 'data' in sent


# ---- two threads: the watcher's looks, the kernel's draws
def rows(path, n, first=0):
    with path.open('a') as f: f.writelines(json.dumps({'step': i, 'a': float(i), 'b': -float(i)}) + '\n' for i in range(first, first + n))


def test_a_column_is_read_while_rows_arrive(tmp_path):
    "Steps and values of a column belong together, whatever the watcher's thread puts in place between two lines of the reader"
    from rlnb.panels.feed import Tail
    rows(tmp_path / 'rows', 3)
    tail = Tail(tmp_path / 'rows')
    tail.ask('a')

    class Columns(dict):
        def __getitem__(self, k):                   # just then the other thread comes by, and finds a new row
            found = super().__getitem__(k)
            rows(tmp_path / 'rows', 1, 3)
            in_thread(tail.poll).result(10)
            return found
    tail.cols = Columns(tail.cols)
    assert [v.tolist() for v in tail.get('a')] == [[0, 1, 2]]*2
    assert len(tail.get('a')[0]) > 3


def test_a_column_asked_for_during_a_poll_is_kept(tmp_path, monkeypatch):
    "A poll that is in the middle of reading and a question for another column: no column is lost, no row comes twice"
    from threading import Event

    from rlnb.panels import feed
    rows(tmp_path / 'rows', 3)
    tail = feed.Tail(tmp_path / 'rows')
    tail.ask('a')
    rows(tmp_path / 'rows', 2, 3)
    reading, asked, columns = Event(), Event(), feed.columns

    def slow(*args):
        found = columns(*args)
        reading.set()
        asked.wait(.5)
        return found
    monkeypatch.setattr(feed, 'columns', slow)
    job = in_thread(tail.poll)
    reading.wait(5)
    tail.ask('b')
    asked.set()
    job.result()
    tail.poll()
    assert tail.cols['step'].tolist() == [0, 1, 2, 3, 4] and tail.get('b')[1].tolist() == [0, -1, -2, -3, -4]


def test_who_is_followed_while_being_looked_at_is_looked_at_again(watched):
    "A look that ends with `False`, while somebody asks for another one; and a thread that is about to end is not relied on"
    from threading import Event

    class Panel:
        n, inside, go = 0, Event(), Event()
        def look(self):
            self.n += 1
            self.inside.set()
            self.go.wait(5)
            return False
    p = Panel()
    watched.follow(p.look)
    p.inside.wait(5)
    watched.follow(p.look)
    p.go.set()
    until(lambda: p.n == 2, 5, 'the second wish was lost')
    for n in range(3, 20):
        watched.follow(p.look)
        until(lambda n=n: p.n >= n, 5, 'nobody looks any more')


def test_a_press_does_not_swallow_what_the_watcher_would_have_said(tmp_path, monkeypatch):
    "A run ends between two looks, and a button's poll is the first that sees it: the panel still says where the checkpoint is"
    from rlnb.core.io import write_json
    from rlnb.panels.monitor import Monitor
    from rlnb.train.session import train
    run = train('ppo', steps=4096, root=tmp_path, name='x', progress=False, episodes=5)
    ended = run.state
    write_json(run.path / 'state.json', ended | dict(phase='stopping'))
    panel = Monitor(run)
    monkeypatch.setattr(panel, '_do', lambda what: write_json(run.path / 'state.json', ended))
    panel.press('stop')
    assert 'finished · checkpoint saved at step 4,096' in panel.word.value


# ---- what it survives
@pytest.fixture(scope='module')
def kernel():
    from jupyter_client.manager import start_new_kernel
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]), RLNB_BATCH='0')
    km, kc = start_new_kernel(env=env)
    yield km, kc
    kc.stop_channels()
    km.shutdown_kernel(now=True)


def say(kc, code, timeout=120):
    "Run a cell; what it printed"
    out = []
    reply = kc.execute_interactive(code, timeout=timeout, store_history=False, output_hook=lambda m: out.append(m['content'].get('text', '')))
    assert reply['content']['status'] == 'ok', reply['content']
    return ''.join(out)


def test_a_run_outlives_interrupt_restart_and_death_of_the_kernel(kernel, tmp_path):
    "Started in a panel; the kernel is interrupted, restarted and killed; the run goes on, and a panel made anew shows it"
    km, kc = kernel
    from rlnb.runs.run import find
    begin = f'from rlnb.panels.panel import Panel\nfrom pathlib import Path\nl = Panel(root={str(tmp_path)!r}, agent="ppo", env="rlnb/CartPole-v1", steps=10**9)\nl.name.value = "alive"\nprint(len(l.start()))'
    assert say(kc, begin).strip() == '1'
    run = find('alive', tmp_path)
    try:
        until(lambda: run.phase == 'running')
        pid, step = run.state['pid'], 0
        again = f'from rlnb.panels.panel import Panel\np = Panel("alive", {str(tmp_path)!r})\nprint(p.feed.state["phase"], p.feed.state["pid"])'
        for blow in ('interrupt', 'restart', 'kill'):
            if blow == 'interrupt': km.interrupt_kernel()
            else:
                if blow == 'kill': os.kill(km.provisioner.pid, signal.SIGKILL)
                km.restart_kernel(now=True)
                kc.wait_for_ready(timeout=60)
            phase, seen = say(kc, again).split()
            assert (phase, int(seen)) == ('running', pid), blow
            until(lambda step=step: run.state["step"] > step, what=f'it stood still after {blow}')
            step = run.state['step']
        assert len(list(tmp_path.glob('*/config.json'))) == 1                  # nobody began a second one
        say(kc, '1 + 1')                                                       # the kernel is free while it trains
        say(kc, 'p.buttons["stop"].click()')
        until(lambda: run.phase == 'stopped')
    finally:
        if run.phase not in ('stopped', 'finished'): run.kill()


def test_a_panel_that_runs_by_itself_prints_lines_and_leaves_a_picture(tmp_path):
    "Under nbclient, as under papermill: the cell waits for the run, there is no widget, and the saved notebook shows curve and table"
    import nbformat
    from nbclient import NotebookClient
    code = f'from rlnb.panels.panel import Panel\nfrom rlnb.train.launch import launch\nrun = launch("ppo", steps=20_000, root={str(tmp_path)!r}, name="batch")\nPanel(run)'
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    NotebookClient(nb, timeout=180, store_widget_state=True, resources={'metadata': {'path': str(tmp_path)}}).execute(env=env)
    outputs = nb.cells[0].outputs
    text = ''.join(o.get('text', '') for o in outputs if o.output_type == 'stream')
    assert 'batch: finished  ' in text
    kinds = [k for o in outputs if 'data' in o for k in o.data]
    assert 'image/png' in kinds and 'text/html' in kinds and not any('widget' in k for k in kinds)
    assert not any('widget' in k for k in nb.metadata)


def test_hostile_folders_do_not_break_a_panel(tmp_path):
    "State, events and metrics that are torn, of another shape or gone: the panel shows what is left"
    from rlnb.panels.feed import Feed
    from rlnb.panels.monitor import Monitor
    from rlnb.train.session import train
    run = train('ppo', steps=4096, root=tmp_path, name='x', progress=False, episodes=5)
    panel = Monitor(run)
    for name, text in [('state.json', '{"phase": "run'), ('events.jsonl', 'no event\n'), ('metrics.jsonl', '{"step": "x"}\n[1]\n{"step": 1, "episode/return": "NaN"}\n'), ('perf.jsonl', '\x00\x01')]:
        (run.path / name).write_text(text)
        panel.look()
        Monitor(run)
    assert panel.feed.state['phase'] == 'lost' and panel.feed.trouble
    (run.path / 'metrics.jsonl').unlink()
    panel.look()
    assert isinstance(Feed(run).rows.get('episode/return')[0], np.ndarray)
    assert Path(run.path).exists()
