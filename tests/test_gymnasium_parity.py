"""Whole episodes of the five classics, ours beside Gymnasium's: same start, same actions. `apart`: each on its own, in double precision (a balanced pole
is left out: it multiplies any rounding by e⁴ a second); else ours begins each step in Gymnasium's state, rounded to single precision"""
import gymnasium as gym
import numpy as np
import pytest

from rlnb.envs.classic import Acrobot, CartPole, MountainCar, MountainCarContinuous, Pendulum

WORLDS = {'CartPole-v1': CartPole, 'Pendulum-v1': Pendulum, 'Acrobot-v1': Acrobot, 'MountainCar-v0': MountainCar, 'MountainCarContinuous-v0': MountainCarContinuous}
SKILL = {   # policies that reach the ends which random actions never see; a number is the action's sign
    'CartPole-v1': lambda o: int(o[2] + .5*o[3] + .05*o[1] > 0),
    'Pendulum-v1': lambda o: np.array([2*np.sign(o[2])*np.sign(5 - 5*o[0] - o[2]**2/6)], np.float32),
    'Acrobot-v1': lambda o: 0 if o[4] > 0 else 2,
    'MountainCar-v0': lambda o: 0 if o[1] < 0 else 2,
    'MountainCarContinuous-v0': lambda o: np.array([-1. if o[1] < 0 else 1.], np.float32),
}


def episode(name: str, seed: int, world=None, skilled=False, namespace='numpy', apart=True) -> tuple[float, str]:
    "Largest distance of the observations over one episode, and how it ended; rewards and ends must agree at every step"
    ours, theirs = (world or WORLDS[name])(1, namespace=namespace), gym.make(name, disable_env_checker=True)
    theirs.action_space.seed(seed)
    obs, _ = theirs.reset(seed=seed)
    ours.reset(0)
    def put():
        state = np.array(theirs.unwrapped.state, np.float64 if apart else np.float32)[:, None]
        ours.s = state if namespace == 'numpy' else ours.xp.from_numpy(state)
    put()
    gap = 0.
    while True:
        if not apart: put()
        a = SKILL[name](obs) if skilled else theirs.action_space.sample()
        if apart and name == 'Pendulum-v1': a = a.astype(float)      # else Gymnasium's own step rounds the torque to single precision
        obs, reward, term, trunc, _ = theirs.step(a)
        st = ours.step(np.array([a]))
        gap = max(gap, abs(st.next_obs[0] - obs).max())
        assert gap < 1e-5 and abs(st.reward[0] - reward) < 1e-5
        assert (bool(st.terminated[0]), bool(st.truncated[0])) == (term, trunc and not term)
        if term or trunc: return gap, 'terminated' if term else 'truncated'


@pytest.mark.parametrize('name', WORLDS)
def test_whole_episodes(name):
    ends = {episode(name, seed, skilled=skilled, apart=name != 'CartPole-v1' or not skilled)[1] for seed in range(4) for skilled in (False, True)}
    assert ends == ({'truncated'} if name == 'Pendulum-v1' else {'terminated', 'truncated'})


@pytest.mark.parametrize('name', WORLDS)
def test_single_precision_step_by_step(name):
    for namespace in ('numpy', 'torch'): episode(name, 11, skilled=True, namespace=namespace, apart=False)


@pytest.mark.parametrize('name', WORLDS)
def test_spaces_and_limit(name):
    ours, theirs = gym.make(f'rlnb/{name}'), gym.make(name)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    assert ours.unwrapped.env.max_steps == theirs.spec.max_episode_steps


@pytest.mark.parametrize('name', WORLDS)
def test_starts_come_from_the_same_range(name):
    "Our starts are drawn by another generator; their least and largest values must be Gymnasium's"
    ours, theirs = WORLDS[name](4000), gym.make(name).unwrapped
    ours.reset(0)
    states = np.array([(theirs.reset(seed=s), theirs.state)[1] for s in range(400)], float)
    assert np.allclose(ours.s.min(1), states.min(0), atol=.02*np.maximum(.1, np.ptp(states, 0)))
    assert np.allclose(ours.s.max(1), states.max(0), atol=.02*np.maximum(.1, np.ptp(states, 0)))


# ---- planted: each must be seen
class WrongStep(CartPole):
    "0.021 s in place of 0.02"
    def dynamics(self, s, act):
        after, *rest = super().dynamics(s, act)
        return s + 1.05*(after - s), *rest


class LimitIsAnEnd(Pendulum):
    "The time limit called a termination"
    def step(self, act):
        st = super().step(act)
        return st._replace(terminated=st.truncated, truncated=st.terminated)


class OneMore(MountainCar):
    "One step too many"
    max_steps = 201


class Unwrapped(Acrobot):
    "A constant off in the fourth digit"
    def slope(self, s, u): return super().slope(s, u)*1.0001


@pytest.mark.parametrize('name, world', [('CartPole-v1', WrongStep), ('Pendulum-v1', LimitIsAnEnd), ('MountainCar-v0', OneMore), ('Acrobot-v1', Unwrapped)])
def test_planted_fault_is_seen(name, world):
    with pytest.raises(AssertionError): episode(name, 0, world)
