"""The famous mistakes of PPO and A2C, planted. Each check passes on the engine as it is and fails on a variant that is at most five lines away from it;
`python tests/test_planted_bugs.py` plants them one by one and prints the table."""
import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlnb.agents import actor_critic, ppo
from rlnb.agents.a2c import A2C, A2CConfig
from rlnb.agents.actor_critic import ActorCritic
from rlnb.agents.ppo import PPO, PPOConfig, standard
from rlnb.buffers import collect, rollout
from rlnb.buffers.collect import Collector
from rlnb.buffers.rollout import Rollout
from rlnb.core import ranks
from rlnb.core.batch import Batch
from rlnb.core.errors import BadInput
from rlnb.core.nets import Flat
from rlnb.core.returns import gae
from rlnb.envs.base import Step, VecEnv
from rlnb.envs.classic import CartPole, Pendulum
from rlnb.train.trainer import Trainer


# ---- a world that says where it is
class Script(VecEnv):
    "The observation is (world, episode, step)/10; lengths and kinds of ends are a rule; `log` keeps what there was, row by row"
    obs_space, act_space = spaces.Box(-99, 99, (3,)), spaces.Discrete(2)
    def __init__(self, num_envs: int = 5, mode: str = 'same', quiet: bool = False):     # quiet: valid is told only where some row is not
        self.num_envs, self.mode, self.quiet, self.log = num_envs, mode, quiet, []

    def reset(self, seed=None):
        self.world, self.ep, self.t = np.arange(self.num_envs), np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        self.over = np.zeros(self.num_envs, bool)
        return self.seen()
    def seen(self): return np.stack([self.world, self.ep, self.t], -1).astype(np.float32)/10

    def step(self, act):
        valid, obs = ~self.over, self.seen()
        self.ep, self.t = self.ep + self.over, np.where(self.over, 0, self.t + 1)      # a row that had ended spends this step on its reset
        reward = np.where(valid, 1 + .5*self.world - .3*self.t + .2*np.asarray(act).reshape(self.num_envs, -1).sum(1), 0).astype(np.float32)
        end = valid & (self.t >= 1 + (self.world + 2*self.ep) % 4)                      # one to four steps
        term = end & ((self.world + self.ep) % 2 == 0)
        trunc, after = end & ~term, self.seen()
        self.log.append(dict(obs=obs, reward=reward, term=term, trunc=trunc, after=after, valid=valid))
        if self.mode == 'next':                                                         # Gymnasium's NEXT_STEP
            self.over = end
            told = Batch() if self.quiet and valid.all() else Batch(valid=valid)
            return Step(after, reward, term, trunc, after, told)
        self.ep, self.t = self.ep + end, np.where(end, 0, self.t)                       # SAME_STEP
        return Step(self.seen() if end.any() else after, reward, term, trunc, after)


class Arms(Script): act_space = spaces.Box(-1, 1, (2,))


def rows_of(log: list, key: str) -> np.ndarray: return np.stack([r[key] for r in log])


def close(a, b, tol: float = 1e-5) -> None: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tol, atol=tol)


def made(kind=PPO, env=Script, **cfg): return kind(env.obs_space, env.act_space, kind.config.from_dict(cfg), seed=1)


# ---- advantages, by their definition
def by_definition(agent, log, lam: float) -> np.ndarray:
    "Follow each step forward to the end of its episode or of the rollout, in float64"
    def V(obs): return agent.v(torch.from_numpy(obs)).detach().double().numpy()[..., 0]
    r, term, trunc, v, after = rows_of(log, 'reward'), rows_of(log, 'term'), rows_of(log, 'trunc'), V(rows_of(log, 'obs')), V(rows_of(log, 'after'))
    delta, g = r + agent.cfg.gamma*~term*after - v, agent.cfg.gamma*lam
    adv = np.zeros(r.shape)
    for t, n in np.ndindex(r.shape):
        for k in range(t, len(r)):
            adv[t, n] += g**(k - t)*delta[k, n]
            if term[k, n] or trunc[k, n]: break
    return adv


def check_advantages() -> None:
    "Both ways to reset, two rollouts on end: V of the true successor, no trace across an end, a future after a time limit"
    for mode in 'same', 'next':
        agent, world = made(n_steps=11, gamma=.9, lam=.8), Script(mode=mode)
        c, roll = Collector(world), agent.make_buffer(world)
        for _ in range(2):
            world.log.clear(); roll.clear()
            c.collect(agent, roll, 11)
            adv, ret = agent.advantages(roll)
            ok, right = rows_of(world.log, 'valid'), by_definition(agent, world.log, .8)
            close(adv[ok], right[ok])
            close(ret[ok], (right + agent.value(rows_of(world.log, 'obs').reshape(-1, 3)).reshape(right.shape))[ok])


def check_n_step() -> None:
    "A2C aims at rewards up to the end of the rollout or the episode, and the value of where they lead"
    agent, world = A2C(Script.obs_space, Script.act_space, seed=1), Script()
    c, roll = Collector(world), agent.make_buffer(world)
    c.collect(agent, roll, 5)
    _, ret = agent.advantages(roll)
    for t, n in np.ndindex(ret.shape):
        total, k = 0., t
        while True:
            r = world.log[k]
            total += .99**(k - t)*r['reward'][n]
            if r['term'][n] or r['trunc'][n] or k == 4: break
            k += 1
        if not r['term'][n]: total += .99**(k - t + 1)*agent.v(torch.from_numpy(r['after'][n])).item()
        close(ret[t, n], total)


