"""One run, trained by two processes over gloo: the same weights on both, those of one process that has all the rows, and nothing lost by a kill"""
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rlnb.train.record  # noqa: F401  teaches `verify`
from rlnb.agents.base import Agent
from rlnb.core.batch import Batch
from rlnb.core.errors import BadInput
from rlnb.core.schedule import at
from rlnb.core.seed import seed_of
from rlnb.runs.ckpt import load_state
from rlnb.runs.control import send
from rlnb.runs.run import Run
from rlnb.train.experiment import build
from rlnb.train.launch import start, worker_words
from rlnb.train.session import asked, fit, folder_for, load

LOOP = '''
import json, sys, traceback, torch
from rlnb.core import ranks
from rlnb.runs.run import Run
from rlnb.train.callback import Callback, CancelFit
from rlnb.train.session import fit
from rlnb.train.team import follow

class At(Callback):
    "Does something once, at the end of the iteration that reaches a step"
    order = 95
    def __init__(self, step, do): self.step, self.do, self.done = step, do, False
    def after_learn(self, t):
        if t.step >= self.step and not self.done:
            self.done = True
            self.do(t)

def stop(t): raise CancelFit('so')

for line in sys.stdin:
    said = ''
    try:
        with ranks.group() as r: exec(json.loads(line))
    except BaseException as e: said = f'{type(e).__name__}: {e}'
    print('\\n@' + json.dumps(said), flush=True)
'''


class Two:
    "Two ranks that run the same lines, each call a life"
    def __init__(self):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = str(s.getsockname()[1])
        env = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port, OMP_NUM_THREADS='1')
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.both = [subprocess.Popen([sys.executable, '-c', LOOP], env=env | dict(RANK=str(r)), **pipes) for r in (0, 1)]
    def __call__(self, line: str) -> list[str]:
        for p in self.both: print(json.dumps(line), file=p.stdin, flush=True)
        return [json.loads(next(s for s in p.stdout if s[0] == '@')[1:]) for p in self.both]
    def life(self, run: Run, more: str = '', first: str = '') -> list[str]:
        return self(f'{first}\nfollow() if r else fit(Run({str(run.path)!r}), episodes=0, cbs=[{more}])')


@pytest.fixture(scope='module')
def two():
    t = Two()
    yield t
    for p in t.both: p.stdin.close()
    for p in t.both: p.wait(30)


A2C = dict(num_envs=3, n_steps=8, presets=False, lr='linear(0.003, 0.001)', ent_coef=.01)


def made(root: Path, name: str, agent: str = 'a2c', steps: int = 1_920, **words) -> Run:
    return folder_for(asked(agent, 'rlnb/CartPole-v1', steps, **A2C | words), root, name)


def end(run: Run) -> dict: return load_state(run.at())


def same(a: Run, b: Run) -> bool:
    "Rows and the final state, byte for byte"
    names = ('metrics.jsonl', *(f'ckpt/{a.checkpoints()[-1]["step"]:012d}/{f}' for f in ('state.json', 'arrays.safetensors')))
    return all((a.path / n).read_bytes() == (b.path / n).read_bytes() for n in names)


def by_hand(run: Run) -> torch.Tensor:
    "The weights that one process comes to with the rows of both ranks in one batch"
    exp = asked('a2c', 'rlnb/CartPole-v1', run.total, **A2C)
    a, b = build(exp), build(replace(exp, seed=seed_of(exp.seed, 'team', rank=1, bits=31)))
    step, opt, other = 0, a.agent.opts['all'], b.agent.opts['all']
    while step < exp.steps:
        other.vec.copy_(opt.vec)
        p, rows = step/exp.steps, []
        for t in (a, b):
            t.collector.collect(t.agent, t.buffer, A2C['n_steps'], p)
            rows.append(t.buffer.whole(t.agent.prepare(t.buffer)))
        step = a.collector.steps + b.collector.steps
        a.agent.ent_coef = .01
        Agent.update(a.agent, opt, a.agent.loss, Batch({k: torch.cat([x[k] for x in rows]) for k in rows[0]}), at(exp.agent_cfg.lr, p), 'rmsprop')
        for t in (a, b): t.buffer.clear()
    return opt.vec.detach()


def test_two_are_one_with_all_the_rows(two, tmp_path):
    run = made(tmp_path, 'two')
    assert two.life(run) == ['', '']
    got = np.concatenate([np.ravel(v) for v in end(run)['agent']['params'].values()])
    fresh = build(asked('a2c', 'rlnb/CartPole-v1', run.total, **A2C)).agent.opts['all'].vec.numpy()
    assert np.abs(by_hand(run).numpy() - got).max() < 1e-5 < 1e-2 < np.abs(fresh - got).max()
    assert [r['step'] for r in run.metrics()] == list(range(48, 1_921, 48))              # the steps of both
    n = sum(r['episode/return']['n'] for r in run.metrics() if 'episode/return' in r)
    assert n == run.result['episodes'] and run.probe['processes'] == 2 and not any(run.verify().values())


