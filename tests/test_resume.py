"""Interrupted equals uninterrupted, to the last bit: 2N steps in one process against N, saved, loaded in a fresh process, and N more.
`python tests/test_resume.py first|second FOLDER` is what the two processes do."""
import copy
import fnmatch
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import types
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlnb.agents.a2c import A2C
from rlnb.agents.c51 import C51
from rlnb.agents.dqn import DQN
from rlnb.agents.ppo import PPO
from rlnb.agents.pqn import PQN
from rlnb.agents.rainbow import Rainbow
from rlnb.core.batch import Batch
from rlnb.core.rows import read_jsonl
from rlnb.envs.base import TensorEnv
from rlnb.envs.classic import CartPole, Pendulum
from rlnb.envs.goal import BitFlip
from rlnb.runs.ckpt import load_state, save_state
from rlnb.train.callback import Callback
from rlnb.train.track import Progress, Record, row_of
from rlnb.train.trainer import Trainer


class Switches(TensorEnv):
    "Multi-discrete actions (the way through torch), costs, draws in every step, and rows that are no transition"
    obs_space, act_space, max_steps = spaces.Box(0, 1, (3,)), spaces.MultiDiscrete([2, 3]), 7
    def start(self, n, rows): return self.draw(3, n)
    def observe(self, s): return s.T
    def dynamics(self, s, act):
        s = (s*1.7 + .1*act[:, 0] + .1*self.draw(3, self.num_envs)).astype(np.float32) % 1
        return s, (s[1] - .1*act[:, 1]).astype(np.float32), s[2] > .97, Batch(cost=s[0].copy(), valid=s[1] < .9)


class Masked(Switches):
    "The same with a nested observation that says which actions are allowed"
    obs_space = spaces.Dict(seen=spaces.Box(0, 1, (3,)), action_mask=spaces.MultiBinary(5))
    def observe(self, s):
        mask = np.ones((s.shape[1], 5), np.int64)
        mask[:, 4] = s[0] < .5
        return Batch(seen=s.T, action_mask=mask)


N, WORLDS, ITERS = 16, 4, 8
PLAIN_A2C, PLAIN = dict(n_steps=N, lr=.003), dict(n_steps=N, minibatch=24, epochs=3, lr=.003)
ON = dict(norm_obs=True, norm_reward=True)
MOVING = dict(lr='linear(0.003, 0.0001)', ent_coef='linear(0.02, 0.001)')
ALL = dict(target_kl=.002, vf_clip=.5, norm_adv='batch')
VALUES = dict(train_every=N*WORLDS, updates=8, learning_starts=N*WORLDS, buffer_size=200, batch_size=16, hidden=(8,), target_every=3, n_step=3, per=True, double=True)
CASES = {
    'a2c discrete': (A2C, CartPole, PLAIN_A2C | ON),
    'a2c continuous': (A2C, Pendulum, PLAIN_A2C | ON),
    'a2c discrete, schedules': (A2C, CartPole, PLAIN_A2C | ON | MOVING),
    'a2c continuous, schedules': (A2C, Pendulum, PLAIN_A2C | ON | MOVING),
    'ppo discrete': (PPO, CartPole, PLAIN | ON | ALL),
    'ppo continuous': (PPO, Pendulum, PLAIN | ON | ALL),
    'ppo discrete, bare': (PPO, CartPole, PLAIN),
    'ppo discrete, schedules': (PPO, CartPole, PLAIN | ON | ALL | MOVING | dict(clip='linear(0.3, 0.1)')),
    'ppo continuous, schedules': (PPO, Pendulum, PLAIN | ON | ALL | MOVING | dict(clip='linear(0.3, 0.1)')),
    'ppo switches': (PPO, Switches, PLAIN | dict(norm_reward=True)),
    'ppo masked': (PPO, Masked, PLAIN | dict(norm_reward=True)),
    'dqn bare': (DQN, CartPole, VALUES | dict(per=False, double=False, n_step=1)),
    'dqn': (DQN, CartPole, VALUES | dict(dueling=True, tau=.5, lr='linear(0.01, 0.001)')),
    'dqn hindsight': (DQN, BitFlip, VALUES | dict(her='future')),
    'c51': (C51, CartPole, VALUES | dict(atoms=7)),
    'rainbow': (Rainbow, CartPole, VALUES | dict(atoms=7)),
    'pqn': (PQN, CartPole, PLAIN | dict(hidden=(8,))),
}
WHERE = {'inside': 3*N + 11, 'between': 4*N}      # vector steps until the first stop: inside a rollout, and between two
LAST = ITERS*N + 5                                # the second stop, inside a rollout too, so that nothing is at rest when the two are compared


