"""SAC, TD3, TQC, CrossQ and discrete SAC beside their equations, written down a second time; the famous mistakes, planted one by one, turn a check red; and an
interrupted run ends as an uninterrupted one. `python tests/test_off_policy_continuous.py first|second FOLDER` is what two processes do."""
import copy
import inspect
import math
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_planted_bugs import Arms, Script
from test_resume import flat, go

from rlnb.agents import continuous
from rlnb.agents.crossq import CrossQ
from rlnb.agents.sac import SAC
from rlnb.agents.sac_discrete import SACDiscrete
from rlnb.agents.td3 import TD3
from rlnb.agents.tqc import TQC
from rlnb.buffers.collect import Collector
from rlnb.core import heads
from rlnb.core.batch import Batch
from rlnb.core.errors import BadInput
from rlnb.envs.base import TensorEnv
from rlnb.envs.classic import CartPole, Pendulum
from rlnb.envs.goal import PointReach
from rlnb.envs.spaces import Unit
from rlnb.runs.ckpt import load_state, save_state
from rlnb.train.trainer import Trainer

SEE, DO, FEW = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
SLOPE = heads._log_slope
KINDS = {k.__name__: k for k in (SAC, TD3, TQC, CrossQ, SACDiscrete)}
SMALL = dict(hidden=(16, 16), learning_starts=20, batch_size=16, buffer_size=200)


