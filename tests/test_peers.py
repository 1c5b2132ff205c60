"Beside other libraries: the world's clock counts what was done, a side that learned less or more is void, and a row does what `rlnb bench` does"
import json

import gymnasium as gym
import peers
import peers_replay
import pytest
import torch
from rlnb.train.measure import WORKLOADS

W = dict(agent='dqn', env='CartPole-v1', begin=5, steps=12)


@pytest.fixture
def clock(monkeypatch):
    "A clock, and the classes that it changes as they were afterwards"
    world = type(gym.make('CartPole-v1').unwrapped)
    monkeypatch.setattr(world, 'step', world.step)
    monkeypatch.setattr(torch.optim.Adam, '__init__', torch.optim.Adam.__init__)
    return peers_replay.Clock(W)


def learner(critic, actor, every):
    "A library: two networks of so many numbers, the second moved in every `every`-th step of the world"
    env, ps = gym.make('CartPole-v1'), [torch.nn.Parameter(torch.zeros(n)) for n in (critic, actor)]
    opts = [torch.optim.Adam([p]) for p in ps]
    env.reset(seed=0)
    for k in range(1000):
        if env.step(k % 2)[2]: env.reset()
        for p, opt in list(zip(ps, opts))[:1 + (k % every == 0)]:
            p.grad = torch.ones_like(p)
            opt.step()


def counted(clock, *sizes):
    with pytest.raises(peers_replay.Enough): learner(*sizes)
    return clock.result()


def test_the_world_keeps_the_clock(clock):
    "From the sixth step to the seventeenth: twelve critic steps and six of the actor, and whatever came before is not counted"
    r = counted(clock, 7, 3, 2)
    assert (r['steps'], r['grads'], r['moved']) == (12, 12, 12*7 + 6*3) and r['cpu'] > 0


@pytest.mark.parametrize('sizes', [(7, 3, 1), (7, 4, 2), (8, 3, 2), (7, 3, 3)])
def test_other_work_is_not_alike(clock, sizes):
    "Another size of either network, an actor that moves more often or less"
    good = dict(steps=120, grads=120, moved=120*7 + 60*3)
    assert peers.alike(good, dict(steps=12, grads=12, moved=12*7 + 6*3)) and not peers.alike(good, counted(clock, *sizes))


def test_rows_are_those_of_bench():
    "Every setting of the same workload, and what is changed is in the name; a process can be told them"
    rows = peers.rows([], 1.)
    for name in peers_replay.NAMES:
        w, row = WORKLOADS[name], rows[name]
        assert {k: row[k] for k in w.cfg.to_dict()} == w.cfg.to_dict() and row['steps'] == w.steps and row['begin'] > row['learning_starts']
    assert rows['sac-pendulum-compiled'] == rows['sac-pendulum'] | dict(compile=True, settings=rows['sac-pendulum']['settings'] | dict(compile=True))
    assert json.loads(json.dumps(rows))
    assert list(peers.rows(['td3'], 1.)) == ['td3-cheetah'] and peers.rows(['td3'], .5)['td3-cheetah']['steps'] == WORKLOADS['td3-cheetah'].steps//2


def test_compare(monkeypatch):
    "A ratio is taken inside a round; a side that did other work has none; one that fails is said and left out"
    cpu = dict(rlnb=iter([1., 2.]), skrl=iter([6., 2.]), tianshou=iter([4., 4.]))
    def measured(peer, w, path):
        if peer == 'torchrl': raise RuntimeError('no such module')
        return dict(steps=100, grads=100, moved=900 if peer == 'tianshou' else 1000, cpu=next(cpu[peer]), version='1')
    monkeypatch.setattr(peers, 'measured', measured)
    said = []
    out = {r['peer']: r for r in peers.compare('sac-pendulum', peers.rows([], 1.)['sac-pendulum'], dict.fromkeys(['skrl', 'tianshou', 'torchrl'], ''), 2, said.append)}
    assert list(out) == ['skrl', 'tianshou'] and 'sac-pendulum torchrl: no result: no such module' in said
    assert (out['skrl']['low'], out['skrl']['ratio'], out['skrl']['high'], out['skrl']['void']) == (1., 3.5, 6., '')        # 6/1 in a round, 2/2 in the other
    assert out['tianshou']['ratio'] is None and out['tianshou']['void'] == 'what was learned differs'
