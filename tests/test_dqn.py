"""The value learners against the equations written down once more, in numpy and step by step; what they count; action masks; exact restarts; and the
famous mistakes, planted."""
import copy
import inspect

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlnb.agents import explore
from rlnb.agents.c51 import C51, project
from rlnb.agents.dqn import DQN
from rlnb.agents.explore import masked
from rlnb.agents.pqn import PQN
from rlnb.agents.rainbow import Rainbow
from rlnb.agents.rnd import RND
from rlnb.core.batch import Batch
from rlnb.envs.base import TensorEnv
from rlnb.envs.classic import CartPole
from rlnb.envs.goal import BitFlip
from rlnb.train.trainer import Trainer

cart, three = spaces.Box(-1, 1, (4,)), spaces.Discrete(3)


def batch(n=16, seed=0, masks=False):
    g = np.random.default_rng(seed)
    obs = lambda: torch.from_numpy(g.normal(size=(n, 4)).astype(np.float32))
    see = lambda: Batch(x=obs(), action_mask=torch.from_numpy(np.stack([g.permutation([1, 1, 0]) for _ in range(n)]))) if masks else obs()
    return Batch(obs=see(), act=torch.from_numpy(g.integers(3, size=n)), reward=torch.from_numpy(g.normal(size=n).astype(np.float32)), next_obs=see(),
                 discount=torch.from_numpy((.9*(g.random(n) > .3)).astype(np.float32)), weight=torch.from_numpy(g.random(n).astype(np.float32)))


def nets(agent, seed=1):
    "Two networks that differ"
    g = torch.manual_seed(seed)
    for flat in (agent.opts['q'], agent.slow): flat.vec.copy_(torch.randn(flat.vec.shape, generator=g)*.4)
    return agent


def q_of(net, obs, dueling):
    "Q(s, ·), one row at a time"
    x = {k: torch.as_tensor(v) for k, v in obs.items()} if isinstance(obs, dict) else obs
    out = net(x).detach().numpy().astype(np.float64)
    return np.stack([r[0] + r[1:] - r[1:].mean() for r in out]) if dueling else out


def book(agent, b, target=None, online=None):
    "Loss and errors of a batch, from the papers"
    c, mask = agent.cfg, b.next_obs.get('action_mask') if isinstance(b.next_obs, dict) else None
    q, after, own = q_of(agent.q, b.obs, c.dueling), q_of(target or agent.target, b.next_obs, c.dueling), q_of(online or agent.q, b.next_obs, c.dueling)
    errs = []
    for i in range(len(b.act)):
        allowed = [a for a in range(3) if mask is None or mask[i, a]]
        best = max(allowed, key=lambda a: (own if c.double else after)[i, a])
        errs.append(q[i, b.act[i]] - (b.reward[i] + b.discount[i]*after[i, best]).item())
    errs = np.array(errs)
    return (b.weight.numpy()*np.where(abs(errs) <= 1, errs**2/2, abs(errs) - .5)).mean(), errs


@pytest.mark.parametrize('masks', [False, True])
@pytest.mark.parametrize('dueling', [False, True])
@pytest.mark.parametrize('double', [False, True])
def test_loss_by_the_book(double, dueling, masks):
    b = batch(masks=masks)
    space = spaces.Dict(x=cart, action_mask=spaces.MultiBinary(3)) if masks else cart
    agent = nets(DQN(space, three, DQN.config(double=double, dueling=dueling, hidden=(8,))))
    value, info = agent.loss(b)
    right, errs = book(agent, b)
    np.testing.assert_allclose(value.item(), right, rtol=1e-5)
    np.testing.assert_allclose(info[4:].numpy(), errs, atol=1e-5)


def test_gradient_reaches_only_the_online_network():
    agent = nets(DQN(cart, three, DQN.config(double=True)))
    before = agent.slow.vec.clone()
    agent.step(batch(), 0.)
    assert torch.equal(agent.slow.vec, before) and not agent.slow.grad.any() and agent.opts['q'].grad.any()


def brute_projection(p, values, v_min, v_max):
    m = p.shape[1]
    out, z = np.zeros(p.shape), np.linspace(v_min, v_max, m)
    for r in range(len(p)):
        for j in range(m):
            v = min(max(values[r, j], v_min), v_max)
            for i in range(m): out[r, i] += p[r, j]*max(0., 1 - abs(v - z[i])/(z[1] - z[0]))
    return out