# ---- what each gradient step was given, beside the equations of the papers
class Life(NamedTuple):
    steps: list      # a gradient step each: rows, gradients (ours, by the book), parameters after it, metrics, lr
    acted: list      # a rollout each: what was seen (normalised), done, its log-probability and value, from torch.distributions
    metrics: list    # a rollout each: what `learn` said


def head(agent, x):
    "The policy with torch's own distributions"
    out = agent.pi.body(x)
    if agent.pi.kind == 'Discrete': return torch.distributions.Categorical(logits=out)
    return torch.distributions.Independent(torch.distributions.Normal(out, agent.pi.log_std.exp()), 1)


def book(agent, rows, adv, ret, seen, act, logp, value):
    "Loss of these rows, written down from the papers; returns it and (k3 estimate of KL, share outside the corridor)"
    c, x, norm = agent.cfg, seen[rows], getattr(agent.cfg, 'norm_adv', 'off')
    a = {'off': adv[rows], 'minibatch': (adv[rows] - adv[rows].mean())/(adv[rows].std(correction=0) + 1e-8), 'batch': ((adv - adv.mean())/(adv.std(correction=0) + 1e-8))[rows]}[norm]
    pi, v = head(agent, x), agent.v(x).squeeze(-1)
    log_r = pi.log_prob(act[rows]) - logp[rows]
    r, vf = log_r.exp(), (v - ret[rows])**2
    if isinstance(agent, A2C): pg = -(a*pi.log_prob(act[rows])).mean()
    else:
        lo, hi = 1 - c.clip, 1 + c.clip
        pg = -torch.where(a > 0, torch.where(r > hi, hi, r), torch.where(r < lo, lo, r)).mul(a).mean()
        if c.vf_clip:
            near = value[rows] + torch.maximum(torch.minimum(v - value[rows], torch.tensor(c.vf_clip)), torch.tensor(-c.vf_clip))
            vf = torch.where(vf > (near - ret[rows])**2, vf, (near - ret[rows])**2)
    loss = pg + c.vf_coef*vf.mean() - c.ent_coef*pi.entropy().mean()
    return loss, (r - 1 - log_r).mean().item(), ((r - 1).abs() > getattr(c, 'clip', 1e9)).float().mean().item()


def live(agent, env, rollouts: int = 2) -> Life:
    "Collect and learn, with a witness at `act`, `advantages`, `prepare` and `update`"
    life, now = Life([], [], []), {}
    act, advantages, prepare, update = agent.act, agent.advantages, agent.prepare, agent.update
    params, flat = list(agent.parameters()), agent.opts['all']
    twin = [torch.nn.Parameter(p.detach().clone()) for p in params]
    opt = torch.optim.RMSprop(twin, alpha=.99, eps=1e-5) if isinstance(agent, A2C) else torch.optim.Adam(twin, eps=1e-5)

    def see(obs):
        x = torch.from_numpy(np.array(obs, np.float32))
        if not agent.cfg.norm_obs: return x
        s = agent.norms['obs'].state_dict()
        var = s['m2']/s['n'] if s['n'] else np.ones_like(s['m2'])
        return ((x - torch.from_numpy(s['mean']))/torch.from_numpy(np.sqrt(var + 1e-8))).clamp(-10, 10).float()

    def w_act(obs, explore=True, progress=0.):
        x = see(obs)
        out = act(obs, explore, progress)
        with torch.no_grad():
            a = torch.from_numpy(np.array(out.act))
            now['acted'].append((x, a, head(agent, x).log_prob(a), agent.v(x).squeeze(-1)))
        return out

    def w_advantages(buffer):
        adv, ret = advantages(buffer)
        now['adv'], now['ret'] = torch.from_numpy(adv.copy()).ravel(), torch.from_numpy(ret.copy()).ravel()
        return adv, ret

    def w_prepare(buffer): return Batch(prepare(buffer), row=torch.arange(buffer.n_steps*buffer.num_envs).view(buffer.n_steps, -1))

    def w_update(opt_, loss, batch, lr, rule='adam'):
        assert torch.isfinite(flat.vec).all(), 'parameters are not finite'
        mine = torch.autograd.grad(loss(batch)[0], params, allow_unused=True)
        value, kl, outside = book(agent, batch.row, now['adv'], now['ret'], *life.acted[-1])
        right = torch.autograd.grad(value, params, allow_unused=True)
        for p, w, g in zip(twin, params, right): p.data.copy_(w.detach()); p.grad = torch.zeros_like(w) if g is None else g.clone()
        torch.nn.utils.clip_grad_norm_(twin, agent.cfg.max_grad_norm)
        opt.param_groups[0]['lr'] = lr
        opt.step()
        ratio = (agent.pi(batch.obs).log_prob(batch.act) - batch.logp).exp().detach()
        info = update(opt_, loss, batch, lr, rule)
        def flatten(gs): return torch.cat([torch.zeros_like(p).ravel() if g is None else g.detach().ravel() for g, p in zip(gs, params)])
        life.steps.append(SimpleNamespace(rows=batch.row.clone(), grad=flatten(mine), right=flatten(right), vec=flat.vec.clone(), twin=flatten(twin), info=info.clone(),
                                          kl=kl, outside=outside, lr=lr, rollout=len(life.acted) - 1, ratio=ratio))
        return info

    agent.act, agent.advantages, agent.prepare, agent.update = w_act, w_advantages, w_prepare, w_update
    c, roll = Collector(env, seed=3), agent.make_buffer(env)
    for _ in range(rollouts):
        now['acted'] = []
        c.collect(agent, roll, agent.collect_steps)
        life.acted.append(tuple(torch.cat(x) for x in zip(*now['acted'])))
        life.metrics.append(agent.learn(roll, 0.))
    return life


