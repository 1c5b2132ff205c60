"""Episodes recorded by a process of their own, and the player that leafs through them: the same bytes for the same question, training undisturbed,
nothing of a stranger's text in the page"""
import base64
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from rlnb import cli
from rlnb.core.errors import BadInput
from rlnb.core.folder import commit_dir
from rlnb.core.io import Damaged
from rlnb.panels.feed import Watcher
from rlnb.panels.player import Player
from rlnb.runs.ckpt import load_state
from rlnb.runs.run import Run
from rlnb.train.launch import launch
from rlnb.train.replay import Episode, episodes, record, replay, video
from rlnb.train.session import load, train

pytestmark = pytest.mark.usefixtures('watched')

NAME = '<img src=x onerror=alert(1)>"\'`{}'
SMALL = dict(num_envs=4, n_steps=32, minibatch=64, checkpoint_every=1024, episodes=0)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A short PPO run under a hostile name, with four checkpoints"
    return train('ppo', steps=4096, root=tmp_path_factory.mktemp('runs'), name=NAME, progress=False, keep=9, lr=1e-3, **SMALL)


def until(f, seconds=120.):
    "It comes to pass; the limit is for what never does"
    end = time.monotonic() + seconds
    while not f():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(.02)


def steps(run): return [c['step'] for c in run.checkpoints()]
def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and 'media' not in p.parts}
def forged(e, change):
    "An episode with another `episode.json`, sealed by a stranger; None as its value leaves a key out"
    kept = {p.name: p.read_bytes() for p in e.path.iterdir() if p.name not in ('manifest.json', 'episode.json')}
    d = json.loads((e.path / 'episode.json').read_text())
    shutil.rmtree(e.path)
    with commit_dir(e.path) as draft:
        draft.json('episode.json', {**d, **change(d)})
        for name, data in kept.items(): draft.write(name, data)


def parts(p): return [w.value for s in p.sides for w in (s.title, s.word, s.picture, s.mind)] + [p.chart.value, p.line.value]


# ---- recorded
def test_a_process_records_what_this_one_would(run):
    "Two processes, one answer, to the byte; everything else in the run's folder stays as it was"
    before = files(run.path)
    e = replay(run, steps(run)[1], seed=11)
    assert e.process and e.process.poll() is None and not e.ready
    e.wait()
    there = {p.name: p.read_bytes() for p in e.path.iterdir()}
    shutil.rmtree(e.path)
    assert {p.name: p.read_bytes() for p in record(run, steps(run)[1], seed=11).path.iterdir()} == there
    assert files(run.path) == before
    assert {*there} == {'manifest.json', 'episode.json', 'frames.bin', 'film.gif', 'strip.png'} and sum(map(len, there.values())) < 4_000_000


def test_what_is_written_is_what_the_agent_does(run):
    "Played again by hand from the recorded observations: the same actions, values and probabilities"
    e, agent = record(run, 'latest', seed=5), load(run, 'latest').agent
    f = e.facts
    obs = f['sensors'].astype(np.float32)
    assert (agent.act(obs, explore=False).act == f['act'][:, 0]).all()
    assert np.allclose(agent.value(obs), f['value'], atol=5e-3)     # six digits are kept
    logits = agent.logits(obs)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    assert np.allclose(p/p.sum(-1, keepdims=True), f['p'], atol=1e-4)
    gone = np.array([sum(.99**k for k in range(f['steps'] - t)) for t in range(f['steps'])]) if f['ended'] == 'terminated' else None
    assert gone is None or np.allclose(f['came'], gone, rtol=1e-4)


