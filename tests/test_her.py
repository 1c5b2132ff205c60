"""Hindsight against a log: a world whose achieved goal says world, episode and step, so that every exchanged goal can be traced. Rings that wrap,
several steps ahead, with priorities, after a restart; then the mistakes that libraries have made, planted."""
import copy
from types import SimpleNamespace

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
from rlnb.envs.base import Step, VecEnv
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
        died = ring.flat.terminated[f]                                    # never by the stated goal, which is out of reach
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


class Logged(VecEnv):
    "Goal = where the episode will be after three steps; it ends there, or by a fall, or is cut off. `log` has every transition as it was"
    act_space = spaces.Discrete(2)
    obs_space = spaces.Dict(observation=one, achieved_goal=one, desired_goal=one)
    def __init__(self, n, seed, mode, p):
        self.num_envs, self.mode, self.p, self.rng = n, mode, p, np.random.default_rng(seed)
        self.number, self.waits, self.log = np.arange(n)*100_000, np.zeros(n, bool), [[] for _ in range(n)]
    def see(self, number):
        x = np.array(number, np.float32)[:, None]
        return Batch(observation=x, achieved_goal=x.copy(), desired_goal=x//100*100 + 3)
    def compute_reward(self, achieved, desired, info): return (achieved == desired)[..., 0].astype(np.float32) - 1
    def compute_terminated(self, achieved, desired, info): return (achieved == desired)[..., 0]
    def reset(self, seed=None):
        self.number = self.number//100*100 + 100
        self.waits[:] = False
        return self.see(self.number)
    def step(self, act):
        before, valid, u = self.number, ~self.waits, self.rng.random(self.num_envs)
        after = np.where(valid, before + 1, before//100*100 + 100)
        there = valid & (after % 100 == 3)
        fell, cut = valid & (u < self.p/2) & ~there, valid & (u >= self.p/2) & (u < self.p)
        term, done = fell | there, fell | there | cut
        for j in np.flatnonzero(valid): self.log[j].append(SimpleNamespace(obs=before[j], after=after[j], fell=fell[j], over=done[j]))
        reward = (there*1. - 1).astype(np.float32)*valid
        if self.mode == 'next':
            self.number, self.waits = after, done
            return Step(self.see(after), reward, term, cut & ~term, self.see(after), Batch(valid=valid))
        self.number = np.where(done, before//100*100 + 100, after)
        return Step(self.see(self.number), reward, term, cut & ~term, self.see(after))


def by_the_log(world, ring, strategy, b):
    "Follow each drawn transition through the log, with the goal that it was drawn with"
    where = [{s.obs: i for i, s in enumerate(log)} for log in world.log]
    oldest = [min((s.obs for f in range(ring.low*ring.num_envs + j, ring.written*ring.num_envs, ring.num_envs) if ring.flat.valid[f % ring.M]
                   for s in [SimpleNamespace(obs=int(ring.flat.obs.observation[f % ring.M, 0]))]), default=0) for j in range(ring.num_envs)]
    fresh = 0
    for x in range(len(b.row)):
        j, now, goal = int(b.row[x] % ring.num_envs), int(b.obs.observation[x, 0]), int(b.obs.desired_goal[x, 0])
        log, i, stated = world.log[j], where[j][now], now//100*100 + 3
        last = next((t for t in range(i, len(log)) if log[t].over), None)
        assert goal == b.next_obs.desired_goal[x, 0] and goal//100 == now//100
        if last is None: assert goal == stated
        elif strategy == 'final': assert goal in (stated, log[last].after)
        else: assert goal == stated or (now if strategy == 'future' else oldest[j] - 1) < goal <= log[last].after
        fresh += goal != stated
        total, k = 0., 0
        while True:
            s = log[i + k]
            total, k = total - .5**k*(s.after != goal), k + 1
            if s.over or s.after == goal or k == ring.n_step or i + k == len(log): break
        assert (b.reward[x], b.discount[x], b.next_obs.observation[x, 0]) == (total, .5**k*(not (s.fell or s.after == goal)), s.after)
    return fresh


def rolled(n, size, n_step, p, mode, strategy, turns, per, seed, cuts, first, relabel=Hindsight):
    world = Logged(n, seed, mode, p)
    ring = Replay(max(size, 2*n), world, gamma=.5, n_step=n_step, seed=seed, relabel=relabel(world, seed, strategy), sampler=Prioritised(seed) if first else None)
    c, rng = Collector(world, seed), np.random.default_rng(seed)
    for turn in range(turns):
        ring.begin()
        c.collect(Idle(), ring, per)
        if turn in cuts:
            ring.cut(c.obs)
            for log in world.log: log[-1].over = True
            c.obs = world.reset()
        if first and ring.ready:
            b = ring.sample(8)
            ring.update(b.row, torch.from_numpy(rng.normal(size=8).astype(np.float32)))
    ring.close(c.obs)
    return world, ring


PATTERNS = dict(n=st.integers(1, 3), size=st.integers(6, 50), n_step=st.integers(1, 5), p=st.sampled_from([0., .1, .4, 1.]), mode=st.sampled_from(['same', 'next']),
                strategy=st.sampled_from(['future', 'final', 'episode']), turns=st.integers(1, 25), per=st.integers(1, 4), seed=st.integers(0, 10**6),
                cuts=st.sets(st.integers(0, 25), max_size=3), first=st.booleans())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(**PATTERNS)
def test_every_exchange_is_what_would_have_happened(n, size, n_step, p, mode, strategy, turns, per, seed, cuts, first):
    "Windows, goals, falls, reset rows, cuts, the ring's seam and priorities, all at once"
    world, ring = rolled(n, size, n_step, p, mode, strategy, turns, per, seed, cuts, first)
    if ring.ready: by_the_log(world, ring, strategy, ring.sample(150, .5).numpy())


ONE = dict(n=2, size=40, n_step=3, p=.3, mode='next', strategy='future', turns=25, per=3, seed=1, cuts={7}, first=True)


class Immortal(Hindsight):
    "An exchanged goal lifts every end, a fall too"
    def __call__(self, w, reward, term): return super().__call__(w, reward, term & False)

class OldEnds(Hindsight):
    "Ends are ends, also that of a goal that nobody has any more"
    def __call__(self, w, reward, term):
        goal, reward, now = super().__call__(w, reward, term)
        return goal, reward, now | term


@pytest.mark.parametrize('kind', [Hindsight, Immortal, OldEnds])
def test_falls_stay_and_goals_go(kind):
    world, ring = rolled(**ONE | dict(strategy='episode'), relabel=kind)
    b = ring.sample(2000, .5).numpy()
    if kind is Hindsight: assert by_the_log(world, ring, 'episode', b) > 100
    else:
        with pytest.raises(AssertionError): by_the_log(world, ring, 'episode', b)


@pytest.mark.parametrize('k, strategy', [(0., 'episode'), (4., 'future')])
def test_a_batch_without_an_exchange(k, strategy):
    "No episode has ended yet, or no goal is to be exchanged"
    ring, _ = lived(strategy, turns=25 if k == 0 else 1, per=1, k=k)
    assert (ring.sample(20).obs.desired_goal == -1).all()


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
