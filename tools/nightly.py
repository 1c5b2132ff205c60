"""A slice of the slow measurements, to be run again until nothing is missing: `python tools/nightly.py --minutes 40`

What is slow: cells flagged `#| slow` in the notebooks, and tests marked `slow`. Each is a line of results/nightly.jsonl with the version of
its page (a hash of its code cells), so a slice does only what is not there yet for the present version; the table at the end prints what is
there and names what is missing. What is left of the slice goes to the learning grid, tools/learn.py."""
import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

from pages import ROOT, directives, pages

RESULTS = ROOT / 'results' / 'nightly.jsonl'


def version(*sources: str) -> str:
    return hashlib.sha256('\n'.join(sources).encode()).hexdigest()[:12]


def cells() -> dict[tuple[str, str], list[str]]:
    "(what, version of its source) → the command that measures it"
    found = {}
    for p in pages():
        if any('slow' in directives(c['source']) for c in p.code):
            key = p.name, version(*(c['source'] for c in p.code))
            found[key] = [Path(sys.executable).parent / 'nbdev_test', '--path', p.name, '--flags', 'slow']
    for f in sorted((ROOT / 'tests').glob('test_*.py')):
        src = f.read_text(encoding='utf-8')
        if 'mark.slow' in src:
            found[f'tests/{f.name}', version(src)] = [sys.executable, '-m', 'pytest', '-q', '-m', 'slow', f'tests/{f.name}']
    return found


def done() -> dict[tuple[str, str], dict]:
    if not RESULTS.exists():
        return {}
    rows = [json.loads(s) for s in RESULTS.read_text(encoding='utf-8').splitlines() if s.strip()]
    return {(r['what'], r['version']): r for r in rows}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=40)
    end = time.monotonic() + 60 * p.parse_args().minutes
    todo, have = cells(), done()
    RESULTS.parent.mkdir(exist_ok=True)
    for key, cmd in todo.items():
        if key in have:
            continue
        left = end - time.monotonic()
        if left < 30:
            break
        print(f'── {key[0]}', flush=True)
        then = time.monotonic()
        try:
            rc = subprocess.run(cmd, cwd=ROOT, timeout=left).returncode
        except subprocess.TimeoutExpired:
            print(f'{key[0]}: cut off at the end of the slice; it begins again in the next one')
            break
        have[key] = dict(what=key[0], version=key[1], passed=rc == 0, seconds=round(time.monotonic() - then))
        with open(RESULTS, 'a', encoding='utf-8') as f:
            f.write(json.dumps(have[key]) + '\n')
    print(f'\n{"what":<48}{"version":<14}{"result":<9}{"seconds":>8}')
    for key in todo:
        r = have.get(key)
        print(f'{key[0]:<48}{key[1]:<14}{("passed" if r["passed"] else "FAILED") if r else "missing":<9}{r["seconds"] if r else "":>8}')
    print(f'{sum(k in have for k in todo)} of {len(todo)} are there\n\n── tools/learn.py', flush=True)
    left = max(0., end - time.monotonic())/60
    missed = subprocess.run([sys.executable, 'tools/learn.py', '--minutes', f'{left:.1f}'], cwd=ROOT).returncode
    return int(missed or any(not have[k]['passed'] for k in todo if k in have))


if __name__ == '__main__':
    sys.exit(main())
