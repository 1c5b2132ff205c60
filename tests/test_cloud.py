"""Sessions on lent machines: adopted from what is damaged or read-only, copied to a Drive that misbehaves, stopped in time by a fake clock, and
notebooks that are killed. The twenty kills are `python tools/sessions.py`, which writes results/sessions.json; here are three."""
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from clouds import WORDS, Clock, Machine, struck, tree
from conftest import ROOT
from disks import Careless, Refusing

import rlnb.train.record  # noqa: F401  teaches `verify`
from rlnb.core.errors import BadInput, Crash, Locked, NoCheckpoint, RlnbError
from rlnb.core.io import using
from rlnb.core.platform import Lock, popen_detached
from rlnb.flow.adopt import adopt, look
from rlnb.flow.governor import FLAG, Session, conduct
from rlnb.flow.mirror_drive import DriveMirror, Lease
from rlnb.flow.places import here
from rlnb.runs.ckpt import at_step, steps_saved
from rlnb.runs.keep import resume_point
from rlnb.runs.run import Run, create
from rlnb.train.certify import differences
from rlnb.train.session import asked, fit, folder_for, train

NOTEBOOKS = sorted([*(ROOT / 'colab').glob('*.ipynb'), *(ROOT / 'kaggle').glob('*.ipynb')])
SMALL = dict(num_envs=4, n_steps=16, presets=False, checkpoint_every=256)
QUIET = dict(told=lambda line: None)
STEPS = 1_024


@pytest.fixture
def tmp():
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as d: yield Path(d)


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
    "A run that nobody disturbed, and what was asked"
    exp = asked('a2c', 'rlnb/CartPole-v1', STEPS, **SMALL)
    return exp, train('a2c', 'rlnb/CartPole-v1', STEPS, root=tmp_path_factory.mktemp('calm'), name='pole', episodes=5, progress=False, **SMALL)


def begun(run: Run, to: Path, upto: int) -> Path:
    "A run as it was when a checkpoint had just been made"
    shutil.copytree(run.path, to)
    for s in steps_saved(to):
        if s > upto: shutil.rmtree(at_step(to, s))
    for f in ('state.json', 'result.json'): (to / f).unlink()
    return to


# ---- adopting
def test_every_truncation_falls_back_or_is_said(calm, tmp):
    "Each file of a run cut at a random place: it goes on from an older checkpoint, or there is an error; never from zero in silence"
    exp, run = calm
    rng, how = random.Random(0), {}
    files = [f for f in tree(run.path) if not f.startswith(('log', 'perf', 'metrics.columns', 'state', 'result', 'LOCK', 'holder'))]
    assert len(files) > 10
    with using(Careless()):
        for i, name in enumerate(files):
            begun(run, tmp / f'{i}' / 'input' / 'pole', STEPS)
            f = tmp / f'{i}' / 'input' / 'pole' / name
            f.write_bytes(f.read_bytes()[:rng.randrange(f.stat().st_size)])
            try: found = adopt('pole', tmp / f'{i}' / 'work', [tmp / f'{i}' / 'input'], exp, **QUIET)
            except NoCheckpoint: how[name] = 'error'
            else: how[name] = found.step
    assert how['config.json'] == 'error'                # what it was is unreadable
    newest = f'ckpt/{STEPS:012d}/'
    assert {v for k, v in how.items() if k.startswith(newest)} == {768}
    assert all(v == STEPS for k, v in how.items() if k.startswith('ckpt/') and not k.startswith(newest))
    assert all(v in ('error', 512, 768, STEPS) for v in how.values()), how


def test_an_input_is_not_touched_and_the_end_is_the_same(calm, tmp):
    exp, run = calm
    source = begun(run, tmp / 'input' / 'some' / 'where' / 'pole', 512)
    for p in [source, *source.rglob('*')]: p.chmod(0o555 if p.is_dir() else 0o444)
    before = tree(tmp / 'input')
    found = adopt('pole', tmp / 'work', [tmp / 'input'], exp, **QUIET)
    assert (found.how, found.step) == ('resumed', 512)
    assert differences(run, fit(found.run, episodes=5)) == [] and run.result['return'] == found.run.result['return']
    assert tree(tmp / 'input') == before


