"""Another device on a machine that has none (far.cpp), and every agent on it: `python tests/far.py NAME …` prints one line of JSON a case.

Each case trains twice with the same seed, on the CPU and over there. Noise is drawn on the host, and the far device computes with the CPU's kernels, so
the weights have to be the same but for what acting through torch rather than numpy rounds; and an operation that mixes the two raises."""
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path

import torch

SOURCE, FAR = Path(__file__).with_name('far.cpp'), 'hpu'
COMPILER = next(filter(None, map(shutil.which, ('g++', 'clang++', 'c++'))), None)
OFF, SMALL = dict(learning_starts=64, batch_size=32), dict(learning_starts=64, batch_size=32, hidden=(16, 16))
CASES = dict(
    ppo=dict(env='rlnb/CartPole-v1', num_envs=4, agent_cfg=dict(n_steps=16, minibatch=32, norm_adv='batch', vf_clip=.2)),
    ppo_scaled=dict(env='Pendulum-v1', num_envs=4, agent_cfg=dict(n_steps=16, minibatch=32, norm_obs=True, norm_reward=True)),
    ppo_pixels=dict(world='Pixels', num_envs=2, agent_cfg=dict(n_steps=8, minibatch=16)),
    ppo_switches=dict(world='Switches', num_envs=2, agent_cfg=dict(n_steps=16, minibatch=16)),
    ppo_masked=dict(world='Masked', num_envs=2, agent_cfg=dict(n_steps=16, minibatch=16)),
    dqn_pixels=dict(world='Pixels', num_envs=2, agent_cfg=dict(learning_starts=16, batch_size=8)),
    a2c=dict(env='Pendulum-v1', num_envs=4, agent_cfg=dict(n_steps=8)),
    ppo_rnn=dict(env='rlnb/BlindCartPole-v1', num_envs=4, agent_cfg=dict(n_steps=16, minibatch=32, memory=8, hidden=(8,))),
    dqn=dict(env='rlnb/CartPole-v1', num_envs=2, agent_cfg=OFF | dict(per=True, dueling=True, double=True, n_step=3)),
    dqn_plain=dict(env='rlnb/CartPole-v1', num_envs=2, agent_cfg=OFF | dict(persist=.5)),
    dqn_her=dict(env='rlnb/BitFlip-v0', num_envs=2, agent_cfg=OFF | dict(her='future')),
    dqn_masked=dict(world='Barred', num_envs=2, agent_cfg=OFF),
    dqn_frames=dict(world='Stacked', num_envs=2, agent_cfg=dict(learning_starts=16, batch_size=8, buffer_size=60, per=True, n_step=2)),
    c51=dict(env='rlnb/CartPole-v1', num_envs=2, agent_cfg=OFF), c51_quantile=dict(env='rlnb/CartPole-v1', num_envs=2, agent_cfg=OFF | dict(kind='quantile')),
    rainbow=dict(env='rlnb/CartPole-v1', num_envs=2, agent_cfg=OFF), rnd=dict(env='rlnb/DeepSea-v0', num_envs=2, agent_cfg=OFF),
    pqn=dict(env='rlnb/CartPole-v1', num_envs=4, agent_cfg=dict(n_steps=16, minibatch=32)),
    sac=dict(env='Pendulum-v1', num_envs=1, agent_cfg=SMALL | dict(persist=.5)), sac_her=dict(env='rlnb/PointReach-v0', num_envs=2, agent_cfg=SMALL | dict(her='final')),
    td3=dict(env='Pendulum-v1', num_envs=1, agent_cfg=SMALL), tqc=dict(env='Pendulum-v1', num_envs=1, agent_cfg=SMALL),
    crossq=dict(env='Pendulum-v1', num_envs=1, agent_cfg=SMALL | dict(critic_hidden=(16, 16))),
    sac_discrete=dict(env='rlnb/CartPole-v1', num_envs=2, agent_cfg=SMALL))


def attach() -> None:
    "Compile it, once for each version of it and of torch, and let torch know it"
    from torch.utils.cpp_extension import include_paths
    mark = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    made = Path(tempfile.gettempdir())/f'rlnb-far-{mark}.so'
    if not made.exists():
        lib, fresh = Path(torch.__file__).parent/'lib', Path(tempfile.mkdtemp())/'far.so'
        where = [x for p in include_paths() for x in ('-isystem', p)]
        subprocess.run([COMPILER, '-O0', '-std=c++20', '-fPIC', '-shared', str(SOURCE), '-o', str(fresh), *where, f'-L{lib}', '-lc10', '-ltorch_cpu'], check=True)
        shutil.move(fresh, made)
    torch.ops.load_library(made)
    module = types.ModuleType(f'torch.{FAR}')
    for name, answer in dict(is_available=True, is_initialized=True, device_count=1, current_device=0, _is_in_bad_fork=False, _lazy_init=None).items():
        setattr(module, name, lambda answer=answer: answer)
    torch._register_device_module(FAR, module)


