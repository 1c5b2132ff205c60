"""A panel with a real worker behind it, and no browser: its buttons clicked, its widgets read. What a person would notice, one by one; the list is tests/test_acceptance.py"""
import json
import os
import re
import signal
import time

import numpy as np
import psutil
import pytest

from rlnb.core.errors import Locked
from rlnb.panels.feed import Watcher
from rlnb.panels.launcher import Launcher
from rlnb.panels.monitor import BUTTONS, Monitor, allowed
from rlnb.panels.panel import Panel
from rlnb.runs.run import runs
from rlnb.runs.state import LIVE
from rlnb.train.launch import launch
from rlnb.train.session import train


def until(f, seconds=120.):
    "It comes to pass; the limit is for what never does"
    end = time.monotonic() + seconds
    while not f():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(.05)


@pytest.fixture
def alive(tmp_path):
    "A run that trains until it is stopped, and a panel that shows it"
    run = launch('ppo', steps=10**9, root=tmp_path, name='alive', hidden=[16], checkpoint_every=10**8)
    until(lambda: run.phase == 'running')
    panel = Monitor(run)
    until(lambda: len(panel.feed.rows.get('episode/return')[0]) > 3)
    yield run, panel
    if run.phase in LIVE: run.kill()


@pytest.fixture
def still(tmp_path): return train('ppo', steps=20_480, root=tmp_path, name='still', progress=False, episodes=5, hidden=[16])


def on(panel): return {k for k, b in panel.buttons.items() if not b.disabled}


def test_paused_uses_no_processor_and_goes_on_with_the_same_curve(alive):
    run, panel = alive
    panel.buttons['pause'].click()
    until(lambda: run.phase == 'paused' and on(panel) == set(BUTTONS['paused']))
    p = psutil.Process(run.state['pid'])
    used, then = sum(p.cpu_times()[:2]), time.monotonic()
    time.sleep(2)
    assert (sum(p.cpu_times()[:2]) - used)/(time.monotonic() - then) < .25, 'it is not idle'
    at = run.metrics('episode/return')[0][-1]
    panel.buttons['continue'].click()
    until(lambda: run.metrics('episode/return')[0][-1] > at)
    steps = [r['step'] for r in run.metrics()]
    assert steps == sorted(set(steps)) and at in steps and run.state['pid'] == p.pid


def test_a_checkpoint_says_its_step_its_size_and_when(alive):
    run, panel = alive
    panel.buttons['checkpoint'].click()
    until(lambda: 'saved at step' in panel.word.value)
    step, _size, _at = re.search(r'saved at step ([\d,]+) · ([\d.]+[ kMG]?B) · (\d{4}-\d\d-\d\dT[\d:]+Z)', panel.word.value).groups()
    assert int(step.replace(',', '')) in [c['step'] for c in run.checkpoints()]


def test_stop_says_what_it_does_and_where_it_ended(alive):
    _run, panel = alive
    panel.buttons['stop'].click()
    assert 'stopping…' in panel.word.value or 'checkpoint saved' in panel.word.value
    until(lambda: 'checkpoint saved at step' in panel.word.value)
    assert re.search(r'stopped · checkpoint saved at step [\d,]+ · alive/ckpt', panel.word.value) and on(panel) == {'resume', 'fork'}


def test_a_stop_that_nobody_answers_offers_to_kill(alive):
    run, panel = alive
    os.kill(run.state['pid'], signal.SIGSTOP)
    panel.buttons['stop'].click()
    assert 'kill' not in on(panel)
    panel.asked -= 6                                   # seconds go by
    until(lambda: 'kill' in on(panel))
    panel.buttons['kill'].click()
    until(lambda: run.phase == 'lost' and 'kill' not in on(panel))


def test_a_process_that_vanished_is_called_lost_and_can_go_on(alive):
    run, panel = alive
    panel.buttons['checkpoint'].click()
    until(run.checkpoints)
    os.kill(run.state['pid'], signal.SIGKILL)
    until(lambda: 'The process is gone' in panel.card.value)
    assert 'out of memory' in panel.card.value and on(panel) == {'resume', 'fork'} and '>lost<' in panel.head.value
    saved = run.checkpoints()[-1]['step']
    panel.buttons['resume'].click()
    until(lambda: run.phase == 'running' and run.state['step'] >= saved and '>running<' in panel.head.value)
    until(lambda: on(panel) == set(BUTTONS['running']))


