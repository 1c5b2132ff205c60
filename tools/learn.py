"""Does it learn? A grid of agents, worlds and seeds, to be run again until nothing is missing: `python tools/learn.py --minutes 40`

A cell is one run directory under runs/nightly and one line of results/learning.jsonl. Its version is a hash of its settings, of what the agent's
page and its family's export (as Python understands it: line breaks and comments do not count), and of the first rows that a run of seed 0 writes:
a change anywhere in the house that changes no number asks for no new run, and one that does, does. A slice does what is not there yet.
Where a page was rewritten so that nothing it computes changes, `--carry DIR`, a checkout of before, trains each cell in both for a while: rows of
cells that write the same numbers and come to the same weights, for 2,000 steps after the first update, are copied under the new version, and say so.
Seeds were chosen beforehand, and all are shown. What is judged is the last policy, greedy, over 100 episodes; where the bar is for the best
checkpoint, the best of those looked at (four, or a cell's own number) by 20 other episodes."""
import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pages import NBS, ROOT, read

sys.path.insert(0, str(ROOT))
os.environ.setdefault('OMP_NUM_THREADS', '1')
RESULTS, RUNS = ROOT / 'results' / 'learning.jsonl', ROOT / 'runs' / 'nightly'


class Cell(NamedTuple):
    "A bar, and the seeds that have to reach it"
    agent: str
    world: str
    steps: int
    bar: float
    what: str = 'final'                  # or best: the best checkpoint; success: the last policy's share of successful episodes
    judge: str = 'mean'                  # over seeds; each: every seed; most: all but one; low: the lower end of its interval; under: at most the bar
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    change: tuple[tuple[str, object], ...] = ()      # of the agent's settings, on top of the preset's
    looks: int = 4                       # how often it is looked at; a checkpoint each
    name: str = ''                       # what to call the change


OFF = dict(double=False, dueling=False, distributional=False, noisy=False, per=False)      # but for the steps of its returns


def switch(name: str, **on: object) -> Cell:
    "Rainbow with long returns and one of the others, or none"
    return Cell('rainbow', 'CartPole-v1', 50_000, 400, what='best', seeds=(0, 1, 2), change=tuple((OFF | on).items()), looks=10, name=name)


CELLS = [Cell('ppo', 'CartPole-v1', 100_000, 475, judge='each'),
         Cell('a2c', 'CartPole-v1', 100_000, 475, what='best'),
         Cell('ppo', 'Acrobot-v1', 150_000, -95),
         Cell('ppo', 'Pendulum-v1', 100_000, -200),
         Cell('ppo', 'rlnb/MockCache-v0', 100_000, .9*96),                 # of the optimum
         Cell('ppo', 'rlnb/Cache-v0', 200_000, 30.5 + 1.25, judge='low'),  # the best static policy: TinyLFU
         Cell('ppo_rnn', 'rlnb/BlindCartPole-v1', 100_000, 475, judge='each'),
         Cell('ppo', 'MountainCar-v0', 500_000, -130),                     # may take 1M
         Cell('ppo', 'LunarLander-v3', 1_000_000, 200),
         Cell('ppo', 'HalfCheetah-v5', 1_000_000, 1400, seeds=(0, 1, 2)),
         Cell('dqn', 'CartPole-v1', 50_000, 475, what='best', judge='each', looks=10),
         Cell('dqn', 'CartPole-v1', 50_000, 400, judge='most', looks=10),
         Cell('dqn', 'CartPole-v1', 50_000, 475, judge='most', seeds=tuple(range(10)), looks=10),
         Cell('dqn', 'CartPole-v1', 100_000, 475, judge='most', seeds=tuple(range(10)), looks=10),
         Cell('dqn', 'Acrobot-v1', 100_000, -95),
         Cell('dqn', 'MountainCar-v0', 120_000, -125, judge='most'),
         Cell('dqn', 'rlnb/MockCache-v0', 50_000, .9*96),
         Cell('dqn', 'rlnb/Cache-v0', 200_000, 30.5 + 1.25, judge='low'),
         Cell('dqn', 'rlnb/BitFlip-v0', 40_000, .9, what='success'),       # 15 bits, a random goal in each episode
         Cell('dqn', 'rlnb/BitFlip-v0', 40_000, .05, what='success', judge='under', change=(('her', 'off'),)),
         Cell('rnd', 'rlnb/DeepSea-v0', 10_000, .9, what='success'),       # ten rows
         Cell('pqn', 'CartPole-v1', 100_000, 500, what='best', judge='each'),
         Cell('pqn', 'Acrobot-v1', 500_000, -85),
         Cell('c51', 'CartPole-v1', 50_000, 400, what='best', seeds=(0, 1, 2), looks=10),
         Cell('c51', 'CartPole-v1', 50_000, 400, what='best', seeds=(0, 1, 2), looks=10, change=(('kind', 'quantile'),), name='quantiles'),
         Cell('rainbow', 'CartPole-v1', 50_000, 400, what='best', seeds=(0, 1, 2), looks=10), switch('steps alone'),
         switch('steps, double', double=True), switch('steps, dueling', dueling=True), switch('steps, distributions', distributional=True),
         switch('steps, noise', noisy=True, sigma=.2), switch('steps, priorities', per=True),
         *(Cell(agent, 'Pendulum-v1', steps, -200) for agent, steps in (('sac', 6_000), ('td3', 8_000), ('crossq', 4_000), ('tqc', 6_000))),
         Cell('sac', 'MountainCarContinuous-v0', 20_000, 90),
         Cell('sac', 'InvertedPendulum-v5', 25_000, 950),
         Cell('sac', 'FetchReach-v4', 10_000, .95, what='success', seeds=(0, 1, 2)),
         Cell('sac', 'LunarLanderContinuous-v3', 150_000, 200, seeds=(0, 1, 2))]
