"dev.py on bad machines: one line that says what is missing, never a traceback, never a question"
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from conftest import ROOT
from packaging.specifiers import SpecifierSet

sys.path.insert(0, str(ROOT))
import dev


@pytest.fixture
def bare(tmp_path):
    "A checkout without a virtual environment"
    for f in ('dev.py', 'setup.py', 'settings.ini', 'constraints.txt', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / f, tmp_path)
    shutil.copytree(ROOT / 'rlnb', tmp_path / 'rlnb', ignore=shutil.ignore_patterns('__pycache__'))
    return tmp_path


def run(where, *argv, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith('PIP_')}
    return subprocess.run([sys.executable, 'dev.py', *argv], cwd=where, env=clean | env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)


def test_no_network_is_one_line(bare):
    "pip finds no index: the reason, what to do and where the log is, in one line; run again, the same"
    for _ in range(2):
        r = run(bare, 'test', PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='0', PIP_TIMEOUT='1')
        assert r.returncode == 1
        assert 'Traceback' not in r.stderr
        assert r.stderr.count('\n') == 1 and r.stderr.startswith('dev.py: no network')


def test_unknown_command_names_the_commands(bare):
    r = run(bare, 'trian')
    assert r.returncode == 2 and 'run' in r.stderr and 'nightly' in r.stderr and 'Traceback' not in r.stderr


@pytest.mark.parametrize('log,line', [
    ("error: command '/usr/bin/gcc' failed: No such file or directory", 'no C compiler'),
    ('WARNING: Retrying (Retry(total=0)) after connection broken by NewConnectionError', 'no network'),
    ('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device', 'the disk is full'),
    ('The conflict is caused by:\n    The user requested torch\n    The user requested (constraint) torch==2.13.0\nERROR: ResolutionImpossible', 'no network'),
    ('The conflict is caused by:\n    soup 4 depends on sieve>=1\n    The user requested (constraint) sieve==4\nERROR: ResolutionImpossible', 'constraints.txt'),
    ('ERROR: ResolutionImpossible: for help visit', 'constraints.txt'),
    ('ERROR: something else\nERROR: the last word', 'ERROR: the last word'),
])
def test_reason(log, line):
    assert dev.reason(log).startswith(line)


def test_every_alias_of_the_makefile_is_a_command():
    aliases = (ROOT / 'Makefile').read_text().split('.PHONY:')[1].splitlines()[0].split()
    assert aliases == [f for f in aliases if callable(getattr(dev, f, None))] and {'run', 'test', 'lab', 'docs', 'size', 'nightly'} <= set(aliases)


def test_needs_only_the_standard_library():
    import ast
    mods = {(n.names[0].name if isinstance(n, ast.Import) else n.module).split('.')[0] for n in ast.walk(ast.parse((ROOT / 'dev.py').read_text()))
            if isinstance(n, (ast.Import, ast.ImportFrom))}
    assert mods <= sys.stdlib_module_names


# ---- git
def git(where, *argv, **kw):
    env = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
    env |= dict(HOME=str(where), GIT_AUTHOR_NAME='a', GIT_AUTHOR_EMAIL='a@b', GIT_COMMITTER_NAME='a', GIT_COMMITTER_EMAIL='a@b', GIT_CONFIG_NOSYSTEM='1',
                PATH=kw.pop('path', os.environ['PATH']))
    return subprocess.run(['git', *argv], cwd=where, env=env, capture_output=True, text=True, **kw)


def page(first='1', second='2'):
    cells = [dict(cell_type='code', id=i, metadata={}, execution_count=None, outputs=[], source=s) for i, s in (('a', first), ('b', second))]
    return json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5), indent=1)


