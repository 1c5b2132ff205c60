"What the prose says can be typed can be typed: every Python block runs, every command is one that its parser takes"
import ast
import contextlib
import errno
import io
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from pages import pages

from rlnb import cli

sys.path.insert(0, str(ROOT))
import dev

TEXTS = {p.name: '\n\n'.join(c['source'] for c in p.prose) for p in pages()}
TEXTS |= {f: (ROOT / f).read_text(encoding='utf-8') for f in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/troubleshooting.md')}
BLOCKS = [(name, code) for name, text in TEXTS.items() if not name.endswith('index.ipynb') for code in re.findall(r'^```python\n(.*?)^```', text, re.S | re.M)]


def commands(text: str) -> list[str]:
    "Commands in a text: lines of a block without a language, and `code` that begins like one"
    lines = [s for block in re.findall(r'^```(?:|console|sh|bash)\n(.*?)^```', text, re.S | re.M) for s in block.splitlines()]
    begins = r'(?:rlnb|python3?|pip|nbdev\w*|make) \S'
    found = [s.removeprefix('$ ') for s in [*lines, *re.findall(r'(?<!`)`([^`\n]+)`(?!`)', text)]]
    return [re.sub(r'\s+# .*', '', s).strip() for s in found if re.match(begins, s)]


TYPED = sorted({(c, name) for name, text in TEXTS.items() for c in commands(text)})


def known(command: str) -> str:
    "What is wrong with a command, '' if nothing"
    if re.search(r'…|\|', command): return ''                             # a sketch of several
    words = shlex.split(command)
    words[1:] = [w if re.search(r'[a-z0-9./]', w) else '1' for w in words[1:]]
    words = [w for w in words if w not in ('&&', ';')]
    if words[0] == 'rlnb':
        if len(words) == 2 and words[1] in cli.VERBS: return ''             # the name of a verb
        try:
            with contextlib.redirect_stdout(io.StringIO()): cli.parser().parse_args(words[1:])
        except SystemExit as e: return str(e.code or '')               # --help, --version
        except Exception as e: return str(e)
        return ''
    if words[1:3] == ['-m', 'torch.distributed.run']:
        from torch.distributed.run import get_args_parser
        try: a = get_args_parser().parse_args(words[3:])
        except SystemExit: return f'torch.distributed.run does not know {words[3:]}'
        return known(shlex.join(['python', '-m', a.training_script, *a.training_script_args]))
    if words[0].startswith('python'):
        if words[1] == '-m': return '' if words[2].split('.')[0] in ('pytest', 'pip', 'venv') or (ROOT / (words[2].replace('.', '/') + '.py')).exists() else f'no module {words[2]}'
        if not (ROOT / words[1]).is_file(): return f'no file {words[1]}'
        if words[1] == 'dev.py':
            try: dev.parser().parse_args(words[2:])
            except SystemExit: return f'dev.py does not know {words[2:]}'
        return ''
    if words[0] == 'make': return '' if words[1] in (ROOT / 'Makefile').read_text().split('.PHONY:')[1].split() else f'no target {words[1]}'
    if words[0] == 'pip':
        extras = [*re.findall(r"^\s+'(\w+)': \[", (ROOT / 'setup.py').read_text(encoding='utf-8'), re.M), 'all']
        asked = [e for group in re.findall(r'(?:rlnb|\.)\[([\w,]+)', command) for e in group.split(',')]
        return '' if words[1] in ('install', 'download') and set(asked) <= set(extras) else f'no such group among {asked}'
    return '' if shutil.which(words[0]) else f'no program {words[0]}'


@pytest.mark.parametrize('name, code', BLOCKS, ids=[f'{n}-{i}' for i, (n, _) in enumerate(BLOCKS)])
def test_every_python_block_runs(name, code, tmp_path):
    "As it stands, in an empty folder and a fresh interpreter; an early page's block may lean on the public names"
    before = '' if 'import' in code else 'from rlnb.all import *\n'
    r = subprocess.run([sys.executable, '-c', before + code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr[-2000:]


def test_the_readme_trains_what_it_says():
    "The first lines train, show and load, and nothing in the block is only a comment"
    code = next(c for n, c in BLOCKS if n == 'README.md')
    calls = {getattr(n.func, 'id', getattr(n.func, 'attr', '')) for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)}
    assert {'train', 'load'} <= calls and len(code.splitlines()) <= 10


@pytest.mark.parametrize('command, where', TYPED, ids=[c for c, _ in TYPED])
def test_every_command_can_be_typed(command, where):
    assert not (bad := known(command)), f'{where}: `{command}`: {bad}'


@pytest.mark.parametrize('wrong', ['rlnb trian --agent ppo', 'rlnb train --agnt ppo', 'python3 dev.py tset', 'python tools/gone.py', "pip install 'rlnb[lab,labs]'", 'make tset',
                                   'python -m rlnb.trane.worker RUN', 'python -m torch.distributed.run --standalone -m rlnb.trane.worker RUN'])
def test_a_planted_command_is_seen(wrong):
    assert commands(f'Type `{wrong}` now') == [wrong] and known(wrong)


def test_a_message_that_is_explained_is_one_that_is_said():
    "A heading in `quotes` of the troubleshooting page is a piece of a line that dev.py, rlnb or the system prints"
    said = [(ROOT / 'dev.py').read_text(encoding='utf-8'), *(f.read_text(encoding='utf-8') for f in (ROOT / 'rlnb').rglob('*.py'))]
    said = '\n'.join(said).lower() + os.strerror(errno.ENOSPC).lower()
    explained = re.findall(r'^### `(.+)`$', TEXTS['docs/troubleshooting.md'], re.M)
    assert len(explained) > 5 and [m for m in explained if m.lower() not in said] == []