@pytest.mark.parametrize('seed', range(4))
def test_projection_by_brute_force(seed):
    g = np.random.default_rng(seed)
    p = g.dirichlet(np.ones(7), 5).astype(np.float32)
    values = np.where(g.random((5, 7)) < .4, g.integers(-3, 4, (5, 7)), g.normal(0, 3, (5, 7))).astype(np.float32)     # many lie exactly on a value
    np.testing.assert_allclose(project(torch.from_numpy(p), torch.from_numpy(values), -3., 3.).numpy(), brute_projection(p, values, -3., 3.), atol=1e-5)


def test_planted_floor_and_ceiling():
    "The projection that loses what lies exactly on a value"
    def slip(p, values, v_min, v_max):
        b = (values.clamp(v_min, v_max) - v_min)*((p.shape[1] - 1)/(v_max - v_min))
        low, up = b.floor(), b.ceil()
        return torch.zeros_like(p).scatter_add(1, low.long(), p*(up - b)).scatter_add(1, up.long(), p*(b - low))
    p, values = torch.full((1, 3), 1/3), torch.tensor([[0., .5, 2.]])
    assert not np.allclose(slip(p, values, 0., 2.).numpy(), brute_projection(p.numpy(), values.numpy(), 0., 2.))


def fresh(kind, worlds, /, **cfg):
    env = CartPole(worlds)
    small = dict(hidden=(8,), batch_size=8, learning_starts=64, buffer_size=500) if kind is not PQN else dict(hidden=(8,), n_steps=8, minibatch=8)
    return Trainer(kind(env.obs_space, env.act_space, kind.config.from_dict(small | cfg), 1), env, seed=1)


def check_updates(kind, worlds, every, updates):
    "In steps of single worlds; so is what comes before"
    t = fresh(kind, worlds, train_every=every, updates=updates)
    while t.step < 1000: t.one_iter()
    lived = t.step - 64
    assert abs(t.agent.count - lived*updates/every) <= max(worlds, every)*updates/every + 1


@pytest.mark.parametrize('worlds', [1, 3, 4, 16])
@pytest.mark.parametrize('every,updates', [(4, 1), (4, 3), (64, 8)])
def test_updates_are_counted_in_steps_of_single_worlds(worlds, every, updates): check_updates(DQN, worlds, every, updates)


def check_target(kind, every):
    t, copies = fresh(kind, 4, target_every=every, train_every=4, updates=2), []
    lerp = t.agent.slow.lerp_
    t.agent.slow.lerp_ = lambda other, tau: (copies.append(t.agent.count + 1), lerp(other, tau))
    while t.step < 400: t.one_iter()
    assert copies == list(range(every, t.agent.count + 1, every))


@pytest.mark.parametrize('every', [1, 7])
def test_the_target_is_moved_by_gradient_steps(every): check_target(DQN, every)


def test_nothing_is_greedy_before_anything_was_learned_and_all_is_in_evaluation(): check_greedy(DQN)


def check_greedy(kind):
    agent = nets(kind(cart, three))
    obs = np.zeros((3000, 4), np.float32)
    assert set(agent.act(obs, True, 1.).act) == {0, 1, 2}
    assert len(set(agent.act(obs, False, 0.).act)) == 1
    agent.count = 1
    share = np.mean(agent.act(obs, True, 1.).act == agent.act(obs[:1], False).act[0])
    assert abs(share - (1 - .05*2/3)) < .02


@pytest.mark.parametrize('kind, noisy', [(DQN, None), (C51, None), (RND, None), (Rainbow, False), (Rainbow, True), (PQN, None)])
def test_the_part_of_random_actions_is_a_metric(kind, noisy):
    more = dict(n_steps=4) if kind is PQN else dict(learning_starts=8, train_every=4)
    cfg = kind.config.from_dict(dict(hidden=(8,), eps_end=.1, eps_fraction=.5, **more) | ({} if noisy is None else dict(noisy=noisy)))
    seen, world = {}, CartPole(2)
    t = Trainer(kind(world.obs_space, world.act_space, cfg), world, horizon=80)
    while t.step < 80:
        t.one_iter()
        if 'eps' in t.metrics: seen[t.step] = t.metrics['eps']
    right = {s: 0. if noisy else max(1 - .9*p/.5, .1) for s in seen if (p := (s - t.agent.collect_steps*2)/80) >= 0}
    assert len(seen) > 5 and seen == pytest.approx(right)


