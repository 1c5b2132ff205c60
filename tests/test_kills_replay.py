"""Killed while they learn from a memory: every agent off the policy, with priorities, several steps ahead, hindsight, lasting noise, a memory in a file, worlds
of Gymnasium's and in worker processes. As in test_kills: each is equal in the end to a run in peace, to the last number that can be reached."""
import os
from pathlib import Path

import numpy as np
import pytest
from test_kills import quick  # noqa: F401  the fixture

from rlnb.train.certify import Killer, certify, differences
from rlnb.train.session import asked, fit, folder_for, train

ONE = dict(num_envs=2, steps=1_200, learning_starts=100, buffer_size=300, batch_size=16, train_every=4, hidden=(8,), presets=False)
POLE, SWING, FLIP, POINT = (dict(env=f'rlnb/{e}') for e in ('CartPole-v1', 'Pendulum-v1', 'BitFlip-v0', 'PointReach-v0'))
ALL = dict(per=True, n_step=3, double=True)
CASES = {
    'dqn': ONE | POLE | ALL | dict(agent='dqn', dueling=True, target_every=7),
    'dqn, hindsight by priority': ONE | FLIP | dict(agent='dqn', her='episode', per=True, n_step=2, persist=.5, eps_end=.6),
    'dqn, a memory in a file': ONE | POLE | dict(agent='dqn', n_step=3, memmap='.'),
    'dqn, gymnasium': ONE | ALL | dict(agent='dqn', env='CartPole-v1'),
    'dqn, workers': ONE | ALL | dict(agent='dqn', env='CartPole-v1', env_kw=dict(workers=2)),
    'c51': ONE | POLE | ALL | dict(agent='c51', atoms=11),
    'qr-dqn': ONE | POLE | ALL | dict(agent='c51', kind='quantile', atoms=8),
    'rainbow': ONE | POLE | dict(agent='rainbow', atoms=11),
    'rnd': ONE | POLE | dict(agent='rnd', persist=.5),
    'pqn': POLE | dict(agent='pqn', num_envs=4, steps=1_600, n_steps=8, minibatch=16, hidden=(8,), presets=False),
    'td3': ONE | SWING | dict(agent='td3', per=True, n_step=2),
    'sac': ONE | SWING | dict(agent='sac', per=True, n_step=3, lr='linear(0.003, 0.001)'),
    'sac, hindsight': ONE | POINT | dict(agent='sac', her='future', n_step=2, persist=.5),
    'sac_discrete': ONE | POLE | dict(agent='sac_discrete', per=True, target_entropy='linear(0.9, 0.2)'),
    'crossq': ONE | SWING | dict(agent='crossq', critic_hidden=(16,), warmup=50),
    'tqc': ONE | SWING | dict(agent='tqc', quantiles=5),
}


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='each life would begin with importing torch')
@pytest.mark.parametrize('case', CASES)
def test_kills(case, quick, monkeypatch):  # noqa: F811
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]))
    kills = 2 if 'workers' in case else 4
    found = certify(kills=kills, root=quick, **CASES[case])
    print({k: found[k] for k in ('kills', 'survived', 'runs', 'how', 'tier', 'lost_steps', 'compared', 'seconds')})
    assert found['identical'] and found['survived'] == kills and found['tier'] == 'exact', found['differences'][:8]
    assert found['compared'] > 800 and found['lost_steps']


def test_nobody_is_left_out():
    "Every agent that learns from a memory is killed here"
    from rlnb.agents.base import agents
    from rlnb.agents.off_policy import OffPolicy
    import rlnb.all  # noqa: F401
    assert {n for n in agents.names() if issubclass(agents[n], OffPolicy)} <= {w['agent'] for w in CASES.values()}


PIECES = {'dqn': ['buffer/sampler/priority', 'buffer/sampler/top', 'buffer/sampler/rng', 'buffer/begun', 'buffer/seen', 'buffer/ends', 'agent/count', 'agent/rng', 'agent/opts/q/m'],
          'dqn, hindsight by priority': ['buffer/relabel/behind', 'buffer/relabel/first', 'buffer/relabel/rng', 'collector/memory'],
          'sac': ['agent/params', 'agent/opts/pi/v'], 'rnd': ['agent/norms/bonus', 'agent/opts/guess/m', 'buffer/sampler/rng']}


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='a plant lives in the child')
@pytest.mark.parametrize('case, piece', [(c, p) for c, ps in PIECES.items() for p in ps])
def test_a_piece_that_is_forgotten_shows(case, piece, quick):  # noqa: F811
    k = Killer(asked(**CASES[case] | {'checkpoint_every': 128, 'seed': 1}), quick)
    whole, run = k.run('whole'), folder_for(k.exp, quick, 'half')
    k.plant = 'rough:stop_at:301'
    assert k.life(run)[0] == 75
    k.plant = f'rough:forget:{piece}'
    assert k.life(run)[0] or differences(whole, run)


@pytest.mark.parametrize('more', [{}, dict(per=True, n_step=3)], ids=str)
def test_a_fork_takes_its_memory_along(tmp_path, more):
    "With nothing changed it ends as the run it came from; and each has rows of its own"
    import rlnb.train.record  # noqa: F401  gives runs `fork`
    words = dict(num_envs=2, learning_starts=64, batch_size=32, checkpoint_every=100, keep=9, buffer_size=300)
    run = train('dqn', 'rlnb/CartPole-v1', 600, root=tmp_path, name='first', progress=False, presets=False, episodes=0, **words, **more)
    same, other = fit(run.fork(400, 'same'), episodes=0), fit(run.fork(400, 'other', lr=1e-2), episodes=0)
    assert same.metrics() == run.metrics() != other.metrics() and other.phase == 'finished'
    assert all(v == '' for r in (run, same, other) for v in r.verify().values())


def test_a_memory_in_a_folder_that_is_gone(tmp_path):
    "Who only looks at a run needs the folder of its memory no more"
    (room := tmp_path/'room').mkdir()
    run = train('sac', 'rlnb/PointReachDense-v0', 300, root=tmp_path, name='far', progress=False, presets=False, episodes=0, num_envs=2, memmap=str(room),
                learning_starts=64, batch_size=32, hidden=(8,))
    room.rmdir()
    assert np.isfinite(run.load('latest').value(np.zeros((2, 6), np.float32))).all()
