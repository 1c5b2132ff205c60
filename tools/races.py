"""A thousand double starts: `python tools/races.py [--races 1000] [--minutes 7]` writes results/races.json, and begins where it was left.

Three kinds. `lives`: two forked processes begin one run through the worker's `main` in the same instant; one must train to the end (0), the
other be sent away with 73 and one line, and the run's own record hold one start. `locks`: four processes reach for a bare lock. `workers`: two
fresh interpreters."""
import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1')
ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT/'results'/'races.json'
for d in (ROOT/'tests', ROOT): sys.path.insert(0, str(d))
os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT/'tests'), *filter(None, [os.environ.get('PYTHONPATH')])])


def main() -> int:
    from test_run_faults import lock_races, races, worker_races
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--races', type=int, default=1000)
    p.add_argument('--minutes', type=float, default=7)
    p.add_argument('--again', action='store_true', help='forget what is there')
    a = p.parse_args()
    kinds: dict[str, tuple[Callable[..., int], int, int]] = {}
    kinds |= dict(lives=(races, 25, a.races), locks=(lock_races, 100, a.races), workers=(worker_races, 2, a.races//100))
    have = {} if a.again or not RESULT.exists() else json.loads(RESULT.read_text(encoding='utf-8'))['races']
    end, memory = time.monotonic() + 60*a.minutes, '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    for kind, (run, n, enough) in kinds.items():
        row = have.setdefault(kind, dict(races=0, one_winner=0, seconds=0.))
        while row['races'] < enough and time.monotonic() < end:
            then = time.monotonic()
            with tempfile.TemporaryDirectory(dir=memory) as d: won = run(Path(d), n)
            row |= dict(races=row['races'] + n, one_winner=row['one_winner'] + won, seconds=round(row['seconds'] + time.monotonic() - then, 1))
            out = dict(command='python tools/races.py', python=platform.python_version(), system=platform.system(), races=have)
            RESULT.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
            print(f'{kind}: {row["one_winner"]} of {row["races"]} had one winner', flush=True)
    return int(any(r['one_winner'] != r['races'] for r in have.values()))


if __name__ == '__main__':
    sys.exit(main())
