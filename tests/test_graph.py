"The iteration as a graph runs where only torch, numpy and Gymnasium are, and on a GPU a replay is the plain call"
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

ALONE = '''
import importlib.util, runpy, sys
from importlib.machinery import PathFinder
ALLOWED = {'torch', 'torchgen', 'numpy', 'gymnasium', 'farama_notifications', 'cloudpickle', 'typing_extensions', 'rlnb', 'sympy', 'mpmath',
           'networkx', 'jinja2', 'markupsafe', 'filelock', 'fsspec', 'functorch'}          # the three, and what they bring
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.split('.')[0]
        spec = PathFinder.find_spec(top)
        if spec and spec.origin and 'site-packages' in spec.origin and top not in ALLOWED: raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Only())
find = importlib.util.find_spec
def find_spec(name, *a):
    try: return find(name, *a)
    except ModuleNotFoundError: return None
importlib.util.find_spec = find_spec
sys.argv = ['gpu.py', '--device', 'cpu', '--envs', '16', '--seconds', '0.05', '--json', *sys.argv[1:]]
runpy.run_path('tools/gpu.py', run_name='__main__')
'''


def test_three_packages_are_enough():
    p = subprocess.run([sys.executable, '-c', ALONE, '--seeds', '1', '--bar', '10'], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert p.returncode == 0, p.stderr[-2000:]
    found = json.loads(p.stdout.splitlines()[-1])
    assert found['race'][0]['reached'] and found['rows'][0]['sps'] > 0
    p = subprocess.run([sys.executable, '-c', ALONE, '--memory', '--batch', '16', '--seeds', '0'], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert p.returncode == 0, p.stderr[-2000:]
    assert [(r['agent'], r['num_envs'], r['updates'] > 0) for r in json.loads(p.stdout.splitlines()[-1])['rows']] == [('sac', 1, True), ('sac', 16, True), ('dqn', 16, True)]
    blocked = subprocess.run([sys.executable, '-c', ALONE.replace("runpy.run_path('tools/gpu.py', run_name='__main__')", 'import fastcore')],
                             capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert 'ModuleNotFoundError' in blocked.stderr                       # the fence stands


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_replays_on_a_gpu_are_plain_calls():
    from rlnb.train.graph import agent_for
    graph, plain = agent_for(64, 'cuda'), agent_for(64, 'cuda')
    plain.run.warm = 10**9
    for i in range(6):
        a, b = graph(i/6), plain(i/6)
        assert a == pytest.approx(b, rel=1e-3, nan_ok=True)
    assert graph.run.graph is not None and plain.run.graph is None
    torch.testing.assert_close(graph.agent.opts['all'].vec, plain.agent.opts['all'].vec, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('kind', ['sac', 'dqn'])
def test_replays_from_a_memory_are_plain_calls(kind):
    from rlnb.train.graph_memory import loop_for
    graph, plain = (loop_for(kind, 64, 'cuda', learning_starts=640) for _ in range(2))
    plain.run.warm = plain.fill.warm = 10**9
    for i in range(20):
        a, b = graph(i/20), plain(i/20)
        assert a == pytest.approx(b, rel=1e-3, nan_ok=True)
    assert graph.run.graph is not None and plain.run.graph is None
    torch.testing.assert_close(graph.agent.opts['q'].vec, plain.agent.opts['q'].vec, rtol=1e-3, atol=1e-4)
