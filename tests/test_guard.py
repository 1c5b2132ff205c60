"""The guard against planted failures and against healthy runs: what it misses, and where it cries wolf. All runs are real ones, and short."""
import itertools
import math
import time

import pytest
import torch

from rlnb.core.errors import Diverged
from rlnb.train.experiment import build, resolve
from rlnb.train.guard import Guard

CARTPOLE, PENDULUM, CACHE = 'rlnb/CartPole-v1', 'rlnb/Pendulum-v1', 'rlnb/MockCache-v0'


def run(agent, env, steps, seed=0, plant=None, presets=True, **own):
    "Kinds of the cards of a run that only warns, what it ended with, and the trainer"
    t = build(resolve(dict(agent=agent, env=env, steps=steps, seed=seed, agent_cfg=own), presets), cbs=[Guard('warn')])
    if plant: plant(t)
    try: t.fit(steps)
    except Diverged as e: return [*(c.kind for c in t.cards)], e, t
    return [c.kind for c in getattr(t, 'cards', [])], None, t


# ---- the plants
def world(change):
    def plant(t):
        real, count = t.env.step, itertools.count(1)
        t.env.step = lambda act: change(real(act), next(count))
    return plant


def update(change):
    def plant(t):
        real = t.agent.update
        t.agent.update = lambda *a: change(real, *a)
    return plant


def lr(x): return update(lambda real, opt, loss, b, _, *a: real(opt, loss, b, x, *a))
def reward(f): return world(lambda s, n: s._replace(reward=f(s.reward, n)))
def setting(k, v): return lambda t: object.__setattr__(t.agent.cfg, k, v)


def deaf(real, opt, loss, b, *a):
    "The gradient never arrives"
    opt.zero()
    return loss(b)[1].detach()


def poison(at):
    "A weight that is no number, from the update `at` on"
    count = itertools.count(1)
    def change(real, opt, *a):
        out = real(opt, *a)
        if next(count) == at: opt.vec.data[0] = math.nan
        return out
    return update(change)


def one_action(t):
    "A policy that was made to play one action, whatever it sees, at its sixtieth update"
    count = itertools.count(1)
    def change(real, opt, *a):
        out = real(opt, *a)
        if next(count) >= 60: list(t.agent.pi.body.parameters())[-1].data[0] = 60.
        return out
    update(change)(t)


SPIKE = reward(lambda r, n: r + (math.inf if n == 60 else 0.))
NANS = world(lambda s, n: s._replace(obs=s.obs*math.nan if n == 60 else s.obs))
POISON = [poison(20), poison(20)]
EARLY = {'value', 'kl', 'entropy', 'nonfinite'}
PLANTS = [                                              # agent, world, steps, plant, settings, the kinds that may be told
    *((a, e, 3000, SPIKE, {}, {'nonfinite'}) for a in ('a2c', 'ppo') for e in (CARTPOLE, PENDULUM, CACHE)),
    *((a, e, 3000, NANS, {}, {'nonfinite'}) for a in ('a2c', 'ppo') for e in (CARTPOLE, PENDULUM, CACHE)),
    *((a, CARTPOLE, 3000, p, {}, {'nonfinite'}) for a, p in zip(('a2c', 'ppo'), POISON)),
    *((a, e, 4500, reward(lambda r, n: r*1e12), dict(norm_reward=False), {'value'}) for a in ('a2c', 'ppo') for e in (CARTPOLE, PENDULUM, CACHE)),
    *((a, e, 4500, update(deaf), {}, {'dead'}) for a in ('a2c', 'ppo') for e in (CARTPOLE, PENDULUM, CACHE)),
    *((a, CARTPOLE, 4500, lr(0.), {}, {'dead'}) for a in ('a2c', 'ppo')),
    *((a, e, 7000, lr(1e3), {}, EARLY) for a in ('a2c', 'ppo') for e in (CARTPOLE, PENDULUM, CACHE)),
    *(('ppo', e, 5000, lr(1.), {}, {'kl', 'entropy'}) for e in (CARTPOLE, CACHE)),
    *(('a2c', e, 9000, lr(1.), {}, {'entropy', 'value'}) for e in (CARTPOLE, CACHE)),
    ('ppo', CARTPOLE, 10000, lr(.1), {}, {'kl', 'entropy'}), ('a2c', CARTPOLE, 7000, lr(.1), {}, {'entropy', 'value'}),
    ('a2c', CARTPOLE, 7000, setting('ent_coef', -10.), {}, {'entropy'}), ('a2c', CARTPOLE, 7000, setting('ent_coef', -100.), {}, {'entropy'}),
    ('ppo', CARTPOLE, 5000, setting('ent_coef', -10.), dict(lr=3e-3, n_steps=16, minibatch=64), {'entropy'}),
    ('a2c', PENDULUM, 14000, setting('ent_coef', -10.), dict(lr=.03), {'entropy'}),
    ('a2c', CARTPOLE, 8000, one_action, {}, {'entropy'}), ('a2c', CACHE, 14000, one_action, {}, {'entropy'}),
]