def test_buttons_by_phase():
    "What is on, in each phase"
    names = ('pause', 'continue', 'checkpoint', 'stop', 'kill', 'resume', 'fork')
    table = dict(new='.....x.', starting='...xx..', running='x.xx...', paused='.xxx...', stopping='....x..', stopped='.....xx', finished='......x', failed='.....xx', lost='.....xx')
    assert {p: ''.join('x' if n in allowed(p) else '.' for n in names) for p in table} == table == {p: table[p] for p in BUTTONS}


def test_the_head_says_how_far_how_fast_and_how_long(alive, monkeypatch):
    run, panel = alive
    monkeypatch.setenv('RLNB_DEADLINE', str(time.time() + 7200))
    until(lambda: run.state.get('sps') and 'steps/s' in panel.head.value)
    panel.look()
    text = re.sub('<[^>]+>', ' ', panel.head.value)
    assert re.search(r'step +[\d,]+ of 1,000,000,000 +steps/s +[\d.]+[kM]? +elapsed +[\dms. ]+ +left +\S+ \S+ +session +(2h 00m|1h 59m)', text), text
    bar = re.search(r'<div class="rlnb-bar" role="progressbar" aria-label="([^"]+)" aria-valuenow="(\d+)"', panel.head.value)
    assert bar and bar[1].startswith('steps: ') and 'role="status" aria-live="polite"' in panel.head.value and 'role="img"' in panel.picture.value


def test_no_news_for_half_a_minute_is_told(alive):
    run, panel = alive
    os.kill(run.state['pid'], signal.SIGSTOP)
    try:
        time.sleep(1)
        panel.look()
        panel.feed._new -= 31
        panel.look()
        assert re.search(r'no news for 3\d s', panel.head.value)
    finally: os.kill(run.state['pid'], signal.SIGCONT)


def test_the_same_from_python_and_from_a_file(alive):
    "Pause by a method, continue by a file, stop by a method: the panel says so each time"
    run, panel = alive
    run.pause()
    until(lambda: '>paused<' in panel.head.value)
    (run.path / 'control' / 'x-continue.cmd').write_text('')
    until(lambda: '>running<' in panel.head.value)
    run.stop()
    until(lambda: '>stopped<' in panel.head.value and on(panel) == {'resume', 'fork'})


def test_fields_are_those_of_the_run_and_locked(alive, tmp_path):
    "A press begins one run; the fields are locked, and the settings shown are its own"
    launcher = Launcher(tmp_path, agent='ppo', env='rlnb/CartPole-v1', steps=10**9)
    launcher.of_agent.widgets['ent_coef'].value = '0.02'
    launcher.go.click()
    launcher.go.click()
    mine, = launcher.runs
    try:
        assert len(runs(tmp_path)) == 2                                        # that of the fixture, and one
        assert all(w.disabled for w in (*launcher.of_agent.widgets.values(), *launcher.of_run.widgets.values(), launcher.agent, launcher.env, launcher.steps, launcher.seeds, launcher.go))
        panel = Monitor(mine)
        panel.which.value = 'settings'
        assert '0.02' in panel.pane.value and re.search(r'rlnb reproduce ppo-cartpole-v1-0.*digest.*[0-9a-f]{12}', panel.pane.value)
    finally:
        until(lambda: mine.phase != 'starting')
        mine.kill()


def test_what_was_filled_in_is_remembered_for_each_notebook(tmp_path, monkeypatch):
    begun = []
    for name, steps in (('a.ipynb', 111_000_000), ('b.ipynb', 222_000_000)):
        monkeypatch.setenv('JPY_SESSION_NAME', name)
        launcher = Launcher(tmp_path, agent='a2c')
        launcher.steps.value = steps
        begun += launcher.start()
    for r in begun: r.kill()
    for name, steps in (('a.ipynb', 111_000_000), ('b.ipynb', 222_000_000), ('c.ipynb', 100_000)):
        monkeypatch.setenv('JPY_SESSION_NAME', name)
        assert Launcher(tmp_path).steps.value == steps


