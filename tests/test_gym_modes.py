"Gymnasium's reset modes, our loop and our pool give a learner the same transitions; a bug planted in any of them is seen"
import warnings
from collections import Counter
from functools import partial
from types import SimpleNamespace

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
from rlnb.envs.team import Team
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


class DmClock:
    "The clock with DeepMind's interface, whose discount says which end it was; both at once is a termination"
    def __init__(self, row):
        self.clock = Clock(row)
        self.clock.reset(seed=0)
        self.clock.episode = -1

    def observation_spec(self): return SimpleNamespace(shape=(3,), dtype=np.dtype(float), minimum=0., maximum=999.)
    def action_spec(self): return SimpleNamespace(num_values=2)
    def _say(self, obs, reward=None, discount=None, last=False): return SimpleNamespace(observation=obs, reward=reward, discount=discount, last=lambda: last)
    def reset(self): return self._say(self.clock.reset()[0])
    def step(self, action):
        obs, reward, term, trunc, _ = self.clock.step(action)
        return self._say(obs, reward, 0. if term else 1., term or trunc)


class TeamClock:
    "Clocks as the agents of one PettingZoo world; who is out waits for the others"
    def __init__(self, rows): self.possible_agents, self.clocks = [f'clock {i}' for i in rows], {f'clock {i}': Clock(i) for i in rows}
    def observation_space(self, who): return self.clocks[who].observation_space
    def action_space(self, who): return self.clocks[who].action_space
    def close(self): pass
    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return {who: c.reset(seed=seed)[0] for who, c in self.clocks.items()}, {who: {} for who in self.agents}

    def step(self, acts):
        assert sorted(acts) == sorted(self.agents)
        out = {who: self.clocks[who].step(a) for who, a in acts.items()}
        self.agents = [who for who in self.agents if not out[who][2] and not out[who][3]]
        return tuple({who: x[k] for who, x in out.items()} for k in range(5))


def bare(c):
    "Transitions without what these interfaces can not tell"
    out = Counter()
    for (obs, reward, after, term, trunc, *_), n in c.items(): out[obs, reward, after, term, trunc] += n
    return out


def seen(env, n=90):
    "What a learner would take, of any world"
    out, obs = Counter(), env.reset(0)
    for _ in range(n):
        before = [flat(obs, i) for i in range(env.num_envs)]
        st = env.step(np.zeros(env.num_envs, int))
        for i in np.flatnonzero(st.extras.get('valid', np.ones(env.num_envs, bool))):
            out[before[i], float(st.reward[i]), flat(st.next_obs, i), bool(st.terminated[i]), bool(st.truncated[i])] += 1
        obs = st.obs
    return Counter({k: v for k, v in out.items() if k[0][1] < 6})


def test_deepminds_interface_gives_the_same_transitions():
    made = make(lambda: DmClock(2), 3)
    assert seen(made) == Counter({k: 3*v for k, v in bare(truth()).items() if k[0][0] == 2})


@pytest.mark.parametrize('teams', [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2, 3]]], ids=['alone', 'pairs', 'all together'])
def test_pettingzoo_gives_the_same_transitions(teams):
    assert seen(Team([partial(TeamClock, rows) for rows in teams])) == bare(truth())


def test_pettingzoo_by_the_one_door():
    assert seen(make(partial(TeamClock, [0, 1, 2, 3]), 4)) == bare(truth())
    with pytest.raises(BadInput, match='a multiple of 4'): make(partial(TeamClock, [0, 1, 2, 3]), 6)


class WaitingCounts(Team):
    def step(self, act): st = super().step(act); return st._replace(extras=Batch(valid=np.ones(self.num_envs, bool)))


class OutIsCut(Team):
    def step(self, act): st = super().step(act); return st._replace(terminated=st.done & False, truncated=st.done)


@pytest.mark.parametrize('bug', [WaitingCounts, OutIsCut])
def test_planted_bug_in_a_team_is_seen(bug): assert seen(bug([partial(TeamClock, [0, 1]), partial(TeamClock, [2, 3])])) != bare(truth())


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
                                                 ('FetchReach-v4', 'gymnasium_robotics', 'robotics'), ('pettingzoo/sisl/pursuit-v5', 'pettingzoo', 'marl'), ('envpool/CartPole-v1', 'envpool', 'envpool')])
def test_a_missing_extra_is_one_line(name, module, extra, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, module, None)                       # as if it were not installed
    if name in gym.registry and extra in ('atari', 'robotics'): monkeypatch.delitem(gym.registry, name)
    with pytest.raises(MissingExtra) as e: make(name, 2)
    assert str(e.value).endswith(f"pip install 'rlnb[{extra}]'") or f"'rlnb[{extra}]'" in str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name, module, rows', [('HalfCheetah-v5', 'mujoco', 2), ('LunarLander-v3', 'Box2D', 2), ('ALE/Pong-v5', 'ale_py', 2), ('FetchReach-v4', 'gymnasium_robotics', 2),
                                                ('envpool/CartPole-v1', 'envpool', 3), ('envpool/Pendulum-v1', 'envpool', 9), ('pettingzoo/classic/rps-v2', 'pettingzoo', 4)])
def test_one_line_each(name, module, rows):
    pytest.importorskip(module)
    env = make(name, rows)
    exact = not name.startswith('ALE/') and env.tier == 'exact'        # asking it takes whole episodes, and those of Atari are long
    assert check_env(env, steps=60, snapshot=exact)['steps'] == 60*rows
    env.close()


def test_a_pettingzoo_world_that_is_not_there():
    pytest.importorskip('pettingzoo')
    with pytest.raises(BadInput, match='sisl/nothing-v1') as e: make('pettingzoo/sisl/nothing-v1', 2)
    assert '\n' not in str(e.value)
    with pytest.raises(BadInput, match='a multiple of 2'): make('pettingzoo/classic/rps-v2', 3)


def test_envpool_steps_gymnasiums_cartpole():
    "The same physics: from the same state the same successor, to float32; ends are ends, a reset row is none"
    pytest.importorskip('envpool')
    env, inner = make('envpool/CartPole-v1', 4), gym.make('CartPole-v1').unwrapped
    obs, n = env.reset(3), 0
    inner.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(120):
        act = rng.integers(2, size=4)
        st = env.step(act)
        for i in np.flatnonzero(st.extras.valid):
            inner.state, inner.steps_beyond_terminated = obs[i].astype(float), None
            after, reward, over, _, _ = inner.step(int(act[i]))
            assert np.allclose(after, st.next_obs[i], atol=1e-5) and reward == st.reward[i] and over == st.terminated[i]
            n += 1
        obs = st.obs
    assert n < 4*120 and env.tier == 'boundary'
    again = make('envpool/CartPole-v1', 4)
    assert (again.reset(3) == env.reset(3)).all() and (again.reset(4) != env.reset(3)).any()


def test_atari_looks_the_same_for_any_number_of_rows():
    pytest.importorskip('ale_py')
    assert make('ALE/Pong-v5', 2).obs_space == make('ALE/Pong-v5', 9).obs_space
