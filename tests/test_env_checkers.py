"Every world of ours keeps our own contract and passes Gymnasium's checker and Stable-Baselines3's (where it is installed)"
import importlib
import warnings

import gymnasium as gym
import numpy as np
import pytest

from rlnb.envs.base import check_env, worlds

for page in ('classic', 'grid', 'goal', 'cache'): importlib.import_module(f'rlnb.envs.{page}')
WORLDS = ['rlnb/CartPole-v1', 'rlnb/BlindCartPole-v1', 'rlnb/Pendulum-v1', 'rlnb/Acrobot-v1', 'rlnb/MountainCar-v0', 'rlnb/MountainCarContinuous-v0', 'rlnb/Maze-v0', 'rlnb/FourRooms-v0',
          'rlnb/Cliff-v0', 'rlnb/DeepSea-v0', 'rlnb/BitFlip-v0', 'rlnb/PointReach-v0', 'rlnb/PointReachDense-v0', 'rlnb/MockCache-v0', 'rlnb/Cache-v0']


@pytest.fixture(autouse=True)
def quiet():
    "Checkers warn about matters of taste (Gymnasium's own Pendulum is warned about too)"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.mark.parametrize('namespace', ['numpy', 'torch'])
@pytest.mark.parametrize('name', WORLDS)
def test_our_contract(name, namespace):
    env = worlds[name](4, namespace=namespace)
    assert check_env(env, steps=max(60, env.max_steps + 10 if env.max_steps <= 200 else 60))['steps'] >= 240
    assert env.reset(0) is not None
    st = env.step(np.stack([env.act_space.sample() for _ in range(4)]))
    assert st.reward.dtype == np.float32 and st.terminated.dtype == bool and st.truncated.dtype == bool


@pytest.mark.parametrize('name', WORLDS)
def test_gymnasium(name):
    from gymnasium.utils.env_checker import check_env as gymnasium_check
    gymnasium_check(gym.make(name).unwrapped)


@pytest.mark.parametrize('name', WORLDS)
def test_stable_baselines3(name):
    checker = pytest.importorskip('stable_baselines3.common.env_checker')
    checker.check_env(gym.make(name, render_mode='rgb_array').unwrapped, warn=False)


@pytest.mark.parametrize('name', WORLDS)
def test_picture(name):
    "Each world draws itself: the right type, not a blank sheet, and another picture after some steps"
    env = worlds[name](2)
    env.reset(0), env.act_space.seed(0)
    first, moved = env.picture(1), False
    for _ in range(15):
        env.step(np.stack([env.act_space.sample() for _ in range(2)]))
        moved |= bool((env.picture(1) != first).any())
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert len(np.unique(first)) > 3 and moved
    frame = gym.make(name, render_mode='rgb_array')
    frame.reset(seed=0)
    assert frame.render().shape == first.shape