def follows(life: Life, n: int = 0) -> None:
    "Every gradient is that of the equations"
    assert len(life.steps) == n or not n, (len(life.steps), n)
    for s in life.steps:
        assert torch.isfinite(s.grad).all(), 'a gradient is not finite'
        close(s.grad, s.right, 2e-5*max(1., float(s.right.abs().max())))


BOLD = dict(n_steps=16, minibatch=32, epochs=3, lr=.01, ent_coef=.05)      # 4 worlds: 2 steps an epoch, far enough for the clip to matter


def check_loss() -> None: follows(live(made(PPO, CartPole, **BOLD), CartPole(4)), 12)


def check_loss_batch() -> None: follows(live(made(PPO, CartPole, norm_adv='batch', **BOLD), CartPole(4)), 12)


def check_loss_box() -> None:
    for env in Pendulum, Arms: follows(live(made(PPO, env, norm_adv='off', norm_obs=True, **BOLD), env(4)), 12)


def check_loss_a2c() -> None:
    for env in CartPole, Pendulum: follows(live(made(A2C, env, n_steps=8, ent_coef=.05), env(4), 4), 4)


def check_value_clip() -> None:
    "Off by default; on, the larger of the two errors, around the value of the old critic"
    follows(live(made(PPO, CartPole, vf_clip=.05, **BOLD), CartPole(4)), 12)
    agent = PPO(CartPole.obs_space, CartPole.act_space, seed=1)
    agent.clip, agent.ent_coef, n = .2, 0., 8
    with torch.no_grad(): agent.opts['all'].vec.zero_()
    b = Batch(obs=torch.zeros(n, 4), act=torch.zeros(n, dtype=torch.int64), logp=torch.zeros(n), adv=torch.zeros(n), ret=torch.full((n,), 3.), value=torch.full((n,), 9.))
    close(agent.loss(b)[1][1], 9.)


def check_single_rows() -> None:
    "Minibatches of one row, and a last minibatch that would have one"
    for size in 1, 63:
        agent = made(PPO, CartPole, n_steps=16, minibatch=size, epochs=1)
        live(agent, CartPole(4), 1)
        assert torch.isfinite(agent.opts['all'].vec).all(), f'minibatches of {size}: parameters are not finite'


def check_ratio() -> None:
    "On the first pass over a rollout every ratio is 1, whatever the normaliser has learned before"
    for env, obs in (CartPole, False), (CartPole, True), (Pendulum, True):
        life = live(made(PPO, env, norm_obs=obs, **BOLD), env(4), 3)
        for k in range(3):
            first = next(s for s in life.steps if s.rollout == k)
            close(first.ratio, torch.ones(32), 1e-5)
            assert first.info[3].abs() < 1e-6 and first.info[4] == 0


def check_kl_stop() -> None:
    "Epochs are whole; they end after the one that moved too far; metrics are means over the steps that were taken"
    for target, steps in (0., 20), (1e3, 20), (1e-6, 4):
        cfg = dict(n_steps=16, minibatch=16, epochs=5, lr=.01, target_kl=target)
        agent = made(PPO, CartPole, **cfg)
        life = live(agent, CartPole(4), 1)
        assert int(agent.opts['all'].step) == len(life.steps) == steps, f'target {target}: {int(agent.opts["all"].step)} steps, not {steps}'
        close(life.metrics[0]['kl'], np.mean([s.kl for s in life.steps]))
        close(life.metrics[0]['clip_frac'], np.mean([s.outside for s in life.steps]))
        assert all(s.info[3] >= -1e-7 for s in life.steps)


def check_rest() -> None:
    "Acting and judging leave the statistics alone, greedy acting leaves the generators too; a rollout counts once"
    agent, env = made(PPO, CartPole, norm_obs=True, norm_reward=True, n_steps=16, minibatch=64), CartPole(4)
    live(agent, env, 1)
    assert agent.norms['obs'].n == agent.norms['ret'].n == 64
    def moved(): return [*(copy.deepcopy(n.state_dict()) for n in agent.norms.values()), agent.rng.bit_generator.state, agent.torch_rng.get_state().tolist()]
    before, obs = moved(), env.reset(1) + 5
    for _ in range(3): agent.act(obs, explore=False), agent.value(obs)
    assert repr(moved()) == repr(before), 'an evaluation left a trace'
    agent.act(obs)
    assert repr(moved()[:2]) == repr(before[:2]), 'acting moved the statistics'


def check_horizon() -> None:
    "The step size goes on where it was, over the horizon that was promised first, even if the run is told to go further"
    def run(halt=0, state=None, steps=512):
        env, lrs = CartPole(4), []
        agent = PPO(env.obs_space, env.act_space, PPOConfig(lr='linear(0.001, 1e-05)', n_steps=16, minibatch=64, epochs=1))
        update = agent.update
        agent.update = lambda opt, loss, b, lr, rule='adam': lrs.append(lr) or update(opt, loss, b, lr, rule)
        t = Trainer(agent, env)
        if state: t.load_state_dict(state)
        if halt: t.collector.stop = lambda: t.collector.steps >= halt
        t.fit(steps)
        return lrs, copy.deepcopy(t.state_dict())
    whole, _ = run()
    first, state = run(halt=256)
    rest, _ = run(state=state, steps=640)
    close(whole, [1e-3 + (1e-5 - 1e-3)*i/8 for i in range(8)], 1e-9)
    assert first + rest == whole + [1e-5, 1e-5], (first + rest, whole)


def check_optimiser() -> None:
    "The steps are torch's RMSprop (ε outside the root) and Adam, after clip_grad_norm_"
    for life in (live(made(A2C, CartPole, n_steps=8, lr=.01, max_grad_norm=.05), CartPole(4), 4), live(made(PPO, CartPole, **BOLD), CartPole(4))):
        for s in life.steps: close(s.vec, s.twin, 2e-6)