def test_one_seed_is_one_question(run):
    "Two checkpoints begin in the same state and act differently; another seed is another state; drawn actions come out again too"
    a, b, c = record(run, steps(run)[0], seed=3), record(run, 'latest', seed=3), record(run, 'latest', seed=4)
    assert a.facts['sensors'][0].tolist() == b.facts['sensors'][0].tolist() != c.facts['sensors'][0].tolist()
    assert a.facts['value'].tolist() != b.facts['value'].tolist()
    drawn = record(run, 'latest', seed=3, sampled=True)
    one = (drawn.path / 'episode.json').read_bytes()
    shutil.rmtree(drawn.path)
    assert (record(run, 'latest', seed=3, sampled=True).path / 'episode.json').read_bytes() == one
    assert drawn.facts['act'].tolist() != b.facts['act'].tolist() and drawn.path != b.path


def test_training_is_not_disturbed(tmp_path):
    "A run that was asked for an episode while it trained writes the same rows as one that nobody asked"
    def begun(name): return launch('ppo', steps=10**9, root=tmp_path, name=name, **SMALL | dict(checkpoint_every=4096))
    def rows(r): return (r.path / 'metrics.jsonl').read_bytes() if (r.path / 'metrics.jsonl').exists() else b''
    asked = begun('asked')
    try:
        until(asked.checkpoints)
        e = replay(asked, 'latest', seed=1).wait()
        assert asked.phase == 'running' and e.facts['steps'] > 5          # a thousand million steps: it was trained all the while
    finally: asked.stop().wait(120)
    alone, told = begun('alone'), rows(asked)
    try: until(lambda: len(rows(alone)) >= len(told))
    finally: alone.stop().wait(120)
    assert told.count(b'\n') > 9 and rows(alone)[:len(told)] == told


def test_the_normaliser_is_the_checkpoints_and_stays(tmp_path):
    "Observations and rewards are scaled as they were at the checkpoint, and playing moves neither"
    run = train('ppo', steps=2048, root=tmp_path, progress=False, norm_obs=True, norm_reward=True, **SMALL)
    norms = load_state(run.at('latest'))['agent']['norms']
    f = record(run, 'latest', seed=2).facts
    std = np.sqrt(norms['ret']['m2'] / norms['ret']['n'])
    v = np.append(f['value'], 0.)
    assert f['ended'] == 'terminated'
    delta = f['reward'] / std + .99*v[1:] - v[:-1]
    adv = np.zeros(len(delta) + 1)
    for t in reversed(range(len(delta))): adv[t] = delta[t] + .99*.95*adv[t + 1]
    assert np.allclose(adv[:-1], f['advantage'], rtol=1e-3, atol=1e-3)
    agent = load(run, 'latest').agent
    assert np.allclose(agent.value(f['sensors'].astype(np.float32)), f['value'], rtol=1e-3, atol=1e-3)
    record(run, 'latest', seed=3)
    assert load_state(run.at('latest'))['agent']['norms']['obs']['n'] == norms['obs']['n']


def test_other_weights_are_another_episode(run, tmp_path):
    "A folder of that name from another checkpoint is played anew, a damaged one too; one whose checkpoint is gone can still be looked at"
    shutil.copytree(run.path, tmp_path / 'copy')
    r = Run(tmp_path / 'copy')
    first, last = steps(r)[0], steps(r)[-1]
    e = record(r, first, seed=0)
    whole = (e.path / 'episode.json').read_bytes()
    def spoil(text): (e.path / 'episode.json').write_text(text)
    for damage in (lambda: forged(e, lambda d: dict(seal='0'*64)), lambda: spoil('{'), lambda: forged(e, lambda d: dict(steps=10**9))):
        damage()
        again = replay(r, first, seed=0)
        assert again.process and again.wait().facts['seal'] != '0'*64
        assert (again.path / 'episode.json').read_bytes() == whole
    shutil.rmtree(r.at(first))
    assert replay(r, first, seed=0).process is None and (first, 0) in [(x.step, x.seed) for x in episodes(r)]
    with pytest.raises(BadInput): replay(r, first, seed=99)
    assert not Episode(r, last, 99).ready