def test_a_memory_comes_along(tmp):
    "An off-policy run: its replay lies beside the checkpoints, is mirrored, adopted, and the end is the same"
    words = dict(num_envs=4, presets=False, checkpoint_every=400, learning_starts=200, batch_size=16, hidden=[16], buffer_size=1_000)
    whole = train('dqn', 'rlnb/CartPole-v1', 1_600, root=tmp / 'calm', name='q', episodes=5, progress=False, **words)
    exp = asked('dqn', 'rlnb/CartPole-v1', 1_600, **words)
    first = fit(folder_for(exp, tmp / 'a', 'q'), episodes=0)
    for s in [s for s in steps_saved(first.path) if s > 800]: shutil.rmtree(at_step(first.path, s))
    (first.path / 'state.json').unlink(), (first.path / 'result.json').unlink()
    (tmp / 'drive').mkdir()
    mirror = DriveMirror(first, tmp / 'drive', **QUIET)
    mirror.lease.take()
    assert mirror.once() == 800 and any(p.name.startswith('seg-') for p in mirror.home.rglob('*'))
    found = adopt('q', tmp / 'b', [tmp / 'drive'], exp, **QUIET)
    assert found.step == 800 and differences(whole, fit(found.run, episodes=5)) == []


def test_killed_while_it_copies(calm, tmp):
    "Adoption refused at its n-th operation, for every n: nothing half done has the name, and the next one succeeds"
    exp, run = calm
    begun(run, tmp / 'input' / 'pole', 768)
    class Quick(Refusing):
        def fsync(self, fd): pass
        def fsync_dir(self, path): pass
    n, seen = 0, []
    while True:
        work = tmp / f'work{n}'
        try:
            with using(Quick(n, 5, True)): adopt('pole', work, [tmp / 'input'], exp, **QUIET)
        except (RlnbError, OSError): pass
        else: break
        half = (work / 'pole').exists()
        seen.append(half)
        with using(Careless()): found = adopt('pole', work, [tmp / 'input'], exp, **QUIET)
        assert (found.how, found.step, found.run.path) == ('resumed', 768, work / 'pole')
        n += 3
    assert len(seen) > 12


def test_two_at_once(calm, tmp):
    "Four processes adopt the same run at the same moment: one copy, and one of them trains"
    _, run = calm
    begun(run, tmp / 'input' / 'pole', 512)
    code = (f'import sys; from rlnb.flow.adopt import adopt; from rlnb.train.session import asked, fit\n'
            f'exp = asked("a2c", "rlnb/CartPole-v1", {STEPS}, **{SMALL!r})\n'
            f'a = adopt("pole", {str(tmp / "work")!r}, [{str(tmp / "input")!r}], exp)\n'
            f'if a.how == "resumed": fit(a.run, episodes=5)\n'
            f'print("HOW", a.how)')
    ps = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [p.communicate(timeout=240) for p in ps]
    done = Run(tmp / 'work' / 'pole')
    assert done.phase == 'finished' and differences(run, done) == []
    assert len([e for e in done.events if e['kind'] == 'resume']) <= 1 and [e['kind'] for e in done.events if e['kind'] != 'checkpoint'][-1] == 'finish'
    refused = [err for p, (_, err) in zip(ps, said) if p.returncode]
    assert all('is being written by pid' in err or 'is finished' in err for err in refused), refused
    assert [p.name for p in (tmp / 'work').iterdir() if p.name[0] != '.'] == ['pole']