def check_entropy() -> None:
    "With nothing else to learn, the bonus makes the policy less decided"
    for kind in PPO, A2C:
        cfg = dict(BOLD, vf_coef=0., ent_coef=1.) if kind is PPO else dict(n_steps=16, vf_coef=0., ent_coef=1., lr=.001)
        agent = made(kind, CartPole, **cfg)
        with torch.no_grad(): agent.pi.body[-1].bias.copy_(torch.tensor([1.5, 0.]))
        agent.advantages = lambda buffer: (np.zeros((16, 4), np.float32),)*2
        x = torch.zeros(1, 4)
        before = head(agent, x).entropy().item()
        c, roll = Collector(CartPole(4)), agent.make_buffer(CartPole(4))
        for _ in range(3): c.collect(agent, roll, 16); agent.learn(roll, 0.)
        assert head(agent, x).entropy().item() > before + .01


def check_reset_rows() -> None:
    "Rows spent on a reset: in no minibatch, in no count; every other row in every epoch"
    for kind, T in (PPO, 12), (A2C, 12):
        world = Script(mode='next')
        agent = made(kind, n_steps=T, **(dict(minibatch=20, epochs=2) if kind is PPO else {}))
        life, per = live(agent, world, 3), 3 if kind is PPO else 1
        ok = rows_of(world.log, 'valid').reshape(3, -1)
        assert not ok.all()
        for k in range(3):
            drawn = [s.rows for s in life.steps if s.rollout == k]
            for i in range(0, len(drawn), per): assert set(torch.cat(drawn[i:i+per]).tolist()) == set(ok[k].nonzero()[0].tolist())
    world, c_steps = Script(mode='next'), 12
    c, roll = Collector(world), made(n_steps=c_steps).make_buffer(world)
    ended = c.collect(made(n_steps=c_steps), roll, c_steps)
    assert c.steps == rows_of(world.log, 'valid').sum()
    assert sorted(e['length'] for e in ended) == sorted((r['after'][n, 2]*10).round() for r in world.log for n in (r['term'] | r['trunc']).nonzero()[0])


def check_modes() -> None:
    "The same transitions under SAME_STEP and NEXT_STEP"
    def story(mode, T):
        world, agent = Script(mode=mode), made(n_steps=T)
        roll, agent.act = agent.make_buffer(world), lambda obs, *_: Batch(act=np.zeros(len(obs), np.int64))
        Collector(world).collect(agent, roll, T)
        def code(o): return (o*10).round().astype(np.int64) @ np.array([10_000, 100, 1])
        now, after = roll.values(code)
        d = roll.np
        return [[x for x, ok in zip(zip(*(a[:, n].tolist() for a in (now, d.reward, d.terminated, d.truncated, after))), d.valid[:, n]) if ok] for n in range(5)]
    for a, b in zip(story('same', 15), story('next', 40)):
        assert b[:15] == a


class Reuses(Script):
    "Hands out the same arrays at every step, and scribbles on them before the next"
    def step(self, act):
        if not hasattr(self, 'mine'): self.mine = None
        else: [x.fill(77) for x in self.mine]
        st = super().step(np.array(act))
        if self.mine is None: self.mine = [np.array(x) for x in st[:5]]
        for x, y in zip(self.mine, st): x[...] = y
        o, r, te, tr, after = self.mine
        return Step(o, r, te, tr, o if st.next_obs is st.obs else after)


def check_reused() -> None:
    "What the memory and the state hold is not what the world scribbles on"
    world, agent = Reuses(), made(n_steps=12)
    c, roll = Collector(world), agent.make_buffer(world)
    c.collect(agent, roll, 12)
    for k, key in dict(obs='obs', reward='reward', terminated='term', truncated='trunc').items(): close(roll.np[k], rows_of(world.log, key))
    close(roll.values(lambda o: o[:, 0]*100 + o[:, 1]*10 + o[:, 2])[1], rows_of(world.log, 'after') @ np.array([100, 10, 1], np.float32), 1e-4)
    world.state_dict = dict
    obs, kept = c.state_dict()['obs'], c.obs.copy()
    world.step(np.zeros(5))
    close(obs, kept)


def check_a2c_is_ppo() -> None:
    "One epoch, one minibatch, no clip, RMSProp: the same parameters"
    class Plain(PPO):
        def update(self, opt, loss, batch, lr, rule='adam'): return super().update(opt, loss, batch, lr, 'rmsprop')
    shared, ends = dict(lr=7e-4, lam=1., n_steps=16, ent_coef=.01), []
    for agent in made(A2C, CartPole, **shared), made(Plain, CartPole, **shared, clip=10., epochs=1, minibatch=64, norm_adv='off'):
        c, roll = Collector(CartPole(4)), agent.make_buffer(CartPole(4))
        for k in range(3):
            agent.rng = np.random.default_rng(k)
            c.collect(agent, roll, 16)
            agent.learn(roll, 0.)
        ends.append(agent.opts['all'].vec)
    close(*ends, 1e-6)


def check_images() -> None:
    "Where the channels are is told by the shape, or refused"
    assert actor_critic.layout((24, 24, 3)) == 'hwc' and actor_critic.layout((3, 24, 24)) == 'chw'
    try: actor_critic.layout((12, 12, 12))
    except BadInput: return
    raise AssertionError('an image of which nobody can say where its channels are')


# ---- the mistakes
class Trap(NamedTuple):
    name: str
    source: str
    caught: str
    check: Callable[[], None]
    plant: Callable[[pytest.MonkeyPatch], None]


