"Comparison and report of real runs: the same bytes in another process, nothing that acts, everything that a sceptic asks for"
import os
import re
import shutil
import subprocess
import sys

import pytest
from rlnb.all import train
from rlnb.core.io import write_json
from rlnb.evaluation.compare import compare
from rlnb.evaluation.report import report
from rlnb.runs.run import Run


REFERENCES = dict(random=22, solved=475)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Three seeds of two agents, trained for real"
    root = tmp_path_factory.mktemp('runs')
    for agent in ('ppo', 'a2c'):
        for seed in range(3): train(agent, 'rlnb/CartPole-v1', steps=3000, root=root, name=f'{agent}-{seed}', seed=seed, progress=False, episodes=20)
    return root


def runs(root): return [Run(p) for p in sorted(root.iterdir())]


def test_real_runs_are_compared(root):
    c = compare(runs(root))
    assert {k: len(v) for k, v in c.scores.items()} == dict(ppo=3, a2c=3) and not c.notes
    assert 'agent.n_steps' in [d['setting'] for d in c.differences] and 'seed' not in [d['setting'] for d in c.differences]
    assert c.verdicts[0].better == '' and len(str(c.verdicts[0])) > 40                # three seeds never decide
    for measure in ('curve', 'area'): assert compare(runs(root), measure).scores['ppo'] != c.scores['ppo']


def test_what_a_report_must_hold(root):
    "ALGORITHMS section 5, word by word"
    html = report(runs(root), references=REFERENCES).html()
    for must in ('rlnb/CartPole-v1', '3000', 'training time', 'every seed', 'likeliest action', 'seeds of their own', '20 episodes', 'best seen', 'last of curve',
                 'interval of the mean over seeds', 'random', 'solved', 'Seeds that failed', 'agent.lr', 'torch', 'numpy', 'platform', 'cpu'):
        assert must.lower() in html.lower(), must
    for r in runs(root): assert r.name in html


CODE = 'import sys\nfrom pathlib import Path\nfrom rlnb.evaluation.report import report\nfrom rlnb.runs.run import Run\n' \
       'r = report([Run(p) for p in sorted(Path(sys.argv[1]).iterdir())], references=dict(random=22, solved=475))\nr.save(sys.argv[2])'


@pytest.mark.parametrize('suffix', ['html', 'ipynb', 'md'])
def test_the_same_bytes_in_another_process(root, tmp_path, suffix):
    "Whatever the order of sets there: strings hash differently"
    got = []
    for salt in ('1', '2'):
        (tmp_path / salt).mkdir()
        f = tmp_path / salt / f'report.{suffix}'
        subprocess.run([sys.executable, '-c', CODE, str(root), str(f)], check=True, env={**os.environ, 'PYTHONHASHSEED': salt})
        got.append({p.name: p.read_bytes() for p in (tmp_path / salt).iterdir()})
    assert got[0] == got[1] and len(got[0]) == (3 if suffix == 'md' else 1)


def test_the_notebook_shows_what_its_code_gives(root, tmp_path):
    "It is stored executed; executed again, from where it lies, the comparison is the same"
    import nbformat
    from nbclient import NotebookClient
    f = report(runs(root), references=REFERENCES).save(tmp_path / 'report.ipynb')
    nb = nbformat.read(f, 4)
    code = [c for c in nb.cells if c.cell_type == 'code']
    was = code[0].outputs[0].data
    assert len(code) == 1 and code[0].execution_count == 1 and 'cannot be told apart' in was['text/plain']
    NotebookClient(nb, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    assert code[0].outputs[0].data['text/plain'] == was['text/plain']


def test_films_and_metrics_of_real_runs(root, tmp_path):
    "What `keep` left is in the report, in all three forms, and the bytes are the same"
    from rlnb.train.encore import keep
    shutil.copytree(root, tmp_path / 'r')
    told = keep(tmp_path / 'r' / 'ppo-0', 'latest', 20)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    for d in ('a', 'b'):
        for kind in ('html', 'md', 'ipynb'): report(runs(tmp_path / 'r')).save(tmp_path / d / f'x.{kind}')
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ('a', 'b'))
    assert a == b and sum(n.endswith('.gif') for n in a) == len(told['films']) == 3
    html = a['x.html'].decode()
    assert html.count('data:image/gif') == 3 and a['x.ipynb'].count(b'"image/gif"') == 3
    assert 'the worst of 20 episodes' in html and 'likeliest' in html and 'length' in html and f"{told['failures'][0]['episodes']}" in html


def test_reading_changes_nothing(root, tmp_path):
    before = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    report(runs(root)).save(tmp_path / 'a.html')
    assert before == {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}


def test_nothing_acts_and_nothing_is_fetched(root):
    html = report(runs(root), title='<script>alert(1)</script>').html()
    assert not re.search(r'<script|javascript:|\son\w+=|<link|<iframe|src="(?!data:)', html, re.I)
    assert "default-src 'none'" in html
    outside = set(re.findall(r'https?://[^\s"<]+', html)) - {'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'}
    assert all('w3.org' in u or 'purl.org' in u or 'creativecommons.org' in u or 'matplotlib.org' in u for u in outside), outside       # names of vocabularies, never loaded


def test_a_run_that_is_going_on(root, tmp_path):
    "No result yet: it is in the table, not among the scores, and that is said"
    shutil.copytree(root, tmp_path / 'r')
    (tmp_path / 'r' / 'ppo-2' / 'result.json').unlink()
    r = report(runs(tmp_path / 'r'), references=REFERENCES)
    assert 'no final score of ppo-2' in r.markdown() and 'No verdict' in r.markdown() and 'no result' in r.markdown()


def test_a_run_that_has_only_begun(root, tmp_path):
    "One row, or none: no curve, and no crash"
    shutil.copytree(root, tmp_path / 'r')
    for n in (0, 1):
        f = tmp_path / 'r' / f'a2c-{n}' / 'metrics.jsonl'
        f.write_bytes(b''.join(f.read_bytes().splitlines(True)[:n]))
    assert 'a2c-0' in report(runs(tmp_path / 'r')).html()


def test_numbers_that_are_not_finite(root, tmp_path):
    shutil.copytree(root, tmp_path / 'r')
    result = Run(tmp_path / 'r' / 'a2c-0').result
    write_json(tmp_path / 'r' / 'a2c-0' / 'result.json', result | {'return': result['return'] | dict(mean=float('nan'))})
    assert 'no final score of a2c-0' in report(runs(tmp_path / 'r')).markdown()


def test_torch_is_not_needed():
    code = 'import sys, rlnb.evaluation.report; print(*{"torch", "scipy", "matplotlib", "pandas"} & set(sys.modules))'
    assert not subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
