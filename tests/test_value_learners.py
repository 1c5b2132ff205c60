"""C51, QR-DQN, Rainbow, RND and PQN beside their equations, written down a second time, row by row and in float64; the famous mistakes, planted one by
one, turn a check red. (DQN's are in test_dqn.)"""
import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_dqn import batch, brute_projection, nets
from test_off_policy_continuous import mutant
from test_planted_bugs import Script

from rlnb.agents.c51 import C51
from rlnb.agents.noisy import layers
from rlnb.agents.pqn import PQN
from rlnb.agents.rainbow import Rainbow
from rlnb.agents.rnd import RND, fresh
from rlnb.buffers.collect import Collector
from rlnb.core.batch import Batch
from rlnb.envs.classic import CartPole
from rlnb.train.trainer import Trainer

SEE, THREE = spaces.Box(-1, 1, (4,)), spaces.Discrete(3)
MASKED = spaces.Dict(x=SEE, action_mask=spaces.MultiBinary(3))


def softmax(x): return np.exp(x - x.max(-1, keepdims=True))/np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def outputs(agent, net, obs) -> np.ndarray:
    "(B, 3, m): value and advantages joined, number by number"
    dueling, out = getattr(agent.cfg, 'dueling', False), net(obs).detach().double().numpy()
    out = out.reshape(len(out), 3 + dueling, -1)
    return np.stack([r[:1] + r[1:] - sum(r[1:])/3 for r in out]) if dueling else out


def huber(d): return d*d/2 if abs(d) <= 1 else abs(d) - .5


def book(agent, b) -> tuple[float, np.ndarray]:
    "Loss and errors, one transition at a time"
    c = agent.cfg
    how = getattr(c, 'kind', 'categorical' if getattr(c, 'distributional', False) else 'scalar')
    z = np.linspace(c.v_min, c.v_max, c.atoms)
    mean = (lambda o: softmax(o) @ z) if how == 'categorical' else lambda o: o.mean(-1)
    own, after, mine = outputs(agent, agent.q, b.obs), outputs(agent, agent.target, b.next_obs), outputs(agent, agent.q, b.next_obs)
    total, errs = 0., []
    for i, a in enumerate(b.act.tolist()):
        allowed = [k for k in range(3) if not isinstance(b.next_obs, dict) or b.next_obs['action_mask'][i, k]]
        best = max(allowed, key=lambda k: mean((mine if c.double else after)[i, k]))
        r, d, w = b.reward[i].item(), b.discount[i].item(), b.weight[i].item()
        if how == 'categorical':
            p = brute_projection(softmax(after[i, best])[None], (r + d*z)[None], c.v_min, c.v_max)[0]
            each = err = -(p*np.log(softmax(own[i, a]))).sum()
        elif how == 'quantile':
            theta, y = own[i, a], r + d*after[i, best]
            each = err = sum(np.mean([abs((j + .5)/len(theta) - (s < t))*huber(s - t) for s in y]) for j, t in enumerate(theta))
        else: each, err = huber(own[i, a, 0] - r - d*after[i, best, 0]), own[i, a, 0] - r - d*after[i, best, 0]
        total, errs = total + w*each/len(b.act), [*errs, err]
    return total, np.array(errs)


def agree(kind, masks=False, /, **cfg):
    "Loss and errors are the book's; the gradient reaches the online network alone"
    agent = nets(kind(MASKED if masks else SEE, THREE, kind.config.from_dict(dict(hidden=(8,), v_min=-4., v_max=4.) | cfg), 1))
    b = batch(masks=masks)
    value, info = agent.loss(b)
    right, errs = book(agent, b)
    np.testing.assert_allclose(value.item(), right, rtol=2e-5)
    np.testing.assert_allclose(info[4:].numpy(), errs, rtol=1e-4, atol=2e-5)
    value.backward()
    assert agent.opts['q'].grad.abs().sum() > 1e-3 and not agent.slow.grad.any()


