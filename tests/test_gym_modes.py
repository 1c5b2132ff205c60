"Gymnasium's reset modes, our loop and our pool give a learner the same transitions; a bug planted in any of them is seen"
import warnings
from collections import Counter
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlnb.core.batch import Batch
from rlnb.core.errors import BadInput, MissingExtra
from rlnb.envs.base import check_env
from rlnb.envs.foreign import FourTuple, Legacy
from rlnb.envs.gym import make
from rlnb.envs.loop import Loop
from rlnb.envs.vector import GymVec

warnings.filterwarnings('ignore', module='gymnasium')


class Clock(gym.Env):
    "Shows (row, episode, t); lengths differ from episode to episode; ends by termination, by truncation, or by both at once"
    forms = dict(box=spaces.Box(0, 999, (3,), np.float64), float32=spaces.Box(0, 999, (3,), np.float32),
                 dict=spaces.Dict(who=spaces.Discrete(9), when=spaces.Box(0, 999, (2,), np.float64)),
                 tuple=spaces.Tuple([spaces.Discrete(9), spaces.Box(0, 999, (2,), np.float64)]))

    def __init__(self, row=0, form='box'):
        self.row, self.form, self.episode = row, form, -1
        self.observation_space, self.action_space = self.forms[form], spaces.Discrete(2)

    def _obs(self):
        when = np.array([self.episode, self.t], float)
        return dict(box=np.array([self.row, *when]), float32=np.array([self.row, *when], np.float32), dict=dict(who=self.row, when=when), tuple=(self.row, when))[self.form]

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = 0 if seed is not None else self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        end, how = self.t == 1 + (self.row + 2*self.episode) % 4, self.episode % 3
        info = dict(cost=self.t / 4) | (dict(is_success=how == 1) if end and how != 2 else {})
        return self._obs(), 10.*self.episode + self.t, end and how > 0, end and how < 2, info


def flat(obs, i):
    "A row of any form as (row, episode, t)"
    if not isinstance(obs, dict): return tuple(obs[i].tolist())
    who, when = (obs[k] for k in (('who', 'when') if 'who' in obs else ('0', '1')))
    return (float(who[i]), *when[i].tolist())


def transitions(env, n=60, act=None):
    "What a learner would take, and what its statistics would be"
    out, obs = Counter(), env.reset(0)
    for t in range(n):
        before = [flat(obs, i) for i in range(env.num_envs)]
        st = env.step(np.zeros(env.num_envs, int) if act is None else act[t])
        valid = st.extras.get('valid', np.ones(env.num_envs, bool))
        for i in np.flatnonzero(valid):
            success = float(st.extras['success'][i]) if st.done[i] and 'success' in st.extras else None
            out[(before[i], float(st.reward[i]), flat(st.next_obs, i), bool(st.terminated[i]), bool(st.truncated[i]), float(st.extras['cost'][i, 0]), str(success))] += 1
        obs = st.obs
    return Counter({k: v for k, v in out.items() if k[0][1] < 6})       # episodes that all have finished


def truth(rows=4):
    "The same by the definition of the clock"
    out = Counter()
    for row in range(rows):
        for e in range(6):
            length = 1 + (row + 2*e) % 4
            for t in range(length):
                end, how = t + 1 == length, e % 3
                term, success = end and how > 0, str(float(how == 1)) if end and how != 2 else 'nan' if end else 'None'
                out[((row, e, t), 10.*e + t + 1, (row, e, t + 1), term, end and not term, (t + 1)/4, success)] += 1
    return out


FORMS = 'box', 'dict', 'tuple'
fns = lambda form: [partial(Clock, i, form) for i in range(4)]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('mode', AutoresetMode, ids=lambda m: m.name)
def test_modes_give_the_same_transitions(mode, form):
    assert transitions(GymVec(SyncVectorEnv(fns(form), autoreset_mode=mode))) == truth()


@pytest.mark.parametrize('form', FORMS)
def test_loop_gives_the_same_transitions(form):
    assert transitions(Loop(fns(form))) == truth()


@pytest.mark.parametrize('mode', AutoresetMode, ids=lambda m: m.name)
def test_a_world_that_reuses_its_arrays(mode):
    "float32, so that nothing is copied on the way"
    assert transitions(GymVec(SyncVectorEnv(fns('float32'), autoreset_mode=mode, copy=False))) == truth()


def test_pool_of_loops_gives_the_same_transitions():
    env = make(partial(Clock, 2, 'dict'), 3, workers=2)
    got = transitions(env)
    env.close()
    assert got == Counter({k: 3*v for k, v in truth().items() if k[0][0] == 2})


