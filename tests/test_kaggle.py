"""Kaggle without Kaggle: a `kaggle` of our own on the PATH, that keeps notebooks, fails in the ways that the real one is reported to, and
writes down what it heard"""
import json
import os
import re
import shlex
import stat
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlnb.cli import main
from rlnb.core.errors import BadInput, Crash, MissingExtra
from rlnb.flow import kaggle as page
from rlnb.flow.kaggle import FLAG, Kernel, chain, data_plan, push_plan, status, twin
from rlnb.flow.submit import export_agent, faults_of, play_packed, submit, write_table
from rlnb.train.experiment import Experiment, build

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='the stand-in is a script with a #! line')
KERNEL = Kernel(id='ada/pole-on-a-cart')

FAKE = '''#!{python}
import json, os, sys
from pathlib import Path
home, words = Path({home!r}), sys.argv[1:]
with open(home/'heard', 'a') as f: f.write(json.dumps(words) + chr(10))
def told(name, default=''):                       # what a test wants to happen: a file that is used up line by line
    f = home/name
    lines = f.read_text().splitlines() if f.exists() else []
    if lines: f.write_text(chr(10).join(lines[1:]))
    return lines[0] if lines else default
at = lambda flag: words[words.index(flag) + 1]
if words[:2] == ['kernels', 'push']:
    meta = json.loads((Path(at('-p'))/'kernel-metadata.json').read_text())
    assert (Path(at('-p'))/meta['code_file']).is_file()
    bad = [s for s in meta['kernel_sources'] if not (home/s.replace('/', '+')).exists()]
    if bad: print('The following are not valid kernel sources:', bad)
    say = told('push')
    if say == 'FAIL': sys.exit('401 - Unauthorized, token=hf_abcdefghijklmnopqrstuvwxyz12')
    if say: print(say)
    (home/meta['id'].replace('/', '+')).write_text('')
    print('Kernel version 1 successfully pushed.  Please check progress at https://www.kaggle.com/code/' + meta['id'])
elif words[:2] == ['kernels', 'status']:
    say = told('status', 'complete')
    if say == 'FAIL': sys.exit('connection lost')
    print(words[2] + ' has status "' + say + '"')
elif words[:2] == ['kernels', 'output']:
    out = Path(at('-p'))
    (out/'runs').mkdir(parents=True, exist_ok=True)
    if told('flags', 'no') == 'yes': (out/'runs'/'RESUME_NEEDED').write_text('')
elif words[:2] == ['competitions', 'submit']:
    say = told('submit')
    if say == 'FAIL': sys.exit('403 - Forbidden')
    print(say or 'Successfully submitted to ' + words[2])
'''


class Kaggle:
    def __init__(self, home: Path): self.home = home
    def heard(self, *first: str) -> list[list[str]]:
        f = self.home / 'heard'
        return [w for w in map(json.loads, f.read_text().splitlines() if f.exists() else []) if w[:len(first)] == list(first)]
    def will(self, **what: list[str]) -> None:
        for k, v in what.items(): (self.home / k).write_text('\n'.join(v))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    home = tmp_path / 'kaggle-home'
    (home / 'bin').mkdir(parents=True)
    f = home / 'bin' / 'kaggle'
    f.write_text(FAKE.format(python=sys.executable, home=str(home)))
    f.chmod(f.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('PATH', f'{home / "bin"}{os.pathsep}{os.environ["PATH"]}')
    return Kaggle(home)


@pytest.fixture
def notebook(tmp_path):
    f = tmp_path / 'train.ipynb'
    f.write_text(json.dumps(dict(cells=[], metadata={}, nbformat=4, nbformat_minor=5)))
    return f


def quiet(*_): pass


# ---- the file
@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(dict(id=st.text(max_size=30)), optional=dict(title=st.text(max_size=60), code_file=st.text(max_size=20), machine_shape=st.text(max_size=10),
       kernel_sources=st.lists(st.text(max_size=20), max_size=2), dataset_sources=st.lists(st.text(max_size=20), max_size=2))))
def test_a_kernel_is_right_or_does_not_exist(words):
    try: k = Kernel(**words)
    except BadInput as e: assert e.field in words and '\n' not in str(e)
    else:
        d = k.metadata()
        assert re.fullmatch(r'[\w-]+/[a-z0-9-]+', d['id']) and '/' not in d['code_file'] and '..' not in d['code_file'].split('.')[0]
        assert json.loads(json.dumps(d)) == {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()}


@given(st.from_regex(r'[a-z0-9]([a-z0-9-]{3,30}[a-z0-9])', fullmatch=True).filter(lambda s: '--' not in s))
def test_a_title_that_is_made_fits_its_slug(slug):
    k = Kernel(id=f'ada/{slug}')
    assert page.slug_of(k.title) == slug and twin(k).id == f'ada/{slug}-b' and twin(k).id not in (k.id,)