def name(case: str, where: str) -> str: return f'{case}, {where}'.replace(', ', '-').replace(' ', '_')


def trainer(case: str, seed: int, run=None, cbs=None, horizon: int = ITERS*N*WORLDS) -> Trainer:
    kind, world, cfg = CASES[case]
    env = world(WORLDS, max_steps={CartPole: 20, Pendulum: 30}.get(world))
    agent = kind(env.obs_space, env.act_space, kind.config.from_dict(cfg), seed=seed)
    return Trainer(agent, env, [Record(), Progress(write=len)] if cbs is None else cbs, run=run, seed=seed, horizon=horizon)


def go(t: Trainer, polls: int) -> Trainer:
    "Train until `stop` says so, this many vector steps from here"
    count, before = itertools.count(), t.collector.stop
    t.collector.stop = lambda: next(count) >= polls
    t.fit(10**6)
    t.collector.stop = before
    return t


# ---- every number that can be reached
def digest(x) -> str: return hashlib.sha256(x).hexdigest()[:16]


def walk(x, path: str, out: dict, seen: dict) -> dict:
    "path → value, for every number, array and generator in the graph of objects"
    if x is None or isinstance(x, (bool, int, str, bytes)): out[path] = repr(x)
    elif isinstance(x, float): out[path] = x.hex()
    elif isinstance(x, (np.ndarray, np.generic)): out[path] = f'{x.dtype}{x.shape} {digest(np.ascontiguousarray(x).tobytes())}'
    elif isinstance(x, np.random.Generator): out[path] = repr(x.bit_generator.state)
    elif isinstance(x, torch.Generator): out[path] = digest(x.get_state().numpy().tobytes())
    elif isinstance(x, torch.Tensor):
        walk(x.detach().numpy(), path, out, seen)
        if x.is_leaf and x.grad is not None: walk(x.grad, f'{path}.grad', out, seen)
    elif isinstance(x, (type, types.ModuleType, types.BuiltinFunctionType, np.ufunc, type(np.dot), np.dtype, torch.dtype, torch.device)): out[path] = getattr(x, '__name__', str(x))
    elif isinstance(x, Path): out[path] = x.name
    elif hasattr(x, 'hexdigest'): out[path] = x.hexdigest()
    elif id(x) in seen: out[path] = f'is {seen[id(x)][0]}'
    else:
        seen[id(x)] = path, x
        if isinstance(x, types.MethodType): parts = [('__self__', x.__self__), ('__func__', x.__func__.__qualname__)]
        elif isinstance(x, types.FunctionType):
            parts = [('__name__', x.__qualname__), *zip(x.__code__.co_freevars, (c.cell_contents for c in x.__closure__ or ())), *vars(x).items()]
        elif isinstance(x, dict): parts = sorted(x.items(), key=lambda kv: str(kv[0]))
        elif isinstance(x, (list, tuple, deque)): parts = list(enumerate(x))
        elif isinstance(x, (set, frozenset)): parts = list(enumerate(sorted(map(repr, x))))
        else:
            slots = [s for k in type(x).__mro__ for s in getattr(k, '__slots__', ()) if s not in ('__dict__', '__weakref__') and hasattr(x, s)]
            parts = [('__class__', type(x).__qualname__), *sorted(getattr(x, '__dict__', {}).items()), *((s, getattr(x, s)) for s in slots)]
            assert len(parts) > 1 or type(x).__module__.startswith(('rlnb', 'torch', 'gymnasium')), f'{path}: the walk cannot see into {type(x)}'
        for k, v in parts: walk(v, f'{path}.{k}', out, seen)
    return out


def tour(t: Trainer) -> dict[str, str]:
    out = walk(t, 't', {}, {})
    for k, v in dict(python=random.getstate(), numpy=np.random.get_state(), torch=torch.default_generator).items(): walk(v, f'global.{k}', out, {})
    return out


