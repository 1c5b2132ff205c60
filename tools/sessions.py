"""Twenty sessions killed: `python tools/sessions.py [--kills 20] [--minutes 8]` writes results/sessions.json, and begins where it was left.

The training notebooks of Colab and Kaggle run through papermill on simulated machines (tests/clouds.py), each of which is taken away at a random
instant: SIGKILL for papermill, kernel and worker at once, while they start, search, copy or train. The next session, on an empty machine, gets what
the platform would have kept. What must be equal to a session that nobody killed: the rows, both files of the last checkpoint, and the score."""
import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT/'results'/'sessions.json'
for d in (ROOT/'tests', ROOT): sys.path.insert(0, str(d))


def compare(whole: Path, run: Path) -> list[str]:
    "What two runs do not have in common, and steps that stand twice"
    import rlnb.train.record  # noqa: F401  teaches `verify`
    from rlnb.runs.run import Run
    from rlnb.train.certify import differences
    a, b = Run(whole), Run(run)
    steps, bad = [r['step'] for r in b.metrics()], [f'{k}: {why}' for k, why in b.verify().items() if why]
    return differences(a, b) + bad + ['a step stands twice']*(steps != sorted(set(steps))) + ['return']*(a.result['return'] != b.result['return'])


def main() -> int:
    from clouds import WORDS, Machine, struck

    from rlnb.runs.run import Run
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kills', type=int, default=20)
    p.add_argument('--minutes', type=float, default=8)
    p.add_argument('--again', action='store_true', help='forget what is there')
    a = p.parse_args()
    end, rows = time.monotonic() + 60*a.minutes, [] if a.again or not RESULT.exists() else json.loads(RESULT.read_text(encoding='utf-8'))['runs']
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as d:
        calm = Machine('colab', Path(d)/'calm', 0).papermill(ROOT/'colab'/'20_train.ipynb', **WORDS)
        assert calm.wait() == 0, calm.said()[-3000:]
        while time.monotonic() < end and (done := sum(r['kills'] for r in rows)) < a.kills:
            kind, seed = ('colab', 'kaggle')[len(rows) % 2], len(rows) + 1
            run, book = struck(kind, Path(d)/f'{kind}-{seed}', random.Random(seed), min(4, a.kills - done), WORDS)
            odd = compare(calm.work/WORDS['name'], run)
            lives = [[e['kind'], e['step']] for e in Run(run).events if e['kind'] in ('start', 'resume', 'finish')]
            rows.append(dict(platform=kind, seed=seed, kills=len(book) - 1, differences=odd[:9], lives=lives, sessions=book))
            total = dict(kills=sum(r['kills'] for r in rows), resumed=sum(r['kills'] for r in rows if not r['differences']))
            where = dict(python=platform.python_version(), system=platform.system())
            out = dict(command='python tools/sessions.py', **where, steps=WORDS['steps'], total=total, runs=rows)
            RESULT.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
            print(f'{kind}: {len(book) - 1} kills, ' + (f'{len(odd)} differences' if odd else 'the same to the last byte'), total, flush=True)
    return int(any(r['differences'] for r in rows))


if __name__ == '__main__':
    sys.exit(main())
