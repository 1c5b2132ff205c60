"Every agent of this floor with every kind of observation and action: it acts and learns"
import copy
import mmap

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlnb.agents.a2c import A2C
from rlnb.agents.c51 import C51
from rlnb.agents.crossq import CrossQ
from rlnb.agents.dqn import DQN
from rlnb.agents.ppo import PPO
from rlnb.agents.ppo_rnn import PPORNN
from rlnb.agents.pqn import PQN
from rlnb.agents.rainbow import Rainbow
from rlnb.agents.rnd import RND
from rlnb.agents.sac import SAC
from rlnb.agents.sac_discrete import SACDiscrete
from rlnb.agents.td3 import TD3
from rlnb.agents.tqc import TQC
from rlnb.core.errors import BadInput
from rlnb.envs.gym import make
from rlnb.train.trainer import Trainer

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
OBS = dict(vector=VECTOR, double=spaces.Box(-1, 1, (3,), np.float64), hwc=spaces.Box(0, 255, (20, 20, 3), np.uint8), chw=spaces.Box(0, 255, (4, 36, 36), np.uint8),
           discrete=spaces.Discrete(5), shifted=spaces.Discrete(5, start=2), dict=spaces.Dict(image=spaces.Box(0, 255, (20, 20, 3), np.uint8), speed=VECTOR, gear=spaces.Discrete(4)),
           goal=spaces.Dict(observation=VECTOR, desired_goal=VECTOR), nested=spaces.Dict(inner=spaces.Dict(a=VECTOR, b=VECTOR), c=VECTOR), tuple=spaces.Tuple([VECTOR, spaces.Discrete(3)]),
           bytes=spaces.Box(0, 255, (5,), np.uint8), counts=spaces.Box(0, 9, (3,), np.int64))
ACT = dict(discrete=spaces.Discrete(4), shifted=spaces.Discrete(4, start=1), box=spaces.Box(-3, 5, (2,), np.float32), free=spaces.Box(-np.inf, np.inf, (2,), np.float32),
           multi=spaces.MultiDiscrete([2, 3]), binary=spaces.MultiBinary(3))


class Any(gym.Env):
    "Shows and takes what it is told to; ends both ways"
    def __init__(self, obs, act): self.observation_space, self.action_space = obs, act
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None: self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, a):
        assert self.action_space.contains(a if isinstance(self.action_space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)) else np.int64(a)), a
        self.t += 1
        return self.observation_space.sample(), float(np.sum(a)), self.t % 9 == 7, self.t % 9 == 4 and self.t > 8, {}


def pair(kind, obs, act):
    obs, act = copy.deepcopy(OBS[obs]), copy.deepcopy(ACT[act])
    cfg = dict(n_steps=8) | (dict(minibatch=16) if kind is not A2C else {}) | (dict(norm_obs=False, hidden=(8,), memory=8) if kind is PPORNN else dict(hidden=(8, 8)))
    def trainer(seed=0):
        env = make(lambda: Any(obs, act), 4)
        return Trainer(kind(env.obs_space, env.act_space, kind.config.from_dict(cfg), seed), env, seed=seed, horizon=1000)
    return trainer


@pytest.mark.parametrize('obs, act', [(o, 'discrete') for o in OBS] + [('vector', a) for a in ACT] + [('dict', 'box'), ('chw', 'multi'), ('tuple', 'binary')])
@pytest.mark.parametrize('kind', [PPO, A2C, PPORNN], ids=lambda k: k.__name__)
def test_acts_and_learns(kind, obs, act):
    t = pair(kind, obs, act)()
    for _ in range(2): t.one_iter()
    assert t.step == 64 and all(np.isfinite(float(v)) for v in t.metrics.values())
    greedy = t.agent.act(t.collector.obs, False, 1., *copy.deepcopy(t.collector.memory))
    assert set(greedy) <= {'act', 'h'} and len(greedy.act) == 4
    assert np.isfinite(np.asarray(t.agent.value(t.collector.obs, *t.collector.memory))).all()


@pytest.mark.parametrize('obs', ['vector', 'dict', 'discrete', 'hwc', 'nested'])
def test_acting_and_learning_see_the_same(obs):
    "The first ratio of an update is 1: what acting said of an action is what the loss says of it"
    t, seen = pair(PPO, obs, 'discrete')(), []
    class Watch(PPO):
        def loss(self, b):
            if not seen: seen.append(float((self.pi(b.obs).log_prob(b.act) - b.logp).detach().abs().max()))
            return super().loss(b)
    t.agent.__class__ = Watch
    t.one_iter()
    assert seen[0] < 1e-5


class Masked(gym.Env):
    "Pays for the action that would be best if it were legal, so that learning pulls towards what is forbidden"
    def __init__(self, act):
        self.action_space, self.sizes = act, [int(act.n)] if isinstance(act, spaces.Discrete) else act.nvec.tolist()
        self.observation_space = spaces.Dict(seen=VECTOR, action_mask=spaces.MultiBinary(sum(self.sizes)))

    def _obs(self):
        self.legal = [self.np_random.random(n) < .4 for n in self.sizes]
        for m in self.legal: m[self.np_random.integers(len(m))] = True
        return dict(seen=self.np_random.uniform(-1, 1, 3).astype(np.float32), action_mask=np.concatenate(self.legal).astype(np.int8))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, a):
        parts = np.atleast_1d(a)
        assert all(m[i] for m, i in zip(self.legal, parts)), 'an illegal move'
        self.t += 1
        return self._obs(), float(sum(parts == 0)), False, self.t == 20, {}


