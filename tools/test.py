"""Every test, in parts: `python tools/test.py [--list] [--strict] [--part NAME …]`. Prints each part's time and, last, how many tests ran

Where at most three pages or tests of a part fail, each is tried once more by itself; what passes then is told by name at the end, for it is a race
or a clock that somebody has to mend. `--strict` tries nothing twice."""
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pages import NBS, ROOT, pages

BIN = Path(sys.executable).parent
CI = bool(os.environ.get('CI'))
STRICT = '--strict' in sys.argv         # nothing is tried twice
LONGEST = 60                            # seconds that a single test, page or notebook should stay below
TOOK: list[tuple[float, str]] = []      # what was timed, in seconds
FEW = 3                                 # so many failures of a part are looked at again, each by itself; more are no hiccup of the machine
FAILED: list[str] = []                  # what failed
ONCE: list[str] = []                    # what failed once and passed by itself: told at the end


def sh(*argv: object, **kw) -> subprocess.CompletedProcess:
    "Run, show the output as it comes, and keep it"
    p = subprocess.Popen([str(a) for a in argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8',
                         errors='replace', **kw)
    out = []
    for line in p.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        out.append(line)
    return subprocess.CompletedProcess(argv, p.wait(), ''.join(out))


def tree() -> dict[str, str]:
    "Hash of every file that export, clean and readme may write"
    files = [*(ROOT / 'rlnb').rglob('*.py'), *NBS.rglob('*.ipynb'), ROOT / 'README.md', NBS / 'house.svg']
    files = [f for f in files if '.ipynb_checkpoints' not in f.parts and f.exists()]
    return {f.relative_to(ROOT).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# Each part returns (passed, failed)
def export() -> tuple[int, int]:
    "The package and the README are what the notebooks say, and the notebooks are clean"
    before = tree()
    for cmd in ([BIN / 'nbdev_export'], [BIN / 'nbdev_clean'], [sys.executable, 'tools/readme.py']):
        if sh(*cmd).returncode:
            return 0, 1
    after = tree()
    changed = sorted(k for k in before | after if before.get(k) != after.get(k))
    for k in changed:
        print(f'{k} was not current: run `python3 dev.py sync` and commit it')
    if CI and (ROOT / '.git').exists():
        changed += sh('git', 'status', '--porcelain', '--untracked-files=all').stdout.splitlines()
        sh('git', '--no-pager', 'diff', '--stat')
    return int(not changed), len(changed)


def judged(failed: list[str], passes: Callable[[str], bool]) -> int:
    "How many of these fail for good: a few are tried once more, each by itself"
    if STRICT or len(failed) > FEW:
        still = failed
    else:
        still = [f for f in failed if not passes(f)]
        ONCE.extend(f for f in failed if f not in still)
    FAILED.extend(still)
    return len(still)


def pytest(*argv: object) -> tuple[int, int]:
    "Run pytest and read its closing lines"
    r = sh(sys.executable, '-m', 'pytest', '-q', '--durations=5', '--durations-min=5', *argv)
    n = {k: int(v) for v, k in re.findall(r'(\d+) (passed|failed|error)', r.stdout)}
    TOOK.extend((float(t), what) for t, what in re.findall(r'^([\d.]+)s (?:call|setup|teardown) +(\S+)', r.stdout, re.M))
    said = [f[:-3] if f.endswith(' - ') else f for f in re.findall(r'^(?:FAILED|ERROR) (tests/\S+?\.py::.+?(?: - |$))', r.stdout, re.M)]
    ran = n.get('passed', 0) + n.get('failed', 0) + n.get('error', 0)
    if r.returncode != 1 or len(said) != n.get('failed', 0) + n.get('error', 0):      # it did not come to its end
        bad = max(1, len(said)) if r.returncode not in (0, 5) else 0
        FAILED.extend(said or ['pytest itself'] * bad)
    else:
        bad = judged(said, lambda f: not sh(sys.executable, '-m', 'pytest', '-q', f).returncode)
    return ran - bad, bad


def house() -> tuple[int, int]:
    "The walls: structure, lint, types"
    good, bad = pytest('tests/test_house.py')
    for cmd in (['ruff', 'check', '.'], ['mypy'], [sys.executable, 'tools/size.py']):
        r = sh(*(cmd if cmd[0] == sys.executable else [BIN / cmd[0], *cmd[1:]]))
        good, bad = good + (r.returncode == 0), bad + (r.returncode != 0)
    return good, bad


def nbdev() -> tuple[int, int]:
    "Every page's lessons, against the exported package"
    r = sh(BIN / 'nbdev_test', '--n_workers', '2', '--do_print', '--timing', '--skip_folder_re', '^([_.]|90_learn)')
    TOOK.extend((float(t), page) for page, t in re.findall(r'^(\S+\.ipynb): (\d+) secs', r.stdout, re.M))
    n = sum(p.folder != '90_learn' for p in pages())
    said = [Path(f).relative_to(ROOT).as_posix() for f in re.findall(r'^\w+ in (\S+\.ipynb):$', r.stdout, re.M)]
    if r.returncode and not said:
        said = ['nbdev_test itself'] * (FEW + 1)
    bad = judged(said, lambda f: not sh(BIN / 'nbdev_test', '--path', f, '--n_workers', '0').returncode)
    return n - bad, bad


def tests() -> tuple[int, int]:
    "What does not teach"
    return pytest('tests', '--ignore=tests/test_house.py', '-m', 'not browser and not slow')


def papermilled(path: Path) -> bool:
    "Does it run as a user would run it, in a place of its own?"
    with tempfile.TemporaryDirectory() as d:
        then = time.perf_counter()
        env = os.environ | dict(RLNB_SOURCE=str(ROOT), RLNB_HOME=d, PYDEVD_DISABLE_FILE_VALIDATION='1')
        r = sh(sys.executable, '-m', 'papermill', path, Path(d) / f'{path.parent.name}-{path.name}', '--no-progress-bar', '--cwd', path.parent,
               '-k', 'python3', '-p', 'root', d, env=env)
        TOOK.append((time.perf_counter() - then, path.name))
        print(f'{path.relative_to(ROOT)}  {"FAILED" if r.returncode else "passed"}  {TOOK[-1][0]:.0f} s', flush=True)
        return not r.returncode


def notebooks() -> tuple[int, int]:
    "90_learn, colab and kaggle through papermill, as a user would run them"
    paths = [f for folder in (NBS / '90_learn', ROOT / 'colab', ROOT / 'kaggle') for f in sorted(folder.glob('*.ipynb'))]
    bad = judged([f.relative_to(ROOT).as_posix() for f in paths if not papermilled(f)], lambda f: papermilled(ROOT / f))
    return len(paths) - bad, bad


def chromium() -> bool:
    "A Chromium to test with; on Debian as root it is installed"
    if shutil.which('chromium'):
        return True
    if shutil.which('apt-get') and hasattr(os, 'geteuid') and os.geteuid() == 0:
        env = os.environ | dict(DEBIAN_FRONTEND='noninteractive')
        subprocess.run(['apt-get', 'update', '-qq'], env=env, stdout=subprocess.DEVNULL)
        install = ['apt-get', 'install', '-y', '-qq', '--no-install-recommends', 'chromium', 'fonts-dejavu-core']
        subprocess.run(install, env=env, stdout=subprocess.DEVNULL)
    return bool(shutil.which('chromium'))


def browser() -> tuple[int, int]:
    "The lab and the site in a real browser"
    if not chromium():
        print('NOT RUN: the browser tests need Chromium (Debian: apt install chromium)')
        return 0, int(CI)
    return pytest('tests', '-m', 'browser and not slow')


PARTS = dict(export=export, house=house, nbdev=nbdev, tests=tests, notebooks=notebooks, browser=browser)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--list', action='store_true')
    p.add_argument('--strict', action='store_true', help='a failure is a failure: nothing is tried once more')
    p.add_argument('--part', action='append', choices=list(PARTS), default=[])
    a = p.parse_args()
    if a.list:
        print('\n'.join(f'{k:<10} {f.__doc__}' for k, f in PARTS.items()))
        return 0
    os.environ |= dict(MPLBACKEND='agg', PYTHONHASHSEED='0', OMP_NUM_THREADS='1', JUPYTER_PLATFORM_DIRS='1')
    rows, start = [], time.monotonic()
    for name in a.part or PARTS:
        print(f'\n── {name}: {PARTS[name].__doc__}', flush=True)
        then = time.monotonic()
        rows.append((name, *PARTS[name](), time.monotonic() - then))
        print(f'── {name}: {rows[-1][1]} passed, {rows[-1][2]} failed, {rows[-1][3]:.0f} s', flush=True)
    print(f'\n{"part":<12}{"passed":>8}{"failed":>8}{"seconds":>9}')
    for name, good, bad, s in rows:
        print(f'{name:<12}{good:>8}{bad:>8}{s:>9.0f}')
    good, bad = sum(r[1] for r in rows), sum(r[2] for r in rows)
    if TOOK:
        over = [f'{what} ({t:.0f} s)' for t, what in sorted(TOOK, reverse=True) if t > LONGEST]
        print(f'longer than {LONGEST} s: {", ".join(over)}' if over else f'the slowest: {max(TOOK)[1]}, {max(TOOK)[0]:.0f} s')
    for what, names in (('passed only when tried again, by itself', ONCE), ('failed', FAILED)):
        if names:
            print(f'{what}: {", ".join(names)}')
    print(f'in all {time.monotonic() - start:.0f} s\n{good} passed, {bad} failed')
    return int(bad > 0)


if __name__ == '__main__':
    sys.exit(main())