def made(kind, seed=1, **cfg):
    "An agent whose slow copies, temperature and target entropy differ from where they began"
    more = dict(critic_hidden=(16,)) if issubclass(kind, CrossQ) else dict(quantiles=7) if issubclass(kind, TQC) else {}
    agent = kind(SEE, FEW if issubclass(kind, SACDiscrete) else DO, kind.config.from_dict(dict(hidden=(16, 16)) | more | cfg), seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in agent.parameters(): p.add_(.3*torch.randn(p.shape, generator=g))
        if hasattr(agent, 'log_alpha'): agent.log_alpha.fill_(math.log(.4))
    return agent


def batch(agent, n=12, seed=0) -> Batch:
    g = np.random.default_rng(seed)
    t = lambda *s: torch.from_numpy(g.standard_normal(s, np.float32))
    few = isinstance(agent.act_space, spaces.Discrete)
    b = Batch(obs=t(n, 3), act=torch.from_numpy(g.integers(3, size=n)) if few else t(n, 2).tanh(), reward=t(n), discount=.9*(t(n) < .5).float(), next_obs=t(n, 3),
              weight=torch.from_numpy(g.random(n, np.float32)), eps=1.5*t(2, n, 2))
    return Batch(b, wanted=torch.full((n,), .3)) if few else b


def close(a, b, tol: float = 2e-5) -> None: np.testing.assert_allclose(torch.as_tensor(a).detach().numpy(), torch.as_tensor(b).detach().numpy(), rtol=tol, atol=tol)


def grads(params) -> torch.Tensor: return torch.cat([p.grad.ravel() for p in params])


# ---- the equations, written down a second time, row by row and in float64
def draw(agent, s, eps):
    "a = tanh(μ + σε) and log π(a): the normal's density over the slope of tanh, component by component"
    out = agent.pi(s)
    mean, std = out[:, :2], out[:, 2:].clip(-20, 2).exp()
    u = (mean + std*eps).double()
    normal = torch.distributions.Normal(mean.double(), std.double()).log_prob(u)
    slope = math.log(4) - 2*u.abs() - 2*torch.log1p(torch.exp(-2*u.abs()))           # 1 - tanh² = 4 e^(-2|u|)/(1 + e^(-2|u|))²
    return u.tanh().float(), (normal - slope).sum(1).float()


def ask(net, s, a=None): return list(net(s if a is None else torch.cat([s, a], 1)))


def book_q(agent, b):
    "(loss, an error a row) of the critics"
    alpha = agent.log_alpha.exp().detach() if hasattr(agent, 'log_alpha') else None
    with torch.no_grad():
        if isinstance(agent, TD3):
            noise = torch.minimum(torch.maximum(.2*b.eps[0], torch.tensor(-.5)), torch.tensor(.5))
            a = torch.minimum(torch.maximum(agent.pi_slow(b.next_obs).tanh() + noise, torch.tensor(-1.)), torch.tensor(1.))
            v = torch.minimum(*ask(agent.q_slow, b.next_obs, a))[:, 0]
        elif isinstance(agent, SACDiscrete):
            p = agent.pi(b.next_obs).softmax(1)
            v = (p*(torch.minimum(*ask(agent.q_slow, b.next_obs)) - alpha*p.log())).sum(1)
        else:
            a, logp = draw(agent, b.next_obs, b.eps[1])
            if isinstance(agent, TQC):
                m = agent.cfg.quantiles
                y = []
                for i, z in enumerate(torch.cat(ask(agent.q_slow, b.next_obs, a), 1)):
                    left = sorted(z.tolist())[:2*m - 2*agent.cfg.drop]
                    y.append([b.reward[i].item() + b.discount[i].item()*(x - (alpha*logp[i]).item()) for x in left])
                y = torch.tensor(y)
            elif not isinstance(agent, CrossQ): v = torch.minimum(*ask(agent.q_slow, b.next_obs, a))[:, 0] - alpha*logp
    if isinstance(agent, TQC):
        z, total = ask(agent.q, b.obs, b.act), 0.
        for i in range(len(y)):
            for k in range(2):
                for j in range(m):
                    d = y[i] - z[k][i, j]
                    tau = (2*j + 1)/(2*m)
                    h = torch.nn.functional.huber_loss(d, torch.zeros_like(d), reduction='none')
                    total = total + b.weight[i]*(torch.where(d < 0, 1 - tau, tau)*h).mean()/(len(y)*2*m)
        return total, torch.stack([x.mean(1) for x in z]).mean(0) - y.mean(1)
    if isinstance(agent, CrossQ):
        both = ask(agent.q, torch.cat([b.obs, b.next_obs]), torch.cat([b.act, a]))
        n = len(b.act)
        v = torch.minimum(*[x[n:, 0] for x in both]).detach() - alpha*logp
        q = [x[:n, 0] for x in both]
    elif isinstance(agent, SACDiscrete): q = [x[torch.arange(len(x)), b.act] for x in ask(agent.q, b.obs)]
    else: q = [x[:, 0] for x in ask(agent.q, b.obs, b.act)]
    y = b.reward + b.discount*v
    half = 1. if isinstance(agent, TD3) else .5
    return sum(half*(b.weight*(x - y)**2).sum()/len(y) for x in q), sum(x - y for x in q)/2


def book_pi(agent, b):
    "What actor and temperature minimise"
    frozen = copy.deepcopy(agent.q).requires_grad_(False)
    if isinstance(agent, TD3): return -ask(frozen, b.obs, agent.pi(b.obs).tanh())[0].mean()
    alpha = agent.log_alpha.exp().detach()
    if isinstance(agent, SACDiscrete):
        p = agent.pi(b.obs).softmax(1)
        pi = (p*(alpha*p.log() - torch.minimum(*ask(frozen, b.obs)))).sum(1).mean()
        return pi + agent.log_alpha*(-(p*p.log()).sum(1).mean().detach() - .3)
    a, logp = draw(agent, b.obs, b.eps[0])
    q = ask(frozen, b.obs, a)
    q = (q[0].mean(1) + q[1].mean(1))/2 if isinstance(agent, TQC) else torch.minimum(*q)[:, 0]
    return (alpha*logp - q).mean() - agent.log_alpha*(logp.mean().detach() - 2)        # the target entropy of two components is -2


def check_q(kind):
    "Loss, errors and gradient of the critics"
    agent = made(kind)
    b = batch(agent)
    if isinstance(agent, CrossQ): agent.q.train()
    agent.opts['q'].zero()
    value, info = agent.q_loss(b)
    value.backward(inputs=agent.opts['q'].leaves)
    mine = agent.opts['q'].grad.clone()
    agent.opts['q'].zero()
    right, err = book_q(agent, b)
    right.backward(inputs=agent.opts['q'].leaves)
    close(value, right); close(info[-12:], err); close(mine, agent.opts['q'].grad, 1e-4)


def check_pi(kind):
    "Gradient of actor and temperature; where the log-deviation is out of bounds too"
    for shift in (0., 6.):
        agent = made(kind)
        with torch.no_grad(): agent.pi[-1].bias[-1] += shift
        b = batch(agent)
        opt = agent.opts['pi']
        opt.zero()
        agent.pi_loss(b)[0].backward(inputs=opt.leaves)
        mine = opt.grad.clone()
        opt.zero()
        book_pi(agent, b).backward(inputs=opt.leaves)
        assert opt.grad.norm() > .01
        close(mine, opt.grad, 1e-4)


def check_step(kind):
    "Who moves when, by whose gradient, and how far the slow copies follow"
    agent = made(kind, tau=.1) if kind is not CrossQ and not issubclass(kind, CrossQ) else made(kind)
    slow = {n: getattr(agent, n) for n in ('slow', 'slow_q', 'slow_pi') if hasattr(agent, n)}
    every = getattr(agent.cfg, 'actor_every', 1)
    for _ in range(2*every):
        q, pi = agent.opts['q'].vec.clone(), agent.opts['pi'].vec.clone()
        was = {n: f.vec.clone() for n, f in slow.items()}
        info, err = agent.step(Batch(batch(agent), row=np.arange(12)), 0.)
        agent.count += 1
        moves = agent.count % every == 0
        assert len(info) == len(agent.keys) and err.shape == (12,) and torch.isfinite(info).all()
        assert (agent.opts['q'].vec != q).any() and (agent.opts['pi'].vec != pi).any() == moves
        for n, f in slow.items():
            of = agent.opts['pi' if n == 'slow_pi' else 'q'].vec
            close(f.vec, was[n] + .1*(of - was[n]) if moves else was[n], 1e-6)
        assert not getattr(agent.q, 'training', False) or not isinstance(agent, CrossQ)


def check_other_gradients(kind):
    "The actor's step leaves the critics' gradient alone"
    agent = made(kind)
    agent.opts['q'].grad.fill_(7.)
    agent.update(agent.opts['pi'], agent.pi_loss, batch(agent), 1e-3)
    assert (agent.opts['q'].grad == 7).all()


def check_act(kind):
    "At random in every world until something was learned; then the middle, or around it; never outside"
    agent = made(kind)
    many = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32)
    few = isinstance(agent.act_space, spaces.Discrete)
    a = agent.act(many).act
    if few: np.testing.assert_allclose(np.bincount(a)/4000, [1/3]*3, atol=.04)
    else: assert abs(a.mean()) < .03 and abs(a.std() - 3**-.5) < .02 and np.abs(a).max() > .99
    agent.count = 1
    x = torch.from_numpy(many)
    out = agent.pi(x).detach()
    middle = out.argmax(1) if few else (out if isinstance(agent, TD3) else out[:, :2]).tanh()
    for _ in range(2): close(agent.act(many, explore=False).act, middle, 1e-5)
    a = agent.act(many).act
    if few: np.testing.assert_allclose(np.bincount(a)/4000, out.softmax(1).mean(0), atol=.04)
    else:
        assert np.abs(a).max() <= 1 and a.dtype == np.float32
        u = np.arctanh(a.astype(float).clip(-1 + 1e-9, 1 - 1e-9))
        if isinstance(agent, TD3): assert abs((a - middle.numpy())[np.abs(middle.numpy()) < .6].std() - .1) < .01
        else:
            near = np.abs(u) < 2
            z = ((u - out[:, :2].numpy())/out[:, 2:].clamp(-20, 2).exp().numpy())
            assert abs(z[near & (out[:, :2].abs().numpy() < .5) & (out[:, 2:].numpy() < -.3)].std() - 1) < .06