def world_of(name: str):
    "A world that no id names: pictures that show where something is, or one of the tests of resuming"
    import numpy as np
    import test_resume
    from gymnasium import spaces
    from rlnb.core.batch import Batch
    from rlnb.envs.wrap import FrameStack

    class Pixels(test_resume.Switches):
        obs_space, act_space = spaces.Box(0, 255, (20, 20, 3), np.uint8), spaces.Discrete(2)
        def observe(self, s): return np.repeat((np.abs(np.linspace(0, 1, 400) - s[:1].T)*255).astype(np.uint8), 3, 1).reshape(-1, 20, 20, 3)
        def dynamics(self, s, act): return super().dynamics(s, np.stack([act, act], 1))

    class Barred(Pixels):
        obs_space = spaces.Dict(seen=spaces.Box(0, 1, (3,)), action_mask=spaces.MultiBinary(2))
        def observe(self, s): return Batch(seen=s.T, action_mask=np.stack([np.ones(s.shape[1], np.int64), s[0] < .5], 1))
    class Stills(Pixels):
        def dynamics(self, s, act): return *super().dynamics(s, act)[:3], Batch()
    return dict(Pixels=Pixels, Barred=Barred, Stacked=lambda n: FrameStack(Stills(n), 3, -1)).get(name) or getattr(test_resume, name)


def made(name: str, where: str):
    "The trainer of a case, over there or here"
    from rlnb.train import experiment
    experiment.place = lambda *a: where
    case = dict(agent=name if name in ('ppo_rnn', 'sac_discrete') else name.split('_')[0], steps=10_000, seed=1, **CASES[name])
    world = case.pop('world', None)
    return experiment.build(experiment.Experiment.from_dict(case), world=world and (lambda: world_of(world)(case['num_envs'])))


def learned(t, n: int):
    "It, n updates later"
    while n:
        t.one_iter()
        n -= bool(t.metrics)
    return t


def apart(a, b) -> float:
    "The largest difference between the weights of two agents"
    return max((p.cpu().float() - q.cpu().float()).abs().max().item() for p, q in zip(a.state_dict().values(), b.state_dict().values()))


def report(name: str) -> dict:
    "What came of a case"
    from rlnb.runs.ckpt import load_state, save_state
    from rlnb.train.episode import opinion
    here, there, first = learned(made(name, 'cpu'), 6), learned(made(name, FAR), 3), made(name, FAR)
    with tempfile.TemporaryDirectory() as d:
        save_state(Path(d)/'3', there.state_dict())
        again = made(name, FAR)
        again.load_state_dict(load_state(Path(d)/'3'))
    for t in (there, again): learned(t, 3)
    with tempfile.TemporaryDirectory() as d:
        save_state(Path(d)/'6', there.state_dict())
        home = made(name, 'cpu')
        home.load_state_dict(load_state(Path(d)/'6'))
    held = [*there.agent.state_dict().values(), *(x for o in there.agent.opts.values() for x in (o.vec, o.grad, o.m, o.v, o.step))]
    for o in there.agent.opts.values(): o.check()
    thought = [opinion(t.agent, here.collector.obs, here.collector.memory) for t in (here, there)]
    ring = sorted({x.device.type for x in there.buffer.there.values() if hasattr(x, 'device')}) if hasattr(there.buffer, 'there') else None
    other = max((float(abs(thought[1][k] - x).max()) for k, x in thought[0].items()), default=0.)
    return dict(name=name, where=sorted({x.device.type for x in held}), ring=ring, opinion=other, apart=apart(here.agent, there.agent), moved=apart(first.agent, there.agent),
                resumed=apart(there.agent, again.agent), home=apart(there.agent, home.agent), metrics=sorted(there.metrics) == sorted(here.metrics))


def whole() -> dict:
    """A run in a folder, in a world of Gymnasium, that learns over there and is stopped on the way; another life ends it as one that was not
    stopped, and what only looks at it needs no such device"""
    import rlnb.train.record  # noqa: F401  gives runs `reproduce`
    from rlnb.train import experiment
    from rlnb.train.callback import Callback, CancelFit
    from rlnb.train.session import fit, train

    class Stop(Callback):
        def after_learn(self, t):
            if t.step == 300 and 'far' in str(t.run): raise CancelFit('enough for now')
    experiment.place = lambda *a: FAR
    with tempfile.TemporaryDirectory() as d:
        run, twin = (train('sac', 'Pendulum-v1', 500, root=d, name=name, progress=False, presets=False, num_envs=2, cbs=[Stop()], **SMALL)
                     for name in ('far', 'twin'))
        then, at = run.phase, run.state['step']
        fit(run, episodes=5)
        return dict(name='whole', tier=run.probe['tier'], device=run.probe['fingerprint']['device'], then=then, at=at, phase=run.phase, step=run.state['step'],
                    loaded=run.load('latest').device, same=run.metrics() == twin.metrics(), again=run.reproduce(), rows=[r['step'] for r in run.metrics()])


def planted() -> dict:
    "SAC, but what it draws for its actions is left on the host"
    from rlnb.agents import sac
    from rlnb.core.batch import Batch
    right = sac.noised
    sac.noised = lambda agent, b, k=2: Batch(right(agent, b, k), eps=torch.zeros(k, len(b.reward), 1))
    try: return report('sac') | dict(name='planted')
    finally: sac.noised = right


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    attach()
    for name in sys.argv[1:] or [*CASES, 'whole']:
        try: print(json.dumps(dict(whole=whole, planted=planted).get(name, lambda name=name: report(name))()), flush=True)
        except Exception as e: print(json.dumps(dict(name=name, error=f'{type(e).__name__}: {e}')), flush=True)
