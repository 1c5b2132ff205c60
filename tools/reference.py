"""The reference table: every agent in the classic worlds, seeds 0 to 4, with Stable-Baselines3's numbers from the same harness beside it.
`python tools/reference.py --sb3 DIR --minutes 8` measures what is not there yet, to be run again until nothing is missing, and writes
docs/results.md; without --minutes it only writes.

A row is one training: the last policy, greedy, over 100 episodes of fresh worlds, with the machine and the commit. Ours are in results/learning.jsonl
(tools/learn.py) or in results/reference.jsonl, under the hash of what is measured; a peer's row stays until its version or the settings change.
The peer gets our presets in its words, trains by its own loop in its own worlds, and is judged by our `play` on the same evaluation seeds."""
import argparse
import json
import os
import subprocess
import sys
import time
from functools import cache

import learn
import peer
import versus
from pages import ROOT

RESULTS, PAGE = ROOT / 'results' / 'reference.jsonl', ROOT / 'docs' / 'results.md'
SEEDS, PEERS = range(5), {('ppo', 'CartPole-v1'), ('ppo', 'Acrobot-v1'), ('ppo', 'Pendulum-v1'), ('a2c', 'CartPole-v1')}


def worlds() -> dict:
    "The tasks of the classic suite by Gymnasium's name: random and reference return stand there"
    from rlnb.evaluation.suites import suites
    return {t.world.removeprefix('rlnb/'): t for t in suites['classic'].tasks}


@cache
def fits(agent: str, world: str) -> bool:
    "Can this agent act there at all?"
    from rlnb.core.errors import BadInput
    from rlnb.train.experiment import Experiment, build
    try: build(Experiment.from_dict(dict(agent=agent, env=world, steps=1000))).env.close()
    except BadInput: return False
    return True


def cells() -> list[learn.Cell]:
    "Every agent in every world that it can act in; the budget is the preset's, 0 where none is known"
    from rlnb.agents.base import agents
    from rlnb.train.experiment import find_agent
    from rlnb.train.presets import preset
    find_agent('ppo')                   # asked for one, it loads the pages of all
    known = {(c.agent, c.world): c.steps for c in learn.CELLS}
    return [learn.Cell(a, w, known.get((a, w)) or preset(a, w).get('steps', 0), 0) for w in worlds() for a in agents if fits(a, w)]


def measurable(c: learn.Cell) -> bool: return bool(c.steps) and c.agent in learn.FAMILY


def read() -> dict[tuple, dict]:
    "Rows by (side, agent, world, steps, seed, version); those that know their machine go before those that do not"
    rows = [json.loads(s) for s in RESULTS.read_text(encoding='utf-8').splitlines()] if RESULTS.exists() else []
    ours = [dict(side='rlnb', **r) for r in learn.done().values()]
    return {tuple(r[k] for k in ('side', 'agent', 'world', 'steps', 'seed', 'version')): r for r in (*ours, *rows)}


def key(side: str, c: learn.Cell, seed: int, theirs: str) -> tuple:
    return side, c.agent, c.world, c.steps, seed, learn.version(c) if side == 'rlnb' else peer.version(c, theirs)


def commit() -> str:
    "Of this checkout, '+' where what is measured was changed since"
    def git(*words): return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return git('rev-parse', '--short', 'HEAD') + '+'*bool(git('status', '--porcelain', '--', 'rlnb', 'tools/peer.py'))


def measure(side: str, c: learn.Cell, seed: int, version: str) -> dict:
    "One training, judged"
    from rlnb.core.seed import seed_of
    from rlnb.envs.gym import make
    from rlnb.evaluation.evaluate import play
    from rlnb.evaluation.stats import interval
    from rlnb.train.bench import hardware
    facts = dict(side=side, commit=commit(), hardware=hardware())
    if side == 'rlnb': return facts | learn.measure(c, seed, version)
    then = time.perf_counter()
    xs = play(peer.trained(c, seed), make(c.world, 20), 100, seed_of(seed, 'play'))
    final = {k: round(float(v), 2) for k, v in zip(('mean', 'low', 'high'), (xs.mean(), *interval(xs)))}
    row = dict(agent=c.agent, world=c.world, steps=c.steps, seed=seed, version=version, final=final)
    return facts | row | dict(seconds=round(time.perf_counter() - then))