def check_memory(kind):
    "What is drawn from the memory is what the world said: true successors, no end at a time limit, actions as they were done"
    for mode in ('same', 'next'):
        world = (Script if issubclass(kind, SACDiscrete) else Arms)(mode=mode)
        agent = kind(world.obs_space, world.act_space, kind.config.from_dict(SMALL | dict(learning_starts=1000, gamma=.9)), 1)
        done, step = [], world.step
        world.step = lambda a: done.append(np.array(a)) or step(a)      # noqa: B023
        buffer, c = agent.make_buffer(world), Collector(world)
        buffer.begin()
        c.collect(agent, buffer, 12)
        log = [(t, e) for t in range(12) for e in range(5) if world.log[t]['valid'][e]]
        b = buffer.gather(np.array([t*5 + e for t, e in log]))
        for i, (t, e) in enumerate(log):
            r = world.log[t]
            close(b.obs[i], r['obs'][e]); close(b.next_obs[i], r['after'][e]); close(b.reward[i], r['reward'][e]); close(b.act[i], done[t][e])
            close(b.discount[i], 0. if r['term'][e] else .9)
        if not issubclass(kind, SACDiscrete): assert np.abs(b.act).max() <= 1


CHECKS = [check_q, check_pi, check_step, check_other_gradients, check_act, check_memory]


