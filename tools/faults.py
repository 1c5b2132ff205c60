"""The tables of faults and attacks, made from the names of the tests: `python tools/faults.py` runs every test called `test_fault_NN_…` or
`test_attack_NN_…`, writes results/faults.json and prints a line a row. --no-run prints what is there by name only; --only runs some rows."""
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
    ('fault', 38): 'tests/test_team.py::test_killed_under_torchrun', ('fault', 43): 'tests/test_team.py::test_what_can_not_be_is_said: refused',
    ('fault', 57): 'tests/test_panels.py, tests/test_lab_grid.py', ('fault', 58): 'tests/test_lab.py, tests/test_lab_grid.py',
    ('fault', 59): 'tests/test_lab_grid.py::test_two_panels_on_one_run', ('fault', 61): 'tests/test_panels.py, tests/test_lab_grid.py',
    ('attack', 2): 'test_attack_01: there is no other way to read a file', **{('attack', n): 'tests/test_batch.py' for n in (15, 16, 17)},
    ('attack', 10): 'tests/test_kaggle.py::test_an_archive_that_climbs_is_refused', ('attack', 19): 'tests/test_panels.py: a click and a kernel'}
GROUPS = {        # rows of what the house does not have yet, or tests under other names
    ('fault', 'several processes of one run'): range(39, 43), ('fault', 'copies elsewhere and other trackers'): range(47, 53),
    ('fault', 'search'): range(53, 57), ('fault', 'a model that is served'): (70, 71),
    ('attack', 'archives and the files of other libraries are not read'): (3, 4, 6, 7), ('attack', 'copies elsewhere'): (41,),
    ('attack', 'cells of a CSV file that a spreadsheet would compute'): (39,), ('attack', 'panels of others'): (22,),
    ('attack', 'servers and several machines'): range(24, 30), ('attack', 'search'): (37,)}
LATER = {('fault', 72): 'tools/soak.py, not a test'} | {(kind, n): why for (kind, why), ns in GROUPS.items() for n in ns}
ROWS = dict(fault=72, attack=42)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--no-run', action='store_true')
    p.add_argument('--only', nargs='+', metavar='ROW', help='like fault_10 attack_33: run these, keep what is known of the others')
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
            words = ['-q', '-m', 'not slow', '-k', ' or '.join(f'{x}_' for x in a.only or ('fault', 'attack')), f'--junitxml={d}/out.xml', *mine]
            subprocess.run([sys.executable, '-m', 'pytest', *words], cwd=ROOT)
            for case in ET.parse(f'{d}/out.xml').iter('testcase'):
                if m := re.match(r'test_(fault|attack)_(\d+)_', case.get('name', '')):
                    bad = any(c.tag in ('failure', 'error') for c in case)
                    if not any(c.tag == 'skipped' for c in case): rows[m[1], int(m[2])]['failed' if bad else 'passed'] += 1
    if a.only:
        known = json.loads((ROOT/'results'/'faults.json').read_text(encoding='utf-8'))
        for (kind, n), r in rows.items():
            was = known[kind + 's']['table'].get(str(n), {})
            if f'{kind}_{n:02}' not in a.only and was.get('tests') == r['tests']: r |= {k: was[k] for k in ('passed', 'failed')}
    out: dict = {}
    for kind in ('fault', 'attack'):
        mine = {n: r for (k, n), r in sorted(rows.items()) if k == kind}
        green = [n for n, r in mine.items() if r['passed'] and not r['failed']]
        other = {name: {n: w for (k, n), w in table.items() if k == kind} for name, table in (('elsewhere', ELSEWHERE), ('later', LATER))}
        other = {k: {n: w for n, w in d.items() if n not in mine} for k, d in other.items()}
        missing = sorted(set(range(1, ROWS[kind] + 1)) - mine.keys() - {n for d in other.values() for n in d})
        tests = sum(r['passed'] + r['failed'] for r in mine.values())
        out[kind + 's'] = dict(rows=len(mine), green=len(green), tests=tests, table=mine, **other, missing=missing)
        for n, r in mine.items():
            state = 'RED' if r['failed'] else 'green' if r['passed'] else 'not run'
            print(f'{kind} {n:>2}  {state:<8}{r["passed"]:>4}  {r["what"]}')
        here, later = len(other['elsewhere']), len(other['later'])
        print(f'{kind}s {len(green)}/{len(mine)} of {ROWS[kind]} rows; elsewhere {here}, later {later}, missing {missing}')
    text = json.dumps(dict(command='python tools/faults.py', **out), indent=1)
    if not a.no_run: (ROOT/'results'/'faults.json').write_text(text + '\n', encoding='utf-8')
    return int(any(r['failed'] for r in rows.values()))


if __name__ == '__main__':
    sys.exit(main())
