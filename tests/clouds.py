"""Lent machines, for tests: a Colab and a Kaggle made of temporary folders, stubs of their modules, a clock, and an end without a warning.

A machine is a folder, an environment and the processes that run in it. `end` kills all of them at once, as a platform does. What survives is what
the platform keeps: of a Colab its Drive, of a Kaggle the output, which the next machine finds as a read-only input."""
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil

ROOT = Path(__file__).resolve().parent.parent
STUBS = {'google/colab/__init__.py': '',
         'google/colab/drive.py': 'import os\nfrom pathlib import Path\ndef mount(at):\n    Path(at).mkdir(parents=True, exist_ok=True)\n    to = Path(at)/"MyDrive"\n'
                                  '    if not to.exists(): to.symlink_to(os.environ["TEST_DRIVE"])\ndef flush_and_unmount(): pass\n',
         'google/colab/userdata.py': 'def get(name): raise KeyError(name)\n',
         'kaggle_secrets.py': 'class UserSecretsClient:\n    def get_secret(self, name): raise KeyError(name)\n'}


def stubs(folder: Path) -> Path:
    "The platforms' modules, as far as rlnb knows them"
    for name, text in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def tree(folder: Path) -> dict[str, str]:
    "Every file below a folder, with its hash"
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*')) if p.is_file()}


class Machine:
    "A machine of a platform"
    def __init__(self, kind: str, home: Path, n: int):
        self.kind, self.home, self.name = kind, home, f'{home.name}-{n}-{os.getpid()}'
        self.root = home / f'machine-{n}' / ('content' if kind == 'colab' else 'kaggle')
        self.work = self.root / ('runs' if kind == 'colab' else 'working/runs')
        for p in (self.root, home / 'drive', *([self.root / 'working', self.root / 'input'] if kind == 'kaggle' else [])): p.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen | None = None

    def env(self) -> dict:
        mine = dict(COLAB_RELEASE_TAG='test', RLNB_COLAB_ROOT=str(self.root), TEST_DRIVE=str(self.home / 'drive')) if self.kind == 'colab' else \
            dict(KAGGLE_KERNEL_RUN_TYPE='Batch', RLNB_KAGGLE_ROOT=str(self.root))
        path = os.pathsep.join([str(ROOT), str(stubs(self.home / 'stubs')), *filter(None, [os.environ.get('PYTHONPATH')])])
        ours = {k: v for k, v in os.environ.items() if not k.startswith(('RLNB_', 'KAGGLE_', 'COLAB_'))}
        return ours | mine | dict(PYTHONPATH=path, RLNB_SESSION_BEGAN=f'{time.time():.0f}', TEST_MACHINE=self.name, OMP_NUM_THREADS='1', MPLBACKEND='agg',
                                  PYDEVD_DISABLE_FILE_VALIDATION='1', JUPYTER_PLATFORM_DIRS='1')

    def papermill(self, notebook: Path, **parameters) -> 'Machine':
        "Begin to execute a notebook"
        words = [x for k, v in parameters.items() for x in ('-y', json.dumps({k: v}))]
        out = self.root.parent / notebook.name
        argv = [sys.executable, '-m', 'papermill', str(notebook), str(out), '--no-progress-bar', '--log-output', '--autosave-cell-every', '1', '-k', 'python3',
                '--cwd', str(self.root.parent), *words]
        with open(self.root.parent / 'said', 'a') as said:
            self.process = subprocess.Popen(argv, env=self.env(), stdout=said, stderr=said, start_new_session=True)
        return self

    def alive(self) -> list[psutil.Process]:
        "Every process of this machine, found by its environment"
        found = []
        for p in psutil.process_iter():
            try:
                if p.environ().get('TEST_MACHINE') == self.name and p.status() != psutil.STATUS_ZOMBIE: found.append(p)
            except (psutil.Error, OSError): pass
        return found

    def end(self) -> None:
        "The machine is taken away: SIGKILL for everything in it"
        while ours := self.alive():
            for p in ours:
                try: p.kill()
                except psutil.NoSuchProcess: pass
            time.sleep(.02)
        if self.process: self.process.wait(10)           # nobody else may wait for it, or its code is lost

    def wait(self, timeout: float = 300) -> int:
        "Until the notebook is through"
        return self.process.wait(timeout)

    def said(self) -> str: return (self.root.parent / 'said').read_text(errors='replace')


def next_machine(old: Machine, n: int, kept: bool = True) -> Machine:
    "The machine of the next session. Kaggle: with the former output as input, unless that was lost; Colab: with the same Drive"
    new = Machine(old.kind, old.home, n)
    if old.kind == 'kaggle':
        shutil.copytree(old.root / 'input', new.root / 'input', dirs_exist_ok=True)
        if kept:
            shutil.copytree(old.root / 'working', new.root / 'input' / f'output-{n}')
            for p in [new.root / 'input', *(new.root / 'input').rglob('*')]: p.chmod(0o555 if p.is_dir() else 0o444)
    return new


class Clock:
    "A clock that stands in for the module `time`: it goes when it is told to"
    def __init__(self, t: float): self.t = t
    def time(self) -> float: return self.t
    def module(self) -> SimpleNamespace:
        def sleep(s): self.t += s
        return SimpleNamespace(time=self.time, monotonic=self.time, perf_counter=self.time, sleep=sleep, strftime=time.strftime, gmtime=time.gmtime)


WORDS = dict(name='tried', agent='ppo', steps=40_000, episodes=5, copy_every=.3,
             settings=dict(num_envs=8, n_steps=64, minibatch=128, presets=False, checkpoint_every=2_048))


def rows_of(folder: Path) -> int:
    "Bytes of the rows of all runs of a machine"
    return sum(f.stat().st_size for f in folder.glob('*/metrics.jsonl'))


def struck(kind: str, home: Path, rng: random.Random, kills: int, words: dict) -> tuple[Path, list[dict]]:
    "A run over sessions, killed up to so many times at any instant; its folder, and how each session went"
    n, book, m = 0, [], Machine(kind, home, 0)
    while True:
        m.papermill(ROOT / kind / '20_train.ipynb', **words)
        began, before, passed = time.monotonic(), rows_of(m.work), 0.
        early, delay = rng.random() < .25, rng.uniform(0, 2.5)
        while m.process.poll() is None and len(book) < kills:
            time.sleep(.02)
            if not passed and (early or rows_of(m.work) != before): passed = time.monotonic()      # early: while it starts, searches and copies
            if passed and time.monotonic() - passed > delay*(1.4 if early else 1): m.end()
        code = m.wait()
        said = [s for s in m.said().splitlines() if 'resumed from' in s or 'begins at step' in s or 'is finished' in s]
        book.append(dict(code=code, seconds=round(time.monotonic() - began, 1), early=early, found=said[-1][:120] if said else ''))
        if code == 0: return m.work / words['name'], book
        assert code < 0, m.said()[-3000:]
        n += 1
        whole = rng.random() < .3                        # only the notebook died, or the output was kept
        if kind == 'colab' and whole: continue           # the same machine, another kernel
        m = next_machine(m, n, kept=rng.random() < .8)
