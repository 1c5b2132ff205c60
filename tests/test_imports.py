"What an import costs, in seconds of processor time: each measured in a fresh interpreter, the best of three, so that a busy machine does not decide"
import subprocess
import sys

from pages import pages

CODE = '''
import sys, time
{before}
then = time.process_time()
import {what}
print(time.process_time() - then, *sorted({{m.split('.')[0] for m in sys.modules}} & {{'torch', 'matplotlib', 'gymnasium', 'scipy', 'pandas', 'IPython', 'nbdev', 'optuna', 'papermill'}}))
'''


def cost(what, before=''):
    best, mods = 1e9, []
    for _ in range(3):
        out = subprocess.run([sys.executable, '-c', CODE.format(what=what, before=before)], capture_output=True, text=True, check=True).stdout.split()
        best, mods = min(best, float(out[0])), out[1:]
    return best, mods


def test_rlnb_alone():
    seconds, mods = cost('rlnb')
    assert seconds < .3 and not mods


def test_all_beyond_torch():
    seconds, mods = cost('rlnb.all', before='import torch')
    assert seconds < 1 and not set(mods) & {'matplotlib', 'scipy', 'pandas', 'nbdev', 'optuna', 'papermill'}


TORCH_FREE = [*(f'rlnb.core.{m}' for m in ('errors', 'text', 'registry', 'batch', 'schedule', 'yaml', 'field', 'config', 'io', 'folder', 'rows', 'platform')),
              *(p.module for p in pages() if p.folder == '40_runs' and p.module), 'rlnb.train.presets', 'rlnb.cli']


def test_rooms_that_readers_of_a_run_need_are_torch_free():
    "Each in turn in one interpreter that has seen none of the others: who lists runs, or types a command, does not wait for torch"
    code = ('import importlib, sys\nfor m in sys.argv[1:]:\n    [sys.modules.pop(k) for k in list(sys.modules) if k.split(".")[0] == "rlnb"]\n    importlib.import_module(m)\n'
            '    if "torch" in sys.modules: sys.exit(m + " brings torch")')
    r = subprocess.run([sys.executable, '-c', code, *TORCH_FREE], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_every_module_imports_alone():
    "No module leans on another having been imported before it"
    mods = [p.module for p in pages() if p.module]
    code = 'import importlib, sys\nfor m in sys.argv[1:]:\n    [sys.modules.pop(k) for k in list(sys.modules) if k.split(".")[0] == "rlnb"]\n    importlib.import_module(m)'
    subprocess.run([sys.executable, '-c', code, *mods], check=True)