def test_a_stranger_in_the_input(calm, tmp):
    "Folders that look like runs and are none do not stop the search"
    exp, run = calm
    begun(run, tmp / 'input' / 'pole', 512)
    for i, text in enumerate(('[]', '{"schema":1}', '{"schema":9,"name":"pole"}', '\x00', '{"schema":1,"name":{"a":1}}', '{"schema":1,"name":"pole","take":"x"}')):
        (tmp / 'input' / f's{i}' / 'ckpt').mkdir(parents=True)
        (tmp / 'input' / f's{i}' / 'config.json').write_text(text)
    os.symlink('/', tmp / 'input' / 'everything')
    (tmp / 'input' / 'config.json').write_text('{"model_type":"bert"}')
    found = adopt('pole', tmp / 'work', [tmp / 'input'], exp, **QUIET)
    assert (found.how, found.step) == ('resumed', 512)
    with pytest.raises(BadInput): adopt('pole', tmp / 'work', exp=asked('a2c', 'rlnb/CartPole-v1', STEPS, **SMALL | dict(num_envs=8)), **QUIET)


# ---- a Drive
def test_a_lease_of_another_process(tmp):
    "A living process on this machine holds it: the newcomer waits and is refused; it dies: taken at once"
    code = (f'import time; from rlnb.flow.mirror_drive import Lease\nl = Lease({str(tmp)!r}).take(print)\n'
            f'for _ in range(600): time.sleep(.05); l.beat()')
    p = popen_detached([sys.executable, '-c', code], tmp / 'log')
    for _ in range(600):
        if (tmp / 'LEASE.json').exists(): break
        time.sleep(.1)
    with pytest.raises(Locked, match='another session'): Lease(tmp, patience=10.).take(lambda line: None)
    p.kill(); p.wait()
    then = time.monotonic()
    Lease(tmp, patience=60.).take(lambda line: None)
    assert time.monotonic() - then < 10


def test_a_drive_that_is_gone_gets_no_folder(calm, tmp):
    "Where the mount is gone, nothing is made in its place"
    _, run = calm
    (tmp / 'mount' / 'drive').mkdir(parents=True)
    mirror = DriveMirror(run, tmp / 'mount' / 'drive', **QUIET)
    mirror.lease.take()
    (tmp / 'mount').rename(tmp / 'gone')
    assert not mirror.attempt() and 'Drive' in mirror.trouble and not (tmp / 'mount').exists()
    (tmp / 'mount' / 'drive').mkdir(parents=True)                  # an empty folder of the machine itself
    assert not mirror.attempt() and list((tmp / 'mount' / 'drive').iterdir()) == []
    shutil.rmtree(tmp / 'mount')
    (tmp / 'gone').rename(tmp / 'mount')
    assert mirror.attempt() and resume_point(mirror.home)[1]['step'] == STEPS


def test_a_mirror_keeps_the_last_ones(tmp):
    "Checkpoint after checkpoint: the copy holds at most so many, always a whole one, and never the rows of a younger run"
    exp = asked('a2c', 'rlnb/CartPole-v1', 3_072, **SMALL)
    run = folder_for(exp, tmp / 'runs', 'pole')
    (tmp / 'drive').mkdir()
    mirror, points = DriveMirror(run, tmp / 'drive', keep=2, **QUIET), []
    mirror.lease.take()
    from rlnb.train.callback import Callback
    class Passes(Callback):
        order = 99
        def after_learn(self, t):
            if mirror.once(): points.append((resume_point(mirror.home)[1]['step'], len(steps_saved(mirror.home))))
    fit(run, episodes=0, cbs=[Passes()])
    assert [p for p, _ in points] == sorted(p for p, _ in points) and max(n for _, n in points) == 2 and points[-1][0] == 3_072