CLOCKS = {
    't.cbs.cbs.*.recent*': 'Progress: what it shows to whoever looks on; no part of the run',
    't.time.*': 'seconds of this process',
    't.collector.time.*': 'seconds of this process',
    't.cbs.due': 'when those who only look at the clock are asked again',
    't.cbs.cbs.*.shown*': 'Progress: the columns of its table, chosen when it prints their names',
    't.cbs.cbs.*.then': "Progress: the clock of the last line",
    't.cbs.cbs.*.was.act': 'Progress: seconds',
    't.cbs.cbs.*.was.env': 'Progress: seconds',
    't.cbs.cbs.*.was.learn': 'Progress: seconds',
    't.cbs.cbs.*.was.step': 'Progress: steps when the line was written, on which its rate is based',
    't.cbs.cbs.*.lines': 'Progress: lines that this process has printed; the clock decides how many',
    't.cbs.cbs.*.log.path': 'where the folder is',
    't.run': 'where the folder is',
    't.seed': 'what the constructor was told; its streams are in the state',
    't.cbs.cbs.*.cut': 'Record: set by a load, read at the next before_fit',
    't.agent.*.where.*': 'act_fn: addresses of the parameters',
    't.agent.*.where': 'act_fn: addresses of the parameters',
    't.agent.seed': 'what the constructor was told; the replay\'s streams are in its state',
}
AT_LOAD = CLOCKS | {
    't.rows*': 'the open log: made when fit begins',
    't.seeds*': 'how the run began; in its probe.json',
    't.metrics*': 'of the last update; the next one makes them anew',
    't.target': 'told by fit',
    't.stopped': 'why the last fit ended',
    't.collector.halted': 'said by the next collect',
    't.agent.clip': 'set when `learn` begins',
    't.agent.ent_coef': 'set when `learn` begins',
    't.agent*.grad*': 'zeroed before it is used',
    't.agent.*.views*': 'act_fn: made at the first call',
    't.buffer.np.*': 'rows not yet written hold the last rollout (those written are compared in the state)',
    't.buffer.data.*': 'the same memory',
    't.buffer.held.*': 'the same memory',
    't.buffer.slots.*': 'the same memory',
    't.buffer.seen*': 'the same memory',
    't.buffer.flat.*': 'the same memory',
    't.buffer.relabel.behind': 'of rows that are not kept',
    't.cbs.cbs.*.log*': 'opened by before_fit',
    't.cbs.cbs.*.was*': 'set by before_fit',
}


def differences(a: dict[str, str], b: dict[str, str], allowed: dict[str, str]) -> list[str]:
    return [f'{k}: {a.get(k, "nothing")} ≠ {b.get(k, "nothing")}' for k in sorted(a.keys() | b.keys())
            if a.get(k) != b.get(k) and not any(fnmatch.fnmatchcase(k, p) for p in allowed)]


# ---- what the two processes do
def note(t: Trainer, folder: Path) -> None:
    save_state(folder/'state', t.state_dict())
    (folder/'tour.json').write_text(json.dumps(tour(t)))


def fresh(root: Path, *parts: str) -> Path:
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True)
    return folder


def first(root: Path) -> None:
    for case in CASES:
        here = fresh(root, 'whole', name(case, ''))
        note(go(trainer(case, 1, here), LAST), here)
        for where, polls in WHERE.items():
            here = fresh(root, 'run', name(case, where))
            t = go(trainer(case, 1, here), polls)
            note(t, fresh(root, 'half', name(case, where)))
            with open(here/'metrics.jsonl', 'a') as f: f.write('{"step": 999999}\n{"torn')     # the run went on behind its checkpoint, and fell


def second(root: Path) -> None:
    for case in CASES:
        for where, polls in WHERE.items():
            random.seed(7); np.random.seed(7); torch.manual_seed(7)                             # whatever a fresh process may have done
            here = root/'run'/name(case, where)
            t = trainer(case, 99, here)
            t.load_state_dict(load_state(root/'half'/name(case, where)/'state'))
            (here/'loaded.json').write_text(json.dumps(tour(t)))
            note(go(t, LAST - polls), here)
        for seed, what in (1, 'again'), (2, 'other'):
            here = fresh(root, what, name(case, ''))
            note(go(trainer(case, seed, here), LAST), here)


def process(what: str, folder: Path) -> Path:
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONHASHSEED': 'random', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    p = subprocess.run([sys.executable, __file__, what, str(folder)], capture_output=True, text=True, env=env, timeout=120)
    if p.returncode: raise RuntimeError(p.stderr[-3000:])
    return folder


