"""A thousand kills: `python tools/kills.py [--kills 1000] [--minutes 40]` writes results/kills.json, a row a case, and begins where it was left.

A kill counts past the first new step of the life that it ends. What must be equal: the rows, the two files of the last checkpoint, which
one is called the best, and every number that can be reached from the trainer (`rlnb.train.certify`). The cases are those of CI
(tests/test_kills.py, tests/test_kills_replay.py) and some of the agents on more worlds."""
import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1')
ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT/'results'/'kills.json'
for d in (ROOT/'tests', ROOT): sys.path.insert(0, str(d))
os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT/'tests'), *filter(None, [os.environ.get('PYTHONPATH')])])


def cases() -> dict[str, dict]:
    from test_kills import A2C, ALL, CASES, SMALL
    from test_kills_replay import CASES as REPLAY
    rough = dict(agent='ppo', env='rough:Impolite', allow=['rough'], steps=2_600, eval_every=0, adapt='')
    more = {'ppo, pendulum': SMALL | dict(agent='ppo', env='rlnb/Pendulum-v1', steps=2_600, norm_obs=True, norm_reward=True),
            'a2c, gymnasium pendulum': A2C | dict(env='Pendulum-v1', steps=1_600),
            'ppo, generators of everybody': SMALL | ALL | rough}
    return {k: words for k, (_, words) in CASES.items()} | more | REPLAY


def main() -> int:
    from rlnb.train.certify import certify
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kills', type=int, default=1000)
    p.add_argument('--minutes', type=float, default=40)
    p.add_argument('--again', action='store_true', help='forget what is there')
    a = p.parse_args()
    end, mine = time.monotonic() + 60*a.minutes, cases()
    have = {} if a.again or not RESULT.exists() else json.loads(RESULT.read_text(encoding='utf-8'))['cases']
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    seed = sum(r['runs'] for r in have.values()) + 1
    while time.monotonic() < end and sum(r['kills'] for r in have.values()) < a.kills:
        name = min(mine, key=lambda k: have.get(k, {}).get('kills', 0))
        with tempfile.TemporaryDirectory(dir=memory) as d: found = certify(kills=24, seed=seed, root=d, **mine[name])
        seed += found['runs']
        fresh = dict(kills=0, survived=0, runs=0, lost_steps=0, lost_most=0, seconds=0., how={}, differences=[])
        was = have.setdefault(name, fresh | {k: found[k] for k in ('tier', 'steps', 'compared')})
        for k in ('kills', 'survived', 'runs', 'lost_steps', 'seconds'): was[k] = round(was[k] + found[k], 1)
        was['lost_most'] = max(was['lost_most'], found['lost_most'])
        was['how'] = {k: was['how'].get(k, 0) + n for k, n in found['how'].items()}
        was['differences'] += [f'seed {seed}: {x}' for x in found['differences'][:9]]
        total = {k: sum(r[k] for r in have.values()) for k in ('kills', 'survived', 'runs', 'seconds')}
        out = dict(command='python tools/kills.py', python=platform.python_version(), system=platform.system(), total=total, cases=have)
        RESULT.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
        print(f'{total["survived"]} of {total["kills"]} kills survived to the last byte  ({name})', flush=True)
    return int(any(r['differences'] for r in have.values()))


if __name__ == '__main__':
    sys.exit(main())
