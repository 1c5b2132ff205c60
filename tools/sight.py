"""How long a panel waits for its first picture of a long run: `python tools/sight.py [--rows 1000000]` writes results/sight.json.

A row for each look, in a process of its own, imports left out: a glance at a file that nobody has read before (in the system's memory, then
driven out of it where the system allows that), reading all of it once, and reading it again from the columns that were kept. Seconds of the
processor, and of the wall."""
import argparse
import json
import multiprocessing as mp
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for d in (ROOT/'tests', ROOT): sys.path.insert(0, str(d))
KEYS = ['episode/return', 'episode/return/n', 'episode/return/min', 'episode/return/max', 'episode/success', 'eval/return', 'learn/pg_loss',
        'learn/vf_loss', 'learn/entropy', 'learn/explained_variance']


def make(path: Path, n: int) -> None:
    "Rows as a run with an iteration a step writes them, an evaluation every thousandth"
    from test_curves import rows
    with open(path, 'w') as f:
        for i, r in enumerate(rows(n), 1):
            if i % 1000 == 0: r['eval/return'] = dict(mean=float(i), min=0., max=500., n=20)
            f.write(json.dumps(r, separators=(',', ':')) + '\n')


def look(how: str, path: Path, answer) -> None:
    "One look, in a process of its own"
    from rlnb.runs.curves import columns, index
    from rlnb.runs.glance import glance
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    got = dict(glance=lambda: glance(path, KEYS), index=lambda: index(path), columns=lambda: columns(path, KEYS)[0])[how]()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024
    cols = getattr(got, 'cols', got)
    answer.put(dict(cpu_seconds=round(cpu, 3), wall_seconds=round(wall, 3), rows=len(cols['step']), whole=getattr(got, 'whole', True),
                    more_memory_mb=round(mb)))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', type=int, default=1_000_000)
    p.add_argument('--root', default=tempfile.gettempdir())
    a = p.parse_args()
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(dir=a.root) as d:
        path = Path(d)/'metrics.jsonl'
        make(path, a.rows)
        def timed(name: str, how: str, cold: bool = False) -> None:
            if cold:
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            answer = mp.get_context('spawn').Queue()
            child = mp.get_context('spawn').Process(target=look, args=(how, path, answer))
            child.start()
            found[name] = answer.get()
            child.join()
        timed('first glance', 'glance')
        if hasattr(os, 'posix_fadvise'): timed('first glance, file not in memory', 'glance', cold=True)
        timed('all rows, read once and kept', 'index')
        timed('all rows again', 'columns')
        timed('glance, columns kept', 'glance')
        size = path.stat().st_size
    ok = found['first glance']['cpu_seconds'] < 1
    out = dict(command='python tools/sight.py', python=platform.python_version(), system=platform.system(), rows=a.rows, mb=round(size/1e6),
               keys=len(KEYS), bar='a first glance in less than 1 s of the processor', held=ok, looks=found)
    (ROOT/'results'/'sight.json').write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
    for name, x in found.items(): print(f'{x["cpu_seconds"]:>7.3f} s processor {x["wall_seconds"]:>7.3f} s wall  {x["rows"]:>9,} rows  {name}')
    return int(not ok)


if __name__ == '__main__':
    sys.exit(main())