PLANTED: list[Trap] = []
VALUES, END, CLOSE, EPOCH, WHOLE, BOOK = Rollout.values, Rollout.end, Rollout.close, Rollout.epoch, Rollout.whole, Collector._book
PREPARE, FINISH, SEE, ACT, LOSS, A2C_LOSS, UPDATE = ActorCritic.prepare, ActorCritic.finish, ActorCritic.see, ActorCritic.act, PPO.loss, A2C.loss, PPO.update
LEARN, LOAD, RMS, ADAM, LOG_PROB = PPO.learn, Trainer.load_state_dict, Flat.rmsprop, Flat.adam, actor_critic.heads.Gaussian.log_prob


def trap(name: str, source: str, caught: str, check: Callable[[], None]):
    def add(plant): PLANTED.append(Trap(name, source, caught, check, plant)); return plant
    return add


@trap('a time limit is taken for an end', 'CleanRL: logical_or(terminated, truncated)', 'advantages against the sum by definition', check_advantages)
def _(mp): mp.setattr(actor_critic, 'gae', lambda r, d, v, n, done, lam: gae(r, d*(1 - done), v, n, done, lam))


@trap('the trace runs on behind a time limit', 'skrl 2.0 (skrl#449): mask = terminated', 'advantages against the sum by definition', check_advantages)
def _(mp): mp.setattr(actor_critic, 'gae', lambda r, d, v, n, done, lam: gae(r, d, v, n, d == 0, lam))


@trap('V(s_t) in place of V of the successor', 'skrl 2.0 (skrl#449): time_limit_bootstrap', 'advantages against the sum by definition', check_advantages)
def _(mp):
    def values(self, f):
        v, after = VALUES(self, f)
        for t, rows, _ in self.ends: after[t, rows] = v[t, rows]
        return v, after
    mp.setattr(Rollout, 'values', values)


@trap('V of the reset observation', 'Gymnasium SAME_STEP: obs is the next episode', 'advantages against the sum by definition', check_advantages)
def _(mp): mp.setattr(Rollout, 'end', lambda self, t, rows, next_obs: None)


@trap('reset observation as successor', 'Gymnasium SAME_STEP: final_obs overlooked', 'transitions under both autoreset modes', check_modes)
def _(mp): mp.setattr(Rollout, 'end', lambda self, t, rows, next_obs: None)


@trap('the last row of a rollout has no future', 'rollout boundary as terminal', 'advantages against the sum by definition', check_advantages)
def _(mp): mp.setattr(actor_critic, 'gae', lambda r, d, v, n, done, lam: gae(r, np.concatenate([d[:-1], 0*d[-1:]]), v, n, done, lam))


@trap('the trace runs into the next world', 'flattened world by world before the scan', 'advantages against the sum by definition', check_advantages)
def _(mp): mp.setattr(actor_critic, 'gae', lambda *a: gae(*(np.ravel(x.T) for x in a[:-1]), a[-1]).reshape(a[0].T.shape).T)


@trap('sample deviation: NaN for one row', 'PPO: advantage std of a minibatch of one', 'parameters stay finite', check_single_rows)
def _(mp): mp.setattr(ppo, 'standard', lambda x: (x - x.mean())/(x.std() + 1e-8))


@trap('normalised in minibatches, asked for the batch', 'PPO: per-minibatch vs batch', 'gradient of each step against the papers', check_loss_batch)
def _(mp): mp.setattr(PPO, 'loss', lambda self, b: LOSS(self, Batch(b, adv=standard(b.adv))))


@trap('normalised over the batch, asked for minibatches', 'PPO: per-minibatch vs batch', 'gradient of each step against the papers', check_loss)
def _(mp):
    def prepare(self, buffer): b = PREPARE(self, buffer); return Batch(b, adv=standard(b.adv))
    mp.setattr(ActorCritic, 'prepare', prepare)
    mp.setattr(ppo, 'standard', lambda x: x)


@trap('the normaliser moves between acting and learning', 'PPO: ratio ≠ 1 on the first epoch', 'ratios of the first pass', check_ratio)
def _(mp):
    def prepare(self, buffer):
        if self.cfg.norm_obs: self.norms['obs'].update(buffer.np.obs)
        return PREPARE(self, buffer)
    mp.setattr(ActorCritic, 'prepare', prepare)


@trap('the clipped action is stored', "PPO: log-prob of another action than the stored one", 'ratios of the first pass', check_ratio)
def _(mp):
    def act(self, *a): out = ACT(self, *a); return Batch(out, act=out.act if self.pi.kind == 'Discrete' else out.act.clip(-.5, .5))
    mp.setattr(ActorCritic, 'act', act)


@trap('old log-prob recomputed', 'PPO: the ratio is always 1', 'gradient of each step against the papers', check_loss)
def _(mp): mp.setattr(PPO, 'loss', lambda self, b: LOSS(self, Batch(b, logp=self.pi(b.obs).log_prob(b.act).detach())))


@trap('old log-prob recomputed after the update', 'PPO: logp of the second epoch from the first', 'gradient of each step against the papers', check_loss_box)
def _(mp):
    def epoch(self, b, size, rng):
        for mb in EPOCH(self, b, size, rng): yield Batch(mb, logp=self.owner.pi(mb.obs).log_prob(mb.act).detach())
    mp.setattr(Rollout, 'epoch', epoch)
    mp.setattr(ActorCritic, 'make_buffer', lambda self, env, make=ActorCritic.make_buffer: vars(r := make(self, env)).update(owner=self) or r)


