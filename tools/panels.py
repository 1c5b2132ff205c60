"""Panels, looked at and measured: `python tools/panels.py --shots` writes the pictures of the README and the tutorials (nbs/pictures),
`python tools/panels.py --figures` writes results/panels.json.

Pictures are taken in JupyterLab in a real browser (Debian's Chromium). Figures are processor seconds and bytes, not impressions: what the
watcher and the panel cost beside the training that they show, how much a refresh sends, how long it takes from Start to a state and from a
metric to a point, and how long ten runs of fifty thousand rows take to open."""
import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ |= dict(OMP_NUM_THREADS='1')
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
PICTURES, RESULTS = ROOT / 'nbs' / 'pictures', ROOT / 'results' / 'panels.json'


# ---- pictures
def cells(work: Path) -> dict[str, tuple[str, str]]:
    "Picture → (the cell that shows it, a text that is there when it is whole)"
    begin = 'from rlnb.all import *\n'
    return dict(
        launcher=(begin + "Panel(agent='ppo', env='rlnb/CartPole-v1', steps=200_000)", 'rlnb train'),
        monitor=(begin + "run = launch('ppo', 'rlnb/CartPole-v1', steps=300_000, eval_every=25_000, name='demo')\nPanel(run)", 'greedy'),
        comparison=(begin + "Panel([r for r in runs() if r.config.get('group')])", 'ppo (3)'),
        failure=(begin + "Panel('hasty')", 'what shows it'),
        player=(begin + "from rlnb.panels.player import Player\np = Player(find('ppo-0'), seed=3)\np.wait()\np", 'value'))


def prepare(work: Path) -> None:
    "Runs to look at"
    from rlnb.core.errors import Diverged
    from rlnb.train.session import train
    for agent, seeds in (('ppo', 3), ('a2c', 3)):
        for s in range(seeds):
            train(agent, 'rlnb/CartPole-v1', steps=50_000, seed=s, group=agent, root=work / 'runs', name=f'{agent}-{s}', progress=False, episodes=20)
    try: train('ppo', steps=50_000, root=work / 'runs', name='hasty', progress=False, lr=.05, epochs=10)
    except Diverged: pass


def trim(path: Path, margin: int = 8) -> None:
    "Cut off the empty part at the right of a picture"
    import numpy as np
    from PIL import Image
    im = Image.open(path).convert('RGB')
    x = np.asarray(im).reshape(im.height, im.width, 3)[:-4]
    used = np.flatnonzero((x != x[-1, -1]).any((0, 2)))
    im.crop((0, 0, min(im.width, int(used[-1]) + margin), im.height)).save(path, optimize=True)


def shots(which: list[str]) -> None:
    import nbformat
    from labs import begin, browser, lab, run_all
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as d:
        work = Path(d) / 'work'
        work.mkdir()
        prepare(work)
        with lab(work, Path(d) / 'home') as address, browser(address, 1280, 1250) as page:
            for name, (code, there) in cells(work).items():
                if which and name not in which: continue
                spec = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
                nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=spec)
                nbformat.write(nb, work / f'{name}.ipynb')
                begin(page, address, f'{name}.ipynb')
                page.evaluate('jupyterapp.shell.collapseLeft()')
                run_all(page)
                whole = f'() => document.querySelector(".jp-OutputArea-output")?.outerHTML.includes({json.dumps(there)})'
                page.wait_for_function(whole, timeout=120_000)
                time.sleep(4 if name == 'monitor' else 2)
                page.query_selector('.jp-OutputArea-output').screenshot(path=str(PICTURES / f'{name}.png'))
                trim(PICTURES / f'{name}.png')
                page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.shutdown()')
                print(f'{name}.png  {(PICTURES / f"{name}.png").stat().st_size // 1000} KB', flush=True)


# ---- figures
def cost_beside_training() -> dict:
    "Processor seconds of the watcher (with everything that it draws) beside those of the run that it follows"
    import psutil
    from rlnb.panels.feed import WATCHER
    from rlnb.panels.monitor import Monitor
    from rlnb.train.launch import launch
    with tempfile.TemporaryDirectory() as d:
        then = time.monotonic()
        run = launch('ppo', steps=10**8, root=d, name='x')
        starting = time.monotonic() - then
        panel = Monitor(run)
        while not len(panel.feed.rows.get('episode/return')[0]): time.sleep(.01)
        while 'data-points="0"' in panel.picture.value or 'no data' in panel.picture.value: time.sleep(.01)
        first, metric = time.monotonic(), (run.path / 'metrics.jsonl').stat()
        begun = first - (time.time() - metric.st_ctime)
        time.sleep(3)
        p = psutil.Process(run.state['pid'])
        a, b, at = sum(p.cpu_times()[:2]), WATCHER.cpu, time.monotonic()
        parts = (panel.head, panel.picture, panel.pane, panel.word)
        refreshes: list[int] = []
        for w in parts: w.observe(lambda c: refreshes.append(len(c['new'])), 'value')
        time.sleep(20)
        mine, theirs, wall = WATCHER.cpu - b, sum(p.cpu_times()[:2]) - a, time.monotonic() - at
        run.stop()
        run.wait(30)
    return dict(start_to_starting_s=round(starting, 2), first_point_after_first_metric_s=round(max(0., first - begun), 2), seconds=round(wall, 1),
                watcher_cpu_s=round(mine, 3), training_cpu_s=round(theirs, 2), watcher_percent_of_training=round(100*mine/theirs, 2),
                watcher_percent_of_a_core=round(100*mine/wall, 2), kb_a_second=round(sum(refreshes)/1000/wall, 1),
                kb_a_widget=dict(median=round(statistics.median(refreshes)/1000, 1), most=round(max(refreshes)/1000, 1)))


