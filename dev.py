#!/usr/bin/env python3
"""rlnb's commands for a fresh machine: Python 3.11 or newer and nothing else.

  python3 dev.py run       train the quick start in a notebook and show where everything is
  python3 dev.py test      pass every test                      (--part NAME for one part, --list to see them)
  python3 dev.py lab       open JupyterLab on 127.0.0.1 with the first tutorial
  python3 dev.py docs      build the documentation site         (--open to look at it)
  python3 dev.py size      print the exported lines of each room against its budget
  python3 dev.py nightly   run a slice of the slow measurements (--minutes 40)
  python3 dev.py sync      notebooks → package, cleaned, README written again: before each commit

Each makes .venv if it is missing or out of date, prints what it does, asks nothing, and may be run again at any time.
"""
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / '.venv'
WINDOWS = os.name == 'nt'
BIN = VENV / ('Scripts' if WINDOWS else 'bin')
PYTHON = BIN / ('python.exe' if WINDOWS else 'python')
GROUPS = 'lab,dev,docs,mujoco,box2d'
# what pip writes → what a person can do about it
TROUBLE = [
    (r'No space left|ENOSPC', 'the disk is full: the environment needs about 3 GB'),
    (r'Temporary failure in name resolution|Failed to establish a new connection|NewConnectionError|Network is unreachable|'
     r'Connection refused|getaddrinfo failed|ConnectTimeout|Could not find a version that satisfies|No matching distribution|'
     r'The user requested (\S+)\s+The user requested \(constraint\) \1==',       # an older pip's way to say that it found none at all
     'no network: pip could not reach its package index (needed once). Connect, or point PIP_FIND_LINKS at a folder of wheels'),
    (r"command '[^']*(gcc|cc|clang|cl\.exe)[^']*' failed|Microsoft Visual C\+\+|unable to execute",
     'no C compiler: a package has no ready wheel for this Python. Use Python 3.11 to 3.13, or install a compiler'),
    (r'conflicting dependencies|ResolutionImpossible', 'constraints.txt does not fit this Python: use 3.11 to 3.13'),
]


class Failed(SystemExit):
    "Ends the command with one line"
    def __init__(self, line: str, code: int = 1):
        print(f'dev.py: {line}', file=sys.stderr)
        super().__init__(code)


def say(text: str) -> None:
    print(f'── {text}', flush=True)


def environ() -> dict:
    "This process's environment with the project's Python first; nothing of a surrounding virtual environment"
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONHOME', 'PYTHONPATH', 'VIRTUAL_ENV')}
    return env | dict(PATH=f'{BIN}{os.pathsep}{os.environ.get("PATH", "")}', VIRTUAL_ENV=str(VENV), PYTHONUTF8='1', PIP_DISABLE_PIP_VERSION_CHECK='1',
                      JUPYTER_PLATFORM_DIRS='1')


def sh(*argv: object, check: bool = True, **kw) -> int:
    "Run a command with the project's environment, its output as it comes"
    rc = subprocess.run([str(a) for a in argv], env=kw.pop('env', environ()), cwd=kw.pop('cwd', ROOT), **kw).returncode
    if check and rc:
        raise Failed(f'{Path(str(argv[0])).name} {" ".join(map(str, argv[1:4]))} … ended with {rc}', rc)
    return rc


def py(*argv: object, **kw) -> int:
    return sh(PYTHON, *argv, **kw)


# ---- the environment
def stamp() -> str:
    "What the environment was made from: it is made again when one of these changes"
    h = hashlib.sha256(f'{sys.version_info[:2]} {ROOT} {GROUPS}'.encode())
    for f in ('constraints.txt', 'setup.py', 'settings.ini'):
        h.update((ROOT / f).read_bytes())
    return h.hexdigest()


def reason(log: str) -> str:
    "The one line that a failed installation comes down to"
    for pattern, line in TROUBLE:
        if re.search(pattern, log):
            return line
    errors = [s.strip() for s in log.splitlines() if s.startswith('ERROR')]
    return errors[-1] if errors else 'the installation failed'


def pip_install(*argv: str) -> None:
    "pip, its output in a file, with a sign of life every few seconds"
    log, then = VENV / 'install.log', time.monotonic()
    with open(log, 'w', encoding='utf-8') as f:
        p = subprocess.Popen([PYTHON, '-m', 'pip', 'install', '--progress-bar', 'off', *argv], cwd=ROOT, env=environ(), stdin=subprocess.DEVNULL,
                             stdout=f, stderr=subprocess.STDOUT)
        beat = 10.
        while p.poll() is None:
            time.sleep(.2)
            if time.monotonic() - then > beat:
                beat += 20
                text = log.read_text(encoding='utf-8', errors='replace')
                what = re.findall(r'^Collecting ([\w.-]+)', text, re.M)
                now = 'unpacking' if 'Installing collected packages' in text else f'{len(what)} packages, now {what[-1]}' if what else 'starting'
                print(f'   {time.monotonic() - then:4.0f} s  {now}', flush=True)
    if p.returncode:
        raise Failed(f'{reason(log.read_text(encoding="utf-8", errors="replace"))} (all of it: {log.relative_to(ROOT)})')


