"""Hindsight against a log: a world whose achieved goal says world, episode and step, so that every exchanged goal can be traced. Rings that wrap,
several steps ahead, with priorities, after a restart; then the mistakes that libraries have made, planted."""
import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_replay import same

from rlnb.buffers.collect import Collector
from rlnb.buffers.her import Hindsight
from rlnb.buffers.per import Prioritised
from rlnb.buffers.replay import Replay
from rlnb.core.batch import Batch
from rlnb.envs.goal import GoalWorld

one = spaces.Box(-1, 1e6, (1,), np.float32)


class Traced(GoalWorld):
    "achieved = 100 000 world + 100 episode + step; the stated goal is −1, never reached; episodes fail at random, or are cut at nine steps"
    ends, max_steps, act_space = True, 9, spaces.Discrete(2)
    obs_space = spaces.Dict(observation=one, achieved_goal=one, desired_goal=one)
    p = .15
    def start(self, n, rows):
        if not hasattr(self, 'episode'): self.episode = np.zeros(self.num_envs, int)
        self.episode[rows] += 1
        at = np.arange(self.num_envs)[rows]*100_000 + self.episode[rows]*100
        return Batch(spot=at[None].astype(np.float32), goal=np.full((1, n), -1, np.float32))
    def move(self, s, act): return Batch(spot=s.spot + 1, goal=s.goal)
    def achieved(self, s): return s.spot
    def success_of(self, achieved, goal): return abs(achieved - goal)[..., 0] < .5
    def dynamics(self, s, act):
        s, reward, term, extras = super().dynamics(s, act)
        return s, reward, term | (self.draw(self.num_envs) < self.p), extras


class Idle:
    def act(self, obs, explore, progress): return Batch(act=np.zeros(len(obs['observation']), np.int64))


def lived(strategy='future', n=2, turns=25, per=3, size=60, n_step=1, k=4., seed=0, relabel=Hindsight, sampler=None):
    world = Traced(n)
    ring = Replay(size, world, gamma=.5, n_step=n_step, seed=seed, relabel=relabel(world, seed, strategy, k), sampler=sampler)
    c = Collector(world, seed)
    for _ in range(turns):
        ring.begin()
        c.collect(Idle(), ring, per)
    return ring, c