def test_a_forgotten_mean_makes_no_checkpoint(two, tmp_path):
    "Planted: each rank goes its own way. It is seen by the first checkpoint, and none is made"
    run = made(tmp_path, 'apart')
    said = two.life(run, first='was = ranks.average; ranks.average = lambda x: x')
    two('ranks.average = was')
    assert 'drifted apart' in said[0] and run.phase == 'failed' and {c['kind'] for c in run.checkpoints()} <= {'emergency'}


@pytest.mark.parametrize('agent, words', [('ppo', dict(minibatch=12, norm_obs=True, norm_reward=True, target_kl=.001)), ('pqn', dict(minibatch=12, ent_coef=None)),
                                          ('ppo_rnn', dict(minibatch=8, hidden=[8], memory=8, num_envs=6))])
def test_stopped_and_gone_on(agent, words, two, tmp_path):
    "The same bytes as without the stop, whatever a rank has for itself; statistics are of the rows of all"
    words = {k: v for k, v in (A2C | words).items() if v is not None}
    whole, parted = (folder_for(asked(agent, 'rlnb/CartPole-v1', 960, **words), tmp_path, n) for n in ('whole', 'parted'))
    assert two.life(whole) == ['', ''] and two.life(parted, 'At(300, stop)') == ['', '']
    rows = 2*words['num_envs']*words['n_steps']
    assert (parted.phase, parted.result['steps']) == ('stopped', (300//rows + 1)*rows)
    assert two.life(parted) == ['', ''] and same(whole, parted)
    for norm in end(whole)['agent']['norms'].values(): assert norm['n'] == 960
    assert len(end(whole)['ranks']) == 1 and load(whole).step == 960                     # and the agent can be played by one process


def test_a_command_reaches_all(two, tmp_path):
    "The settings of rank 0 are everybody's, else the ranks would drift apart"
    run = made(tmp_path, 'told')
    send(run.path, 'set', changes=dict(lr=1e-4))
    assert two.life(run) == ['', ''] and [e['changes'] for e in run.events if e['kind'] == 'set'] == [dict(lr=1e-4)]


def test_what_can_not_be_is_said(two, tmp_path):
    dqn = folder_for(asked('dqn', 'rlnb/CartPole-v1', 1_000), tmp_path, 'memory')
    said = two.life(dqn)
    assert said[0].startswith('BadInput: processes: DQN learns from a memory') and said[1].startswith('Gone: rank 1: another rank is gone')
    one = fit(made(tmp_path, 'one'), episodes=0)
    assert 'trained by 1' in two(f'follow() if r else fit(Run({str(one.path)!r}), 4_000, episodes=0)')[0]
    with pytest.raises(BadInput, match='trained by 1'): start(one, 4_000, processes=2)


@pytest.mark.skipif(os.name == 'nt', reason='torch.distributed.run needs a store that Windows wheels lack')
def test_killed_under_torchrun(two, tmp_path):
    "Rank 0 is killed while it trains, the others go with it; resume starts as many again, and the end has the same bytes"
    words = dict(steps=24_000, checkpoint_every=2_400, keep=20)
    whole, run = made(tmp_path, 'whole', **words), made(tmp_path, 'killed', **words)
    assert two.life(whole) == ['', '']
    start(run, episodes=0, processes=2)
    until = time.monotonic() + 120
    while len(run.checkpoints()) < 2 and run.phase in ('starting', 'running') and time.monotonic() < until: time.sleep(.01)
    assert run.kill() and run.phase == 'lost'
    run.resume(episodes=0).wait(120)
    assert run.phase == 'finished' and same(whole, run), run.log(20)
    assert [e['kind'] for e in run.events if e['kind'] != 'checkpoint'] == ['start', 'resume', 'finish']


@pytest.mark.skipif(os.name == 'nt', reason='as above')
def test_its_code_and_one_line(tmp_path):
    "A refusal under torch.distributed.run: rank 0 ends with 64 and one line, and nobody waits for the other"
    run = folder_for(asked('dqn', 'rlnb/CartPole-v1', 1_000), tmp_path, 'memory')
    done = subprocess.run(worker_words(run.path, 2), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'exitcode  : 64' in done.stderr
    said = [s for s in done.stderr.splitlines() if s.startswith('rlnb: ')]
    assert len(said) == 1 and said[0].startswith('rlnb: processes: DQN learns from a memory'), done.stderr