def todo(have: dict, theirs: str) -> list[tuple]:
    "What is missing, and then what was measured before machine and commit were kept; PPO and A2C first"
    sides = lambda c: ['rlnb', *(['sb3'] if theirs and (c.agent, c.world) in PEERS else [])]
    every = [(side, c, seed) for c in cells() if measurable(c) for side in sides(c) for seed in SEEDS]
    lacks = [t for t in every if 'commit' not in have.get(key(*t, theirs), {})]
    return sorted(lacks, key=lambda t: (t[1].agent not in ('ppo', 'a2c'), key(*t, theirs) in have, t[1].steps))


# ---- the page
def of(have: dict, side: str, c: learn.Cell, theirs: str) -> list[dict]:
    return [r for s in SEEDS if (r := have.get(key(side, c, s, theirs)))] if measurable(c) and (side == 'rlnb' or theirs) else []


def finals(rows: list[dict]) -> list[float]: return [r['final']['mean'] for r in rows]


def said(xs: list[float], marks: bool = True) -> str:
    "Mean with its interval over seeds"
    from rlnb.evaluation.stats import estimate, mean
    if not xs: return 'missing'
    return repr(estimate(xs, mean)) if len(xs) > 1 else f'{xs[0]:.4g}' + ' (1 seed)'*marks


def rows_of(world: str, have: dict, theirs: str) -> list[tuple]:
    "A row an agent: steps, every seed, mean, the peer's mean, and what the seeds of both say"
    from rlnb.evaluation.tests import verdict
    out = []
    for c in (c for c in cells() if c.world == world):
        ours, peers = finals(of(have, 'rlnb', c, theirs)), finals(of(have, 'sb3', c, theirs))
        v = verdict(ours, peers, ('rlnb', 'SB3')) if ours and peers else None
        both = '' if v is None else f'{v.better} higher' if v.better else 'seeds missing' if any(v.missing) else 'not told apart'
        out.append((c.agent, f'{c.steps:,}' if c.steps else '', ', '.join(f'{x:.4g}' for x in ours), said(ours),
                    said(peers) if peers or (c.agent, c.world) in PEERS else '', both))
    return out


def missing(have: dict, theirs: str) -> list[str]:
    "What is not there, and why: cells by reason"
    why: dict[str, list[str]] = {}
    for c in cells():
        sides = [('rlnb', c.agent), *([('sb3', f"Stable-Baselines3's {c.agent}")] if (c.agent, c.world) in PEERS else [])]
        for side, who in sides:
            lack = [str(s) for s in SEEDS if s not in {r['seed'] for r in of(have, side, c, theirs)}]
            if not lack: continue
            reason = f'Seeds {", ".join(lack)} were not run yet' if measurable(c) else 'Not in the grid of tools/learn.py yet'
            why.setdefault(reason if c.steps else 'No settings were chosen for this world yet', []).append(f'{who} in {c.world}')
    return [f'{k}: {", ".join(v)}.' for k, v in why.items()]


def machines(have: dict, theirs: str) -> list[tuple]:
    "How many rows of the table come from which machine and commit"
    count: dict[tuple, int] = {}
    for c in cells():
        for side in ('rlnb', 'sb3'):
            for r in of(have, side, c, theirs):
                h = r.get('hardware')
                versions = f"Python {h['python']}, torch {h['torch']}, Gymnasium {h['gymnasium']}" if h else ''
                whose = 'rlnb' if side == 'rlnb' else f'Stable-Baselines3 {theirs}'
                mark = (f"{h['cpu']}, {h['cores']} cores" if h else 'not kept', versions, r.get('commit', 'not kept'), whose)
                count[mark] = count.get(mark, 0) + 1
    return [(*m, n) for m, n in sorted(count.items())]


