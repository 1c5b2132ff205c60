"""Rough worlds and rough lives, for tests that kill: found by name in every process that a test starts.
Worlds: `rough:Impolite` draws from everybody's generators, `rough:sealed` can't be put back (boundary tier), `rough:Trap` breaks when told.
Plants, called at the beginning of a life (`certify(plant='rough:…')`): `forget`, `stop_at`, `set_at`, `both`."""
import random
import time

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from rlnb.core.batch import Batch
from rlnb.envs.base import TensorEnv


class Impolite(TensorEnv):
    "Draws from its own generator and from the three of the process, has costs, and short episodes"
    obs_space, act_space, max_steps = spaces.Box(0, 1, (3,)), spaces.MultiDiscrete([2, 3]), 9
    def start(self, n, rows): return self.draw(3, n)
    def observe(self, s): return s.T
    def dynamics(self, s, act):
        luck = np.float32(random.random() + np.random.random() + float(torch.rand(())))
        s = (s*1.7 + .1*act[:, 0] + .1*self.draw(3, self.num_envs) + luck).astype(np.float32) % 1
        return s, (s[1] - .1*act[:, 1]).astype(np.float32), s[2] > .8, Batch(cost=s[0].copy())


class Sealed(gym.Env):
    "Lives in the frame of a generator, which nothing can copy; `reset(seed)` is deterministic, so it is trained in the boundary tier"
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    def _lives(self):
        x = self.np_random.random()
        for n in range(13):
            act = yield np.array([np.sin(x), np.cos(x)], np.float32), float(np.sin(x)), n > 11, False, {}
            x += .1*(2*act - 1) + .05*self.np_random.standard_normal()
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.life = self._lives()
        return next(self.life)[0], {}
    def step(self, act): return self.life.send(act)


def sealed(): return Sealed()


# ---- plants
def at(d: dict, path: str) -> tuple[dict, str]:
    *way, last = path.split('/')
    for k in way: d = d[k]
    return d, last


def other(x):
    "Another value of the same kind"
    if isinstance(x, dict): return {k: v if k == 'kind' else other(v) for k, v in x.items()}
    if isinstance(x, bool): return not x
    if isinstance(x, (int, float)): return x + 1
    if isinstance(x, str): return str(int(x) ^ 2) if x.isdecimal() else x
    if isinstance(x, list): return [] if x else x
    return ~x if getattr(getattr(x, 'dtype', None), 'kind', '') == 'b' else x if x is None else np.asarray(x) + np.ones_like(x)


def forget(path: str) -> None:
    "A piece of the state is not loaded: it stays what it is in a fresh trainer (arrays, and what is the same there, are changed)"
    from rlnb.train.certify import walk
    from rlnb.train.trainer import Trainer
    load = Trainer.load_state_dict
    def less(self, d):
        fresh = self.state_dict()
        try: value = at(fresh, path)
        except KeyError: value = None
        to, last = at(d, path)
        new = value[0].get(last) if value else None
        to[last] = other(to[last]) if hasattr(to[last], 'dtype') or walk(new) == walk(to[last]) else new
        load(self, d)
    Trainer.load_state_dict = less


def stop_at(n: str) -> None:
    "Somebody asks for a stop at the n-th vector step of this life"
    from rlnb.train.steer import Control
    look, count = Control.look, [0]
    def counted(self):
        count[0] += 1
        if count[0] > int(n): self.why = 'stop'
        return look(self)
    Control.look = counted


def set_at(step: str) -> None:
    "A `set` arrives when the run has reached a step, unless one did in a former life"
    from rlnb.runs.control import send
    from rlnb.train.steer import Control
    after, begin, step = Control.after_learn, Control.before_fit, int(step)
    def begun(self, t):
        if not self.events.of('set'):              # sent in a former life and not heard: it is sent again when its step comes
            for f in (t.run/'control').glob('*-set.cmd'): f.unlink()
        begin(self, t)
    def sent(self, t):
        if t.step >= step and not self.events.of('set'):
            send(t.run, 'set', changes={'ent_coef': .03, 'lr': .002})
            self.polled = 0.
        after(self, t)
    Control.before_fit, Control.after_learn = begun, sent


def both(step: str, n: str) -> None:
    "A `set`, and later a stop"
    set_at(step)
    stop_at(n)


class Slow(TensorEnv):
    "A step takes two seconds"
    obs_space, act_space = spaces.Box(0, 1, (3,)), spaces.Discrete(2)
    def start(self, n, rows): return self.draw(3, n)
    def observe(self, s): return s.T
    def dynamics(self, s, act):
        time.sleep(2)
        return s, s[1], s[2] > 2, Batch()


class Stuck(Slow):
    "A step does not come to an end"
    def dynamics(self, s, act):
        time.sleep(600)
        return super().dynamics(s, act)


SECRET = 'canary-6Lk2pQ9w'


class Blabs(gym.Env):
    "Breaks after some steps, and its words hold a password and markup"
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    n = 0
    def reset(self, *, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, act):
        self.n += 1
        if self.n > 10: raise RuntimeError(f'https://user:{SECRET}@host/ password={SECRET} <img src=x onerror=alert(1)> \x1b[31m\r')
        return np.full(2, self.n % 3, np.float32), float(self.n % 2), False, False, {}


class Nonsense(Blabs):
    "Gives what is no number after some steps"
    def step(self, act):
        self.n += 1
        return np.full(2, np.nan if self.n > 10 else self.n % 3, np.float32), float(self.n % 2), False, False, {}