# ---- the clock
def fake_session(monkeypatch, tmp, seed: int, save_before_min: float = 10., blind: bool = False) -> tuple[float, str]:
    "A session of random length with checkpoints of random cost; seconds between the end of its last save and the limit, and the phase"
    from rlnb.runs import state
    from rlnb.runs.keep import Keeper
    from rlnb.train import save, session, standard, steer
    rng = random.Random(seed)
    clock, limit = Clock(1_000_000.), rng.uniform(1., 12.)
    cost, step = 10**rng.uniform(-1, 2.3), rng.uniform(20., 120.)*limit/6
    for page in (state, save, session, standard, steer): monkeypatch.setattr(page, 'time', clock.module())
    keep, seen, last = Keeper.save, steer.Control.look, []
    def slow(self, *a, **kw):
        clock.t += cost*rng.uniform(.6, 1.4)
        last.append(clock.t)
        return keep(self, *a, **kw)
    def looked(self):
        clock.t += step*rng.uniform(.5, 1.5)
        if blind: self.saver.cost = 0.
        return seen(self)
    monkeypatch.setattr(Keeper, 'save', slow)
    monkeypatch.setattr(steer.Control, 'look', looked)
    place = here(tmp / 'runs', dict(RLNB_SESSION_BEGAN=str(clock.t)))
    s = Session(place, gpu=False, clock=clock.time, session_h=limit, save_before_min=save_before_min)
    run = folder_for(asked('a2c', 'rlnb/CartPole-v1', 1_000_000, num_envs=2, n_steps=8, presets=False), place.work, f'n{seed}')
    monkeypatch.setenv('RLNB_DEADLINE', f'{s.deadline():.3f}')
    with using(Careless()): fit(run, episodes=0)
    monkeypatch.undo()
    return place.began + 3600*limit - last[-1], run.phase


def test_it_stops_in_time_fifty_times(monkeypatch, tmp):
    "Random lengths, random costs from a tenth of a second to three minutes: fifty of fifty are saved before the limit, and stopped, not cut off"
    spare = [fake_session(monkeypatch, tmp, seed) for seed in range(50)]
    assert all(s > 0 and phase == 'stopped' for s, phase in spare), spare
    print(f'{len(spare)} of {len(spare)} in time, at least {min(s for s, _ in spare):.0f} s before the limit')


def test_and_would_not_without_margins(monkeypatch, tmp):
    "The same with no margin and no measured cost: some come too late, so the test above can fail"
    from rlnb.train import session
    monkeypatch.setattr(session, 'deadline_of', lambda environ=os.environ: float(environ['RLNB_DEADLINE']))
    spare = []
    for seed in range(12):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(session, 'deadline_of', lambda environ=os.environ: float(environ['RLNB_DEADLINE']))
            spare.append(fake_session(m, tmp, seed, save_before_min=0., blind=True)[0])
    assert min(spare) < 0


def test_attached_not_doubled(tmp):
    "A second notebook conducts a run that is being trained: no second worker, the same end"
    place = here(tmp / 'runs', {})
    exp = asked('a2c', 'rlnb/CartPole-v1', 30_000, num_envs=4, n_steps=16, presets=False)
    run = adopt('pole', place.work, exp=exp, **QUIET).run
    from rlnb.train.launch import start
    start(run, episodes=0)
    found = adopt('pole', place.work, exp=exp, **QUIET)
    conduct(found.run, Session(place), episodes=0, **QUIET)
    assert found.how == 'attached' or run.phase == 'finished'
    assert [e['kind'] for e in run.events if e['kind'] != 'checkpoint'] == ['start', 'finish'] and not (place.work / FLAG).exists()


def test_a_failure_is_said(tmp):
    place = here(tmp / 'runs', {})
    broken = create(place.work, 'broken', dict(experiment=dict(agent='nobody')))
    with pytest.raises(Crash, match='broken failed'): conduct(broken, Session(place), **QUIET)
    assert json.loads((place.work / FLAG).read_text())['run'] == 'broken'


def test_a_lock_is_respected(calm, tmp):
    "What another writer holds is not moved aside, though something better was found"
    exp, run = calm
    begun(run, tmp / 'work' / 'pole', 512)
    begun(run, tmp / 'input' / 'pole', STEPS)
    with Lock(tmp / 'work' / 'pole' / 'LOCK'): assert adopt('pole', tmp / 'work', [tmp / 'input'], exp, **QUIET).how == 'attached'
    assert adopt('pole', tmp / 'work', [tmp / 'input'], exp, **QUIET).step == STEPS
    assert len(look('pole', [tmp / 'work'])) == 1 and (tmp / 'work' / 'quarantine').is_dir()