def ten_seeds(theirs: str) -> list[tuple]:
    "What tools/versus.py measured: ours against theirs, on other seeds"
    from rlnb.evaluation.tests import verdict
    have, out = versus.read(), []
    for c in versus.CELLS if have else []:
        ours, peers = ([x for s in c.seeds if (x := have.get((c.agent, c.world, c.steps, s, side, versus.version(c, side, theirs)))) is not None]
                       for side in ('rlnb', 'sb3'))
        v = verdict(ours, peers, ('rlnb', 'SB3')) if ours and peers else None
        both = '' if v is None else f'{v.better} higher' if v.better else 'seeds missing' if any(v.missing) else 'not told apart'
        out.append((c.agent, c.world, f'{c.steps:,}', f'{said(ours)} ({len(ours)})', f'{said(peers)} ({len(peers)})', both))
    return out


HOW = '''Every agent of rlnb in the classic worlds of Gymnasium, with Stable-Baselines3 beside it. A number is the mean return of the **last**
policy, with its likeliest actions, over 100 episodes of fresh worlds on seeds of their own; the best checkpoint is not looked for. Each
seed is a whole training, 0 to 4, fixed beforehand; all of ours are shown, the peer's are in `results/reference.jsonl`. Intervals are 95
% over seeds (bootstrap, widened for few of them), so those of five seeds are wide. Stable-Baselines3 has the settings of our preset in
its own words, its own loop and its own vector of worlds, and is judged by the same function on the same evaluation seeds. *Not told
apart* is the verdict of Welch's and the permutation test on the seeds of both; it does not say that they are equal.

`python tools/reference.py` writes this page from `results/`; budgets and settings are those of the presets.'''


def page(have: dict, theirs: str) -> str:
    "The whole page"
    from rlnb.core.text import table
    heads = ('agent', 'steps', 'each seed', 'mean [95 % over seeds]', f'SB3 {theirs}'.strip(), 'the two')
    out = ['# Reference results', HOW]
    for w, t in worlds().items():
        out += [f'## {w}', f'Random actions get {t.low:.4g}; the reference of the suite is {t.high:.4g}.']
        out += [table(rows_of(w, have, theirs), heads, 'markdown')]
    if ten := ten_seeds(theirs):
        zoo = 'For DQN they have those of RL Baselines3 Zoo there, for 50,000 steps: our preset judges with a second network, which theirs lacks.'
        out += ['## Beside theirs, on other seeds', f'By `python tools/versus.py`; how many seeds are there stands in brackets. {zoo}',
                table(ten, ('agent', 'world', 'steps', 'rlnb', f'SB3 {theirs}', 'the two'), 'markdown')]
    out += ['## What is missing', '\n'.join(f'- {s}' for s in missing(have, theirs)) or 'Nothing.', '## Where it was measured',
            table(machines(have, theirs), ('machine', 'versions', 'commit', 'whose', 'rows'), 'markdown')]
    return '\n\n'.join(out) + '\n'


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sb3', metavar='DIR', default='', help='where Stable-Baselines3 is, if not here')
    p.add_argument('--minutes', type=float, default=0, help='measure for so long; begin nothing that would end later')
    p.add_argument('--carry', default='', metavar='DIR', help='a checkout of before a change that changes no number (tools/learn.py)')
    a = p.parse_args()
    if a.carry: learn.carry(RESULTS, [c for c in cells() if measurable(c)], os.path.abspath(a.carry), lambda r: r['side'] == 'rlnb')
    here, have, end = peer.at(a.sb3), read(), time.monotonic() + 60*a.minutes
    took: dict[tuple, int] = {}
    for r in have.values(): took[r['side'], r['agent'], r['world']] = r['seconds']
    for side, c, seed in todo(have, here) if a.minutes else []:
        guess = took.get((side, c.agent, c.world), c.steps/(4000 if side == 'rlnb' else 1500))
        if time.monotonic() + guess > end: continue
        k = key(side, c, seed, here)
        r = have[k] = measure(side, c, seed, k[-1])
        took[side, c.agent, c.world] = r['seconds']
        with open(RESULTS, 'a', encoding='utf-8') as f: f.write(json.dumps(r) + '\n')
        print(f'{side} {c.agent} {c.world} seed {seed}: {r["final"]["mean"]:.1f} in {r["seconds"]} s', flush=True)
    theirs = here or max((k[-1].split('-')[0] for k in have if k[0] == 'sb3'), default='')
    PAGE.write_text(page(have, theirs), encoding='utf-8')
    print('\n'.join(missing(have, theirs)))
    return 0


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.exit(main())