def test_wrong_values_are_told_beside_their_field(tmp_path):
    launcher = Launcher(tmp_path)
    launcher.of_agent.widgets['gamma'].value = 2.
    assert 'it may be' in launcher.of_agent.words['gamma'].value and launcher.go.disabled and not list(tmp_path.iterdir())
    launcher.of_agent.widgets['gamma'].value = .9
    assert 'it may be' not in launcher.of_agent.words['gamma'].value and not launcher.go.disabled


def test_what_is_no_number_is_a_gap_and_is_told(still):
    rows = [{'step': 1024*i, 'iter': i, 'episode/return': dict(mean=float(i) if i != 7 else float('inf'), min=0, max=9, n=1)} for i in range(1, 16)]
    (still.path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    panel = Monitor(still)
    assert '×' in panel.picture.value and '1 values are not finite' in panel.head.value


def test_smoothing_keeps_what_was_measured(still):
    panel = Monitor(still)
    panel.share.value = .1
    assert 'stroke-opacity="0.3" stroke-width="10"' in panel.picture.value           # the raw trace, faint
    before = panel.picture.value
    panel.share.value = 0.
    assert 'stroke-opacity="0.3" stroke-width="10"' not in panel.picture.value and panel.picture.value != before


def test_nothing_jumps(still):
    "What is redrawn has a place of its own height, whatever is in it"
    panel = Monitor(still)
    heights = {k: (w.layout.height or w.layout.min_height) for k, w in dict(picture=panel.picture, pane=panel.pane, word=panel.word).items()}
    assert all(h.endswith('px') for h in heights.values())
    for which in panel.which.options:
        panel.which.value = which
        assert panel.pane.layout.height == heights['pane'] and panel.pane.layout.overflow == 'auto'


def test_the_log_shows_its_last_two_hundred_lines(still):
    (still.path / 'log.txt').write_text(''.join(f'line {i}\n' for i in range(1, 301)))
    panel = Monitor(still)
    panel.which.value = 'log'
    lines = re.search('<pre[^>]*>(.*)</pre>', panel.pane.value, re.S)[1].splitlines()
    assert (lines[0], lines[-1], len(lines)) == ('line 101', 'line 300', 200)


def test_without_richer_parts_one_sentence_says_what_is_off(still, monkeypatch):
    monkeypatch.setattr('rlnb.panels.live._anywidget', lambda: None)
    panel = Monitor(still)
    assert 'Core widgets only' in panel.foot.value and 'anywidget' in panel.foot.value and '<path' in panel.picture.value
    assert all(type(w).__module__.startswith('ipywidgets') for w in (panel.box, *panel.box.children))


def test_seeds_are_one_curve_with_a_band_and_names_hide_lines(tmp_path, monkeypatch):
    made = [train(agent, steps=8192, seed=s, group=agent, root=tmp_path, progress=False, episodes=5, hidden=[16]) for agent in ('ppo', 'a2c') for s in (0, 1)]
    monkeypatch.setenv('RLNB_BATCH', '0')
    panel = Panel(made)
    assert 'ppo (2)' in panel.picture.value and 'a2c (2)' in panel.picture.value and panel.picture.value.count('fill-opacity="0.18"') == 2
    panel.ticks['a2c'].value = False
    assert 'ppo (2)' in panel.picture.value and 'a2c (2)' not in panel.picture.value


def test_it_looks_at_most_twice_a_second():
    class Eager:
        times = []                                     # noqa: RUF012
        def look(self): self.times.append(time.monotonic())
    watcher, eager = Watcher(), Eager()
    watcher.follow(eager.look)
    until(lambda: len(eager.times) > 4)
    assert np.diff(eager.times).min() >= .49


def test_a_run_that_is_being_trained_is_not_begun_again(alive):
    "Neither by name nor by Resume: one line, and nothing happens to it"
    run, _ = alive
    pid, before = run.state['pid'], len(run.events)
    for again in (run.resume, lambda: launch('ppo', steps=10**9, root=run.path.parent, name='alive', hidden=[16], checkpoint_every=10**8)):
        with pytest.raises(Locked) as e: again()
        assert '\n' not in str(e.value) and str(pid) in str(e.value)
    assert run.state['pid'] == pid and run.phase == 'running' and len(run.events) == before and len(runs(run.path.parent)) == 1
