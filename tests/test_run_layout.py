"""What a run leaves behind: every name in its folder is one of these, and every one of these is there when everything was asked for."""
import re
import stat
from fnmatch import fnmatchcase

import pytest
from test_io_faults import quick  # noqa: F401

from rlnb.runs.curves import curves, metrics_json
from rlnb.runs.run import Run
from rlnb.train.session import asked, fit, folder_for

ALWAYS = {
    'config.json': 'what was asked for', 'probe.json': 'what the first life found out', 'LOCK': 'held by the writer', 'state.json': 'what it is doing',
    'metrics.jsonl': 'a row an iteration', 'metrics.columns': 'the same as columns', 'perf.jsonl': 'where the time went', 'events.jsonl': 'what was done to it',
    'result.json': 'how it ended', 'ckpt/*/manifest.json': 'what a checkpoint holds',
    'ckpt/*/arrays.safetensors': 'its arrays', 'ckpt/*/state.json': 'everything else of it'}
ASKED = {'ckpt/best.json': 'the best look', 'replay/*': 'rows of a memory', 'tb/*': 'a mirror for TensorBoard', 'media/*.png': 'pictures', 'metrics.json': 'all rows as JSON',
         'holder.json': 'who trains it, for people', 'log.txt': 'what was printed'}


@pytest.mark.parametrize('agent', ['ppo', 'dqn'])
def test_every_file_of_a_run_is_one_of_these(agent, quick):  # noqa: F811
    more = dict(n_steps=16, minibatch=32) if agent == 'ppo' else dict(learning_starts=64, batch_size=16, buffer_size=512)
    run = folder_for(asked(agent, 'rlnb/CartPole-v1', 1500, False, hidden=[8], eval_every=400, eval_episodes=2, tensorboard=True, checkpoint_every=300, **more), quick, 'run')
    fit(run, None, 2)
    curves(run.path)
    metrics_json(run.path)
    files = {str(f.relative_to(run.path)).replace('\\', '/') for f in run.path.rglob('*') if f.is_file()}
    known = ALWAYS | ASKED
    assert [f for f in files if not any(fnmatchcase(f, k) for k in known)] == []
    assert [k for k in ALWAYS if not any(fnmatchcase(f, k) for f in files)] == []
    assert {'ckpt/best.json', 'metrics.json'} <= files and any(f.startswith('tb/') for f in files) and (agent == 'ppo' or any(f.startswith('replay/') for f in files))
    assert all(re.fullmatch(r'[A-Za-z0-9._-]+', part) for f in files for part in f.split('/'))             # names that every system takes
    assert not [f for f in run.path.rglob('*') if stat.S_ISLNK(f.lstat().st_mode)]                          # and no links
    assert str(quick) not in ''.join(f.read_text(errors='ignore') for f in run.path.rglob('*.json*'))       # and it may be moved
    assert Run(run.path).result['phase'] == 'finished'
