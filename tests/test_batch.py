"""A grid is wrong in as many lines as it has mistakes; a batch is killed and goes on; a cell that fails fails alone; and a page that
papermill runs is killed too and ends with the same bytes"""
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from rlnb.cli import main
from rlnb.core.errors import BadInput
from rlnb.core.io import read_json
from rlnb.core.platform import alive, is_locked
from rlnb.flow.grid import BadGrid, cells_of, fields_of, points, seed_list
from rlnb.runs.run import runs

POSIX = pytest.mark.skipif(os.name != 'posix', reason='signals')
PAGE = ROOT / 'nbs' / '90_learn' / '92_batch.ipynb'
CLI = ['-c', 'import sys; from rlnb.cli import main; sys.exit(main())']
SMALL = {'num_envs': 4, 'agent.n_steps': 16, 'checkpoint_every': 256}


def env(**more) -> dict[str, str]:
    return os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]), OMP_NUM_THREADS='1',
                             MPLBACKEND='agg', PYDEVD_DISABLE_FILE_VALIDATION='1') | more


def rlnb(*argv: object, **kw) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *CLI, *map(str, argv)], capture_output=True, text=True, encoding='utf-8', timeout=240,
                          env=env(**kw.pop('env', {})), **kw)


def started(*argv: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env(), start_new_session=True)


def workers(root: Path) -> list[int]:
    "Processes that train in a root now"
    found = []
    for f in root.glob('*/state.json'):
        try: s = read_json(f)
        except Exception: continue                                     # it is being replaced
        if s['phase'] in ('starting', 'running', 'stopping') and alive(s.get('pid', 0), s.get('start', '')): found.append(s['pid'])
    return found


def shot(p: subprocess.Popen, root: Path, everyone: bool = True) -> None:
    "SIGKILL for a process, its group, and the workers that it sent"
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    for pid in workers(root) if everyone else []:
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass


def bytes_of(root: Path) -> dict[str, bytes]:
    "What must not differ: the rows, and all of the last checkpoint"
    out = {}
    for r in runs(root):
        last = max((r.path / 'ckpt').iterdir())
        for f in (r.path / 'metrics.jsonl', last / 'state.json', last / 'arrays.safetensors'): out[f'{r.name}/{f.name}'] = f.read_bytes()
    return out


def saved(root: Path) -> int:
    "Steps that the newest checkpoints of all runs hold"
    return sum(max((int(d.name) for d in r.glob('ckpt/0*')), default=0) for r in root.glob('*/'))


def until(true, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end: time.sleep(.02)
    return bool(true())


# ---- what is asked for
GRIDS = {
    'fixed: {steps: many, agent.lr: -1}\nsedes: 3': ['sedes', 'agent.lr', 'steps'],
    'vary: {agent: [ppo, pqqo], env: [rlnb/Nowhere-v0]}': ['agent', 'env'],
    'fixed: {agent: sac}\nseeds: 0-1': ['agent'],
    'seeds: 3-1': ['seeds'],
    'vary: {agent: ppo}': ['vary.agent'],
    'fixed: [1]': ['fixed'],
    'fixed: {seed: 3, group: x}': ['fixed.group', 'fixed.seed'],
    'fixed: {env: "os:system"}': ['env'],
    'vary: {agent.lr: [0.1, 0.1]}': ['vary'],
    'seeds: 0-9999': ['seeds'],
    '- 1': ['grid'],
    'fixed: {steps: 1\n': ['grid.yaml'],
    'fixed: {steps: 1, steps: 2}': ['grid.yaml'],
    'fixed: !!python/object/apply:os.system ["true"]': ['grid.yaml'],
}


@pytest.mark.parametrize('text', GRIDS)
def test_a_bad_grid_is_said_in_a_line_each(text, tmp_path, monkeypatch, capsys):
    (tmp_path / 'grid.yaml').write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(['batch', 'grid.yaml', '--root', 'runs']) == 64
    out, err = capsys.readouterr()
    assert out == ''
    said = err.splitlines()
    assert all(s.startswith('rlnb: ') for s in said), said
    assert sorted(s.split(':')[1].strip() for s in said) == sorted(GRIDS[text]), said
    assert [p.name for p in tmp_path.iterdir()] == ['grid.yaml']


WORDS = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(['fixed', 'vary', 'seeds', 'x']), st.dictionaries(st.sampled_from(['agent', 'env', 'steps', 'agent.lr', 'env_kw', 'how', '']), WORDS, max_size=3) | WORDS))
def test_any_grid_is_cells_or_one_kind_of_error(grid):
    try: cells = cells_of(grid)
    except BadInput as e: assert str(e) and '\n' not in str(e)
    else: assert len({c.name for c in cells}) == len(cells) > 0


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(['a.b', 'steps', 'agent.lr', 'num_envs']), st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True), max_size=4))
def test_points_are_the_product(vary):
    found, n = points(vary), 1
    for v in vary.values(): n *= len(v)
    assert len(found) == n == len({p.label for p in found}) == len({json.dumps(p.said) for p in found})
    assert all(p.said[k] in vary[k] for p in found for k in vary)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=9))