@pytest.mark.parametrize('kind', [DQN, C51, Rainbow, PQN])
def test_masks_hold_in_acting(kind):
    space = spaces.Dict(x=cart, action_mask=spaces.MultiBinary(3))
    agent = kind(space, three, kind.config(hidden=(8,)))
    g = np.random.default_rng(0)
    obs = Batch(x=g.normal(size=(500, 4)).astype(np.float32), action_mask=np.stack([g.permutation([1, 0, 0]) if g.random() < .5 else g.permutation([1, 1, 0]) for _ in range(500)]))
    for random in (True, False):
        for count in (0, 1):
            agent.count = count
            act = agent.act(obs, random, .5).act
            assert obs.action_mask[np.arange(500), act].all()
    assert np.isneginf(masked(np.zeros((500, 3)), obs)).sum() == (obs.action_mask == 0).sum()
    over = Batch(action_mask=np.zeros((2, 3), np.int64))                      # where an episode has ended nothing is allowed: 0 times −∞ is no number
    assert np.isfinite(masked(np.zeros((2, 3)), over)).all() and torch.isfinite(masked(torch.zeros(2, 3), over.map(torch.from_numpy))).all()


def digest(t): return list(flat(t.state_dict()))
def flat(d, path=''):
    if isinstance(d, dict):
        for k, v in d.items(): yield from flat(v, f'{path}.{k}')
    elif isinstance(d, (list, tuple)):
        for i, v in enumerate(d): yield from flat(v, f'{path}.{i}')
    else: yield path, np.asarray(d).tobytes() if not isinstance(d, str) else d


SETTINGS = {'dqn': (DQN, {}), 'dqn lasting': (DQN, dict(persist=.9)), 'dqn whole': (DQN, dict(double=True, dueling=True, n_step=3, per=True, tau=.1, target_every=1, lr='linear(0.01, 0)')), 'c51': (C51, dict(double=True, per=True)),
            'qr': (C51, dict(kind='quantile', atoms=8)), 'rainbow': (Rainbow, dict(atoms=11)), 'rnd': (RND, {}), 'pqn': (PQN, {})}


@pytest.mark.parametrize('polls', [37, 40])
@pytest.mark.parametrize('name', SETTINGS)
def test_interrupted_is_uninterrupted(name, polls):
    "Stopped inside a turn and between two; the rows saved apart"
    kind, cfg = SETTINGS[name]
    whole, first, second = fresh(kind, 2, **cfg), fresh(kind, 2, **cfg), fresh(kind, 2, **cfg)
    def go(t, n):
        count = iter(range(10**9))
        t.collector.stop = lambda: next(count) >= n
        t.horizon = 400
        return t.fit(10**6)
    go(whole, 150)
    go(first, polls)
    state = copy.deepcopy(first.state_dict())
    if kind is not PQN: state['buffer'] = copy.deepcopy(first.buffer.state_dict(rows=False))
    rows, a = first.buffer.rows(first.buffer.kept, first.buffer.written), first.buffer.kept
    go(second, 11)
    second.load_state_dict(state)
    second.buffer.put(a, rows)
    go(second, 150 - polls)
    a, b = digest(whole), digest(second)
    assert len(a) == len(b) > 50 and not [x[0] for x, y in zip(a, b) if x != y]