def check(ring, strategy, k=4., draws=3000):
    b = ring.sample(draws, .5).numpy()
    row, e = b.row//ring.num_envs, b.row % ring.num_envs
    done = (ring.flat.terminated | ring.flat.truncated)
    now, goal, after = (x[:, 0] for x in (b.obs.achieved_goal, b.obs.desired_goal, b.next_obs.achieved_goal))
    assert np.array_equal(b.obs.desired_goal, b.next_obs.desired_goal)
    new = goal >= 0
    last = np.full((ring.num_envs, ring.written), -1)                     # of each row, the last one of its episode; −1: still running
    for j in range(ring.num_envs):
        end = -1
        for t in range(ring.written - 1, ring.kept - 1, -1):
            if done[(t*ring.num_envs + j) % ring.M]: end = t
            last[j, t] = end
    behind = last[e, row]
    assert (goal[behind < 0] == -1).all()                                 # a running episode keeps its goal
    share = new[behind >= 0].mean()
    assert abs(share - k/(k + 1)) < 5*(.25/draws)**.5
    assert np.array_equal(now[new]//100, goal[new]//100)                  # of the same world and episode
    step = row[new] + goal[new] - now[new] - 1                            # the row after which it was achieved
    assert (step <= behind[new]).all()
    if strategy == 'future': assert (step >= row[new]).all()
    if strategy == 'final': assert np.array_equal(step, behind[new])
    if strategy == 'episode': assert (step >= ring.kept - 1).all() and (step < row[new]).any()
    for i in range(len(row)):                                             # reward, discount, successor: step by step
        total, m, t = 0., 0, row[i]
        while True:
            f = (t*ring.num_envs + e[i]) % ring.M
            reached, over = now[i] + m + 1 == goal[i], done[f]
            total, m, t = total + .5**m*(0. if reached else -1.), m + 1, t + 1
            if reached or over or m == ring.n_step or t == ring.written: break
        died = ring.flat.terminated[f] if not new[i] else False
        right = 0. if reached or died else .5**m
        assert (b.reward[i], b.discount[i], after[i]) == (total, right, now[i] + m), (strategy, i)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(strategy=st.sampled_from(['future', 'final', 'episode']), n=st.integers(1, 3), turns=st.integers(12, 40), per=st.integers(1, 5), size=st.integers(36, 90),
       n_step=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_every_goal_is_of_its_episode(strategy, n, turns, per, size, n_step, seed):
    ring, _ = lived(strategy, n, turns, per, size, n_step, seed=seed)
    b = ring.sample(400).numpy()
    if ring.relabel.behind.any(): check_loosely(ring, strategy, b)


def check_loosely(ring, strategy, b):
    now, goal = b.obs.achieved_goal[:, 0], b.obs.desired_goal[:, 0]
    new = goal >= 0
    assert np.array_equal(now[new]//100, goal[new]//100) and np.array_equal(b.obs.desired_goal, b.next_obs.desired_goal)
    if strategy != 'episode': assert (goal[new] > now[new]).all()
    near = new & (goal > now) & (goal - now <= ring.n_step)
    assert (b.discount[near] == 0).all()


@pytest.mark.parametrize('n_step', [1, 3])
@pytest.mark.parametrize('strategy', ['future', 'final', 'episode'])
def test_as_defined(strategy, n_step):
    ring, _ = lived(strategy, n_step=n_step)
    check(ring, strategy)


def test_with_priorities():
    ring, _ = lived('future', sampler=Prioritised(0))
    b = ring.sample(64)
    ring.update(b.row, torch.rand(64))
    check(ring, 'future', draws=500)


def test_goes_on_to_the_last_bit():
    ends = []
    for stop in (False, True):
        ring, c = lived('future', seed=3)
        ring.sample(50)
        if stop:
            small, rows, a = copy.deepcopy(ring.state_dict(rows=False)), ring.rows(ring.kept, ring.written), ring.kept
            ring, _ = lived('future', seed=4, turns=2)
            ring.load_state_dict(small)
            ring.put(a, rows)
        for _ in range(10):
            ring.begin()
            c.collect(Idle(), ring, 3)
            b = ring.sample(50)
        ends.append((ring.state_dict(), b.numpy()))
    assert same(*[e[0] for e in ends]) and same(*[e[1] for e in ends])


# ---- planted
class PaidForBefore(Hindsight):
    "The reward of what was achieved before the action"
    def attach(self, ring):
        super().attach(ring)
        ring.after = lambda f, part='': ring.flat.obs[part].take(f % ring.M, 0) if part else Replay.after(ring, f)

class KeepsTermination(Hindsight):
    def __call__(self, w, reward, term):
        goal, reward, _ = super().__call__(w, reward, term)
        return goal, reward, term

class AnyRow(Hindsight):
    def choose(self, row, first, behind): return np.random.default_rng(0).integers(self.ring.low, self.ring.written, len(row))

class Exclusive(Hindsight):
    "Goals from before the drawn row only"
    def choose(self, row, first, behind): return np.maximum(row - 1, first)

class StaleEpisodes(Hindsight):
    "Entries that another episode left in the same place, taken for this one's"
    def __call__(self, w, reward, term):
        stale = (self.behind > 0) & (self.behind <= self.ring.kept)
        self.behind = np.where(stale, self.ring.written, self.behind)
        return super().__call__(w, reward, term)

class Running(Hindsight):
    "Goals for episodes that have not ended"
    def __call__(self, w, reward, term):
        was, self.behind = self.behind, np.full_like(self.behind, self.ring.written)
        try: return super().__call__(w, reward, term)
        finally: self.behind = was

class OldGoalBehind(Replay):
    def gather(self, f):
        b = super().gather(f)
        b.next_obs['desired_goal'] = np.full_like(b.obs.desired_goal, -1)
        return b


@pytest.mark.parametrize('wrong', [PaidForBefore, KeepsTermination, AnyRow, Exclusive, StaleEpisodes, Running], ids=lambda k: k.__name__)
def test_planted(wrong):
    ring, _ = lived('future', relabel=wrong)
    with pytest.raises((AssertionError, IndexError)): check(ring, 'future')


def test_planted_goal_that_is_not_exchanged_in_the_successor():
    world = Traced(2)
    ring, c = OldGoalBehind(60, world, gamma=.5, relabel=Hindsight(world, 0)), Collector(world)
    for _ in range(25):
        ring.begin()
        c.collect(Idle(), ring, 3)
    with pytest.raises(AssertionError): check(ring, 'future')