def test_seeds_in_any_spelling(xs):
    want = sorted(set(xs))
    assert seed_list(xs) == seed_list(','.join(map(str, xs))) == want
    assert seed_list(f'{want[0]}-{want[-1]}') == list(range(want[0], want[-1] + 1))


def test_a_mistake_shows_lines_and_no_traceback():
    "What a notebook displays instead of its traceback"
    with pytest.raises(BadGrid) as e: cells_of(dict(fixed={'steps': 0, 'num_envs': 'x'}))
    assert e.value._render_traceback_() == e.value.lines() and len(e.value.lines()) == 2


# ---- what is trained
@pytest.fixture
def planted(tmp_path, monkeypatch):
    "Worlds that break: one raises, one takes its process with it"
    (tmp_path / 'planted.py').write_text('''
import os, signal
from rlnb.envs.classic import CartPole
class Raises(CartPole):
    calls = 0
    def step(self, act):
        self.calls += 1
        if self.calls > 40 and os.environ.get('MENDED') != '1': raise ValueError('the rope\\x1b[31m tore')
        return super().step(act)
class Dies(Raises):
    def step(self, act):
        try: return super().step(act)
        except ValueError: os.kill(os.getpid(), signal.SIGKILL)
''')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])]))
    return tmp_path


@POSIX
def test_a_cell_that_fails_fails_alone(planted):
    "One raises, one dies; the others finish, the table says why, and when the cause is mended the next start makes up for them alone"
    (planted / 'grid.yaml').write_text(json.dumps(dict(fixed=SMALL | dict(agent='a2c', steps=2000), vary=dict(env=['planted:Raises', 'rlnb/CartPole-v1', 'planted:Dies']))))
    words = ['batch', 'grid.yaml', '--workers', 2, '--episodes', 2, '--allow-import', 'planted']
    r = rlnb(*words, cwd=planted)
    assert r.returncode == 70, r.stderr
    lines = {k: next(s for s in r.stdout.splitlines() if re.search(rf'-planted.{k}-', s)) for k in ('raises', 'dies')}
    assert re.search(r'failed .* 70 +ValueError: the rope tore', lines['raises']) and re.search(r'lost .* 70 +its process is gone', lines['dies']), r.stdout
    assert '\x1b' not in r.stdout and re.search(r'a2c-rlnb.CartPole-v1 +1/1', r.stdout)
    before = {r.name: len(r.events) for r in runs(planted / 'runs')}
    r = rlnb(*words, '--json', cwd=planted, env=dict(MENDED='1', PYTHONPATH=os.pathsep.join([str(planted), str(ROOT)])))
    rows = json.loads(r.stdout.splitlines()[-1])['runs']
    assert r.returncode == 0 and [x['phase'] for x in rows] == ['finished']*3, r.stdout
    after = {r.name: len(r.events) for r in runs(planted / 'runs')}
    assert {k for k in before if before[k] == after[k]} == {x['run'] for x in rows if 'CartPole' in x['env']}


GRID = dict(fixed=SMALL | {'steps': 10_000, 'agent.minibatch': 32}, seeds='0-2')


@pytest.fixture(scope='module')
def peace(tmp_path_factory):
    "The grid, trained by a batch that nobody disturbs"
    d = tmp_path_factory.mktemp('peace')
    (d / 'grid.yaml').write_text(json.dumps(GRID))
    r = rlnb('batch', d / 'grid.yaml', '--root', d / 'runs', '--workers', 2, '--episodes', 2, '--json')
    assert r.returncode == 0, r.stdout + r.stderr
    return d / 'grid.yaml', bytes_of(d / 'runs')


@POSIX
def test_a_killed_batch_goes_on(peace, tmp_path):
    "Batch and workers killed at four instants; then let to its end: the same bytes in the same folders, none twice"
    file, want = peace
    root, rng = tmp_path / 'runs', random.Random(7)
    words = [*CLI, 'batch', file, '--root', root, '--workers', 2, '--episodes', 2]
    for k in range(4):                                                # one while the workers still begin, three when one of them has saved again
        p, goal = started(*words), saved(root) + 1000*k
        until(lambda p=p, k=k, goal=goal: p.poll() is not None or (workers(root) if k == 0 else saved(root) > goal))
        time.sleep(rng.uniform(0, .2))
        shot(p, root)
    r = rlnb(*words[2:], '--json')
    assert r.returncode == 0, r.stdout + r.stderr
    assert bytes_of(root) == want
    resumed = sum(e['kind'] == 'resume' for x in runs(root) for e in x.events)
    assert resumed > 0 and len(runs(root)) == 3