# ---- random actions that last
def check_lasting():
    "ε of all steps are random, in runs of 1/(1 − ρ) steps; none crosses a beginning; what is forbidden is not gone on with"
    agent = DQN(cart, three, DQN.config(persist=.8), 1)
    agent.judge = lambda obs: np.tile(np.array([1., 0., 0.]), (20_000, 1))
    (held,), obs, acts = agent.initial_state(20_000), np.zeros((20_000, 4), np.float32), []
    for t in range(40):
        if t == 30: held[:10_000] = 0
        acts.append(explore.explored(agent, obs, .4, held).copy())
    a = np.stack(acts)
    assert abs((a[20:30] > 0).mean() - .4*2/3) < .01
    start = .4*.2/(1 - .4*.8)
    go_on = (a[21:30] == a[20:29])[a[20:29] == 2].mean()
    assert abs(go_on - (.8 + .2*start/3)) < .02
    assert abs((a[30] == a[29])[:10_000][a[29, :10_000] == 2].mean() - start/3) < .03
    mask = np.tile([1, 0, 1], (20_000, 1))
    was = held.copy()
    after = explore.explored(agent, Batch(x=obs, action_mask=mask), .4, held)
    assert (after != 1).all() and (after == 2)[was == 3].mean() > .75
    agent.count = 1
    assert agent.act(obs, False, 0., held).act.max() == 0 and DQN(cart, three).initial_state(3) == ()


def test_random_actions_last(): check_lasting()


@pytest.mark.parametrize('name, old, new', [('explored', 'eps*(1 - rho)/(1 - eps*rho)', 'eps'), ('lasted', '(out + 1)*random', 'out + 1'), ('lasted', '(held > 0) & ', ''),
                                            ('lasted', 'on &= ', 'on & '), ('lasted', 'held[...] =', 'held =')])
def test_planted_lasting(name, old, new, monkeypatch):
    src, place = inspect.getsource(getattr(explore, name)), vars(explore)
    assert old in src
    was = place[name]
    monkeypatch.setattr(explore, name, was)                 # put back in the end
    exec(src.replace(old, new), place)
    with pytest.raises((AssertionError, IndexError)): check_lasting()


# ---- planted
class TargetChooses(DQN):
    "Double Q-learning whose target network chooses, too"
    def loss(self, b):
        was, self.cfg = self.cfg, self.cfg.override(dict(double=False))
        try: return DQN.loss(self, b)
        finally: self.cfg = was

class DoneIsDropped(DQN):
    def loss(self, b): return DQN.loss(self, Batch(b, discount=torch.full_like(b.discount, .9)))

class Square(DQN):
    def loss(self, b):
        _, info = DQN.loss(self, b)
        return (b.weight*info[4:].square()/2).mean(), info

class Unweighted(DQN):
    def loss(self, b): return DQN.loss(self, Batch(b, weight=torch.ones_like(b.weight)))

class OnlineJudges(DQN):
    def loss(self, b):
        was = self.target
        self._modules['target'] = self.q
        try: return DQN.loss(self, b)
        finally: self._modules['target'] = was


@pytest.mark.parametrize('wrong', [TargetChooses, DoneIsDropped, Square, Unweighted, OnlineJudges], ids=lambda k: k.__name__)
def test_planted_loss(wrong):
    agent, b = nets(wrong(cart, three, DQN.config(double=True, hidden=(8,)))), batch(64)
    right, _ = book(agent, b)
    assert abs(agent.loss(b)[0].item() - right) > 1e-4


class ByVectorSteps(DQN):
    "Updates that are counted in steps of all worlds together"
    def learn(self, buffer, progress):
        buffer.fresh = buffer.t
        return DQN.learn(self, buffer, progress)

class StartsByVectorSteps(DQN):
    "A warm-up that is as many times longer as there are worlds"
    def make_buffer(self, env):
        buffer = DQN.make_buffer(self, env)
        buffer.starts *= env.num_envs
        return buffer

class TargetByLiving(DQN):
    "A target that moves by environment steps: once an update phase, whatever that holds"
    def step(self, b, progress):
        was = self.count
        self.count = was*2 + 1
        try: return DQN.step(self, b, progress)
        finally: self.count = was

class RandomInEvaluation(DQN):
    def act(self, obs, explore=True, progress=0., *memory): return DQN.act(self, obs, True, progress, *memory)


@pytest.mark.parametrize('check', [lambda: check_updates(ByVectorSteps, 4, 4, 3), lambda: check_updates(StartsByVectorSteps, 16, 4, 1),
                                   lambda: check_target(TargetByLiving, 7), lambda: check_greedy(RandomInEvaluation)],
                         ids=['ByVectorSteps', 'StartsByVectorSteps', 'TargetByLiving', 'RandomInEvaluation'])
