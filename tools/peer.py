"""Stable-Baselines3 with the settings of one of our presets, trained by its own loop and judged by ours; where it lacks one of them (a second network
that judges, for DQN), with those that its authors tuned for that world"""
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path

import learn


# hyperparams/dqn.yml of RL Baselines3 Zoo, whose world is one
TUNED = {('dqn', 'CartPole-v1'): dict(learning_rate=2.3e-3, batch_size=64, buffer_size=100_000, learning_starts=1000, gamma=.99, train_freq=256,
                                      gradient_steps=128, target_update_interval=10, exploration_fraction=.16, exploration_final_eps=.04,
                                      policy_kwargs=dict(net_arch=[256, 256]))}


def at(folder: str) -> str:
    "The peer's version, looked for in a folder too; '' where it is not"
    if folder and (p := str(Path(folder).absolute())) not in sys.path: sys.path.append(p)       # last: what it brings along replaces nothing of ours
    try: return metadata.version('stable-baselines3')
    except metadata.PackageNotFoundError: return ''


def version(c, theirs: str) -> str:
    "Their version and our settings: a row stays until one of them changes"
    how = TUNED.get((c.agent, c.world)) or learn.settings(c)
    return f'{theirs}-{hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]}'


class Guest:
    "Their model as an agent of ours: it sees what it saw in training, and plays"
    def __init__(self, model, scale): self.model, self.scale = model, scale
    def initial_state(self, n): return ()
    def act(self, obs, explore=False, progress=1.):
        "What it does, in our worlds' scale: they take -1 … 1 where its own took low … high"
        a, space = self.model.predict(self.scale(obs), deterministic=not explore)[0], self.model.action_space
        return dict(act=2*(a - space.low)/(space.high - space.low) - 1 if hasattr(space, 'low') else a)


def trained(c, seed: int) -> Guest:
    "Their agent of this name, our settings in their words; what we normalise, they do too"
    import numpy as np
    import stable_baselines3
    import torch
    from rlnb.train.experiment import Experiment
    from rlnb.train.measure import sb3_settings
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize
    torch.set_num_threads(1)
    if tuned := TUNED.get((c.agent, c.world)):
        model = getattr(stable_baselines3, c.agent.upper())('MlpPolicy', make_vec_env(c.world, 1, seed=seed), seed=seed, device='cpu', **tuned)
        return Guest(model.learn(c.steps), lambda obs: obs)
    e = Experiment.from_dict({'agent': c.agent, 'env': c.world, **learn.settings(c), 'steps': c.steps, 'seed': seed})
    cfg, env = e.agent_cfg, make_vec_env(c.world, e.num_envs, seed=seed)
    norms = {k: True for k in ('norm_obs', 'norm_reward') if getattr(cfg, k, False)}
    if norms: env = VecNormalize(env, **dict(norm_obs=False, norm_reward=False) | norms, gamma=cfg.gamma)
    plain = cfg.override(dict.fromkeys(norms, False))
    more = dict(action_noise=NormalActionNoise(np.zeros(n := env.action_space.shape), cfg.noise*np.ones(n))) if c.agent == 'td3' else {}
    model = getattr(stable_baselines3, c.agent.upper())('MlpPolicy', env, seed=seed, device='cpu', **sb3_settings(plain), **more).learn(c.steps)
    env.close()
    return Guest(model, env.normalize_obs if 'norm_obs' in norms else lambda obs: obs)