def test_the_verb_says_where_the_film_is(run, capsys):
    assert cli.main(['video', str(run.path), '--at', 'latest', '--seed', '5', '--json']) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    film = Path(said['film']).read_bytes()
    assert (said['checkpoint'], said['seed'], film[:4]) == (steps(run)[-1], 5, b'GIF8') and len(film) <= 2_000_000
    assert video(run, 'latest', 5).as_posix() == said['film']
    assert cli.main(['video', str(run.path), '--at', 'yesterday']) == 64 and cli.main(['video', str(run.path), '--seed', '-1']) == 64
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and 'yesterday' in err[0] and 'seed' in err[1]


# ---- played
def test_scrubbing_moves_picture_and_cursor_and_little_else(run):
    "A step changes the frame, the numbers, the bars and the line, sends less than ten kilobytes, and leaves the charts alone"
    record(run, steps(run)[0], seed=3), record(run, 'latest', seed=3)
    p = Player([run, run], at=[steps(run)[0], 'latest'], seed=3)
    assert [s.shown.step for s in p.sides] == [steps(run)[0], steps(run)[-1]]
    p.value = 4
    before = parts(p)
    p.value = 5
    after = parts(p)
    changed = [a != b for a, b in zip(before, after)]
    assert changed == [False, True, True, True]*2 + [False, True]
    assert sum(len(b) for a, b in zip(before, after) if a != b) < 10_000*2
    place = [float(re.search('<line x1="([0-9.]+)"', x)[1]) for x in (before[-1], after[-1])]
    assert place[1] - place[0] == pytest.approx(616/p.slider.max, abs=.02)
    for s in p.sides: assert base64.b64encode(s.shown.frame(5)).decode() in s.picture.value and f'step 5 of {s.shown.facts["steps"]}' in s.picture.value


def test_nothing_of_a_strangers_text_is_markup(run, tmp_path):
    "Names, errors and what an episode says of itself are escaped in every widget and in the still picture"
    shutil.copytree(run.path, tmp_path / 'copy')
    r = Run(tmp_path / 'copy')
    e = record(r, 'latest', seed=3)
    forged(e, lambda d: dict.fromkeys(('run', 'world', 'agent', 'policy', 'ended'), NAME))
    p = Player(r, at='latest', seed=3)
    p.value = p.slider.max
    texts = [*parts(p), p.static().html()]
    assert r.config['name'] == NAME and sum('&lt;img src=x' in x for x in texts) >= 4
    assert not any(re.search('<img src=x|onerror=alert\\(1\\)>', x) for x in texts)
    assert all(m.startswith('data:image/png;base64,') for x in texts for m in re.findall('src="([^"]*)"', x))
    for change in (lambda d: dict(columns=dict(d['columns'], value=[NAME]*d['steps'])), lambda d: dict(sizes=[10**9])):
        forged(record(r, 'latest', seed=4), change)
        with pytest.raises(Damaged): Episode(r, e.step, 4).checked()
    forged(e, lambda d: dict(steps=7))
    shutil.rmtree(r.at('latest'))                # so that it can't be played anew
    p = Player(r, at=e.step, seed=3) if e.step in dict(map(reversed, Player(r, at='latest', seed=3).wait().sides[0].which.options)) else None
    assert p and 'is no episode' in p.sides[0].word.value and p.sides[0].picture.value == ''


def test_choosing_on_while_a_worker_is_busy(run, monkeypatch):
    "The constructor and the fields wait for no worker; what was chosen last is shown, and no thread of the panels has failed"
    watcher, late = Watcher(), []
    monkeypatch.setattr('rlnb.panels.player.WATCHER', SimpleNamespace(follow=late.append))      # it looks when we say so
    p = Player(run, at='latest', seed=21)
    p.seed.value = 22
    p.seed.value = 3
    assert p.sides[0].coming.seed == 21 and 'a worker plays' in p.sides[0].word.value
    watcher.follow(*late)
    until(lambda: p.sides[0].shown and p.sides[0].shown.seed == 3 and p.chart.value)            # the watcher's thread does it
    assert not p.sides[0].coming
    assert not Episode(run, steps(run)[-1], 22).ready and Episode(run, steps(run)[-1], 21).ready
    assert not watcher.errors