FAMILY = {'ppo': ('05_actor_critic', '20_ppo'), 'a2c': ('05_actor_critic', '10_a2c'), 'ppo_rnn': ('05_actor_critic', '25_ppo_rnn'),
          'dqn': ('30_off_policy', '32_explore', '40_dqn'), 'rnd': ('30_off_policy', '32_explore', '40_dqn', '52_rnd'),
          'c51': ('30_off_policy', '32_explore', '45_c51'), 'rainbow': ('30_off_policy', '32_explore', '35_noisy', '45_c51', '50_rainbow'),
          'pqn': ('32_explore', '55_pqn'), 'sac': ('30_off_policy', '58_continuous', '65_sac'),
          'td3': ('30_off_policy', '58_continuous', '60_td3'), 'crossq': ('30_off_policy', '58_continuous', '65_sac', '75_crossq'),
          'tqc': ('30_off_policy', '58_continuous', '65_sac', '80_tqc')}


def meaning(source: str) -> str:
    "Code without what does not count: line breaks, comments and docstrings"
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant): body[0].value.value = ''
    return ast.dump(tree)


def settings(c: Cell) -> dict:
    "What differs from the defaults: the preset, and what the cell changes in it"
    from rlnb.train.presets import preset
    known = preset(c.agent, c.world)
    return known | dict(agent_cfg=known.get('agent_cfg', {}) | dict(c.change)) if c.change else known


def first_rows(c: Cell) -> str:
    "What the first three updates of seed 0 write"
    from rlnb.train.experiment import Experiment, build
    from rlnb.train.track import row_of
    t = build(Experiment.from_dict({'agent': c.agent, 'env': c.world, **settings(c), 'steps': c.steps, 'seed': 0}))
    rows = []
    while len(rows) < 3:
        t.one_iter()
        rows += [row_of(t)] if t.metrics else []
    t.env.close()
    return json.dumps(rows)


@cache
def version(c: Cell) -> str:
    "Of what is measured: the settings, the exported code of the pages, and what it does at first; '' where the world's package is missing"
    from rlnb.core.errors import MissingExtra
    try: rows = first_rows(c)
    except MissingExtra: return ''
    code = [meaning(src) for page in FAMILY[c.agent] for src in read(NBS / '30_agents' / f'{page}.ipynb').exported]
    return hashlib.sha256('\n'.join([*code, json.dumps(settings(c), sort_keys=True), rows]).encode()).hexdigest()[:12]