@pytest.mark.parametrize('kind', KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize('check', CHECKS, ids=lambda f: f.__name__)
def test_right(check, kind): check(kind)


# ---- and each mistake turns its check red
def mutant(kind, method: str, old: str, new: str):
    "The class with one method in which a piece of text was exchanged"
    home = next(c for c in kind.__mro__ if method in vars(c))
    src = textwrap.dedent(inspect.getsource(getattr(home, method))).split('\n', 1)
    src = src[1] if src[0].startswith('@patch') else '\n'.join(src)
    assert src.count(old) >= 1, f'{old!r} is not in {home.__name__}.{method}'
    place = dict(vars(sys.modules[home.__module__]))
    src = src.replace('super()', f'super({home.__name__}, self)')
    exec(src.replace(old, new), place)
    return type(kind.__name__, (kind,), {method: place[method]})


PLANTED = [
    (SAC, check_q, 'q_loss', 'amin(0)', 'amax(0)'),                                  # the target believes the larger one
    (SAC, check_q, 'q_loss', 'amin(0)', 'mean(0)'),
    (SAC, check_q, 'q_loss', ' - self.log_alpha.exp()*logp', ''),                    # no entropy in the target
    (SAC, check_q, 'q_loss', '- self.log_alpha.exp()*logp', '+ self.log_alpha.exp()*logp'),
    (SAC, check_q, 'q_loss', 'self.log_alpha.exp()', 'self.log_alpha'),
    (SAC, check_q, 'q_loss', 'b.discount*', '.9*'),                                  # every end is a time limit
    (SAC, check_q, 'q_loss', 'self.q_slow(', 'self.q('),
    (SAC, check_q, 'q_loss', 'self.policy(b.next_obs)', 'self.policy(b.obs)'),       # the next action, of the wrong state
    (SAC, check_q, 'q_loss', '[b.next_obs, a]', '[b.next_obs, b.act]'),              # a remembered action instead of the policy's
    (SAC, check_q, 'q_loss', 'b.weight*', ''),
    (SAC, check_pi, 'pi_loss', 'alpha*logp - ', '-'),
    (SAC, check_pi, 'pi_loss', 'self.log_alpha.exp().detach()', 'self.log_alpha.exp()'),   # the temperature follows the actor's loss
    (SAC, check_pi, 'pi_loss', '-self.log_alpha*', 'self.log_alpha*'),
    (SAC, check_pi, 'pi_loss', '+ self.target_entropy', '- self.target_entropy'),
    (SAC, check_pi, 'pi_loss', '-self.log_alpha*', '-self.log_alpha.exp()*'),
    (SAC, check_pi, 'pi_loss', 'self.opinion(b.obs, a)', 'self.opinion(b.obs, a.detach())'),
    (SAC, check_pi, 'opinion', 'amin(0)', 'amax(0)'),
    (SAC, check_pi, 'policy', 'squashed(self.pi(s))', 'squashed(self.pi(s).clamp(-20, 1))'),
    (SAC, check_step, 'both', 'self.cfg.tau', '1 - self.cfg.tau'),
    (SAC, check_step, 'both', "    self.slow.lerp_(self.opts['q'], self.cfg.tau)\n", ''),
    (SAC, check_act, 'act', 'self.rng if explore else None', 'self.rng'),            # noise in an evaluation
    (SAC, check_act, 'act', 'explore and self.warm', 'False'),
    (TD3, check_q, 'q_loss', 'amin(0)', 'amax(0)'),
    (TD3, check_q, 'q_loss', '.clamp(-c.noise_clip, c.noise_clip)', ''),
    (TD3, check_q, 'q_loss', ').clamp(-1, 1)', ')'),
    (TD3, check_q, 'q_loss', 'self.pi_slow(', 'self.pi('),
    (TD3, check_q, 'q_loss', 'self.q_slow(', 'self.q('),
    (TD3, check_q, 'q_loss', 'b.discount*', '.9*'),
    (TD3, check_q, 'q_loss', 'c.target_noise*b.eps[0]', '0*b.eps[0]'),
    (TD3, check_q, 'q_loss', '.tanh()', ''),
    (TD3, check_pi, 'pi_loss', '[0].mean()', '.amin(0).mean()'),                     # the actor climbs the smaller one
    (TD3, check_pi, 'pi_loss', '-self.q(', 'self.q('),
    (TD3, check_step, 'step', '(self.count + 1) % self.cfg.actor_every == 0', 'True'),
    (TD3, check_step, 'step', '(self.count + 1) % self.cfg.actor_every == 0', 'self.count % self.cfg.actor_every == 0'),
    (TD3, check_step, 'both', "    self.slow_pi.lerp_(self.opts['pi'], self.cfg.tau)\n", ''),
    (TD3, check_step, 'settle', 'return ', "self.slow_q.lerp_(self.opts['q'], self.cfg.tau); return "),      # the slow critics don't wait
    (TD3, check_act, 'act', '.clip(-1, 1)', ''),
    (TD3, check_act, 'act', 'explore and self.warm', 'False'),
    (TD3, check_act, 'act', 'if not explore: return', 'if False: return'),
    (TQC, check_q, 'q_loss', ':c.critics*(c.quantiles - c.drop)', ':'),              # nothing is left out
    (TQC, check_q, 'q_loss', ':c.critics*(c.quantiles - c.drop)', ':c.critics*c.quantiles - c.drop'),
    (TQC, check_q, 'q_loss', '.sort(1)', '.sort(1, descending=True)'),               # the unhappiest part is left out
    (TQC, check_q, 'q_loss', '.transpose(0, 1).flatten(1)', '.flatten(0, 1)[:24].reshape(12, 14)'),
    (TQC, check_q, 'q_loss', 'b.discount[:, None]*', '.9*'),
    (TQC, check_q, 'q_loss', '(self.log_alpha.exp()*logp)', '(0*logp)'),
    (TQC, check_pi, 'opinion', 'mean((0, 2))', 'amin(0).mean(1)'),
    (CrossQ, check_q, 'q_loss', 'then.detach()', 'then'),
    (CrossQ, check_q, 'q_loss', 'amin(0)', 'amax(0)'),
    (CrossQ, check_q, 'q_loss', 'b.discount*', '.9*'),
    (CrossQ, check_step, 'step', 'self.q.eval()', 'self.q.train()'),
    (CrossQ, check_step, 'step', '(self.count + 1) % self.cfg.actor_every == 0', 'True'),
    (SACDiscrete, check_q, 'q_loss', 'amin(0)', 'amax(0)'),
    (SACDiscrete, check_q, 'q_loss', 'pi.probs*', ''),
    (SACDiscrete, check_q, 'q_loss', 'b.discount*', '.9*'),
    (SACDiscrete, check_q, 'q_loss', '.gather(2, b.act[None, :, None].expand(2, -1, 1))[..., 0]', '.amax(-1)'),
    (SACDiscrete, check_pi, 'pi_loss', '.detach().amin(0)', '.detach().amax(0)'),
    (SACDiscrete, check_pi, 'pi_loss', '(entropy - b.wanted[0])', '(b.wanted[0] - entropy)'),
    (SACDiscrete, check_act, 'act', '*(not self.warm)', ''),
]


@pytest.mark.parametrize('kind, check, method, old, new', [pytest.param(*p, id=f'{p[0].__name__}.{p[2]}: {p[3]} → {p[4]}'[:90]) for p in PLANTED])
def test_planted(kind, check, method, old, new):
    with pytest.raises((AssertionError, RuntimeError)): check(mutant(kind, method, old, new))


# ---- the policy's density, far out
def check_density():
    "In float32 at u = ±12, against float64; summed over components"
    for u in (-12., -3., 0., 2., 12.):
        _, logp = continuous.squashed(torch.tensor([[u, .1, -1., 0.]])).sample_with_log_prob(eps=torch.tensor([[0., 1.]]))
        x = torch.tensor([u, 1.1], dtype=torch.float64)
        slope = 4*torch.exp(-2*x.abs())/(1 + torch.exp(-2*x.abs()))**2
        right = -.5*torch.tensor([0., 1.], dtype=torch.float64)**2 - torch.tensor([-1., 0.]) - .5*math.log(2*math.pi) - slope.log()
        close(logp.double(), right.sum()[None], 1e-6)


def test_log_probability_is_exact_where_tanh_is_flat(): check_density()


@pytest.mark.parametrize('name, wrong', [('by 1 − a²', lambda u: (1 - u.tanh()**2).log()), ('with a constant under the logarithm', lambda u: (1 - u.tanh()**2 + 1e-6).log()),
                                         ('of the wrong sign', lambda u: -SLOPE(u)), ('averaged', lambda u: SLOPE(u)/u.shape[-1])])
def test_planted_density(name, wrong, monkeypatch):
    "The correction as others write it is minus infinity, or wrong by nats, where tanh is flat"
    monkeypatch.setattr(heads, '_log_slope', wrong)
    with pytest.raises(AssertionError): check_density()


def test_a_world_in_other_units_is_refused():
    for kind in (SAC, TD3, TQC, CrossQ):
        with pytest.raises(BadInput, match='act_space'): kind(SEE, spaces.Box(-2, 2, (1,)))
        with pytest.raises(BadInput, match='act_space'): kind(SEE, FEW)
        with pytest.raises(BadInput, match='obs_space'): kind(spaces.Box(0, 255, (8, 8, 3), np.uint8), DO)


def test_target_entropy():
    assert SAC(SEE, DO).target_entropy == -2 and SAC(SEE, DO, SAC.config(target_entropy=-.5)).target_entropy == -.5
    fixed = SAC(SEE, DO, SAC.config(tune_alpha=False, alpha=.3, hidden=(8,)))
    for _ in range(3): fixed.step(Batch(batch(fixed), row=np.arange(12)), 0.)
    close(fixed.log_alpha.exp(), .3)


# ---- noise that stays
def check_lasting():
    "Every single draw is normal, also the first after a beginning; neighbours are alike by ρ; greedy acting moves nothing"
    agent = made(SAC, persist=.8)
    for warm in (True, False):
        agent.count = int(not warm)
        (z,), zs, acts = agent.initial_state(20_000), [], []
        obs = np.tile(np.random.default_rng(0).standard_normal((1, 3)).astype(np.float32), (20_000, 1))
        for t in range(4):
            if t == 2: z[:10_000] = 0                           # these episodes begin anew
            acts.append(agent.act(obs, True, 0., z).act.copy())
            zs.append(z.copy())
        zs, acts = np.stack(zs), np.stack(acts).astype(float)
        assert np.abs(zs.std((1, 2)) - 1).max() < .02 and abs((zs[3]*zs[2]).mean() - .8) < .02
        assert abs((zs[2]*zs[1])[:10_000].mean()) < .03 and abs((zs[2]*zs[1])[10_000:].mean() - .8) < .03
        if warm: assert np.abs(acts.std((1, 2)) - 3**-.5).max() < .01 and np.abs(acts).max() <= 1
        else:
            out = agent.pi(torch.from_numpy(obs[:1])).detach().numpy()[0]
            np.testing.assert_allclose(acts, np.tanh(out[:2] + np.exp(out[2:])*zs), atol=1e-5)
    was = z.copy()
    agent.act(obs, False, 0., z)
    assert (z == was).all() and made(SAC).initial_state(5) == ()


def test_lasting_noise(): check_lasting()


@pytest.mark.parametrize('old, new', [('(1 - rho**2)**.5*eps', 'eps'), ('z == 0, eps', 'z == 0, (1 - rho**2)**.5*eps'), ('rho*z', '0*z'), ('z[...] =', 'z =')])
def test_planted_lasting_noise(old, new, monkeypatch):
    src, place = inspect.getsource(continuous.lasting), dict(vars(continuous))
    assert old in src
    exec(src.replace(old, new), place)
    monkeypatch.setattr('rlnb.agents.sac.lasting', place['lasting'])
    with pytest.raises(AssertionError): check_lasting()


# ---- counting
@pytest.mark.parametrize('worlds', [1, 3, 8])
@pytest.mark.parametrize('kind', [SAC, TD3])
def test_updates_per_environment_step(kind, worlds):
    "As much is learned in eight worlds as in one, and as many steps are random"
    env = Unit(Pendulum(worlds))
    acted = []
    class Watched(kind):
        def act(self, obs, explore=True, progress=0.):
            acted.append((self.warm, len(obs)))
            return kind.act(self, obs, explore, progress)
    for updates, every in ((1, 1), (1, 4), (3, 2)):
        acted.clear()
        cfg = kind.config.from_dict(SMALL | dict(hidden=(8,), updates=updates, train_every=every, learning_starts=48))
        t = Trainer(Watched(env.obs_space, env.act_space, cfg, 0), env, seed=0).fit(240)
        warm = sum(n for w, n in acted if w)
        assert 48 <= warm < 48 + 2*max(worlds, every)
        assert abs(t.agent.count - (240 - warm + max(worlds, every))*updates/every) <= updates*(1 + worlds)


def test_hindsight_and_priorities_go_along():
    env = PointReach(2)
    for kind in (SAC, TD3, TQC, CrossQ):
        cfg = kind.config.from_dict(SMALL | dict(her='future', train_every=2, learning_starts=110) | (dict(per=True) if kind in (SAC, TD3) else {}))
        t = Trainer(kind(env.obs_space, env.act_space, cfg, 0), env, seed=0).fit(220)
        assert t.agent.count > 20 and all(math.isfinite(float(v)) for v in t.metrics.values())


# ---- one graph: traced whole, it takes the same steps
@pytest.mark.parametrize('kind', [SAC, TD3, TQC, SACDiscrete])
def test_the_whole_update_as_one_graph(kind, monkeypatch):
    real, graphs = torch.compile, []
    def backend(graph, inputs): graphs.append(graph); return graph.forward
    monkeypatch.setattr(torch, 'compile', lambda f, **kw: real(f, backend=backend, **kw))
    one, two = made(kind, compile=True), made(kind)
    for i in range(6):
        b = Batch(batch(one, seed=i), row=np.arange(12))
        (x, e), (y, f) = one.step(b, 0.), two.step(b, 0.)
        one.count += 1; two.count += 1
        close(x, y, 1e-4); close(e, f, 1e-4)
    for k in one.opts:
        close(one.opts[k].vec, two.opts[k].vec, 1e-5)
        one.opts[k].check()
    assert len(graphs) == (2 if kind is TD3 else 1)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [SAC, TD3])