def test_new_checkpoints_are_offered_while_it_is_open(tmp_path):
    "Opened on a run that has saved nothing yet: the first checkpoint is chosen and played, later ones are offered, and the choice stays"
    run = launch('ppo', steps=10**8, root=tmp_path, **SMALL | dict(checkpoint_every=16_384, keep=50))
    try:
        p = Player(run, at='latest', seed=3)
        side, end = p.sides[0], time.monotonic() + 60
        while not (side.shown and len(side.which.options) > 2) and time.monotonic() < end: time.sleep(.05)      # the watcher's thread does it
        first, offered = side.which.value, [s for _, s in side.which.options]
        while len(side.which.options) == len(offered) and time.monotonic() < end: time.sleep(.05)
        assert side.shown.step == first == side.which.value and len(side.which.options) > len(offered) and p.chart.value
    finally: run.kill()


def test_what_the_worker_says_is_shown_once(tmp_path):
    "A world that the worker may not import: its line stands in the panel, and no second worker is sent after the first"
    (tmp_path / 'mine_of_player.py').write_text('from rlnb.envs.classic import CartPole as Pole\n')
    import sys
    sys.path.insert(0, str(tmp_path))
    try: run = train('ppo', 'mine_of_player:Pole', steps=1024, root=tmp_path, progress=False, allow=['mine_of_player'], **SMALL)
    finally: sys.path.remove(str(tmp_path))
    p = Player(run).wait()
    assert "would import the module" in p.sides[0].word.value and not p.sides[0].coming
    p.look()
    assert not p.sides[0].coming
    static = p.static()
    assert static.png() == b'' and 'would import' in static.html() and 'would import' in repr(static)


def test_a_world_without_a_picture_has_a_strip_of_text(run, tmp_path):
    shutil.copytree(run.path, tmp_path / 'copy')
    r = Run(tmp_path / 'copy')
    e = record(r, 'latest', seed=3)
    (e.path / 'frames.bin').unlink()
    forged(e, lambda d: dict(sizes=[]))
    p = Player(r, at='latest', seed=3)
    p.value = 6
    rows = re.findall('<tr>(.*?)</tr>', p.sides[0].picture.value)
    assert len(rows) == 8 and rows[4].count('▸') == 1 and '>6<' in rows[4] and p.static().png()[:4] == b'\x89PNG'


# ---- in a browser
from labs import begin, run_all
from test_lab import lab, page      # noqa: F401  its fixtures


@pytest.mark.browser
def test_arrow_keys_scrub_in_the_lab(run, lab, page):
    "In JupyterLab: the slider's handle takes the arrow keys, the picture has a name for a screen reader, and no name becomes a tag"
    import nbformat
    address, work = lab
    record(run, 'latest', seed=3)
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nb.cells = [nbformat.v4.new_code_cell(f'import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom rlnb.panels.player import Player\nPlayer({str(run.path)!r}, "latest", 3)')]
    nbformat.write(nb, work / 'player.ipynb')
    begin(page, address, 'player.ipynb')
    run_all(page)
    page.wait_for_selector('.rlnb-p img', timeout=60_000)
    page.locator('.noUi-handle').first.focus()
    for _ in range(7): page.keyboard.press('ArrowRight')
    page.wait_for_function('() => document.querySelector(".rlnb-p img").alt.includes("step 7 of")', timeout=20_000)
    assert page.get_by_role('img', name=re.compile('step 7 of')).count() == 1 and page.get_by_role('img', name=re.compile('^value')).count() == 1
    assert not page.query_selector_all('img[src="x"]') and not page.errors and not page.outside
    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.shutdown()')