def done() -> dict[tuple, dict]:
    "Rows by (agent, world, steps, seed, version); the last of equals counts"
    if not RESULTS.exists(): return {}
    rows = [json.loads(s) for s in RESULTS.read_text(encoding='utf-8').splitlines() if s.strip()]
    return {(r['agent'], r['world'], r['steps'], r['seed'], r['version']): r for r in rows}


def measure(c: Cell, seed: int, ver: str) -> dict:
    "Train one cell, looked at now and then; a slice that was cut off goes on here"
    from rlnb.core.seed import seed_of
    from rlnb.envs.gym import make
    from rlnb.evaluation.evaluate import play, roll
    from rlnb.evaluation.stats import interval
    from rlnb.train.experiment import Experiment
    from rlnb.train.session import fit, folder_for, unfinished

    looks = {'eval_every': c.steps//c.looks, 'eval_episodes': 20}
    exp = Experiment.from_dict({'agent': c.agent, 'env': c.world, **settings(c), 'steps': c.steps, 'seed': seed, **looks})
    then, name = time.perf_counter(), f'{c.agent}-{c.world.split("/")[-1]}-{seed}-{ver}'
    run = fit(unfinished(exp, RUNS, name) or folder_for(exp, RUNS, name))
    if run.phase != 'finished': sys.exit(f'{name}: {run.phase}; the next slice goes on there')       # what was cut short is no measurement
    scores = play(run.load('best'), make(c.world, 20), 100, seed_of(seed, 'play'))
    low, high = interval(scores)
    part = {k: round(v, 2) for k, v in run.result['return'].items() if k in ('mean', 'low', 'high')}
    row = dict(agent=c.agent, world=c.world, steps=c.steps, seed=seed, version=ver, final=part, seconds=round(time.perf_counter() - then),
               best=dict(mean=round(float(scores.mean()), 2), low=round(low, 2), high=round(high, 2), step=int(run.at('best').name)))
    if c.change: row['change'] = dict(c.change)
    if c.name: row['name'] = c.name
    if c.what != 'success': return row
    reached = roll(run.load('latest'), make(c.world, 20), 100, seed_of(seed, 'play'))['success']
    return row | dict(success=dict(mean=round(float(reached.mean()), 2)))


def row_of(have: dict[tuple, dict], c: Cell, seed: int) -> dict | None:
    "This cell's row; of a world that can't be made here the newest one, for nobody can say what it would be now"
    if version(c): return have.get((c.agent, c.world, c.steps, seed, version(c)))
    return next((r for k, r in reversed(have.items()) if k[:4] == (c.agent, c.world, c.steps, seed)), None)


def table(have: dict[tuple, dict]) -> tuple[str, bool]:
    "Each seed, the mean with its interval over seeds, the bar; and whether none is missed"
    from rlnb.evaluation.stats import estimate, mean as average
    lines, well, there = [f'{"agent":<9}{"world":<26}{"steps":>9}  {"seeds":<62}{"mean [95 %]":<26}{"bar":>7}'], True, 0
    for c in CELLS:
        rows = [row_of(have, c, s) for s in c.seeds]
        xs = [r[c.what]['mean'] for r in rows if r]
        mean, low, high = estimate(xs, average) if xs else (0., 0., 0.)
        met = {'each': min(xs, default=0), 'most': min(sorted(xs)[1:], default=0), 'low': low}.get(c.judge, mean) >= c.bar
        if c.judge == 'under': met = mean <= c.bar
        lacking = [str(s) for s, r in zip(c.seeds, rows) if not r]
        there, well = there + len(xs), well and (met or not xs)
        digits = 2 if c.what == 'success' else 1
        seen = ' '.join(f'{r[c.what]["mean"]:.{digits}f}' if r else '—' for r in rows)
        verdict = f'missing: {" ".join(lacking)}' if lacking else 'met' if met else 'NOT met'
        over = f'{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]' if xs else ''
        how = {'each': ' every seed', 'most': ' all but one seed', 'low': ' the interval', 'under': ' at most'}.get(c.judge, '')
        how += {'best': ' best checkpoint', 'success': ' success'}.get(c.what, '')
        how += f', {c.name}' if c.name else ''.join(f' {k}={v}' for k, v in c.change)
        lines.append(f'{c.agent:<9}{c.world:<26}{c.steps:>9}  {seen:<62}{over:<26}{c.bar:>7.{digits}f}  {verdict}{how}')
    return '\n'.join([*lines, f'{there} of {sum(len(c.seeds) for c in CELLS)} cells are there']), well


PROOF = """
import hashlib, json
import learn
from rlnb.train.experiment import Experiment, build
from rlnb.train.track import row_of
c, rows, steps = learn.Cell(**CELL), [], 0
t = build(Experiment.from_dict({'agent': c.agent, 'env': c.world, **learn.settings(c), 'steps': c.steps, 'seed': 0}))
while len(rows) < 3 or steps < 2000:
    before = t.step
    t.one_iter()
    if t.metrics: rows.append(row_of(t)); steps += t.step - before
h = hashlib.sha256(json.dumps(rows).encode())
for k, v in sorted(t.agent.state_dict().items()): h.update(k.encode() + v.numpy().tobytes())
print(t.step, h.hexdigest())
"""


def said(where: str, code: str, c: Cell) -> str:
    "What another checkout says to this, of this cell and with its own settings of it; '' if it fails"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([f'{where}/tools', where]))
    code = code.replace('CELL', repr({k: v for k, v in c._asdict().items() if v != Cell._field_defaults.get(k)}))
    got = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=where, env=env)
    return got.stdout.strip() if got.returncode == 0 else ''


