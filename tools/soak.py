"""A run that is killed and started again for a while: `python tools/soak.py --minutes 60` writes results/soak.json.

Each life is a real worker and ends by SIGKILL some seconds after its first new row; now and then it is stopped, paused or changed on the way. What
must stay flat: the memory, open files and threads of the lives (read from /proc), what lies in the folder besides the rows, and nothing
may be lost: the steps only grow, from checkpoint to checkpoint, and the folder verifies at the end."""
import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1')
ROOT = Path(__file__).resolve().parent.parent


def look(pid: int) -> dict:
    status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines() if ':' in line)
    return dict(rss_mb=int(status['VmRSS'].split()[0])/1024, threads=int(status['Threads']), fds=len(os.listdir(f'/proc/{pid}/fd')))


def slope(xs: list[float], ys: list[float]) -> float:
    return statistics.linear_regression(xs, ys).slope if len(set(xs)) > 1 else 0.


def main() -> int:
    from rlnb.core.folder import verify_dir
    from rlnb.core.platform import popen_detached
    from rlnb.runs.control import send
    from rlnb.runs.keep import resume_point
    from rlnb.train import record      # teaches a run to verify itself
    from rlnb.train.session import asked, folder_for
    assert record
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=60)
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    rng, began = random.Random(a.seed), time.monotonic()
    lives, kept = [], [0]
    with tempfile.TemporaryDirectory() as d:
        run = folder_for(asked('ppo', 'rlnb/CartPole-v1', 10**9, checkpoint_every=20_000, eval_every=100_000, eval_episodes=4), d, 'soak')
        perf = run.path/'perf.jsonl'
        while time.monotonic() < began + 60*a.minutes:
            size = perf.stat().st_size if perf.exists() else 0
            w = popen_detached([sys.executable, '-m', 'rlnb.train.worker', run.path], run.path/'log.txt')
            while not perf.exists() or perf.stat().st_size <= size:
                time.sleep(.01)
                if w.poll() is not None: raise SystemExit(f'a life ended with {w.poll()}: {run.log(3)}')
            time.sleep(1)
            first, how = look(w.pid), rng.choice(['', '', 'set', 'checkpoint', 'pause'])
            if how: send(run.path, how, **(dict(changes=dict(ent_coef=rng.choice([.001, .002]))) if how == 'set' else {}))
            if how == 'pause': time.sleep(.5), send(run.path, 'continue')
            time.sleep(rng.uniform(1, 6))
            last = look(w.pid)
            w.kill()
            w.wait()
            point = resume_point(run.path)
            kept.append(int(point[1]['step']) if point else 0)
            here = sum(f.stat().st_size for f in run.path.rglob('*') if f.is_file() and f.suffix not in ('.jsonl', '.tail') and f.name != 'log.txt')
            at, files = round(time.monotonic() - began, 1), sum(f.is_file() for f in run.path.rglob('*'))
            lives.append(dict(at=at, first=first, last=last, step=kept[-1], folder_kb=here/1024, files=files))
            print(f'{at:>7} s  kill {len(lives)}  step {kept[-1]:,}  {last}  folder {here/1024:.0f} kB', flush=True)
        whole = [s for s in run.verify().items() if s[1]]
        for c in run.checkpoints(): verify_dir(run.path/'ckpt'/f'{c["step"]:012d}')
        steps = [r['step'] for r in run.metrics()]
    memory, grown = [x['last']['rss_mb'] for x in lives], [x['last']['rss_mb'] - x['first']['rss_mb'] for x in lives]
    folder = [round(x['folder_kb']) for x in lives]
    out = dict(command=f'python tools/soak.py --minutes {a.minutes:g}', minutes=round((time.monotonic() - began)/60, 1), kills=len(lives),
               steps=kept[-1], never_back=kept == sorted(kept), rows=len(steps),
               rows_lost_or_doubled=len(steps) - len(set(steps)) + (steps != sorted(steps)), wrong=whole,
               rss_mb=dict(first=round(memory[0], 1), last=round(memory[-1], 1), grown_within_a_life=round(statistics.median(grown), 2),
                           slope_per_kill=round(slope(list(range(len(memory))), memory), 3)),
               fds=sorted({x['last']['fds'] for x in lives}), threads=sorted({x['last']['threads'] for x in lives}),
               folder_kb=dict(first=folder[min(1, len(folder) - 1)], last=folder[-1], most=max(folder)), files_most=max(x['files'] for x in lives))
    (ROOT/'results'/'soak.json').write_text(json.dumps(dict(**out, lives=lives), indent=1) + '\n', encoding='utf-8')
    print(json.dumps(out, indent=1))
    return int(not out['never_back'] or bool(out['rows_lost_or_doubled']) or bool(whole))


if __name__ == '__main__':
    sys.exit(main())
