"""Sixty kills: agents, worlds, tiers and callbacks, each killed at instants and disk operations, and equal to a run in peace.
The long sweep is `python tools/kills.py`, which writes results/kills.json."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import rlnb.train.record  # noqa: F401  teaches `verify`
from rlnb.runs.run import Run
from rlnb.train.certify import certify
from rlnb.train.session import asked, fit, folder_for

sys.path.insert(0, str(Path(__file__).parent))
SMALL = dict(n_steps=16, minibatch=32, epochs=2, num_envs=4, presets=False)
A2C = dict(agent='a2c', n_steps=8, num_envs=4, presets=False)
ALL = dict(norm_obs=True, norm_reward=True, lr='linear(0.003, 0.0001)', eval_every=256, eval_episodes=4, adapt='kl')
CASES = {                                            # kills, settings
    'ppo': (10, SMALL | dict(agent='ppo', steps=2_600)),
    'ppo, with everything': (14, SMALL | ALL | dict(agent='ppo', steps=2_600, plant='rough:set_at:640')),
    'ppo, a memory': (8, dict(agent='ppo_rnn', n_steps=16, minibatch=32, epochs=1, num_envs=4, steps=1_600, presets=False)),
    'a2c': (10, A2C | dict(steps=1_600)),
    'a2c, gymnasium': (8, A2C | dict(env='CartPole-v1', steps=1_600)),
    'ppo, sealed': (10, SMALL | dict(agent='ppo', env='rough:sealed', allow=['rough'], steps=1_600, norm_obs=True)),
}
TIER = {'ppo, sealed': 'boundary'}


@pytest.fixture
def quick():
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as d: yield Path(d)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='each life would begin with importing torch')
@pytest.mark.parametrize('case', CASES)
def test_kills(case, quick, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]))     # for workers
    kills, words = CASES[case]
    found = certify(kills=kills, root=quick, **words)
    print({k: found[k] for k in ('kills', 'survived', 'runs', 'how', 'tier', 'lost_steps', 'compared', 'seconds')})
    assert found['identical'] and found['survived'] == kills, found['differences'][:8]
    assert found['tier'] == TIER.get(case, 'exact') and found['compared'] > 300


def test_there_are_sixty(): assert sum(n for n, _ in CASES.values()) == 60


def test_a_kill_between_a_checkpoint_and_its_event(quick):
    "The folder has its name, the event was never written: the record holds, before the next life and after it"
    run = folder_for(asked('a2c', 'rlnb/CartPole-v1', 1_024, checkpoint_every=256, keep=9, **{k: v for k, v in A2C.items() if k != 'agent'}), quick, 'cut')
    code = ('import os, sys\nfrom rlnb.runs.events import Events\nfrom rlnb.runs.run import Run\nfrom rlnb.train.session import fit\nadd = Events.add\n'
            'def told(self, kind, step, *a, **kw): return os._exit(9) if (kind, step) == ("checkpoint", 512) else add(self, kind, step, *a, **kw)\n'
            'Events.add = told\nfit(Run(sys.argv[1]), episodes=0)')
    assert subprocess.run([sys.executable, '-c', code, str(run.path)], timeout=120).returncode == 9
    assert (run.phase, [c['step'] for c in run.checkpoints()]) == ('lost', [256, 512]) and not any(run.verify().values())
    fit(Run(run.path), episodes=0)
    assert [c['step'] for c in run.checkpoints()] == [256, 512, 768, 1024] and not any(run.verify().values()), run.verify()