@pytest.fixture
def diverged(tmp_path, monkeypatch):
    "A repository with our git settings, and two branches that changed the same cell of a notebook"
    for f in ('.gitconfig', '.gitattributes'):
        shutil.copy(ROOT / f, tmp_path)
    monkeypatch.setattr(dev, 'ROOT', tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert git(tmp_path, 'init', '-q', '-b', 'main').returncode == 0
    dev.hooks()
    for step, text in ((['checkout', '-q', 'main'], page()), (['checkout', '-q', '-b', 'theirs'], page('10')), (['checkout', '-q', 'main'], page('20'))):
        git(tmp_path, *step)
        (tmp_path / 'a.ipynb').write_text(text)
        git(tmp_path, 'add', '.')
        assert git(tmp_path, 'commit', '-qm', 'page').returncode == 0
    return tmp_path


@pytest.mark.skipif(os.name == 'nt', reason='the environment is a link here')
def test_git_merges_notebooks_with_the_environment_alone(diverged):
    "nbdev is found in .venv though no shell has it on its path: a conflict keeps the notebook one that opens, and nothing is written at home"
    os.symlink(sys.prefix, diverged / '.venv')
    lean = os.pathsep.join(p for p in os.environ['PATH'].split(os.pathsep) if not shutil.which('nbdev_merge', path=p))
    r = git(diverged, 'merge', 'theirs', path=lean)
    assert r.returncode == 1 and 'not found' not in r.stdout + r.stderr
    assert {'10', '20'} <= {''.join(c['source']) for c in json.loads((diverged / 'a.ipynb').read_text())['cells']}
    assert not (diverged / '.jupyter').exists() and (diverged / '.git/hooks/post-merge').read_text() == dev.TRUST


def test_git_merges_as_text_before_there_is_an_environment(diverged):
    lean = os.pathsep.join(p for p in os.environ['PATH'].split(os.pathsep) if not shutil.which('nbdev_merge', path=p))
    r = git(diverged, 'merge', 'theirs', path=lean)
    assert r.returncode == 1 and 'not found' not in r.stdout + r.stderr
    assert '<<<<<<<' in (diverged / 'a.ipynb').read_text()


def test_a_hook_of_the_user_stays(diverged):
    hook = diverged / '.git/hooks/post-merge'
    hook.write_text('mine')
    dev.hooks()
    assert hook.read_text() == 'mine'


# ---- the workflow
def test_the_workflow_covers_what_is_promised():
    "Three systems by three Pythons for the tests, the lowest and the highest Python for the wheel, and only parts that exist"
    import yaml
    flow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text(encoding='utf-8'))
    jobs = flow['jobs']
    assert {'lint', 'test', 'notebooks', 'wheel', 'docs'} <= set(jobs)
    grid = jobs['test']['strategy']['matrix']
    assert {o.split('-')[0] for o in grid['os']} == {'ubuntu', 'macos', 'windows'} and len(set(grid['python'])) >= 3
    assert '3.10' in jobs['wheel']['strategy']['matrix']['python']
    runs = '\n'.join(s.get('run', '') for j in jobs.values() for s in j['steps'])
    sys.path.insert(0, str(ROOT / 'tools'))
    parts = subprocess.run([sys.executable, 'tools/test.py', '--list'], cwd=ROOT, capture_output=True, text=True).stdout
    asked = set(re.findall(r'--part (\w+)', runs))
    assert asked == {s.split()[0] for s in parts.splitlines()}


# ---- consoles of the old kind
@pytest.mark.parametrize('code', ['cp1252', 'ascii'])
def test_an_old_console_shows_it_all(code, tmp_path):
    "What a Windows console without UTF-8 cannot show becomes another sign, never a traceback; and each file that was made has a name that Windows takes"
    env = os.environ | dict(PYTHONUTF8='0', PYTHONIOENCODING=code, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', 'import sys; from rlnb.cli import main; sys.exit(main(sys.argv[1:]))', 'train', '--steps', '3000', '--episodes', '10']
    r = subprocess.run([*command, '--root', str(tmp_path)], env=env, capture_output=True, encoding=code)
    assert r.returncode == 0 and 'return ' in r.stdout and 'Traceback' not in r.stderr, r.stderr
    made = [*tmp_path.rglob('*')]
    assert len(made) > 4 and not [f for f in made if f.is_symlink() or re.search(r'[:*?"<>|\\]|[. ]$', f.name)]
    r = subprocess.run([sys.executable, 'dev.py', '--help'], cwd=ROOT, env=env, capture_output=True, encoding=code)
    assert r.returncode == 0 and 'python3 dev.py run' in r.stdout


def test_every_pin_installs_on_the_first_python_3_11():
    "Debian's is 3.11.2; a package that asks for a later patch has no wheel there, and the whole set-up ends"
    asked = {}
    for line in (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines():
        if '==' not in line: continue
        with contextlib.suppress(PackageNotFoundError): asked[line] = distribution(line.split('==')[0]).metadata['Requires-Python'] or ''
    assert len(asked) > 100
    assert [f'{pin} needs {p}' for pin, p in asked.items() if not SpecifierSet(p).contains('3.11.0')] == []
