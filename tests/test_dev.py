"dev.py on bad machines: one line that says what is missing, never a traceback, never a question"
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

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
    return subprocess.run([sys.executable, 'dev.py', *argv], cwd=where, env=clean | env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


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
