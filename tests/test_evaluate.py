"Evaluation: the same numbers as before it moved, in worlds of every kind, and without a trace in the run that is judged"
import time

import numpy as np
import pytest
from rlnb.core.io import to_json
from rlnb.core.seed import rng_state, seed_of
from rlnb.envs.base import Step, VecEnv
from rlnb.envs.gym import make
from rlnb.evaluation.evaluate import evaluate, play, roll
from rlnb.train.experiment import Experiment, build


def before(agent, env, episodes, seed, explore=False, limit=100_000):
    "`play` as it stood in train.experiment"
    per = -(-episodes//env.num_envs)
    done = [[] for _ in range(env.num_envs)]
    total, obs, memory = np.zeros(env.num_envs), env.reset(seed), agent.initial_state(env.num_envs)
    for _ in range(limit):
        st = env.step(agent.act(obs, explore, 1., *memory)['act'])
        total, obs = total + st.reward, st.obs
        for m in memory: m[st.done] = 0
        for i in st.done.nonzero()[0]:
            done[i].append(float(total[i]))
            total[i] = 0
        if all(len(d) >= per for d in done): break
    return np.array([x for d in done for x in d[:per]])


def trained(agent='ppo', env='rlnb/CartPole-v1', steps=2000, **kw):
    t = build(Experiment(agent=agent, env=env, num_envs=4, steps=steps, agent_cfg=dict(n_steps=64) | kw))
    t.fit(steps)
    return t


@pytest.mark.parametrize('agent,env', [('ppo', 'rlnb/CartPole-v1'), ('a2c', 'rlnb/Pendulum-v1'), ('ppo_rnn', 'rlnb/CartPole-v1')])
def test_play_gives_the_numbers_it_gave(agent, env):
    t = trained(agent, env, 512)
    assert (play(t.agent, make(env, 5), 10, seed=7) == before(t.agent, make(env, 5), 10, seed=7)).all()


@pytest.mark.parametrize('explore', [False, True])
@pytest.mark.parametrize('agent,env', [('ppo', 'rlnb/CartPole-v1'), ('ppo_rnn', 'rlnb/CartPole-v1'), ('ppo', 'CartPole-v1')])
def test_a_run_that_is_evaluated_ends_with_the_same_bytes(agent, env, explore):
    def run(judge):
        t = build(Experiment(agent=agent, env=env, num_envs=4, steps=768, agent_cfg=dict(n_steps=64, norm_obs=True)))
        for _ in range(3):
            t.fit(t.step + 256)
            if judge: evaluate(t.agent, env, 8, explore=explore, num_envs=4)
        return to_json(dict(trainer=t.state_dict(), rest=rng_state()))
    assert run(True) == run(False)


@pytest.mark.parametrize('vector', [True, False])
def test_a_row_that_was_spent_on_a_reset_is_no_step(vector):
    "Gymnasium's own vector worlds give such rows: in CartPole return and length are one number all the same"
    t = trained(steps=512)
    c = roll(t.agent, make('CartPole-v1', 3, vector=vector), 9, seed=1)
    assert len(c['return']) == 9 and (c['return'] == c['length']).all() and set(c['row']) == {0, 1, 2}


class Told(VecEnv):
    "Four steps an episode; a cost of two kinds in the second; success in every other episode; every fifth row of steps is a reset"
    num_envs = 3
    def __init__(self, next_step): self.next_step = next_step
    def reset(self, seed=None):
        self.t, self.k = np.zeros(3, int), np.zeros(3, int)
        return self.t.astype(np.float32)[:, None]
    def step(self, act):
        valid = self.t < 4
        self.t = np.where(valid, self.t + 1, 0)
        done = self.t == 4
        cost = np.stack([(self.t == 2)*1., (self.t == 2)*2.], 1)
        extras = dict(cost=cost, success=np.where(done, self.k % 2, np.nan))
        self.k += done
        if self.next_step: extras['valid'] = valid
        else: self.t = self.t*~done
        reward = np.where(valid, 1., 99.).astype(np.float32)
        return Step(self.t.astype(np.float32)[:, None], reward, done & False, done, self.t.astype(np.float32)[:, None], extras)


class Idle:
    def initial_state(self, n): return (np.zeros(n),)
    def act(self, obs, explore, progress, memory):
        self.seen = memory.copy()
        memory += 1
        return dict(act=np.zeros(len(obs)))


@pytest.mark.parametrize('next_step', [False, True])
def test_what_an_episode_was(next_step):
    e = evaluate(Idle(), Told(next_step), 12)
    assert len(e) == 12 and e.unfinished == 0
    assert (e['return'] == 4).all() and (e['length'] == 4).all() and (e['cost'] == 3).all() and (e['first_cost'] == 2).all()
    assert (e['terminated'] == 0).all() and e.success == .5 and e.summary('cost')['mean'] == 3


@pytest.mark.parametrize('next_step', [False, True])
def test_no_memory_crosses_an_episode(next_step):
    most = []
    agent = Idle()
    evaluate(agent, Told(next_step), 9, watch=lambda *a: most.append(agent.seen.max()))
    assert max(most) == 3


def test_many_worlds_do_not_favour_the_short_episodes():
    "The mean is the same whether two worlds play or forty"
    t = trained(steps=2000)
    few, many = (evaluate(t.agent, 'rlnb/CartPole-v1', 120, num_envs=n, explore=True)['return'] for n in (2, 40))
    assert abs(few.mean() - many.mean()) < 3*(few.var()/120 + many.var()/120)**.5


def test_ten_episodes_take_less_than_a_second():
    t = trained(steps=4000)
    then = time.perf_counter()
    evaluate(t.agent, 'rlnb/CartPole-v1', 10)
    assert time.perf_counter() - then < 1


def test_no_seed_of_training_is_met():
    "Worlds of evaluation begin elsewhere than those of any of a hundred trainings"
    class Asked(Told):
        def reset(self, seed=None):
            self.seed = seed
            return super().reset(seed)
    env = Asked(False)
    evaluate(Idle(), env, 3, seed=5)
    assert env.seed == seed_of(5, 'evaluation', bits=31) != 5
    assert not {seed_of(s, 'evaluation', bits=31) for s in range(100)} & ({seed_of(s, 'env') for s in range(100)} | set(range(100)))