@pytest.fixture(scope='module')
def one(tmp_path_factory) -> Path:
    "The first process has run"
    return process('first', tmp_path_factory.mktemp('resume'))


@pytest.fixture(scope='module')
def root(one) -> Path:
    "And after it the second"
    return process('second', one)


def files(folder: Path) -> dict[str, bytes]:
    "What must be equal byte for byte: the state as it is written, and the metrics"
    return {f: (folder/f).read_bytes() for f in ('state/state.json', 'state/arrays.safetensors', 'metrics.jsonl')}


def same(a: Path, b: Path, only=('state/state.json', 'state/arrays.safetensors', 'metrics.jsonl')) -> None:
    x, y = flat(load_state(a/'state')), flat(load_state(b/'state'))
    odd = [k for k in sorted(x.keys() | y.keys()) if x.get(k) != y.get(k)]
    assert not odd, f'{len(odd)} of {len(x)} differ: {odd[:8]}'
    for f in only: assert files(a)[f] == files(b)[f], f


def flat(tree, path: str = '') -> dict[str, str]: return walk(tree, path, {}, {})


def test_the_halves_are_what_they_claim(one):
    "Stops inside a rollout leave rows and ends behind, those between two leave none"
    ends = 0
    for case in CASES:
        inside, between = (load_state(one/'half'/name(case, w)/'state') for w in WHERE)
        assert inside['buffer']['t'] == 11 and between['buffer']['t'] == 0
        kept = inside['buffer']['ends']              # a rollout holds them, a replay memory counts them
        ends += kept if isinstance(kept, int) else len(kept)
    assert ends > len(CASES)


PAIRS = [pytest.param(c, w, id=f'{c}, {w}') for c in CASES for w in WHERE]


@pytest.mark.parametrize('case, where', PAIRS)
def test_interrupted_equals_uninterrupted(root, case, where): same(root/'run'/name(case, where), root/'whole'/name(case, ''))


@pytest.mark.parametrize('case, where', PAIRS)
def test_nothing_is_forgotten(root, case, where):
    "Every number that can be reached from the trainer, at the end of both runs"
    a, b = (json.loads((root/k/'tour.json').read_text()) for k in (f'whole/{name(case, "")}', f'run/{name(case, where)}'))
    assert len(a) > 500 and any('torch_rng' in k for k in a) == (CASES[case][0] in (A2C, PPO)) and any('.env.rng' in k for k in a)
    odd = differences(a, b, CLOCKS)
    assert not odd, f'{len(odd)} of {len(a)}: ' + '; '.join(odd[:8])


@pytest.mark.parametrize('where', WHERE)
@pytest.mark.parametrize('case', CASES)
def test_nothing_is_forgotten_at_the_load(root, case, where):
    "The same, at the moment of the load; and the state that was loaded is saved again as it was"
    a, b = (json.loads(f.read_text()) for f in (root/'half'/name(case, where)/'tour.json', root/'run'/name(case, where)/'loaded.json'))
    odd = differences(a, b, AT_LOAD)
    assert not odd, f'{len(odd)} of {len(a)}: ' + '; '.join(odd[:8])


@pytest.mark.parametrize('case', CASES)
def test_the_same_seed_twice(root, case): same(root/'again'/name(case, ''), root/'whole'/name(case, ''))


@pytest.mark.parametrize('case', CASES)
def test_another_seed_differs(root, case):
    a, b = (load_state(root/k/name(case, '')/'state') for k in ('other', 'whole'))
    for k in ('params', 'rng'): assert flat(a['agent'][k]) != flat(b['agent'][k])
    assert flat(a['collector']['env']) != flat(b['collector']['env'])
    assert files(root/'other'/name(case, ''))['metrics.jsonl'] != files(root/'whole'/name(case, ''))['metrics.jsonl']


@pytest.mark.parametrize('case', CASES)
def test_rows_behind_the_checkpoint_are_gone(root, case):
    for where in WHERE:
        rows, _ = read_jsonl(root/'run'/name(case, where)/'metrics.jsonl')
        assert [r['iter'] for r in rows] == list(range(1, ITERS + 1))


# ---- the comparison can fail: each piece of the state, taken away
class Rows(Callback):
    def __init__(self): self.rows = []
    def after_learn(self, t): self.rows.append(repr(row_of(t)))
    def state_dict(self): return dict(rows=list(self.rows))
    def load_state_dict(self, d): self.rows = list(d['rows'])