def test_documented_fields_and_no_other():
    "The fields of kaggle-cli's docs/kernels_metadata.md, id_no aside"
    assert set(KERNEL.metadata()) == {'id', 'title', 'code_file', 'language', 'kernel_type', 'is_private', 'enable_gpu', 'enable_internet', 'machine_shape',
                                      'dataset_sources', 'competition_sources', 'kernel_sources', 'model_sources'}


# ---- shown, then done
def test_a_dry_run_writes_nothing_and_calls_nothing(fake, notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.rglob('*'))
    for words in ('push train.ipynb --id ada/pole-on-a-cart --gpu NvidiaTeslaT4Highmem --seconds 30000', 'chain train.ipynb --id ada/pole-on-a-cart --rounds 3',
                  'data . --id ada/rlnb-wheels'):
        assert main(['kaggle', *words.split()]) == 0
    out = capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.rglob('*')) == before and fake.heard() == []
    assert 'run   kaggle kernels push -p kaggle-pole-on-a-cart --accelerator NvidiaTeslaT4Highmem -t 30000' in out
    assert 'write kaggle-pole-on-a-cart/kernel-metadata.json' in out and out.count('run   kaggle kernels push') == 4 and 'kaggle datasets create' in out


def test_what_is_shown_is_what_is_done(fake, notebook, tmp_path):
    plan = push_plan(KERNEL, notebook, tmp_path / 'a folder')
    shown = [shlex.split(s.removeprefix('run')) for s in repr(plan).splitlines() if s.startswith('run')]
    plan.go()
    assert [['kaggle', *w] for w in fake.heard()] == shown == plan.commands


@pytest.mark.parametrize('words', ['push nowhere.ipynb --id ada/pole-on-a-cart', 'push train.ipynb --id pole', 'push train.ipynb --id ada/pole-on-a-cart --gpu T4',
                                   'chain train.ipynb --id ada/pole-on-a-cart --rounds 0', 'data . --id ada/ab', 'submit train.ipynb', 'nonsense train.ipynb',
                                   'push train.ipynb --id ada/pole-on-a-cart --data wheels', 'submit mine.csv --competition titanic'])