def test_compiled_for_real(kind):
    one, two = made(kind, compile=True), made(kind)
    for i in range(4):
        b = Batch(batch(one, seed=i), row=np.arange(12))
        (x, e), (y, f) = one.step(b, 0.), two.step(b, 0.)
        one.count += 1; two.count += 1
        close(x, y, 1e-3); close(e, f, 1e-3)


# ---- interrupted equals uninterrupted, in a fresh process
class Goal(PointReach):
    max_steps = 9


class Short(CartPole):
    max_steps = 15


CASES = {
    'sac': (SAC, lambda: Unit(Pendulum(3, max_steps=13)), dict(train_every=4, lr='linear(0.003, 0.001)')),
    'sac, priorities, three steps': (SAC, lambda: Unit(Pendulum(2, max_steps=13)), dict(per=True, n_step=3, train_every=2, layer_norm=True)),
    'sac, lasting noise': (SAC, lambda: Unit(Pendulum(3, max_steps=13)), dict(persist=.9, train_every=3)),
    'sac, hindsight': (SAC, lambda: Goal(2), dict(her='future', train_every=3)),
    'td3': (TD3, lambda: Unit(Pendulum(3, max_steps=13)), dict(actor_every=3, train_every=2, noise='linear(0.5, 0.1)')),
    'tqc': (TQC, lambda: Unit(Pendulum(2, max_steps=13)), dict(train_every=3, quantiles=5)),
    'crossq': (CrossQ, lambda: Unit(Pendulum(2, max_steps=13)), dict(train_every=3, critic_hidden=(16,), warmup=10)),
    'sac_discrete': (SACDiscrete, lambda: Short(3), dict(train_every=2, target_entropy='linear(0.9, 0.2)')),
}
FIRST, LAST = 41, 83        # vector steps until the stops