def check_c51(kind):
    for double, masks in itertools.product((False, True), repeat=2): agree(kind, masks, atoms=7, double=double)

def check_qr(kind):
    for double, masks in itertools.product((False, True), repeat=2): agree(kind, masks, kind='quantile', atoms=5, double=double)

def check_rainbow(kind):
    "Every combination of the switches that the loss knows; noise off, for the book has none"
    for double, dueling, distributional in itertools.product((False, True), repeat=3):
        agree(kind, double != dueling, atoms=7, double=double, dueling=dueling, distributional=distributional, noisy=False)


def check_noise(kind):
    "New noise in both networks for each batch, and another one in each; none in an evaluation, none in a value; σ has a gradient"
    agent = kind(SEE, THREE, kind.config(hidden=(8,)), 1)
    seen = []
    for _ in range(2):
        before = agent.opts['q'].vec.clone()
        agent.step(batch(), 0.)
        agent.count += 1
        seen.append([torch.cat([x for m in layers(net) for x in (m.eps_in, m.eps_out)]).clone() for net in (agent.q, agent.target)])
        assert all(m.w_sigma.grad.any() for m in layers(agent.q)) and (agent.opts['q'].vec != before).any()
    noise = [x for pair in seen for x in pair]
    assert all(x.all() for x in noise) and all((x != y).any() for x, y in itertools.combinations(noise, 2))
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    greedy = [agent.act(obs, explore=False).act for _ in range(4)]
    assert all((g == greedy[0]).all() for g in greedy) and not any(m.eps_in.any() for m in layers(agent.q))
    explored = [tuple(agent.act(obs).act) for _ in range(20)]
    assert len(set(explored)) > 1
    assert (agent.value(obs) == agent.value(obs)).all()


def check_curious(kind):
    "Paid for the successor's novelty, in deviations, as it is now; the guess sees each fresh row once, the riddle never moves"
    world = Script()
    agent = kind(world.obs_space, world.act_space, kind.config(hidden=(8,), bonus_hidden=(8,), bonus='linear(2, 0)', learning_starts=40, batch_size=8), 1)
    paid, taught, step = [], [], agent.update
    agent.together = lambda f, b, lr: paid.append(b.reward.clone()) or torch.zeros(4 + len(b.reward))
    agent.update = lambda opt, loss, b, lr, **kw: (taught.append(b.next_obs.clone()), step(opt, loss, b, lr, **kw))[1]
    buffer, c = agent.make_buffer(world), Collector(world)
    riddle = [p.clone() for p in agent.riddle.parameters()]
    for _ in range(12):
        buffer.begin()
        c.collect(agent, buffer, 4)
        if not buffer.ready: continue
        was = agent.norms['bonus'].n
        agent.learn(buffer, .25)
        new = np.concatenate([[r['after'][e] for e in range(5)] for r in world.log[-4:]])
        assert len(fresh(buffer)) == 20 and agent.norms['bonus'].n == was + 20 and len(taught) == 1
        np.testing.assert_allclose(taught.pop().numpy(), new, rtol=1e-6)
    b = buffer.sample(16)
    paid.clear()
    agent.step(b, .25)
    miss = (agent.guess(b.next_obs) - agent.riddle(b.next_obs)).square().sum(1).detach()
    np.testing.assert_allclose(paid[0], b.reward + 1.5*miss/float(agent.norms['bonus'].std), rtol=1e-4)
    assert all(torch.equal(x, y) for x, y in zip(riddle, agent.riddle.parameters()))