def long_run(d: Path, name: str, rows: int = 50_000) -> Path:
    import numpy as np
    from rlnb.train.session import train
    run = train('ppo', steps=2048, root=d, name=name, progress=False, episodes=5)
    with (run.path / 'metrics.jsonl').open('w') as f:
        for i, (r, k) in enumerate(np.random.default_rng(0).normal(size=(rows, 2))):
            row = {'step': 1024*(i + 1), 'iter': i, 'episode/return': dict(mean=r, min=r - 1, max=r + 1, n=3), 'learn/loss': k}
            f.write(json.dumps(row) + '\n')
    return run.path


def long_runs() -> dict:
    from rlnb.panels.compare import Comparer
    from rlnb.panels.feed import WATCHER
    from rlnb.panels.monitor import Monitor
    from rlnb.runs.curves import index
    with tempfile.TemporaryDirectory() as d:
        paths = [long_run(Path(d), f'r{i}') for i in range(10)]
        then, cpu = time.monotonic(), time.process_time()
        Comparer(paths)
        fresh = dict(wall_s=round(time.monotonic() - then, 2), cpu_s=round(time.process_time() - cpu, 2))
        for p in paths: index(p / 'metrics.jsonl')                     # as the end of a run leaves it
        then, cpu = time.monotonic(), time.process_time()
        Comparer(paths)
        kept = dict(wall_s=round(time.monotonic() - then, 2), cpu_s=round(time.process_time() - cpu, 2))
        panel, costs, sizes = Monitor(paths[0]), [], []
        with WATCHER.lock: WATCHER.due.clear()                         # it is looked at here, and nowhere else
        for i in range(24):
            row = {'step': 60_000_000 + i, 'iter': i, 'episode/return': dict(mean=1., min=0, max=2, n=1)}
            row |= {f'learn/{k}': .1*i for k in ('loss', 'entropy', 'kl', 'lr', 'clip_frac', 'vf_loss')}
            panel.drawn = time.monotonic() if i % 3 else 0.             # as by the clock: twice the curve's turn, then the pane's
            with (paths[0] / 'metrics.jsonl').open('a') as f: f.write(json.dumps(row) + '\n')
            before = [w.value for w in (panel.head, panel.picture, panel.pane)]
            then = time.process_time()
            panel.look()
            costs.append(time.process_time() - then)
            sizes.append(sum(len(w.value.encode()) for w, b in zip((panel.head, panel.picture, panel.pane), before) if w.value != b))
    return dict(rows=50_000, ten_runs_open=fresh, ten_runs_open_with_kept_columns=kept,
                refresh_cpu_ms=round(1000*statistics.median(costs), 1),
                refresh_kb=dict(median=round(statistics.median(sizes)/1000, 1), most=round(max(sizes)/1000, 1)),
                percent_of_a_core_at_2_hz=round(200*statistics.median(costs), 1))


def kernel() -> dict:
    "A trivial cell while a run trains; and a panel after the kernel was killed"
    from jupyter_client.manager import start_new_kernel
    from rlnb.runs.run import find
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]), RLNB_BATCH='0')
    km, kc = start_new_kernel(env=env)
    try:
        with tempfile.TemporaryDirectory() as d:
            kc.execute_interactive(f'from rlnb.all import *\nrun = launch("ppo", steps=10**9, root={d!r}, name="x")\np = Panel(run)', timeout=120)
            run = find('x', d)
            while run.phase != 'running': time.sleep(.1)
            trips = []
            for _ in range(40):
                then = time.monotonic()
                kc.execute_interactive('1 + 1', timeout=60)
                trips.append(time.monotonic() - then)
                time.sleep(.05)
            os.kill(km.provisioner.pid, 9)
            km.restart_kernel(now=True)
            kc.wait_for_ready(timeout=60)
            then = time.monotonic()
            kc.execute_interactive(f'from rlnb.all import *\np = Panel("x", {d!r})\nassert p.feed.state["phase"] == "running"', timeout=60)
            again = time.monotonic() - then
            run.kill()
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)
    cell = dict(median=round(1000*statistics.median(trips)), most=round(1000*max(trips)))
    return dict(trivial_cell_ms=cell, attached_again_after_kill_s=round(again, 2))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shots', nargs='*', metavar='PICTURE', help='only these, if any are named')
    p.add_argument('--figures', action='store_true')
    a = p.parse_args()
    if a.shots is not None: shots(a.shots)
    if a.figures:
        here = dict(python=platform.python_version(), system=platform.system(), cores=os.cpu_count(), load_at_start=round(os.getloadavg()[0], 1))
        out = dict(command='python tools/panels.py --figures', machine=here, beside_training=cost_beside_training(), long_runs=long_runs(),
                   kernel=kernel())
        RESULTS.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
        print(json.dumps(out, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