@trap('clip without min', 'PPO: the pessimistic bound lost', 'gradient of each step against the papers', check_loss)
def _(mp): mp.setattr(ppo, 'torch', SimpleNamespace(**{**vars(torch), 'min': lambda a, b: b}))


@trap('values clipped without max', 'PPO: value-clip', 'gradient of each step against the papers', check_value_clip)
def _(mp): mp.setattr(ppo, 'torch', SimpleNamespace(**{**vars(torch), 'max': lambda a, b: b}))


@trap('values clipped around the return', 'PPO: value-clip', 'gradient of each step against the papers', check_value_clip)
def _(mp):
    def prepare(self, buffer): b = PREPARE(self, buffer); return Batch(b, value=b.ret)
    mp.setattr(ActorCritic, 'prepare', prepare)


@trap('values clipped by default', 'PPO: value-clip default', 'value error far from the old value', check_value_clip)
def _(mp): mp.setattr(PPO, 'config', type('Clipped', (), dict(__new__=lambda cls: PPOConfig(vf_clip=.2), from_dict=PPOConfig.from_dict)))


@trap('KL stop after a minibatch', 'PPO: KL stop per minibatch vs epoch', 'number of optimiser steps', check_kl_stop)
def _(mp):
    def update(self, opt, loss, b, lr, rule='adam'):
        with torch.no_grad(): info = loss(b)[1]
        return info if 0 < 1.5*self.cfg.target_kl < info[3] else UPDATE(self, opt, loss, b, lr, rule)
    mp.setattr(PPO, 'update', update)


@trap('KL stop that never stops', 'PPO: target_kl ignored', 'number of optimiser steps', check_kl_stop)
def _(mp):
    def learn(self, buffer, p): object.__setattr__(self.cfg, 'target_kl', 0.); return LEARN(self, buffer, p)
    mp.setattr(PPO, 'learn', learn)


@trap('means over the planned steps', 'PPO: KL stop and n_updates', 'metrics against the steps taken', check_kl_stop)
def _(mp): mp.setattr(ActorCritic, 'finish', lambda self, buffer, b, info: FINISH(self, buffer, b, info*int(self.opts['all'].step)/20))


@trap('KL estimated by −log r, which may be negative', 'PPO: approx_kl', 'KL against (r − 1) − log r', check_kl_stop)
def _(mp):
    def loss(self, b): v, i = LOSS(self, b); i[3] = (b.logp - self.pi(b.obs).log_prob(b.act)).mean().detach(); return v, i
    mp.setattr(PPO, 'loss', loss)


@trap('the normaliser moves while acting', 'PPO: obs-normaliser updated in eval', 'statistics before and after an evaluation', check_rest)
def _(mp): mp.setattr(ActorCritic, 'see', lambda self, obs: (self.norms['obs'].update(obs), SEE(self, obs))[1])


@trap('observations counted twice', 'PPO: statistics of evaluation or of each epoch', 'rows in the statistics', check_rest)
def _(mp): mp.setattr(ActorCritic, 'finish', lambda self, buffer, b, info: self.norms['obs'].update(buffer.np.obs) or FINISH(self, buffer, b, info))


@trap('greedy acting draws', 'evaluation disturbs training', 'generators before and after an evaluation', check_rest)
def _(mp): mp.setattr(ActorCritic, 'act', lambda self, *a, **k: (self.rng.random(), ACT(self, *a, **k))[1])


@trap('the horizon is lost', 'PPO: lr anneal after resume (new total)', 'step sizes of interrupted and whole runs', check_horizon)
def _(mp): mp.setattr(Trainer, 'load_state_dict', lambda self, d: LOAD(self, {**d, 'horizon': 0}))


@trap('the horizon is what remains', 'PPO: lr anneal denominator after resume', 'step sizes of interrupted and whole runs', check_horizon)
def _(mp): mp.setattr(Trainer, 'load_state_dict', lambda self, d: LOAD(self, {**d, 'horizon': d['horizon'] - d['step']}))


@trap('counters begin at 0', 'SB3#29 and others: resume restarts', 'step sizes of interrupted and whole runs', check_horizon)
def _(mp): mp.setattr(Trainer, 'load_state_dict', lambda self, d: LOAD(self, {**d, 'step': 0, 'collector': {**d['collector'], 'steps': 0}}))


@trap('RMSProp: ε inside the root', 'A2C: TensorFlow vs torch', "parameters against torch's RMSprop", check_optimiser)
def _(mp): mp.setattr(Flat, 'rmsprop', lambda self, lr: RMS(self, lr, inside=True))


@trap("Adam's ε is 1e-8", 'PPO: OpenAI baselines have 1e-5', "parameters against torch's Adam", check_optimiser)
def _(mp): mp.setattr(Flat, 'adam', lambda self, lr, eps=0.: ADAM(self, lr))


@trap('the gradient is not shortened', 'PPO, A2C: max_grad_norm', "parameters against clip_grad_norm_", check_optimiser)
def _(mp): mp.setattr(Flat, 'clip', lambda self, most: self.norm())


@trap('entropy punished (PPO)', 'PPO: sign of the entropy term', 'entropy after updates; gradient', check_entropy)
def _(mp):
    def loss(self, b): v, i = LOSS(self, b); return v + 2*self.ent_coef*self.pi(b.obs).entropy().mean(), i
    mp.setattr(PPO, 'loss', loss)


@trap('entropy punished (A2C)', 'A2C: sign of the entropy term', 'entropy after updates; gradient', check_entropy)
def _(mp):
    def loss(self, b): v, i = A2C_LOSS(self, b); return v + 2*self.ent_coef*self.pi(b.obs).entropy().mean(), i
    mp.setattr(A2C, 'loss', loss)