TRUST = """#!/bin/sh
# after a merge Jupyter trusts this checkout's notebooks again
PATH=".venv/bin:.venv/Scripts:$PATH"
if command -v nbdev_trust >/dev/null; then nbdev_trust; fi
"""


def hooks() -> None:
    "What nbdev_install_hooks does for git, with the environment's nbdev; it would also write into ~/.jupyter, which is not ours"
    if not ((ROOT / '.git').exists() and shutil.which('git')):
        return
    sh('git', 'config', '--local', 'include.path', '../.gitconfig', check=False)
    where = subprocess.run(['git', 'rev-parse', '--git-path', 'hooks'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    hook = ROOT / where / 'post-merge'
    if where and (not hook.exists() or 'nbdev_trust' in hook.read_text(encoding='utf-8')):
        hook.parent.mkdir(parents=True, exist_ok=True)
        hook.write_text(TRUST, encoding='utf-8', newline='\n')
        hook.chmod(0o755)


def setup() -> None:
    "Make .venv if it is missing or was made from other files"
    mark, want = VENV / 'rlnb-stamp', stamp()
    if PYTHON.exists() and mark.exists() and mark.read_text() == want:
        return
    then = time.monotonic()
    if not PYTHON.exists() or subprocess.run([PYTHON, '-m', 'pip', '--version'], capture_output=True).returncode:
        say('making .venv')
        shutil.rmtree(VENV, ignore_errors=True)
        r = subprocess.run([sys.executable, '-m', 'venv', VENV], capture_output=True, text=True)
        if r.returncode:
            raise Failed("this Python cannot make virtual environments: install its venv package (Debian: apt install python3-venv)")
    mark.unlink(missing_ok=True)
    say('installing what rlnb needs (once; some minutes, about 3 GB)')
    pip_install('-c', 'constraints.txt', 'torch', '-e', f'.[{GROUPS}]')
    mark.write_text(want)
    hooks()
    say(f'environment ready in {time.monotonic() - then:.0f} s')


# ---- the commands
def run(args: argparse.Namespace) -> None:
    setup()
    say('training the quick start: nbs/90_learn/10_quickstart.ipynb')
    py('tools/run_notebook.py', 'nbs/90_learn/10_quickstart.ipynb', '--root', 'runs')
    print('\nTo open the lab:  python3 dev.py lab')


def lab(args: argparse.Namespace) -> None:
    setup()
    say('opening JupyterLab on 127.0.0.1 (Ctrl-C ends it)')
    flags = ['--ip=127.0.0.1', f'--ServerApp.root_dir={ROOT}', '--LabApp.news_url=',
             '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    if hasattr(os, 'geteuid') and os.geteuid() == 0:
        flags.append('--allow-root')
    if args.no_browser:
        flags.append('--no-browser')
    if args.port:
        flags.append(f'--port={args.port}')
    try:
        sh(PYTHON, '-m', 'jupyterlab', *flags, 'nbs/90_learn/10_quickstart.ipynb', check=False)
    except KeyboardInterrupt:
        say('JupyterLab is closed')


def docs(args: argparse.Namespace) -> None:
    setup()
    say('building the site')
    py('tools/docs.py')
    index = ROOT / '_site' / 'index.html'
    print(f'   open {index}')
    if args.open:
        import webbrowser
        webbrowser.open(index.as_uri())


def size(args: argparse.Namespace) -> None:
    setup()
    py('tools/size.py')


def sync(args: argparse.Namespace) -> None:
    setup()
    say('notebooks → package')
    sh(BIN / 'nbdev_export')
    sh(BIN / 'nbdev_clean')
    py('tools/readme.py')


def nightly(args: argparse.Namespace) -> None:
    setup()
    py('tools/nightly.py', '--minutes', args.minutes)


def test(args: argparse.Namespace) -> None:
    setup()
    py('tools/test.py', *(['--list'] if args.list else []), *(f'--part={p}' for p in args.part))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    sub = p.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for f in (run, test, lab, docs, size, nightly, sync):
        c = sub.add_parser(f.__name__)
        c.set_defaults(f=f)
        if f is test:
            c.add_argument('--part', action='append', default=[])
            c.add_argument('--list', action='store_true')
        if f is lab:
            c.add_argument('--no-browser', action='store_true')
            c.add_argument('--port', type=int, default=0)
        if f is docs:
            c.add_argument('--open', action='store_true')
        if f is nightly:
            c.add_argument('--minutes', type=float, default=40)
    return p


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='replace')     # a console that cannot show a sign shows ? and goes on
    if sys.version_info < (3, 11):
        raise Failed(f'Python 3.11 or newer is needed to develop rlnb; this is {sys.version.split()[0]}')
    args = parser().parse_args()
    try:
        args.f(args)
    except KeyboardInterrupt:
        raise Failed('interrupted', 130) from None


if __name__ == '__main__':
    main()