PIECES = {
    'ppo discrete': ['agent/params', 'agent/opts/all/m', 'agent/opts/all/v', 'agent/opts/all/step', 'agent/norms/obs', 'agent/norms/ret', 'agent/rng', 'agent/ret',
                     'collector/obs', 'collector/length', 'collector/sums', 'collector/steps', 'collector/env/s', 'collector/env/t', 'collector/env/rng',
                     'buffer', 'iter', 'episodes', 'rng/torch', 'rng/numpy', 'rng/python', 'cbs'],
    'ppo switches': ['agent/torch_rng', 'agent/rng', 'collector/sums', 'collector/env/rng', 'buffer'],
    'a2c continuous': ['agent/params', 'agent/opts/all/v', 'agent/norms/obs', 'agent/norms/ret', 'agent/rng', 'agent/ret', 'collector/env/s', 'buffer'],
    'ppo discrete, schedules': ['counts', 'horizon'],
}


def outcome(t: Trainer, polls: int) -> str: return repr(sorted(flat(go(t, polls).state_dict()).items()))


def spoiled(state: dict, piece: str, other: dict) -> dict:
    "The state with one piece as a fresh trainer has it"
    state = copy.deepcopy(state)
    if piece == 'counts': return state | {k: v for k, v in other.items() if type(v) is int and k not in ('iter', 'horizon')}
    *way, last = piece.split('/')
    to, of = state, other
    for k in way: to, of = to[k], of[k]
    to[last] = of[last]
    return state


@pytest.fixture(scope='module')
def halves() -> dict:
    "For each case: the state in the middle, that of a fresh trainer, and how the whole run ends"
    made = {}
    for case in PIECES:
        polls = WHERE['between' if 'schedules' in case else 'inside']
        torch.manual_seed(5)
        whole = outcome(trainer(case, 1, cbs=[Rows()]), LAST)
        torch.manual_seed(5)
        state = copy.deepcopy(go(trainer(case, 1, cbs=[Rows()]), polls).state_dict())
        random.seed(8); np.random.seed(8); torch.manual_seed(8)
        made[case] = state, copy.deepcopy(trainer(case, 99, cbs=[Rows()], horizon=0).state_dict()), whole, LAST - polls
    return made


@pytest.mark.parametrize('case, piece', [(c, p) for c, ps in PIECES.items() for p in ('', *ps)])
def test_a_missing_piece_shows(halves, case, piece):
    state, other, whole, polls = halves[case]
    t = trainer(case, 99, cbs=[Rows()])
    t.load_state_dict(spoiled(state, piece, other) if piece else copy.deepcopy(state))
    assert (outcome(t, polls) == whole) is not bool(piece)


def test_missing_ends_show(halves):
    "Without the true successors of the rows that were written before the stop"
    state, _, whole, polls = halves['ppo discrete']
    assert state['buffer']['ends']
    t = trainer('ppo discrete', 99, cbs=[Rows()])
    t.load_state_dict({**copy.deepcopy(state), 'buffer': {**state['buffer'], 'ends': []}})
    assert outcome(t, polls) != whole


# ---- found by these tests, and mended
def test_a_state_before_the_first_step(tmp_path):
    "It can be saved, loaded, and saved again"
    t = trainer('ppo discrete, bare', 1, tmp_path)
    state = copy.deepcopy(t.state_dict())
    other = trainer('ppo discrete, bare', 2, tmp_path)
    other.load_state_dict(state)
    assert flat(other.state_dict()) == flat(state)


def test_a_schedule_stays_where_the_rollout_began():
    "Stopped inside a rollout: the update that follows has the step size of a whole run (it had that of the stop)"
    case = 'ppo discrete, schedules'
    torch.manual_seed(5)
    whole = outcome(trainer(case, 1, cbs=[Rows()]), LAST)
    torch.manual_seed(5)
    state = copy.deepcopy(go(trainer(case, 1, cbs=[Rows()]), WHERE['inside']).state_dict())
    t = trainer(case, 99, cbs=[Rows()])
    t.load_state_dict(state)
    assert outcome(t, LAST - WHERE['inside']) == whole


if __name__ == '__main__':
    torch.set_num_threads(1)
    {'first': first, 'second': second}[sys.argv[1]](Path(sys.argv[2]))
