"Workers that die, hang or raise, and an owner that is killed"
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces

from rlnb.core.errors import Crash
from rlnb.envs.gym import make


class Faulty(gym.Env):
    "Does what its action says: 0 walks, 1 raises, 2 leaves, 3 hangs, 4 talks a lot"
    observation_space, action_space = spaces.Box(-9, 9, (2,)), spaces.Discrete(5)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(2), {}

    def step(self, action):
        if action == 1: raise ValueError('the ball\nfell \x1b[31mout')
        if action == 2: os._exit(9)
        if action == 3: time.sleep(1e6)
        return np.zeros(2), 1., False, False, {}


@pytest.fixture
def pool():
    env = make(Faulty, 4, workers=2, timeout=3)
    env.reset(0)
    yield env
    env.close()


def gone(procs, seconds=5):
    until = time.monotonic() + seconds
    while any(p.is_alive() for p in procs) and time.monotonic() < until: time.sleep(.02)
    return not any(p.is_alive() for p in procs)


def fell(pool, act):
    procs, then = list(pool._procs), time.monotonic()
    with pytest.raises(Crash) as e: pool.step(np.array(act))
    assert gone(procs) and '\n' not in str(e.value) and '\x1b' not in str(e.value)
    with pytest.raises(Crash, match='closed'): pool.step(np.zeros(4, int))
    return e.value, time.monotonic() - then


def test_raises(pool):
    e, _ = fell(pool, [0, 0, 0, 1])
    assert str(e).startswith('the worker of worlds 2 to 3: ') and 'world 1: ValueError: the ball' in str(e)
    assert 'Traceback' in str(e.__cause__) and "raise ValueError('the ball" in str(e.__cause__)


def test_leaves(pool):
    e, _ = fell(pool, [0, 2, 0, 0])
    assert str(e) == 'the worker of worlds 0 to 1: ended with exit code 9'


def test_hangs(pool):
    e, seconds = fell(pool, [3, 0, 0, 0])
    assert 'no answer to step in time' in str(e) and 3 <= seconds < 9


def test_killed(pool):
    pool._procs[1].kill()
    e, seconds = fell(pool, [0, 0, 0, 0])
    assert str(e) == 'the worker of worlds 2 to 3: ended by SIGKILL' and seconds < 3


@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGSTOP')
def test_stopped(pool):
    os.kill(pool._procs[0].pid, signal.SIGSTOP)
    e, _ = fell(pool, [0, 0, 0, 0])
    assert 'worlds 0 to 1: no answer' in str(e)


def test_nothing_remains_when_a_pool_is_forgotten():
    env = make(Faulty, 2, workers=2)
    procs = list(env._procs)
    del env
    assert gone(procs)


SCRIPT = '''
import time, sys, gymnasium as gym
from rlnb.envs.gym import make
env = make('Pendulum-v1', 2, workers=2)          # no `if __name__` in sight
env.reset(0)
print(*[p.pid for p in env._procs], flush=True)
time.sleep(60)
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='another signal there')
def test_a_killed_owner_leaves_no_child(tmp_path):
    script = tmp_path/'train.py'
    script.write_text(SCRIPT)
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    pids = [int(p) for p in owner.stdout.readline().split()]
    family = psutil.Process(owner.pid).children(recursive=True)
    assert len(pids) == 2 and set(pids) <= {p.pid for p in family}
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_same_worlds_in_any_number_of_workers():
    envs = [make('Acrobot-v1', 3), *(make('Acrobot-v1', 3, workers=k) for k in (1, 2, 3))]
    rng, seen = np.random.default_rng(0), [e.reset(11).tolist() for e in envs]
    for _ in range(30):
        assert all(s == seen[0] for s in seen)
        act = rng.integers(3, size=3)
        seen = [e.step(act).obs.tolist() for e in envs]
    kept = envs[2].state_dict()
    after = [envs[2].step(act).obs.tolist() for _ in range(5)]
    envs[2].reset(99)
    envs[2].load_state_dict(kept)
    assert [envs[2].step(act).obs.tolist() for _ in range(5)] == after
    for e in envs: e.close()