def test_planted_counting(check):
    with pytest.raises(AssertionError): check()


@pytest.mark.parametrize('wrong', [dict(horizon=0), dict(horizon=200), dict(step=0)], ids=['no horizon', 'the rest as a horizon', 'no counter'])
def test_planted_schedule_that_begins_anew(wrong):
    "An exploration that starts from 1 again after a resume ends elsewhere; with the counters whole it does not"
    def end(change):
        t = fresh(DQN, 2, eps_fraction=.95, hidden=(8,))
        t.horizon = 400
        while t.step < 200: t.one_iter()
        state, other = copy.deepcopy(t.state_dict()), fresh(DQN, 2, eps_fraction=.95, hidden=(8,))
        if 'step' in change: state['collector']['steps'] = 0
        other.load_state_dict(state | change)
        for _ in range(40): other.one_iter()
        return other.agent.opts['q'].vec
    right = end({})
    assert torch.equal(right, end({})) and not torch.equal(right, end(wrong))


class Endless(TensorEnv):
    "Pays 1 a step, for ever; looked at for ten steps at a time"
    obs_space, act_space, max_steps = spaces.Box(0, 1, (1,)), spaces.Discrete(2), 10
    def start(self, n, rows): return np.ones((1, n), np.float32)
    def observe(self, s): return s.T
    def dynamics(self, s, act): return s, np.ones(self.num_envs, np.float32), np.zeros(self.num_envs, bool)


@pytest.mark.parametrize('kind,cfg', [(DQN, dict(n_step=3)), (C51, dict(v_max=20.)), (C51, dict(kind='quantile', atoms=5)), (Rainbow, dict(v_max=20., sigma=.1)), (PQN, dict(lam=.7))],
                         ids=['dqn', 'c51', 'qr', 'rainbow', 'pqn'])
def test_a_time_limit_is_no_end(kind, cfg):
    "1/(1 − γ) = 5 exactly"
    env = Endless(4)
    common = dict(gamma=.8, hidden=(8,), lr='linear(0.02, 0)') | (dict(n_steps=10, minibatch=8) if kind is PQN else dict(learning_starts=40, train_every=4, updates=1, target_every=10, batch_size=16))
    t = Trainer(kind(env.obs_space, env.act_space, kind.config.from_dict(common | cfg), 0), env).fit(4000)
    assert abs(float(t.agent.value(np.ones((1, 1), np.float32))[0]) - 5) < .3


def test_hindsight_and_priorities_together_run():
    env = BitFlip(4, bits=4)
    t = Trainer(DQN(env.obs_space, env.act_space, DQN.config(her='future', per=True, n_step=2, learning_starts=100, hidden=(8,), batch_size=8)), env).fit(600)
    assert t.agent.count > 50 and t.buffer.relabel.behind.any()


class Lottery(TensorEnv):
    "A corridor into a room of ten lotteries, each worth nothing on average"
    obs_space, act_space, max_steps = spaces.Box(0, 1, (2,)), spaces.Discrete(10), 10
    def start(self, n, rows): return np.zeros(n, np.int64)
    def observe(self, s): return np.eye(2, dtype=np.float32)[s.clip(0, 1)]
    def dynamics(self, s, act): return s + 1, np.where(s == 1, self.rng.standard_normal(self.num_envs, np.float32), 0).astype(np.float32), s == 1


def hope(double, seed):
    "What is expected in the corridor, mean over late moments; the truth is 0"
    cfg = DQN.config(double=double, hidden=(32,), lr=1e-2, gamma=1., batch_size=16, buffer_size=100, learning_starts=64, train_every=8, target_every=200, eps_end=1.)
    t, seen = Trainer(DQN(Lottery.obs_space, Lottery.act_space, cfg, seed), Lottery(8), seed=seed), []
    for k in range(8): seen.append(t.fit(2000 + 250*k).agent.values(np.eye(2, dtype=np.float32)[:1]).mean())
    return np.mean(seen)


def test_double_hopes_for_less_where_there_is_nothing_to_hope():
    plain, double = (np.array([hope(d, s) for s in range(4)]) for d in (False, True))
    assert plain.min() > .1 and (double < plain).all() and double.mean() < .6*plain.mean()
