"""Learning somewhere else: every agent on a device that is not the CPU (far.py), trained, saved, loaded here and there, and gone on with"""
import json
import os
import subprocess
import sys
from pathlib import Path

import far
import pytest

from rlnb.agents.dqn import DQN
from rlnb.core.errors import BadInput
from rlnb.train import experiment
from rlnb.train.experiment import Experiment, build
from rlnb.train.session import train

pytestmark = pytest.mark.skipif(far.COMPILER is None, reason='the far device is compiled: it needs a C++ compiler')


def asked(*names: str) -> dict:
    "What far.py says of these cases, in a process of its own: torch never forgets a device"
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]))
    p = subprocess.run([sys.executable, far.__file__, *names], capture_output=True, text=True, env=env, timeout=600)
    found = [json.loads(line) for line in p.stdout.splitlines() if line.startswith('{')]
    assert found, p.stderr[-2000:]
    return {f['name']: f for f in found}


@pytest.fixture(scope='module')
def found() -> dict:
    return asked()


@pytest.mark.parametrize('name', far.CASES)
def test_learns_over_there_what_it_learns_here(found, name):
    f = found[name]
    assert 'error' not in f, f['error']
    assert f['where'] == ['hpu'] and f['metrics'] and f['moved'] > 1e-4
    assert f['opinion'] < 1e-4                                                     # what a policy thinks, when it is asked there
    assert f['apart'] < 1e-5 and f['resumed'] == 0 and f['home'] == 0
    on_host = name.startswith(('ppo', 'a2c', 'pqn')) or name.endswith('_her')      # rollouts, and hindsight
    assert f['ring'] == (None if on_host else ['hpu'])


def test_a_run_says_what_it_promises_there(found):
    f = found['whole']
    assert 'error' not in f, f['error']
    assert (f['tier'], f['device'], f['loaded']) == ('relaxed', 'hpu', 'cpu')
    assert (f['then'], f['at'], f['phase'], f['step']) == ('stopped', 300, 'finished', 500)
    assert f['rows'] == list(range(2, 501, 2)) and f['same']
    assert f['again']['identical'] and not f['again']['differs']


class Old(DQN):
    "An agent that never heard of devices"
    portable = False


def test_an_agent_that_never_heard_of_devices_stays(monkeypatch):
    monkeypatch.setattr(experiment, 'find_agent', lambda name: Old)
    monkeypatch.setattr(experiment, 'place', lambda *a: 'meta')
    assert build(Experiment(agent='old', num_envs=2)).agent.device == 'cpu'
    with pytest.raises(BadInput, match='old learns on the CPU only'): build(Experiment(agent='old', device='cuda', num_envs=2))


def test_what_stays_behind_is_noticed():
    "Planted: noise that is left on the host"
    f = asked('planted')['planted']
    assert 'Expected all tensors to be on the same device' in f.get('error', ''), f


def test_a_device_that_is_not_here(tmp_path):
    import torch
    if torch.cuda.is_available(): pytest.skip('there is one')
    with pytest.raises(BadInput, match=r'device.*no cuda'): train('ppo', steps=256, device='cuda', root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match='device'): Experiment(device='gpu')
    for said in ('auto', 'cpu'): assert build(Experiment(device=said)).agent.device == 'cpu'