def check_lambda(kind):
    "Peng's Q(λ), followed forward from each step: cut at ends, with the true successor's value at time limits and at the rollout's end"
    for mode, lam in itertools.product(('same', 'next'), (0., .7, 1.)):
        world = Script(mode=mode)
        agent = kind(world.obs_space, world.act_space, kind.config(n_steps=11, gamma=.9, lam=lam, hidden=(8,)), 1)
        roll = agent.make_buffer(world)
        Collector(world).collect(agent, roll, 11)
        found, best = agent.returns(roll, roll.values(agent.value)[1]), lambda o, agent=agent: agent.q(torch.from_numpy(o)).amax(-1).detach().double().numpy()
        for t, e in np.ndindex(11, 5):
            if not world.log[t]['valid'][e]: continue
            k = t
            while not (world.log[k]['term'][e] or world.log[k]['trunc'][e] or k == 10): k += 1
            g = None
            for s in range(k, t - 1, -1):
                r = world.log[s]
                v = best(r['after'])[e]
                ahead = v if g is None else lam*g + (1 - lam)*v
                g = r['reward'][e] + .9*(0. if r['term'][e] else ahead)
            np.testing.assert_allclose(found[t, e], g, rtol=1e-4, atol=1e-5)


def check_half_square(kind):
    agent = kind(SEE, THREE, kind.config(hidden=(8,)), 1)
    b = batch()
    rows = Batch(obs=b.obs, act=b.act, ret=b.reward)
    q = agent.q(b.obs).detach().numpy()[np.arange(16), b.act.numpy()]
    err = q - b.reward.numpy()
    value, info = agent.loss(rows)
    np.testing.assert_allclose([value.item(), *info.tolist()], [(err**2).mean()/2, (err**2).mean()/2, q.mean(), b.reward.mean(), abs(err).mean()], rtol=1e-5)


RIGHT = [(C51, check_c51), (C51, check_qr), (Rainbow, check_rainbow), (Rainbow, check_noise), (RND, check_curious), (PQN, check_lambda), (PQN, check_half_square)]


@pytest.mark.parametrize('kind, check', RIGHT, ids=lambda x: x.__name__)
def test_right(kind, check): check(kind)