def carry(path: Path, cells: list[Cell], where: str, ours: Callable[[dict], bool] = lambda r: True) -> None:
    "Copy a file's rows of before, of cells that compute the same in this checkout and in that"
    text = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    rows = [r for r in map(json.loads, filter(str.strip, text)) if ours(r)]
    for c in dict.fromkeys(cells):
        mine = {(r['version'], r['seed']): r for r in rows if (r['agent'], r['world'], r['steps']) == (c.agent, c.world, c.steps)}
        if not mine or not (ver := version(c)): continue
        old = said(where, 'import learn; print(learn.version(learn.Cell(**CELL)))', c)
        if not old: print(f'{c.agent} {c.world}: {where} says nothing of it')
        stale = [r for (v, seed), r in mine.items() if v == old and (ver, seed) not in mine]
        if not old or not stale or ver == old: continue
        same = (a := said(where, PROOF, c)) and a == said(str(ROOT), PROOF, c)
        print(f'{c.agent} {c.world}: {len(stale)} rows of {old} {"carried to" if same else "NOT carried: other numbers in"} {ver}', flush=True)
        for r in stale if same else []:
            rows.append(r | dict(version=ver, carried=dict(version=old, steps=int(a.split()[0]))))
            with open(path, 'a', encoding='utf-8') as f: f.write(json.dumps(rows[-1]) + '\n')


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=40, help='begin nothing that would end later')
    p.add_argument('--table', action='store_true', help='measure nothing')
    p.add_argument('--only', default='', metavar='WORDS', help="cells that hold this: 'sac', 'dqn CartPole'")
    p.add_argument('--carry', default='', metavar='DIR', help='a checkout of before a change that changes no number')
    a = p.parse_args()
    end, have = time.monotonic() + 60*a.minutes, done()
    if hasattr(os, 'nice') and not a.table: os.nice(19)
    asked = [c for c in CELLS if a.only in f'{c.agent} {c.world.removeprefix("rlnb/")}']
    if a.carry:
        carry(RESULTS, asked, os.path.abspath(a.carry))
        have = done()
    for c in [] if a.table or a.carry else asked:
        ver = version(c)
        if not ver: print(f'{c.world}: its package is missing')
        for seed in c.seeds if ver else ():
            key = c.agent, c.world, c.steps, seed, ver
            guess = max((r['seconds'] for k, r in have.items() if k[:3] == key[:3]), default=c.steps/2000)
            if key in have or time.monotonic() + guess > end: continue
            row = have[key] = measure(c, seed, ver)
            RESULTS.parent.mkdir(exist_ok=True)
            with open(RESULTS, 'a', encoding='utf-8') as f: f.write(json.dumps(row) + '\n')
            print(f'{c.agent} {c.world} seed {seed}: {row[c.what]["mean"]:.1f} in {row["seconds"]} s', flush=True)
    text, well = table(have)
    print(text)
    return int(not well)


if __name__ == '__main__':
    sys.exit(main())