def trainer(case: str, seed: int) -> Trainer:
    kind, world, cfg = CASES[case]
    env = world()
    return Trainer(kind(env.obs_space, env.act_space, kind.config.from_dict(SMALL | dict(buffer_size=90) | cfg), seed), env, seed=seed, horizon=400)


def part(root: Path, case: str, what: str) -> Path: return root/f'{case.replace(", ", "-").replace(" ", "_")}-{what}'


def first(root: Path) -> None:
    for case in CASES:
        save_state(part(root, case, 'whole'), go(trainer(case, 1), LAST).state_dict())
        save_state(part(root, case, 'half'), go(trainer(case, 1), FIRST).state_dict())


def second(root: Path) -> None:
    for case in CASES:
        random.seed(7); np.random.seed(7); torch.manual_seed(7)
        t = trainer(case, 99)
        t.load_state_dict(load_state(part(root, case, 'half')))
        save_state(part(root, case, 'rest'), go(t, LAST - FIRST).state_dict())


@pytest.fixture(scope='module')
def resumed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('resume')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent/'tools'), *(p for p in sys.path if p)])}
    for what in ('first', 'second'):
        p = subprocess.run([sys.executable, __file__, what, str(root)], capture_output=True, text=True, env=env, timeout=300)
        if p.returncode: raise RuntimeError(p.stderr[-3000:])
    return root