@trap('advantage with the wrong sign', 'PPO', 'gradient of each step against the papers', check_loss)
def _(mp): mp.setattr(PPO, 'loss', lambda self, b: LOSS(self, Batch(b, adv=-b.adv)))


@trap('entropy averaged over dimensions', 'continuous actions: sum over dimensions', 'gradient of each step against the papers', check_loss_box)
def _(mp): mp.setattr(actor_critic.heads.Gaussian, 'entropy', lambda self: self.log_std.mean(-1))


@trap('log-probs averaged over dimensions', 'continuous actions: sum over dimensions', 'gradient of each step against the papers', check_loss_box)
def _(mp): mp.setattr(actor_critic.heads.Gaussian, 'log_prob', lambda self, a: LOG_PROB(self, a)/a.shape[-1])


@trap('A2C normalises advantages', 'A2C: normalisation default off', 'gradient of each step against the papers', check_loss_a2c)
def _(mp):
    def prepare(self, buffer): b = PREPARE(self, buffer); return Batch(b, adv=standard(b.adv))
    mp.setattr(A2C, 'prepare', prepare)


@trap("A2C's λ is PPO's", 'A2C: λ = 1 equals the n-step return', 'targets against sums of rewards', check_n_step)
def _(mp): mp.setattr(A2C, 'config', staticmethod(lambda: A2CConfig(lam=.95)))


@trap('half a value error', 'A2C = PPO with one epoch (Huang et al.)', 'parameters of both after three rollouts', check_a2c_is_ppo)
def _(mp):
    def loss(self, b): v, i = A2C_LOSS(self, b); return v - .25*(self.v(b.obs).squeeze(-1) - b.ret).square().mean(), i
    mp.setattr(A2C, 'loss', loss)


@trap('reset rows are counted and stored as steps', 'Gymnasium NEXT_STEP', 'rows drawn, steps counted', check_reset_rows)
def _(mp): mp.setattr(Collector, '_book', lambda self, row, st: BOOK(self, row, st._replace(extras=Batch(other=st.reward))))


@trap('reset rows are counted as steps', 'Gymnasium NEXT_STEP', 'steps counted', check_reset_rows)
def _(mp):
    def book(self, row, st): self.steps += int((~st.extras['valid']).sum()); return BOOK(self, row, st)
    mp.setattr(Collector, '_book', book)


@trap('reset rows make episodes longer', 'Gymnasium NEXT_STEP', 'lengths of episodes', check_reset_rows)
def _(mp):
    def book(self, row, st): self.length += ~st.extras['valid']; return BOOK(self, row, st)
    mp.setattr(Collector, '_book', book)


@trap('reset rows are drawn into minibatches', 'Gymnasium NEXT_STEP', 'rows drawn', check_reset_rows)
def _(mp):
    def epoch(self, *a): self.np.valid[...] = True; yield from EPOCH(self, *a)
    mp.setattr(Rollout, 'epoch', epoch)


@trap('reset rows are learned from (A2C)', 'Gymnasium NEXT_STEP', 'rows drawn', check_reset_rows)
def _(mp): mp.setattr(Rollout, 'whole', lambda self, b: b.flat())


@trap('the last rows of an epoch are dropped', 'minibatches that do not divide the rollout', 'rows drawn', check_reset_rows)
def _(mp): mp.setattr(Rollout, 'epoch', lambda self, *a: iter(list(EPOCH(self, *a))[:-1]))


@trap('observations kept by reference', 'worlds that reuse their arrays', 'memory against a log of copies', check_reused)
def _(mp):
    kept = []
    mp.setattr(collect, '_write', lambda into, obs: kept.append((into, obs)))
    mp.setattr(Rollout, 'close', lambda self, obs: ([np.copyto(i, o) for i, o in kept], CLOSE(self, obs)))


@trap('true successors kept by reference', 'worlds that reuse their arrays', 'memory against a log of copies', check_reused)
def _(mp):
    mp.setattr(rollout, '_take', lambda x, rows: x)
    mp.setattr(rollout, '_cat', lambda xs: np.concatenate([x[rows] for x, rows in zip(xs, mp.rows)]))
    mp.rows = []
    mp.setattr(Rollout, 'end', lambda self, t, rows, o: (mp.rows.append(rows), END(self, t, rows, o)))


@trap("the state shares the world's arrays", 'worlds that reuse their arrays', 'state before and after a step', check_reused)
def _(mp): mp.setattr(collect, '_copied', lambda x: x)


@trap('image axes guessed', 'PPO: Dict and CHW images', 'three shapes', check_images)
def _(mp): mp.setattr(actor_critic, 'layout', lambda shape: 'chw')


# ---- found by these tests, and mended
def test_a_minibatch_larger_than_two_rollouts():
    "An epoch fills up its minibatch, however short the rollout"
    live(made(PPO, CartPole, n_steps=4, minibatch=64, epochs=1), CartPole(4), 1)


def test_explained_variance_of_a_normalised_batch():
    "It speaks of the advantages, not of the normalised ones"
    said = [live(made(PPO, CartPole, n_steps=16, norm_adv=k), CartPole(8), 1).metrics[0]['explained_variance'] for k in ('minibatch', 'batch')]
    close(*said)


def test_valid_is_not_stale():
    "A world may tell `valid` only where a row is not: the last rollout must not shine through"
    told = []
    for quiet in False, True:
        world, agent = Script(2, 'next', quiet), made(n_steps=7)
        c, roll = Collector(world), agent.make_buffer(world)
        for _ in range(4):
            roll.clear(); world.log.clear()
            c.collect(agent, roll, 7)
        told.append(roll.np.valid.copy())
        assert (roll.np.valid == rows_of(world.log, 'valid')).all()