# ---- healthy runs: three worlds, two agents, presets and defaults, several seeds, settings that are bold and sound
HEALTHY = [(a, e, 2500, s, p, {}) for a in ('a2c', 'ppo') for e in (CARTPOLE, PENDULUM, CACHE) for p in (True, False) for s in (1, 2, 3)] + [
    *((a, e, 2500, 4, True, {}) for a in ('a2c', 'ppo') for e in ('rlnb/Cliff-v0', 'rlnb/Maze-v0', 'rlnb/MountainCar-v0', 'rlnb/Acrobot-v1')),
    ('ppo', CARTPOLE, 5000, 5, True, dict(lr=3e-3)), ('a2c', CACHE, 5000, 5, True, dict(ent_coef=0.)),
    ('ppo', CACHE, 5000, 5, True, dict(ent_coef=0., lr=1e-3)), ('ppo', PENDULUM, 5000, 5, True, dict(lr='linear(1e-3, 0)')),
    *(('a2c', CARTPOLE, 5000, s, True, dict(lr=3e-3)) for s in (5, 6, 7)),          # the first hardens for 35 updates, and frees itself
    ('ppo', CARTPOLE, 5000, 6, True, dict(target_kl=.01)), ('a2c', CARTPOLE, 5000, 6, True, dict(norm_obs=True, norm_reward=True)),
    ('ppo', CARTPOLE, 5000, 7, True, dict(activation='relu', hidden=(16,)))]