@pytest.mark.parametrize('case', CASES)
def test_interrupted_equals_uninterrupted(resumed, case):
    a, b, half = (load_state(part(resumed, case, w)) for w in ('whole', 'rest', 'half'))
    x, y, z = flat(a), flat(b), flat(half)
    odd = [k for k in sorted(x.keys() | y.keys()) if x.get(k) != y.get(k)]
    assert not odd, f'{len(odd)} of {len(x)} differ: {odd[:8]}'
    assert a['agent']['count'] > half['agent']['count'] > 3
    assert sum(x[k] != z.get(k) for k in x if k.startswith('agent/params') or 'params' in k) > 3


@pytest.mark.parametrize('case, piece', [('td3', 'count'), *[('sac', p) for p in ('params', 'opts/q/m', 'opts/q/v', 'opts/q/step', 'opts/pi/m', 'rng')]])
def test_a_missing_piece_shows(case, piece):
    "The state in the middle with one piece as a fresh agent has it ends elsewhere"
    state, fresh = copy.deepcopy(go(trainer(case, 1), FIRST).state_dict()), copy.deepcopy(trainer(case, 9).state_dict())
    def end(s):
        torch.manual_seed(0)
        t = trainer(case, 5)
        t.load_state_dict(copy.deepcopy(s))
        out = flat(go(t, LAST - FIRST).state_dict()['agent'])
        return {k: v for k, v in out.items() if 'params' in k}
    whole = end(state)
    assert end(state) == whole and len(whole) > 3
    to, of = state['agent'], fresh['agent']
    *way, last = piece.split('/')
    for k in way: to, of = to[k], of[k]
    to[last] = of[last]
    assert end(state) != whole