def test_old_interface_gives_the_same_transitions():
    "The note that the adapter leaves is enough; where both ends fell together it was a termination"
    assert transitions(Loop([partial(lambda i: Legacy(FourTuple(Clock(i))), i) for i in range(4)])) == truth()


class TruncationTerminates(GymVec):
    def step(self, act): st = super().step(act); return st._replace(terminated=st.done, truncated=st.done & False)


class NextIsReset(GymVec):
    def step(self, act): st = super().step(act); return st._replace(next_obs=st.obs)


class ResetRowsCount(GymVec):
    def step(self, act): st = super().step(act); return st._replace(extras=Batch({**st.extras, 'valid': np.ones(self.num_envs, bool)}))


class SuccessEverywhere(GymVec):
    def _extras(self, cost, success): return super()._extras(cost, {i: success.get(i, 0.) for i in range(self.num_envs)})


@pytest.mark.parametrize('bug, mode', [(TruncationTerminates, 'NEXT_STEP'), (NextIsReset, 'SAME_STEP'), (NextIsReset, 'DISABLED'), (ResetRowsCount, 'NEXT_STEP'),
                                       (SuccessEverywhere, 'SAME_STEP')])
def test_planted_bug_is_seen(bug, mode):
    assert transitions(bug(SyncVectorEnv(fns('box'), autoreset_mode=AutoresetMode[mode]))) != truth()


@pytest.mark.parametrize('name', ['CartPole-v1', 'Pendulum-v1', 'Acrobot-v1', 'MountainCar-v0', 'MountainCarContinuous-v0', 'FrozenLake-v1', 'Taxi', 'CliffWalking', 'Blackjack-v1'])
def test_classic_and_toy_worlds_are_exact(name):
    known = name if '-v' in name else max(k for k in gym.registry if k.startswith(f'{name}-v'))
    for n in (2, 8):
        env = make(known, n)
        assert env.tier == 'exact'
        check_env(env, steps=60)


class Hidden(Clock):
    "Its clock is where a snapshot does not look"
    def reset(self, **kw):
        self.box = object.__new__(type('Box', (), {}))
        self.box.t = 0
        return super().reset(**kw)

    def step(self, action):
        self.t, self.box.t = self.box.t, self.box.t + 1
        return super().step(action)


def test_a_world_with_a_hidden_clock_is_not_exact():
    env = make(partial(Hidden, 3), 2)
    assert env.tier == 'boundary'
    env.reset(0)
    fresh = make(partial(Hidden, 3), 2)
    fresh.load_state_dict(env.state_dict())
    with pytest.raises(BadInput, match='before reset'): fresh.step(np.zeros(2, int))


def test_agents_see_unit_actions():
    env = make('Pendulum-v1', 2)
    env.reset(0)
    free = make(lambda: gym.make('Pendulum-v1'), 2)
    free.reset(0)
    assert env.act_space == spaces.Box(-1, 1, (1,))
    for a in (-5., -1., 0., .5): assert (env.step(np.full((2, 1), a)).obs == free.step(np.full((2, 1), max(a, -1.))).obs).all()
    inner = gym.make('Pendulum-v1')
    a, b = make(inner), gym.make('Pendulum-v1')
    a.reset(3)
    b.reset(seed=0)
    b.unwrapped.state = inner.unwrapped.state.copy()
    assert np.allclose(a.step(np.array([[.25]])).obs[0], b.step(np.array([.5]))[0])


@pytest.mark.parametrize('spec', ['os:system', 'os:Evil-v0', 'subprocess:run', 'rlnb.evil:x'])
def test_a_text_imports_nothing_unasked(spec):
    with pytest.raises(BadInput, match='would import'): make(spec)


@pytest.mark.parametrize('name, module, extra', [('HalfCheetah-v5', 'mujoco', 'mujoco'), ('LunarLander-v3', 'Box2D', 'box2d'), ('ALE/Pong-v5', 'ale_py', 'atari'),
                                                 ('FetchReach-v4', 'gymnasium_robotics', 'robotics'), ('pettingzoo/mpe', 'pettingzoo', 'marl')])
def test_a_missing_extra_is_one_line(name, module, extra, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, module, None)                       # as if it were not installed
    if name in gym.registry and extra in ('atari', 'robotics'): monkeypatch.delitem(gym.registry, name)
    with pytest.raises(MissingExtra) as e: make(name, 2)
    assert str(e.value).endswith(f"pip install 'rlnb[{extra}]'") or f"'rlnb[{extra}]'" in str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name, module', [('HalfCheetah-v5', 'mujoco'), ('LunarLander-v3', 'Box2D')])
def test_one_line_each(name, module):
    pytest.importorskip(module)
    env = make(name, 2)
    assert check_env(env, steps=60, snapshot=env.tier == 'exact')['steps'] == 120