def test_planted_failures_are_told_and_healthy_runs_are_not():
    then, missed, wrong, false = time.perf_counter(), [], [], []
    for i, (agent, env, steps, plant, own, kinds) in enumerate(PLANTS):
        told, error, t = run(agent, env, steps, plant=plant, **own)
        if not told: missed.append((i, agent, env))
        elif told[0] not in kinds: wrong.append((i, agent, env, told))
        assert (error is not None) == ('nonfinite' in told) and len(told) == len(set(told))
        if error: assert error.card is t.card and error.code == 76
    for agent, env, steps, seed, presets, own in HEALTHY:
        told, error, t = run(agent, env, steps, seed, presets=presets, **own)
        if told or error: false.append((agent, env, seed, presets, own, told, str(error or t.card)))
    hits = len(PLANTS) - len(missed)
    print(f'{hits} of {len(PLANTS)} planted failures told (recall {hits/len(PLANTS):.2f}), {len(false)} false alarms in {len(HEALTHY)} healthy runs '
          f'(precision {hits/max(hits + len(false), 1):.2f}); {time.perf_counter() - then:.0f} s')
    assert (missed, wrong, false) == ([], [], []) and len(HEALTHY) >= 50 and len(PLANTS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize('agent', ['a2c', 'ppo'])
@pytest.mark.parametrize('env', [CARTPOLE, PENDULUM, CACHE, 'rlnb/Acrobot-v1', 'rlnb/Maze-v0', 'rlnb/Cliff-v0', 'rlnb/MountainCarContinuous-v0'])
def test_no_alarm_until_the_world_is_solved(agent, env):
    "Healthy convergence: entropy falls for good reasons"
    for seed, presets in itertools.product((1, 2), (True, False)):
        told, error, t = run(agent, env, 60_000, seed, presets=presets)
        assert not told and not error, str(getattr(t, 'card', error))


def test_a_hard_policy_that_is_trained_on_is_well():
    "Fine-tuning a solved agent: its entropy is low from the start, its return can't grow"
    t = build(resolve(dict(agent='a2c', env=CARTPOLE, steps=9000)), cbs=[Guard('warn')])
    list(t.agent.pi.body.parameters())[-1].data[0] = 12.
    t.fit(9000)
    assert not getattr(t, 'cards', [])


def test_the_guard_changes_nothing():
    "Same weights, same metrics, with a guard and without"
    ts = [build(resolve(dict(agent='ppo', env=CARTPOLE, steps=3000, seed=3)), cbs=[Guard()]*n) for n in (0, 1)]
    for t in ts: t.fit(3000)
    assert torch.equal(ts[0].agent.opts['all'].vec, ts[1].agent.opts['all'].vec)
    assert {k: float(v) for k, v in ts[0].metrics.items()} == ts[1].metrics


def test_an_interrupted_guard_counts_on():
    "Some of the signs before the interruption, the last one after it"
    plant, full = setting('ent_coef', -10.), 8000
    whole = run('a2c', CARTPOLE, full, plant=plant)[2]
    at = whole.cards[0].step
    t = build(resolve(dict(agent='a2c', env=CARTPOLE, steps=full)), cbs=[Guard('warn')])
    plant(t)
    t.horizon = full
    t.fit(at - 40)
    assert t.step == at - 40 and not getattr(t, 'cards', [])
    again = build(resolve(dict(agent='a2c', env=CARTPOLE, steps=full)), cbs=[Guard('warn')])
    plant(again)
    again.load_state_dict(t.state_dict())
    again.fit(full)
    assert [(c.kind, c.step) for c in again.cards] == [(c.kind, c.step) for c in whole.cards]


@pytest.mark.slow
def test_on_seeds_that_chose_nothing():
    """The signs were set on the runs above. These have other seeds: no false alarm, and nine plants in ten are told. What is missed are policies that were
    paid for hardening and gained by it all the same, which the guard does not call trouble, and two runs that end before its patience does."""
    missed, false, plants = [], [], 0
    for seed, (agent, env, steps, plant, own, kinds) in itertools.product((101, 102), PLANTS):
        if plant in POISON: plant = poison(20)              # it counts updates, once
        told, _, _ = run(agent, env, steps, seed, plant, **own)
        plants += 1
        if not told or told[0] not in kinds: missed.append((agent, env, seed, told))
    worlds = (CARTPOLE, PENDULUM, CACHE, 'rlnb/Acrobot-v1', 'rlnb/Maze-v0', 'rlnb/Cliff-v0')
    healthy = [(a, e, s, p, {}) for s in range(201, 206) for a in ('a2c', 'ppo') for e in worlds for p in (True, False)]
    healthy += [('a2c', CARTPOLE, s, True, dict(lr=x)) for s in range(201, 206) for x in (1e-3, 2e-3, 3e-3, 5e-3)]
    for agent, env, seed, presets, own in healthy:
        told, error, _ = run(agent, env, 5000, seed, presets=presets, **own)
        if told or error: false.append((agent, env, seed, presets, own, told))
    print(f'{plants - len(missed)} of {plants} told, {len(false)} false alarms in {len(healthy)} healthy runs')
    assert false == [] and len(missed) <= .1*plants, (missed, false)


@pytest.mark.parametrize('agent', ['td3', 'crossq'])
def test_a_life_that_begins_between_two_updates_of_an_actor(agent):
    "A gradient is no part of a checkpoint: an actor that is updated seldom is not taken for dead before its turn comes (found by the kills)"
    from rlnb.train.experiment import Experiment, build
    small = dict(learning_starts=20, batch_size=8, hidden=(8,)) | (dict(critic_hidden=(8,)) if agent == 'crossq' else {})
    made = lambda: build(Experiment.from_dict(dict(agent=agent, env='rlnb/Pendulum-v1', num_envs=1, steps=200, agent_cfg=small)))
    first, second, looks = made(), made(), []
    first.fit(60)
    second.load_state_dict(first.state_dict())
    for t in (first, second):
        g = Guard()
        if t is second: g.before_fit(t)
        looks.append({kind: there for kind, there, _ in g._signs(t, dict.fromkeys(t.agent.opts, 1.0)) if t.metrics or kind == 'dead'})
    assert not looks[0]['dead'] and not looks[1]['dead']
    assert ('dead', True) in {(kind, there) for kind, there, _ in Guard()._signs(second, dict.fromkeys(second.agent.opts, 1.))}       # planted: not told
    assert not any(o.grad.any() for o in second.agent.opts.values())              # what it would have looked at
