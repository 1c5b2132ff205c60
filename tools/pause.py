"""How long training waits for a checkpoint of 1, 10 and 100 MB, and for one beside a replay of 100,000 transitions, what the machinery of a run
costs, how long a life takes to go on, and how soon the first checkpoint is there: `python tools/pause.py` writes results/pause.json. The folder
lies on the disk where --root is, not in memory; every fsync is a real one."""
import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1')
ROOT = Path(__file__).resolve().parent.parent
BARS = {1: 20, 10: 60, 100: 450}      # milliseconds, p95


def quantile(xs: list[float], q: float) -> float: return sorted(xs)[min(len(xs) - 1, round(q*(len(xs) - 1)))]


def pauses(root: Path, mb: int, n: int) -> dict:
    "Saves as a run makes them: rows and events beside, verified, the old ones let go"
    from types import SimpleNamespace

    import numpy as np
    from rlnb.runs.events import Events
    from rlnb.runs.keep import Keeper, resume_point
    from rlnb.runs.ckpt import load_state
    from rlnb.train.save import beside
    from rlnb.train.track import Rows
    run = root/f'{mb}'
    (run/'ckpt').mkdir(parents=True)
    events, rows, keeper = Events(run), Rows(run/'metrics.jsonl', cut=0), Keeper(run, 3)
    rng = np.random.default_rng(0)
    state = {k: rng.random(mb*(1 << 18)//4, np.float32) for k in 'abcd'} | dict(counts={f'k{i}': i for i in range(200)})
    took, sync = [], []
    for i in range(n):
        rows.append(dict(step=i, **{f'learn/{k}': .1*i for k in range(8)}))
        then = time.perf_counter()
        keeper.save(state, step=i, kind='regular', **beside(SimpleNamespace(rows=rows), events))
        took.append(1e3*(time.perf_counter() - then))
        events.add('checkpoint', i, sync=False)
        fd = os.open(run/'probe', os.O_WRONLY | os.O_CREAT)
        os.write(fd, b'x'*4096)
        then = time.perf_counter()
        os.fsync(fd)
        sync.append(1e3*(time.perf_counter() - then))
        os.close(fd)
    then = time.perf_counter()
    load_state(resume_point(run)[0])
    resumed = 1e3*(time.perf_counter() - then)
    for log in (events, rows): log.close()
    shutil.rmtree(run)
    took, sync = took[2:], sync[2:]
    return dict(mb=mb, saves=len(took), p50=round(statistics.median(took), 1), p95=round(quantile(took, .95), 1), bar=BARS[mb],
                fsync_p50=round(statistics.median(sync), 2), verify_and_load=round(resumed, 1))


def replay(root: Path) -> dict:
    "Saves of a run whose replay is full: each writes the rows that are new, and the rest of the state"
    from rlnb.train import session
    from rlnb.train.save import Checkpoint
    run = session.folder_for(session.asked('dqn', 'rlnb/CartPole-v1', 140_000, False, num_envs=8, buffer_size=100_000, learning_starts=139_000,
                                           checkpoint_every=2_000, train_every=8), root, 'replay')
    took, saved = [], Checkpoint.saved
    def timed(self, t, kind, *args, **kw):
        then = time.perf_counter()
        try: return saved(self, t, kind, *args, **kw)
        finally: took.append((t.step, 1e3*(time.perf_counter() - then)))
    Checkpoint.saved = timed
    try: session.fit(run, None, 0)
    finally: Checkpoint.saved = saved
    full = [ms for step, ms in took if step >= 100_000]
    return dict(transitions=100_000, new_rows_a_save=2_000, saves=len(full), p50=round(statistics.median(full), 1),
                p95=round(quantile(full, .95), 1), bar=100)


def overhead(root: Path) -> dict:
    "CPU seconds inside callbacks, the folder and the state of a run, over those of its process, imports left out"
    from rlnb.train import session
    out = {}
    for name, words in dict(ppo=dict(agent='ppo', steps=300_000), a2c=dict(agent='a2c', steps=300_000)).items():
        run = session.folder_for(session.asked(env='rlnb/CartPole-v1', **words), root, name)
        cpu, spent = time.process_time(), []
        from rlnb.train.trainer import Trainer
        real = Trainer.ask
        def ask(self, moment, real=real, spent=spent):
            if not self.cbs.whom[moment]: return None            # nobody is asked: the clock's own price is not ours
            then = time.process_time()
            try: return real(self, moment)
            finally: spent.append(time.process_time() - then)
        Trainer.ask = ask
        begun = []
        fit = Trainer.fit
        def timed(self, steps, fit=fit, begun=begun):
            begun.append(time.process_time())
            try: return fit(self, steps)
            finally: begun.append(time.process_time())
        Trainer.fit = timed
        try: session.fit(run, None, 0)
        finally: Trainer.ask, Trainer.fit = real, fit
        whole, loop = time.process_time() - cpu, begun[1] - begun[0]
        mine = sum(spent)
        out[name] = dict(steps=words['steps'], cpu_seconds=round(whole, 2), in_callbacks=round(mine, 3), around_the_loop=round(whole - loop, 3),
                         percent=round(100*mine/loop, 2), percent_with_begin_and_end=round(100*(mine + whole - loop)/whole, 2))
    return out


def first_checkpoint(root: Path) -> dict:
    "Seconds from the start of a worker to its first checkpoint by the clock, and from a resume to its first new row"
    from rlnb.core.platform import popen_detached
    from rlnb.train import session
    run = session.folder_for(session.asked('ppo', 'rlnb/CartPole-v1', 10**8), root, 'first')
    def worker(): return popen_detached([sys.executable, '-m', 'rlnb.train.worker', run.path], run.path/'log.txt')
    then, p = time.monotonic(), worker()
    while not run.checkpoints(): time.sleep(.02)
    first = time.monotonic() - then
    p.kill()
    p.wait()
    size, lives = (run.path/'perf.jsonl').stat().st_size, []
    for _ in range(5):
        then, p = time.monotonic(), worker()
        while (run.path/'perf.jsonl').stat().st_size == size: time.sleep(.005)
        lives.append(time.monotonic() - then)
        p.kill()
        p.wait()
        size = (run.path/'perf.jsonl').stat().st_size
    again = dict(p50=round(statistics.median(lives), 2), most=round(max(lives), 2))
    return dict(first_checkpoint_s=round(first, 1), bar_s=15, resume_to_first_new_row_s=again)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--root', default=tempfile.gettempdir())
    p.add_argument('--only', choices=['pause', 'replay', 'overhead', 'first'])
    a = p.parse_args()
    file = ROOT/'results'/'pause.json'
    found = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
    load = round(os.getloadavg()[0], 1) if hasattr(os, 'getloadavg') else None
    found['machine'] = dict(python=platform.python_version(), system=platform.system(), cores=os.cpu_count(), load_at_start=load)
    with tempfile.TemporaryDirectory(dir=a.root) as d:
        if a.only in (None, 'pause'): found['pause_ms'] = [pauses(Path(d), mb, n) for mb, n in ((1, 60), (10, 40), (100, 16))]
        if a.only in (None, 'replay'): found['replay_ms'] = replay(Path(d))
        if a.only in (None, 'overhead'): found['overhead'] = overhead(Path(d))
        if a.only in (None, 'first'): found['first'] = first_checkpoint(Path(d))
    found['command'] = 'python tools/pause.py'
    file.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(found, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
