"""What a replay costs → results/replay.json: `python tools/replay.py [--cpprb DIR] [--torchrl DIR]`

Bytes of a transition by key, beside what it takes to store an observation and its successor whole; and, in a memory of a million, drawing 256 by
priority with their weights and changing 256 priorities, beside cpprb's and TorchRL's trees in C++: alternating rounds, processor time of one thread.
(TorchRL's extension must be built for the torch that is here: of its `torchrl/csrc`, if its wheel is not.)"""
import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SIZE, BATCH = 1_000_000, 256

def worlds() -> dict:
    "A world of each kind, with settings of the replay"
    import numpy as np
    from gymnasium import spaces
    from rlnb.envs.base import TensorEnv
    from rlnb.envs.gym import make
    from rlnb.envs.wrap import FrameStack

    class Cameras(TensorEnv):
        "Three cameras of 64 × 64 in colour"
        obs_space, act_space = spaces.Box(0, 255, (64, 64, 9), np.uint8), spaces.Discrete(4)
        def start(self, n, rows): return np.zeros((1, n), np.float32)
        def observe(self, s): return np.zeros((s.shape[1], 64, 64, 9), np.uint8)
        def dynamics(self, s, act): return s, s[0], s[0] > 1
    cameras = FrameStack(Cameras(2), 4, axis=-1)
    ours = {name: (make(f'rlnb/{name}', 8), {}) for name in ('CartPole-v1', 'Pendulum-v1', 'BitFlip-v0')}
    return ours | {'3 cameras × 4 frames × 64²': (cameras, dict(frames=(4, -1)))}

def memory() -> list[dict]:
    from rlnb.buffers.replay import Replay
    from rlnb.buffers.store import bytes_of
    out = []
    for name, (env, more) in worlds().items():
        keys, plain = bytes_of(Replay(64, env, **more).spec), bytes_of(Replay(64, env).spec)
        seen = sum(n for k, n in plain.items() if k.split('.')[0] == 'obs')
        out.append(dict(world=name, keys=keys | dict(link=8), bytes=sum(keys.values()) + 8, twice=sum(plain.values()) + seen))
        env.close()
    return out

def draws(cpprb, torchrl, rounds: int = 5, calls: int = 100) -> dict:
    "Median microseconds of a draw and a change, ours and theirs"
    import numpy as np
    import torch
    from rlnb.buffers.per import Prioritised

    class Ring:
        M = R = T = written = SIZE
        num_envs, low = 1, 0
        class flat: valid = np.ones(SIZE, bool)
    ring, rng = Ring(), np.random.default_rng(0)

    per, errors = Prioritised(0, .6, .4), np.abs(rng.normal(size=(calls, BATCH))).astype(np.float32)
    per.attach(ring)
    theirs = cpprb.PrioritizedReplayBuffer(SIZE, {'obs': {}}, alpha=.6) if cpprb else None
    if theirs: theirs.add(obs=np.zeros(SIZE), priorities=np.ones(SIZE))

    def ours(e):
        row, _ = per.draw(BATCH, 0.)
        per.update(torch.from_numpy(row), torch.from_numpy(e))
    def other(e): theirs.update_priorities(theirs.sample(BATCH, beta=.4)['indexes'], e)
    if torchrl:
        sampler = torchrl(max_capacity=SIZE, alpha=.6, beta=.4)
        class Storage:
            ndim, shape = 1, (SIZE,)
            def __len__(self): return SIZE
        sampler.update_priority(torch.arange(SIZE), torch.ones(SIZE))
    def third(e):
        row, _ = sampler.sample(Storage(), BATCH)
        sampler.update_priority(row, torch.from_numpy(e))
    sides, took = dict(rlnb=ours, **({'cpprb': other} if theirs else {}), **({'torchrl': third} if torchrl else {})), {}
    for _ in range(rounds):
        for name, f in sides.items():
            for e in errors[:10]: f(e)
            for e in errors:
                then = time.process_time_ns()
                f(e)
                took.setdefault(name, []).append((time.process_time_ns() - then)/1e3)
    return {name: round(statistics.median(x), 1) for name, x in took.items()}

def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cpprb', metavar='DIR', default='', help='where cpprb is, if not here')
    p.add_argument('--torchrl', metavar='DIR', default='', help='where TorchRL is, if not here')
    a = p.parse_args()
    sys.path += [d for d in (a.cpprb, a.torchrl) if d]
    try: import cpprb
    except ImportError: cpprb = None
    try: from torchrl.data import PrioritizedSampler as torchrl
    except ImportError: torchrl = None
    import torch
    torch.set_num_threads(1)
    found = dict(memory=memory(), size=SIZE, batch=BATCH, microseconds=draws(cpprb, torchrl))
    for r in found['memory']:
        print(f"{r['world']:<28}{r['bytes']:>7} bytes; {r['twice']:>7} with every successor:", ', '.join(f'{k} {n}' for k, n in r['keys'].items()))
    print(f'{BATCH} of {SIZE:,} by priority, drawn and changed:', ', '.join(f'{k} {v} µs' for k, v in found['microseconds'].items()))
    path = ROOT/'results/replay.json'
    old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    if set(old.get('microseconds', {})) - set(found['microseconds']): found['microseconds'] = old['microseconds']      # a comparison is kept whole
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

if __name__ == '__main__': main()