@POSIX
def test_workers_outlive_their_batch_and_are_waited_for(peace, tmp_path):
    "kill -9 for the batch alone: its workers train on, the next batch takes them in and starts none twice"
    file, want = peace
    root = tmp_path / 'runs'
    words = [*CLI, 'batch', file, '--root', root, '--workers', 2, '--episodes', 2]
    p = started(*words)
    assert until(lambda: len(workers(root)) == 2)
    shot(p, root, everyone=False)
    assert workers(root)
    r = rlnb(*words[2:], '--json')
    assert r.returncode == 0 and bytes_of(root) == want, r.stdout + r.stderr
    assert all([e['kind'] for e in x.events].count('start') == 1 and not any(e['kind'] == 'resume' for e in x.events) for x in runs(root))


@POSIX
@pytest.mark.parametrize('sig', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_stops_cleanly(sig, peace, tmp_path):
    "Every worker saves and ends, the table is printed, 75; nothing is left running; the same command finishes the same bytes"
    file, want = peace
    root = tmp_path / 'runs'
    words = [*CLI, 'batch', file, '--root', root, '--workers', 2, '--episodes', 2]
    p = started(*words)
    assert until(lambda: any((d / 'metrics.jsonl').exists() for d in root.glob('*/')))
    os.kill(p.pid, sig)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 75, out
    assert 'stopped' in out and 'missing' in out and not workers(root) and not is_locked(root / '.batch' / 'LOCK')
    r = rlnb(*words[2:], '--json')
    assert r.returncode == 0 and bytes_of(root) == want, r.stdout + r.stderr


def test_one_conductor_a_root(peace, tmp_path):
    from rlnb.core.platform import Lock
    (tmp_path / '.batch').mkdir()
    with Lock(tmp_path / '.batch' / 'LOCK'):
        r = rlnb('batch', peace[0], '--root', tmp_path)
    assert r.returncode == 73 and 'is being written by' in r.stderr and [p.name for p in tmp_path.iterdir()] == ['.batch']


@POSIX
def test_a_session_that_ends_is_an_end_in_time(peace, tmp_path):
    "RLNB_DEADLINE: the workers save before it, no further one is begun, 75"
    root = tmp_path / 'runs'
    r = rlnb('batch', peace[0], '--root', root, '--workers', 1, '--episodes', 2, '--json', env=dict(RLNB_DEADLINE=str(time.time() + 3.5)))
    assert r.returncode == 75, r.stdout + r.stderr
    phases = [x['phase'] for x in json.loads(r.stdout.splitlines()[-1])['runs']]
    assert phases.count('missing') >= 1 and set(phases) <= {'stopped', 'finished', 'missing'} and not workers(root)


# ---- the page that papermill runs
def papermill(out: Path, root: Path, *words: object) -> list[str]:
    given = [*words, '-p', 'root', str(root), '-p', 'episodes', '2', '-p', 'workers', '1']
    return ['-m', 'papermill', str(PAGE), str(out), *map(str, given), '--no-progress-bar', '-k', 'python3', '--autosave-cell-every', '1']


def executed(out: Path) -> list[dict]:
    return [c for c in json.loads(out.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def test_parameters_are_typed_and_explained():
    "`papermill --help-notebook` knows the type and the comment of each"
    r = subprocess.run([sys.executable, '-m', 'papermill', '--help-notebook', str(PAGE)], capture_output=True, text=True, env=env())
    lines = [s for s in r.stdout.splitlines() if '(default' in s]
    assert len(lines) == 8 and 'Unknown type' not in r.stdout and all(re.match(r'\s+\w+: (str|int) \(default .*\)\s+\w', s) for s in lines), r.stdout


HOSTILE = ["__import__('os').system('touch {}')", '{{}}\nopen(r"{}", "w")', '"); open(r"{}", "w") #', '!!python/object/apply:os.system ["touch {}"]']


@pytest.mark.parametrize('name', ['agent', 'env', 'settings', 'seeds', 'agent.lr', 'env_kw', 'steps'])
@pytest.mark.parametrize('text', HOSTILE)
def test_a_text_stays_a_text(name, text, tmp_path, monkeypatch):
    "Whatever stands in a field is read, never evaluated: refused in lines, of which one names the field"
    monkeypatch.chdir(tmp_path)
    text = text.format(tmp_path / 'evaluated')
    with pytest.raises(BadGrid) as e:
        cells_of(dict(fixed={'agent': 'ppo'} | (fields_of(text) if name == 'settings' else {} if name == 'seeds' else {name: text}), seeds=text if name == 'seeds' else 0))
    assert any(s.startswith(name) for s in e.value.lines()) and all('\n' not in s for s in e.value.lines()) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['agent', 'settings'])
def test_a_bad_parameter_ends_the_page_in_a_line_each(name, tmp_path):
    "After -p stands code, and a number that can't be: papermill ends with 1, the page shows lines and no traceback, nothing is written"
    mark = tmp_path / 'evaluated'
    r = subprocess.run([sys.executable, *papermill(tmp_path / 'out.ipynb', tmp_path / 'runs', '-p', name, HOSTILE[0].format(mark), '-p', 'steps', '0')],
                       capture_output=True, text=True, env=env(), timeout=240, cwd=tmp_path)
    assert r.returncode == 1 and not mark.exists() and not (tmp_path / 'runs').exists()
    [red] = [o for c in executed(tmp_path / 'out.ipynb') for o in c['outputs'] if o['output_type'] == 'error']
    said = [s.split(':')[0] for s in red['traceback']]
    assert red['ename'] == 'BadGrid' and said == (['agent', 'steps'] if name == 'agent' else ['settings']), red


@POSIX
def test_a_killed_page_ends_with_the_same_bytes(tmp_path):
    "T6.10: papermill, kernel and worker killed in mid-training, three times; what was executed is readable; the last one ends as one in peace"
    words = ['-p', 'steps', 12_000, '-p', 'settings', json.dumps(SMALL | {'agent.minibatch': 32})]
    r = subprocess.run([sys.executable, *papermill(tmp_path / 'calm.ipynb', tmp_path / 'calm', *words)], capture_output=True, text=True, env=env(), timeout=180)
    assert r.returncode == 0, r.stderr
    root, out, lives = tmp_path / 'hard', tmp_path / 'hard.ipynb', 0
    for k in range(3):
        p = started(*papermill(out, root, *words))
        goal = saved(root) + 512*k
        until(lambda p=p, goal=goal: saved(root) > goal or p.poll() is not None)
        lives += p.poll() is None
        time.sleep(.05*k)
        shot(p, root)
        assert len(executed(out)) >= len(executed(PAGE))
    assert lives == 3
    assert any(o for c in executed(out) for o in c['outputs'])                     # partial outputs
    r = subprocess.run([sys.executable, *papermill(out, root, *words)], capture_output=True, text=True, env=env(), timeout=180)
    assert r.returncode == 0, r.stderr
    assert bytes_of(root) == bytes_of(tmp_path / 'calm')
    assert [e['kind'] for e in runs(root)[0].events].count('resume') >= 2
    steps = [m['step'] for m in runs(root)[0].metrics()]
    assert steps == sorted(set(steps))
    show = lambda f: [o['data']['text/plain'] for c in executed(f) for o in c['outputs'] if 'group' in str(o.get('data', {}).get('text/plain', ''))]
    assert show(out) == show(tmp_path / 'calm.ipynb') != []


# ---- the three phases
PHASES = ROOT / 'nbs' / '90_learn' / '80_phases.ipynb'


def page(root: Path, **parameters) -> dict:
    "The cells of the notebook, run here; what they left"
    scope: dict = {}
    for c in nbformat.read(PHASES, 4).cells:
        if c.cell_type != 'code': continue
        exec(compile(c.source, PHASES.name, 'exec'), scope)
        if 'parameters' in c.metadata.get('tags', []): scope |= dict(root=str(root), steps=400, seeds='0', eye_steps=256, workers=2) | parameters
    return scope


def test_phases_are_left_out_and_gone_on_with(tmp_path, monkeypatch):
    "One phase, then another one more, then pictures alone: nothing is trained twice, and what was left out is not touched"
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setenv('PYTHONPATH', env()['PYTHONPATH'])
    first = page(tmp_path, phases='baseline')
    assert [r.config['experiment']['agent'] for r in runs(tmp_path)] == ['a2c'] and len(first['first']) == 1
    then = (runs(tmp_path)[0].path / 'events.jsonl').read_bytes()
    both = page(tmp_path, phases=' baseline,compare ')
    assert {r.config['experiment']['agent'] for r in both['both']} == {'a2c', 'ppo'} and (runs(tmp_path)[0].path / 'events.jsonl').read_bytes() == then
    last = page(tmp_path, phases='vision', agents='a2c, dqn')
    assert len(runs(tmp_path)) == 3 and len(last['saw']) == 1 and len(last['both']) == 1       # the one that is there
    with pytest.raises(BadInput, match='phases: visoin; some of'): page(tmp_path, phases='visoin')
    with pytest.raises(BadGrid, match='agent'): page(tmp_path, phases='baseline', eye='sac')  # looked at, though it is not this phase's turn
    assert len(runs(tmp_path)) == 3