PLANTED = [
    (C51, check_c51, 'loss', 'self.mean(judge)', 'self.mean(after)'),                 # the target network chooses, too
    (C51, check_c51, 'loss', 'if c.double else after', 'if not c.double else after'),
    (C51, check_c51, 'loss', 'self.target(b.next_obs)', 'self.q(b.next_obs)'),
    (C51, check_c51, 'loss', 'b.discount[:, None]*', '.9*'),                          # every end is a time limit
    (C51, check_c51, 'loss', 'b.reward[:, None] + ', ''),
    (C51, check_c51, 'loss', 'return (b.weight*err)', 'return err'),                  # no importance weights
    (C51, check_c51, 'loss', 'masked(self.mean(judge), b.next_obs)', 'self.mean(judge)'),
    (C51, check_c51, 'loss', '[rows, b.act]', '[rows, 0*b.act]'),
    (C51, check_c51, 'loss', 'after.softmax(1)', 'own.softmax(1)'),
    (C51, check_c51, 'loss', 'own.log_softmax(1)', 'own.log_softmax(0)'),
    (C51, check_c51, 'mean', 'out.softmax(-1) @ self.z', 'out @ self.z'),
    (C51, check_qr, 'loss', 'quantile_huber(own, values)', 'quantile_huber(values, own)'),
    (C51, check_qr, 'loss', 'b.discount[:, None]*', '.9*'),
    (C51, check_qr, 'loss', "self.z if c.kind == 'categorical' else after)", "self.z if c.kind == 'categorical' else after.mean(1, keepdim=True))"),      # a mean in place of a distribution
    (Rainbow, check_rainbow, 'loss', 'self.mean(judge)', 'self.mean(after)'),
    (Rainbow, check_rainbow, 'loss', 'self.outputs(self.target, b.next_obs)', 'self.outputs(self.q, b.next_obs)'),
    (Rainbow, check_rainbow, 'loss', 'b.discount[:, None]*self.z', '.9*self.z'),
    (Rainbow, check_rainbow, 'loss', 'b.discount*after', '.9*after'),
    (Rainbow, check_rainbow, 'loss', 'return (b.weight*each)', 'return each'),
    (Rainbow, check_rainbow, 'loss', 'masked(self.mean(judge), b.next_obs)', 'self.mean(judge)'),
    (Rainbow, check_rainbow, 'outputs', ' - out[:, 1:].mean(1, keepdim=True)', ''),   # advantages that are not centred
    (Rainbow, check_rainbow, 'outputs', '.mean(1, keepdim=True)', '.mean(2, keepdim=True)'),
    (Rainbow, check_noise, 'act', 'explore and not self.warm else None', 'True else None'),      # noise in an evaluation
    (Rainbow, check_noise, 'act', 'stir(self.rng if explore and not self.warm else None, self.q)', 'None'),
    (Rainbow, check_noise, 'step', 'stir(self.rng, self.q, self.target)', 'stir(self.rng, self.q)'),
    (Rainbow, check_noise, 'step', 'stir(self.rng, self.q, self.target)', 'self.count or stir(self.rng, self.q, self.target)'),      # once and for all
    (RND, check_curious, 'step', 'self.novelty(b.next_obs)', 'self.novelty(b.obs)'),  # paid for where it was, not for where it got
    (RND, check_curious, 'step', 'at(self.cfg.bonus, progress)', 'at(self.cfg.bonus, 0.)'),
    (RND, check_curious, 'novelty', "/max(float(self.norms['bonus'].std), 1e-8)", ''),
    (RND, check_curious, 'learn', "    self.norms['bonus'].update(err)\n", ''),
    (RND, check_curious, 'learn', 'fresh(buffer)', 'np.arange(20)'),                  # the same old rows again
    (PQN, check_lambda, 'returns', '~d.terminated', '~(d.terminated | d.truncated)'),
    (PQN, check_lambda, 'returns', 'd.terminated | d.truncated', 'd.terminated'),     # the trace runs on behind a time limit
    (PQN, check_lambda, 'returns', '_, after', 'after, _'),                           # V(s_t) in place of V of the successor
    (PQN, check_lambda, 'returns', 'c.lam', '1.'),
    (PQN, check_half_square, 'loss', 'err.square()/2', 'err.square()'),
    (PQN, check_half_square, 'loss', '.gather(1, b.act[:, None])[:, 0]', '.amax(1)'),
]


@pytest.mark.parametrize('kind, check, method, old, new', [pytest.param(*p, id=f'{p[0].__name__}.{p[2]}: {p[3]} → {p[4]}'[:90]) for p in PLANTED])
def test_planted(kind, check, method, old, new):
    with pytest.raises((AssertionError, RuntimeError)): check(mutant(kind, method, old, new))


def test_hopes_of_episodes_that_were_cut_off_are_dropped():
    "Worlds that begin anew between two rollouts begin with new hopes; what began before anyone looked is not judged"
    env = CartPole(2)
    t = Trainer(PQN(env.obs_space, env.act_space, PQN.config(n_steps=8, minibatch=16, hidden=(8,))), env, horizon=1000)
    t.one_iter()
    assert (t.agent.hopes[2] < 1).any()
    t.boundary(1)
    t.buffer.begin()
    t.collector.collect(t.agent, t.buffer, 8)
    v, after = t.buffer.values(t.agent.value)
    t.agent.bias(t.buffer, v, after)
    going = ~(t.buffer.np.terminated | t.buffer.np.truncated).any(0)
    np.testing.assert_allclose(t.agent.hopes[:, going], np.array([v[0], [sum(.99**i for i in range(8))]*2, [.99**8]*2])[:, going], rtol=1e-6)
    late = PQN(env.obs_space, env.act_space, t.agent.cfg)
    late.load_train_state({k: x for k, x in t.agent.train_state().items() if k != 'hopes'})
    t.buffer.ages = np.array([5, 0])
    t.buffer.np.terminated[3] = True
    found = late.bias(t.buffer, v, after)['bias']
    assert abs(found - (v[0, 1] - sum(.99**i for i in range(4)))) < 1e-5