def test_bad_words_are_64_and_one_line(words, fake, notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.csv').write_text('id,x\n')
    assert main(['kaggle', *words.split(), '--go']) == 64
    err = capsys.readouterr().err
    assert err.startswith('rlnb: ') and err.count('\n') == 1 and fake.heard() == []


def test_without_kaggle_it_is_said_how_to_get_it(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(['kaggle', 'push', 'train.ipynb', '--id', 'ada/pole-on-a-cart', '--go']) == MissingExtra.code
    assert 'pip install kaggle' in capsys.readouterr().err


@pytest.mark.parametrize('said', ['Kernel push error: Maximum batch GPU session count of 2 reached.', 'The following are not valid dataset sources: [x/y]', 'FAIL'])
def test_a_failure_in_words_is_a_failure(said, fake, notebook, tmp_path):
    "Printed with exit code 0, or a real one; and a token that it prints goes no further"
    fake.will(push=[said])
    with pytest.raises(Crash) as e: push_plan(KERNEL, notebook, tmp_path / 'up').go()
    assert 'hf_abc' not in str(e.value) and 'kaggle' in str(e.value)


@pytest.mark.parametrize('said, phase', [('complete', 'complete'), ('KernelWorkerStatus.RUNNING', 'running'), ('KernelWorkerStatus.CANCEL_ACKNOWLEDGED', 'cancel_acknowledged')])
def test_status_in_both_spellings(said, phase, fake):
    fake.will(status=[said])
    assert status('ada/pole-on-a-cart') == phase


# ---- the chain
def test_a_chain_takes_turns_and_ends_without_the_flag(fake, notebook, tmp_path):
    fake.will(flags=['yes', 'yes', 'yes', 'no'], status=['queued', 'running', 'complete'])
    naps = []
    kernel = Kernel(id='ada/pole-on-a-cart', dataset_sources=('ada/rlnb-wheels',))
    book = chain(kernel, notebook, tmp_path / 'chain', rounds=9, every=60., go=True, sleep=naps.append, told=quiet)
    assert book['done'] and [r['id'][-2:] for r in book['rounds']] == ['rt', '-b', 'rt', '-b'] and naps == [60., 60.]
    metas = [json.loads(f.read_text()) for f in sorted((tmp_path / 'chain').glob('round-*/kernel-metadata.json'))]
    assert [m['kernel_sources'] for m in metas] == [[], ['ada/pole-on-a-cart'], ['ada/pole-on-a-cart-b'], ['ada/pole-on-a-cart']]
    assert all(m['dataset_sources'] == ['ada/rlnb-wheels'] for m in metas)
    assert len(fake.heard('kernels', 'push')) == len(fake.heard('kernels', 'output')) == 4


def test_a_chain_ends_after_its_rounds(fake, notebook, tmp_path):
    fake.will(flags=['yes']*9)
    book = chain(KERNEL, notebook, tmp_path / 'chain', rounds=2, go=True, told=quiet)
    assert not book['done'] and len(book['rounds']) == 2
    assert len(chain(KERNEL, notebook, tmp_path / 'chain', rounds=3, go=True, told=quiet)['rounds']) == 3       # and goes on when told so


@pytest.mark.parametrize('look', range(5))
def test_a_chain_that_dies_while_it_waits_pushes_nothing_twice(look, fake, notebook, tmp_path):
    "A kill at each look of three sessions: the next call goes on"
    fake.will(flags=['yes', 'yes', 'no'], status=['running', 'complete']*3)
    left = [look]
    def sleep(_):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
    for _ in range(2):
        try: book = chain(KERNEL, notebook, tmp_path / 'chain', rounds=9, go=True, sleep=sleep, told=quiet)
        except KeyboardInterrupt: left[0] = 99
    assert book['done'] and len(book['rounds']) == len(fake.heard('kernels', 'push')) == 3


def test_a_chain_bears_some_bad_answers(fake, notebook, tmp_path):
    fake.will(status=['FAIL', 'gibberish "', 'FAIL', 'FAIL', 'complete'])
    assert chain(KERNEL, notebook, tmp_path / 'a', go=True, sleep=quiet, told=quiet)['done']
    fake.will(status=['FAIL']*5)
    with pytest.raises(Crash): chain(KERNEL, notebook, tmp_path / 'b', go=True, sleep=quiet, told=quiet)
    fake.will(status=['running', 'error'])
    with pytest.raises(Crash, match='ended with error: its log is on'): chain(KERNEL, notebook, tmp_path / 'c', go=True, sleep=quiet, told=quiet)


def test_a_session_that_left_nothing_is_not_the_end(fake, notebook, tmp_path, monkeypatch):
    "An output that could not be fetched is no output without the flag"
    monkeypatch.setattr(page, 'fetch', lambda *_: (_ for _ in ()).throw(Crash('kaggle ended with 1')))
    with pytest.raises(Crash): chain(KERNEL, notebook, tmp_path / 'chain', go=True, sleep=quiet, told=quiet)
    assert not json.loads((tmp_path / 'chain' / 'chain.json').read_text())['done']


def test_a_dataset_is_made_first_and_then_a_version(tmp_path):
    first, later = data_plan('ada/rlnb-wheels', tmp_path), data_plan('ada/rlnb-wheels', tmp_path, message='newer')
    assert first.commands[-1][:3] == ['kaggle', 'datasets', 'create'] and later.commands[-1][:3] == ['kaggle', 'datasets', 'version']
    meta = json.loads(first.files[tmp_path / 'dataset-metadata.json'])
    assert 6 <= len(meta['title']) <= 50 and len(meta['licenses']) == 1
    assert all('torch' not in w and 'numpy' not in w for c in first.commands for w in c)


# ---- submissions
def test_nothing_is_sent_that_was_not_said_twice(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table('sample.csv', ['id', 'x'], [('a', 0), ('b', 0)])
    write_table('mine.csv', ['id', 'x'], [('a', 1), ('b', 2)])
    words = ['kaggle', 'submit', 'mine.csv', '--competition', 'titanic', '--sample', 'sample.csv', '--message', 'first']
    assert main(words) == 0 and main([*words, '--go']) == 0 and main([*words, '--confirm', 'titanik']) == 64
    assert fake.heard() == [] and not (tmp_path / 'submissions.jsonl').exists()
    capsys.readouterr()
    assert main([*words, '--confirm', 'titanic', '--json']) == 0
    assert fake.heard() == [['competitions', 'submit', 'titanic', '-f', 'mine.csv', '-m', 'first']]
    rows = [json.loads(s) for s in (tmp_path / 'submissions.jsonl').read_text().splitlines()]
    assert [r['response'] for r in rows] == ['asked', 'Successfully submitted to titanic'] and json.loads(capsys.readouterr().out)['sent']
    fake.will(submit=['FAIL'])
    assert main([*words, '--confirm', 'titanic']) == 70
    assert [json.loads(s)['response'] for s in (tmp_path / 'submissions.jsonl').read_text().splitlines()][2:] == ['asked']      # it is known that it was tried


CELL = st.text(st.characters(codec='utf-8', exclude_characters='\x00'), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, st.floats(allow_nan=False, allow_infinity=False), CELL.filter(str.strip)), min_size=1, max_size=6), st.data())
def test_a_table_is_its_own_sample_and_a_damaged_one_is_not(tmp_path_factory, rows, data):
    d = tmp_path_factory.mktemp('csv')
    rows = [(f'{i}{a}', b, c) for i, (a, b, c) in enumerate(rows)]
    sample = write_table(d / 'sample.csv', ['id', 'x', 'y'], rows)
    assert faults_of(sample, sample) == []
    k = data.draw(st.integers(0, len(rows) - 1))
    a, b, c = rows[k]
    for bad in ((a + '!', b, c), (a, 'nan', c), (a, '', c), (a, b, ' '), (a, 'x', c)):
        assert faults_of(write_table(d / 'bad.csv', ['id', 'x', 'y'], [*rows[:k], bad, *rows[k + 1:]]), sample)
    assert faults_of(write_table(d / 'bad.csv', ['id', 'x', 'y'], rows[:k] + rows[k + 1:]), sample)


def made(agent, env, **cfg): return build(Experiment.from_dict(dict(agent=agent, env=env, num_envs=2, agent_cfg=cfg))).agent


@pytest.mark.parametrize('agent, env, cfg', [('ppo', 'rlnb/Pendulum-v1', dict(n_steps=128, activation='silu', norm_obs=True)), ('td3', 'rlnb/Pendulum-v1', dict(hidden=[16, 16])),
                                             ('dqn', 'rlnb/CartPole-v1', dict(activation='elu')), ('sac_discrete', 'rlnb/CartPole-v1', dict(hidden=[16]))])
def test_an_exported_agent_does_what_the_agent_does(agent, env, cfg, tmp_path):
    "In a process that has neither rlnb nor torch, on observations that were not those of the export"
    a = made(agent, env, **cfg)
    if a.norms: a.norms['obs'].update(np.random.default_rng(0).normal(3, 2, (50, *a.obs_space.shape)))
    export_agent(a, tmp_path / 'a.tar.gz')
    xs = np.random.default_rng(5).normal(2, 3, (40, *a.obs_space.shape)).astype(np.float32)
    got, want = play_packed(tmp_path / 'a.tar.gz', xs.tolist())['actions'], a.act(xs, explore=False).act
    assert np.allclose(np.asarray(got, float).reshape(want.shape), np.clip(want, -1, 1) if want.dtype.kind == 'f' else want, atol=1e-5)


def test_a_wrong_export_is_refused(tmp_path, monkeypatch):
    "The wrong reading of the last layer, planted: the comparison sees it, and no file is written"
    from rlnb.flow import submit as s
    right = s.policy_of
    monkeypatch.setattr(s, 'policy_of', lambda agent: (right(agent)[0], right(agent)[1] | dict(head='mean')))
    a = made('sac', 'rlnb/Pendulum-v1', hidden=[16])
    list(a.pi.parameters())[-2].data.mul_(300)                  # as a policy that has learned: far enough from 0 for tanh to matter
    with pytest.raises(BadInput, match='does not do what the agent does'): export_agent(a, tmp_path / 'a.tar.gz')
    assert not list(tmp_path.iterdir())


def test_the_empty_process_has_no_secret_and_no_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv('KAGGLE_KEY', 'a-secret-key')
    def play(main):
        f = tmp_path / 'a.tar.gz'
        (tmp_path / 'main.py').write_text(main)
        with tarfile.open(f, 'w:gz') as t: t.add(tmp_path / 'main.py', 'main.py')
        return play_packed(f, [0])['actions'][0]
    assert 'a-secret-key' not in play('import os\nseen = str(dict(os.environ))\ndef agent(o, c): return seen')
    for way in ('import urllib.request\nurllib.request.urlopen("http://127.0.0.1:9")', 'import subprocess\nsubprocess.run(["true"])', 'import os\nos.fork()', 'import rlnb'):
        with pytest.raises(BadInput, match='agent: '): play(way + '\ndef agent(o, c): return 0')


def test_an_archive_that_climbs_is_refused(tmp_path):
    (tmp_path / 'x').write_text('')
    for name in ('../main.py', '/main.py', 'a/main.py'):
        with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as t:
            t.add(tmp_path / 'x', 'main.py')
            info = tarfile.TarInfo(name)
            t.addfile(info)
        with pytest.raises(BadInput, match='archive'): play_packed(tmp_path / 'a.tar.gz', [])
    with pytest.raises(BadInput, match='archive'): submit(tmp_path / 'a.tar.gz', 'connectx', told=quiet)


def test_the_flag_is_one_word(): assert FLAG == 'RESUME_NEEDED'