@pytest.mark.parametrize('act', [spaces.Discrete(5), spaces.MultiDiscrete([3, 4])], ids=['discrete', 'multi'])
def test_no_illegal_move_in_100_000_steps(act):
    env = make(lambda: Masked(act), 100)
    cfg = PPO.config.from_dict(dict(n_steps=100, minibatch=2_000, hidden=(16,), lr=3e-3))
    t = Trainer(PPO(env.obs_space, env.act_space, cfg, 0), env, seed=0).fit(100_000)
    assert t.step == 100_000
    assert t.agent.act(t.collector.obs, explore=False).act.shape[0] == 100
    env.step(t.agent.act(t.collector.obs, explore=False).act)                # the likeliest action is legal, too


def test_the_mask_is_what_makes_them_legal():
    env = make(lambda: Masked(spaces.Discrete(5)), 100)
    agent = PPO(env.obs_space, env.act_space, PPO.config(hidden=(16,)))
    obs = env.reset(0)
    obs['action_mask'][...] = 1
    with pytest.raises(Exception, match='illegal'): env.step(agent.act(obs).act)


# ---- those that learn from a memory, and PQN
FEW, NUMBERS = [DQN, C51, Rainbow, RND, PQN, SACDiscrete], [SAC, TD3, TQC, CrossQ]
VECTORS = ['vector', 'double', 'goal', 'nested', 'bytes', 'counts']              # all that the kin of SAC can see


def from_memory(kind, obs, act, n=4, **cfg):
    env = make(lambda: Any(copy.deepcopy(OBS[obs]), copy.deepcopy(ACT[act])), n)
    small = dict(n_steps=8, minibatch=16) if kind is PQN else dict(batch_size=8, learning_starts=24, buffer_size=80, train_every=4)
    small |= dict(critic_hidden=(8,)) if kind is CrossQ else {}
    return Trainer(kind(env.obs_space, env.act_space, kind.config.from_dict(dict(hidden=(8,)) | small | cfg), 0), env, horizon=1000)


def learns(t):
    while t.step < 72: t.one_iter()
    assert len(t.metrics) > 3 and all(np.isfinite(float(v)) for v in t.metrics.values())
    assert len(t.agent.act(t.collector.obs, False, 1.).act) == t.env.num_envs
    value = np.asarray(t.agent.value(t.collector.obs))
    assert value.shape == (t.env.num_envs,) and np.isfinite(value).all()


@pytest.mark.parametrize('kind, obs', [(k, o) for k in (*FEW, *NUMBERS) for o in OBS], ids=lambda x: getattr(x, '__name__', x))
def test_learns_from_a_memory_of(kind, obs):
    act = 'box' if kind in NUMBERS else 'discrete'
    if kind in [*NUMBERS, SACDiscrete] and obs not in VECTORS:
        with pytest.raises(BadInput, match='obs_space'): from_memory(kind, obs, act)
    else: learns(from_memory(kind, obs, act))


def held_by(x):
    "Does an array lie in a file?"
    while isinstance(x, np.ndarray): x = x.base
    return isinstance(x, mmap.mmap)


@pytest.mark.parametrize('kind', [k for k in FEW + NUMBERS if k is not PQN], ids=lambda k: k.__name__)
def test_a_memory_in_a_file_is_the_same_memory(kind, tmp_path):
    a, b = (from_memory(kind, 'vector', 'box' if kind in NUMBERS else 'discrete', memmap=where) for where in ('', str(tmp_path)))
    for t in (a, b): learns(t)
    assert [held_by(t.buffer.np.reward) for t in (a, b)] == [False, True]
    assert all(torch.equal(p, q) for p, q in zip(a.agent.parameters(), b.agent.parameters()))


@pytest.mark.parametrize('act', ACT)
@pytest.mark.parametrize('kind', FEW + NUMBERS, ids=lambda k: k.__name__)
def test_its_actions_or_a_word(kind, act):
    if act in (['box'] if kind in NUMBERS else ['discrete', 'shifted']): learns(from_memory(kind, 'vector', act))
    else:
        with pytest.raises(BadInput, match='act_space'): from_memory(kind, 'vector', act)


@pytest.mark.parametrize('cfg', [dict(per=True), dict(n_step=3), dict(per=True, n_step=3)], ids=str)
@pytest.mark.parametrize('kind, obs', [(DQN, 'dict'), (Rainbow, 'hwc'), (SACDiscrete, 'goal'), (SAC, 'goal'), (TD3, 'bytes')], ids=lambda x: getattr(x, '__name__', x))
def test_priorities_and_windows_of(kind, obs, cfg): learns(from_memory(kind, obs, 'box' if kind in NUMBERS else 'discrete', 4, **cfg))


@pytest.mark.parametrize('kind', [DQN, C51, Rainbow, RND, PQN], ids=lambda k: k.__name__)
def test_no_illegal_move_while_a_value_is_learned(kind):
    "Not while exploring, not by the greedy choice; and no forbidden action is in a target, which would be −∞ or too high"
    env = make(lambda: Masked(spaces.Discrete(5)), 20)
    cfg = dict(hidden=(16,), lr=3e-3) | (dict(n_steps=20, minibatch=100) if kind is PQN else dict(batch_size=32, learning_starts=200, train_every=20, updates=4, eps_fraction=.5))
    t = Trainer(kind(env.obs_space, env.act_space, kind.config.from_dict(cfg), 0), env, horizon=3000)
    while t.step < 3000: t.one_iter()
    assert all(np.isfinite(float(v)) for v in t.metrics.values())
    env.step(t.agent.act(t.collector.obs, explore=False).act)


def test_a_value_of_a_forbidden_action_shows():
    class Forgets(DQN):
        def values(self, obs): return DQN.values(self, obs | dict(action_mask=np.ones_like(obs['action_mask'])))
    with pytest.raises(Exception, match='illegal'): test_no_illegal_move_while_a_value_is_learned(Forgets)