def after_junk(kind, junk: float, **cfg):
    "Parameters after three rollouts in which reset rows show something else"
    agent = made(kind, n_steps=12, **cfg)
    agent.act = lambda obs, *_: Batch(act=np.arange(5) % 2, logp=np.full(5, -.7, np.float32))
    with torch.no_grad(): agent.v[-1].weight.mul_(5)
    world = Script(mode='next')
    c, roll = Collector(world), agent.make_buffer(world)
    for _ in range(3):
        c.collect(agent, roll, 12)
        gone = ~roll.np.valid
        roll.np.obs[gone] += junk
        agent.learn(roll, 0.)
    return agent.opts['all'].vec


@pytest.mark.parametrize('kind, cfg', [(PPO, dict(minibatch=60)), (A2C, {})])
def test_reset_rows_move_no_parameter(kind, cfg):
    "Only V of what a reset row shows may matter, and only as the successor of the row before: there it is cut away here"
    real = ActorCritic.advantages
    def cut(self, buffer):
        keep = buffer.seen.copy()
        buffer.np.obs[~buffer.np.valid] = 0
        try: return real(self, buffer)
        finally: buffer.seen[...] = keep
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(ActorCritic, 'advantages', cut)
        assert torch.equal(after_junk(kind, 0., **cfg), after_junk(kind, 3., **cfg))


@pytest.mark.parametrize('what, cfg', [('advantages', dict(norm_adv='batch')), ('norm_obs', dict(norm_obs=True)), ('norm_reward', dict(norm_reward=True)), ('explained_variance', {})])
def test_reset_rows_are_in_no_statistic(what, cfg):
    "Neither in the moments of a batch nor in those of observations, returns and errors"
    agent, world = made(PPO, n_steps=12, minibatch=60, **cfg), Script(mode='next')
    c, roll = Collector(world), agent.make_buffer(world)
    c.collect(agent, roll, 12)
    ok, seen = torch.from_numpy(roll.np.valid.copy()), {}
    advantages, update, n = agent.advantages, agent.update, int(roll.np.valid.sum())
    def w_advantages(b): seen['adv'], seen['ret'] = advantages(b); return seen['adv'].copy(), seen['ret'].copy()
    agent.advantages = w_advantages
    agent.update = lambda opt, loss, b, lr, rule='adam': seen.update(given=b.adv.clone()) or update(opt, loss, b, lr, rule)
    said = agent.learn(roll, 0.)
    adv, ret = (torch.from_numpy(seen[k])[ok] for k in ('adv', 'ret'))
    if what == 'norm_obs': assert agent.norms['obs'].n == n
    elif what == 'norm_reward': assert agent.norms['ret'].n == n
    elif what == 'explained_variance': close(said[what], 1 - adv.var()/ret.var(), 1e-4)
    else: close(np.unique(seen['given']), np.unique(standard(adv)), 1e-4)


def test_ranks_agree_on_the_kl_stop():
    "Another rank has moved too far: this one stops too, or they wait for each other for ever"
    agent = made(PPO, CartPole, n_steps=16, minibatch=64, epochs=5, target_kl=1e3)
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(ranks, 'any_true', lambda flag: True)
        live(agent, CartPole(4), 1)
    assert int(agent.opts['all'].step) == 1


def test_schedules_do_not_compile_again():
    "clip and ent_coef are no numbers in the graph: each new value would make a new one, and the ninth is an error"
    made_graphs, real = [], torch.compile
    def compiler(graph, inputs): made_graphs.append(graph); return graph.forward
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(torch, 'compile', lambda f, **kw: real(f, backend=compiler, **kw))
        torch._dynamo.reset()
        agent = made(PPO, CartPole, compile=True, n_steps=8, minibatch=32, epochs=1, clip='linear(0.3, 0.1)', ent_coef='linear(0.02, 0.001)')
        Trainer(agent, CartPole(4)).fit(12*32)
    assert len(made_graphs) == 1


# ---- each check, on the engine and on the planted variant
CHECKS = {t.check.__name__: t.check for t in PLANTED}


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.mark.parametrize('name', CHECKS)
def test_the_engine_passes(name): CHECKS[name]()


@pytest.mark.filterwarnings('ignore:std')
@pytest.mark.parametrize('t', PLANTED, ids=[t.name for t in PLANTED])
def test_the_planted_bug_is_caught(t):
    with pytest.MonkeyPatch.context() as mp:
        t.plant(mp)
        with pytest.raises(AssertionError): t.check()


@pytest.mark.parametrize('t', PLANTED, ids=[t.name for t in PLANTED])
def test_a_planted_bug_is_small(t):
    "At most five lines, so that it is a mistake and not another program"
    f = ast.parse(textwrap.dedent(inspect.getsource(t.plant))).body[0]
    assert f.body[-1].end_lineno - f.body[0].lineno < 5


def test_names_are_unique(): assert len({t.name for t in PLANTED}) == len(PLANTED)


if __name__ == '__main__':
    torch.set_num_threads(1)
    for check in CHECKS.values(): check()
    rows = []
    for t in PLANTED:
        with pytest.MonkeyPatch.context() as mp:
            t.plant(mp)
            try: t.check()
            except AssertionError: rows.append((t.name, t.source, t.caught, 'caught'))
            else: rows.append((t.name, t.source, t.caught, 'MISSED'))
    from rlnb.core.text import table
    print(table(rows, ('planted', 'from', 'seen by', ''), fmt='markdown'))
    print(f'{len(rows)} planted, {sum(r[-1] == "caught" for r in rows)} caught; {len(CHECKS)} checks pass on the engine')
    raise SystemExit(any(r[-1] != 'caught' for r in rows))