# ---- the notebooks
def cell(path: Path, tag: str) -> str:
    return next((c.source for c in nbformat.read(path, 4).cells if tag in c.metadata.get('tags', [])), '')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_parameters_are_typed_and_explained(path):
    lines = cell(path, 'parameters').splitlines()
    assert lines and all(re.fullmatch(r'\w+: (str|int|float|bool|dict) = \S.*?\s# \S.*', s) for s in lines), lines
    from papermill.inspection import _infer_parameters
    from papermill.iorw import load_notebook_node
    found = _infer_parameters(load_notebook_node(str(path)), name='python3', language='python')
    assert {p.name for p in found} == {s.split(':')[0] for s in lines} and all(p.help and p.inferred_type_name != 'None' for p in found)
    if path.stem[:2] != '10': assert re.search(rf'/blob/main/{path.parent.name}/{path.name}\)', nbformat.read(path, 4).cells[0].source)
    assert not any(c.get('outputs') for c in nbformat.read(path, 4).cells)


def test_one_way_to_install():
    cells = {cell(p, 'install') for p in NOTEBOOKS}
    assert len(cells) == 1
    assert f'@v{(ROOT / "settings.ini").read_text().split("version = ")[1].split()[0]}' in cells.pop()


@pytest.mark.parametrize('case', ['here', 'wheel', 'source', 'no network', 'torch moved'])
def test_installing(case, tmp, monkeypatch):
    "Importable: nothing; else an attached wheel; else the source; never constraints; a torch that moved is an error"
    ran, seen = [], iter(['2.9.0', *['2.10.0' if case == 'torch moved' else '2.9.0']*2])
    monkeypatch.setenv('RLNB_KAGGLE_ROOT', str(tmp))
    if case == 'wheel':
        (tmp / 'input' / 'some' / 'set').mkdir(parents=True)
        (tmp / 'input' / 'some' / 'set' / 'rlnb-0.1.0-py3-none-any.whl').touch()
    tree_ = ast.parse(cell(NOTEBOOKS[0], 'install'))
    names: dict = {}
    exec(compile(ast.Module([n for n in tree_.body if not isinstance(n, ast.Expr)], []), 'install', 'exec'), names)
    names['importlib'] = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: case == 'here'), invalidate_caches=lambda: None)
    names['version'] = lambda name: next(seen)
    def pip(argv, **kw):
        ran.append(argv)
        return SimpleNamespace(returncode=int(case == 'no network'), stderr='Collecting\nERROR: no network')
    names['subprocess'] = SimpleNamespace(run=pip)
    if case == 'no network':
        with pytest.raises(SystemExit, match='rlnb was not installed: ERROR: no network'): names['install']()
    elif case == 'torch moved':
        with pytest.raises(AssertionError, match=r'torch was 2\.9\.0 and is 2\.10\.0'): names['install']()
    else: said = names['install']()
    if case == 'here': assert (said, ran) == ('already here', [])
    else: assert 'torch==2.9.0' in ran[0] and '-c' not in ran[0]
    if case == 'wheel': assert ran[0][5].endswith('.whl') and ran[0][-3:] == ['--no-index', '--find-links', str(tmp / 'input/some/set')] and said == 'installed from rlnb-0.1.0-py3-none-any.whl'
    if case == 'source': assert ran[0][-2].startswith('rlnb @ git+https://') and '--no-index' not in ran[0]


@pytest.mark.parametrize('kind', ['colab', 'kaggle'])
def test_killed_notebooks(kind, tmp):
    "The training notebook on a simulated machine that is taken away, twice on Colab, once on Kaggle; then equal to one that nobody killed"
    words = WORDS | dict(steps=40_000)
    calm = Machine(kind, tmp / 'calm', 0).papermill(ROOT / kind / '20_train.ipynb', **words)
    assert calm.wait() == 0, calm.said()[-3000:]
    run, book = struck(kind, tmp / kind, random.Random(3), 2 if kind == 'colab' else 1, words)
    a, b = Run(calm.work / 'tried'), Run(run)
    steps = [r['step'] for r in b.metrics()]
    assert differences(a, b) == [] and a.result['return'] == b.result['return'] and steps == sorted(set(steps)), book
    assert not any(b.verify().values()), b.verify()
    assert len(book) > 1
