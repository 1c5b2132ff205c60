"""The tables of faults and attacks, made from the names of the tests: `python tools/faults.py` runs every test called `test_fault_NN_…` or
`test_attack_NN_…`, writes results/faults.json and prints a line a row. --no-run prints what is there by name only."""
import argparse
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {     # rows that pages and other tests hold
    ('fault', 27): 'nbs/40_runs/25_segments.ipynb, nbs/40_runs/33_tape.ipynb',
    ('fault', 31): 'nbs/50_train/24_guard.ipynb',
    **{('fault', n): 'tests/test_pool.py' for n in (34, 35, 36, 37)},
    ('attack', 39): 'no CSV is written'}
LATER = {         # rows that this machine or this state of the house has nothing for
    ('fault', 10): 'needs a memory cgroup; a reader shows a process that was killed as lost',
    ('fault', 11): 'RLIMIT_AS and torch do not go together',
    ('fault', 15): 'needs a file system of few inodes (root)', ('fault', 72): 'tools/soak.py, not a test'}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--no-run', action='store_true')
    a = p.parse_args()
    rows: dict[tuple[str, int], dict] = {}
    files = sorted((ROOT/'tests').glob('test_*.py'))
    for f in files:
        for kind, n, what in re.findall(r'^def test_(fault|attack)_(\d+)_(\w+)', f.read_text(encoding='utf-8'), re.M):
            r = rows.setdefault((kind, int(n)), dict(what=what.replace('_', ' '), tests=[], passed=0, failed=0))
            r['tests'].append(f'tests/{f.name}::test_{kind}_{n}_{what}')
    if not a.no_run:
        with tempfile.TemporaryDirectory() as d:
            mine = sorted({t.split('::')[0] for r in rows.values() for t in r['tests']})
            words = ['-q', '-m', 'not slow', '-k', 'fault_ or attack_', f'--junitxml={d}/out.xml', *mine]
            subprocess.run([sys.executable, '-m', 'pytest', *words], cwd=ROOT)
            for case in ET.parse(f'{d}/out.xml').iter('testcase'):
                if m := re.match(r'test_(fault|attack)_(\d+)_', case.get('name', '')):
                    bad = any(c.tag in ('failure', 'error') for c in case)
                    if not any(c.tag == 'skipped' for c in case): rows[m[1], int(m[2])]['failed' if bad else 'passed'] += 1
    out: dict = {}
    for kind in ('fault', 'attack'):
        mine = {n: r for (k, n), r in sorted(rows.items()) if k == kind}
        green = [n for n, r in mine.items() if r['passed'] and not r['failed']]
        other = {name: {n: w for (k, n), w in table.items() if k == kind} for name, table in (('elsewhere', ELSEWHERE), ('later', LATER))}
        out[kind + 's'] = dict(rows=len(mine), green=len(green), tests=sum(r['passed'] + r['failed'] for r in mine.values()), table=mine, **other)
        for n, r in mine.items():
            state = 'RED' if r['failed'] else 'green' if r['passed'] else 'not run'
            print(f'{kind} {n:>2}  {state:<8}{r["passed"]:>4}  {r["what"]}')
        print(f'{kind}s {len(green)}/{len(mine)}')
    text = json.dumps(dict(command='python tools/faults.py', **out), indent=1)
    if not a.no_run: (ROOT/'results'/'faults.json').write_text(text + '\n', encoding='utf-8')
    return int(any(r['failed'] for r in rows.values()))


if __name__ == '__main__':
    sys.exit(main())