if __name__ == '__main__':
    torch.set_num_threads(1)
    {'first': first, 'second': second}[sys.argv[1]](Path(sys.argv[2]))


class Hill(TensorEnv):
    "One step, worth most in the middle"
    obs_space, act_space, max_steps = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (2,)), 1
    def start(self, n, rows): return np.zeros(n, np.float32)
    def observe(self, s): return s[:, None]
    def dynamics(self, s, act): return s, -4*(act**2).sum(1).astype(np.float32), np.ones(self.num_envs, bool)


@pytest.mark.parametrize('target', [-2., 0.])
def test_the_temperature_finds_the_entropy_that_was_asked_for(target):
    "α settles where it belongs: small for a sharp policy, larger for a broad one"
    world, seen = Hill(8), []
    cfg = SAC.config(target_entropy=target, hidden=(32,), batch_size=64, lr=3e-3, learning_starts=64, train_every=8, updates=4)
    t = Trainer(SAC(world.obs_space, world.act_space, cfg, 0), world)
    for k in range(100): seen.append({k: float(v) for k, v in t.fit(5000 + 8*k).metrics.items()})
    assert abs(np.mean([m['entropy'] for m in seen]) - target) < .05
    assert (seen[-1]['alpha'] < .15) == (target < 0) and .01 < seen[-1]['alpha'] < .8
