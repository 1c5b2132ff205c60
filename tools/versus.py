"""Do PPO, DQN, SAC and TD3 learn as well as Stable-Baselines3's? The same settings (DQN: each with its own), fixed seeds, to be run again
until nothing is missing: `python tools/versus.py --sb3 DIR --minutes 40`

A cell is a world, a seed and a side, and one line of results/versus.jsonl. Settings are our presets, in their words (`sb3_settings`). What is judged
is the last policy, greedy, over 100 episodes; the intervals are over seeds, and have to overlap. Their rows stay until their version or the settings
change."""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import learn
import peer
from pages import ROOT

RESULTS, SEEDS = ROOT / 'results' / 'versus.jsonl', tuple(range(100, 110))
CELLS = [learn.Cell('ppo', 'CartPole-v1', 100_000, 0, seeds=SEEDS), learn.Cell('ppo', 'Pendulum-v1', 100_000, 0, seeds=SEEDS),
         learn.Cell('ppo', 'LunarLander-v3', 300_000, 0, seeds=SEEDS),
         learn.Cell('dqn', 'CartPole-v1', 50_000, 0, seeds=SEEDS), learn.Cell('dqn', 'CartPole-v1', 100_000, 0, seeds=SEEDS),
         learn.Cell('sac', 'HalfCheetah-v5', 100_000, 0, seeds=SEEDS[:3]), learn.Cell('sac', 'Hopper-v5', 100_000, 0, seeds=SEEDS[:3]),
         learn.Cell('sac', 'Pendulum-v1', 6_000, 0, seeds=SEEDS), learn.Cell('td3', 'Pendulum-v1', 8_000, 0, seeds=SEEDS),
         learn.Cell('td3', 'HalfCheetah-v5', 100_000, 0, seeds=SEEDS[:3])]


def experiment(c, seed):
    from rlnb.train.experiment import Experiment
    return Experiment.from_dict({'agent': c.agent, 'env': c.world, **learn.settings(c), 'steps': c.steps, 'seed': seed})


def rlnb(c, seed):
    "Ours, as `train` runs it but without a folder"
    from rlnb.core.seed import seed_of
    from rlnb.envs.gym import make
    from rlnb.evaluation.evaluate import play
    from rlnb.train.experiment import build
    t = build(experiment(c, seed)).fit(c.steps)
    return float(play(t.agent, make(c.world, 20), 100, seed_of(seed, 'play')).mean())


def sb3(c, seed):
    "Theirs, judged by the same function in the same worlds"
    from rlnb.core.seed import seed_of
    from rlnb.envs.gym import make
    from rlnb.evaluation.evaluate import play
    return float(play(peer.trained(c, seed), make(c.world, 20), 100, seed_of(seed, 'play')).mean())


def version(c, side, theirs):
    if side == 'rlnb': return learn.version(c)
    return peer.version(c, theirs)


def read():
    "Means by (agent, world, steps, seed, side, version)"
    rows = [json.loads(s) for s in RESULTS.read_text(encoding='utf-8').splitlines()] if RESULTS.exists() else []
    return {(r['agent'], r['world'], r['steps'], r['seed'], r['side'], r['version']): r['mean'] for r in rows}


def table(have, theirs):
    "Means with their intervals over seeds, and whether they overlap"
    from rlnb.evaluation.stats import estimate, mean
    lines, well = [f'{"agent":<6}{"world":<18}{"steps":>9}  {"rlnb: mean [95 %] n":<32}{"sb3: mean [95 %] n":<32}'], True
    for c in CELLS:
        said, ends = '', []
        for side in ('rlnb', 'sb3'):
            found = (have.get((c.agent, c.world, c.steps, s, side, version(c, side, theirs))) for s in c.seeds)
            xs = [x for x in found if x is not None]
            ends.append(estimate(xs, mean)[1:] if xs else (float('nan'),)*2)
            said += f'{f"{sum(xs)/len(xs):.1f} [{ends[-1][0]:.1f}, {ends[-1][1]:.1f}] {len(xs)}" if xs else "none yet":<32}'
        (low, high), (their_low, their_high) = ends
        verdict = 'ours higher' if low > their_high else 'ours LOWER' if high < their_low else 'missing' if 'none' in said else 'overlap'
        well = well and verdict != 'ours LOWER'
        lines.append(f'{c.agent:<6}{c.world:<18}{c.steps:>9}  {said}{verdict}')
    return '\n'.join(lines), well


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sb3', metavar='DIR', default='', help='where Stable-Baselines3 is, if not here')
    p.add_argument('--minutes', type=float, default=40, help='begin nothing that would end later')
    p.add_argument('--table', action='store_true', help='measure nothing')
    p.add_argument('--only', default='', metavar='WORDS', help="cells that hold this: 'sac Hopper'")
    p.add_argument('--carry', default='', metavar='DIR', help='a checkout of before a change that changes no number (tools/learn.py)')
    p.add_argument('--one', nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    theirs = peer.at(a.sb3)
    if a.one:
        side, k, seed = a.one
        return print(json.dumps(globals()[side](CELLS[int(k)], int(seed))))
    if a.carry: learn.carry(RESULTS, CELLS, str(Path(a.carry).absolute()), lambda r: r['side'] == 'rlnb')
    rows = [json.loads(s) for s in RESULTS.read_text(encoding='utf-8').splitlines()] if RESULTS.exists() else []
    there, theirs = bool(theirs), theirs or max((r['version'].split('-')[0] for r in rows if r['side'] == 'sb3'), default='')
    have, end = read(), time.monotonic() + 60*a.minutes
    for k, c in [] if a.table or a.carry else enumerate(CELLS):
        if a.only not in f'{c.agent} {c.world}': continue
        for seed in c.seeds:
            for side in ('rlnb', 'sb3'):
                key = c.agent, c.world, c.steps, seed, side, version(c, side, theirs)
                guess = max((r['seconds'] for r in rows if (r['agent'], r['world'], r['side']) == (c.agent, c.world, side)), default=60)
                if key in have or (side == 'sb3' and not there) or time.monotonic() + guess > end: continue
                then, more = time.monotonic(), ['--sb3', a.sb3] if a.sb3 else []
                env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
                command = [sys.executable, str(Path(__file__).resolve()), *more, '--one', side, str(k), str(seed)]
                got = subprocess.run(command, capture_output=True, text=True, env=env)
                if got.returncode: return print(got.stderr[-800:]) or 1
                row = dict(zip(('agent', 'world', 'steps', 'seed', 'side', 'version'), key))
                row |= dict(mean=float(got.stdout.splitlines()[-1]), seconds=round(time.monotonic() - then))
                rows.append(row)
                have[key] = row['mean']
                with open(RESULTS, 'a', encoding='utf-8') as f: f.write(json.dumps(row) + '\n')
                print(f'{c.world} seed {seed} {side}: {row["mean"]:.1f} in {row["seconds"]} s', flush=True)
    text, well = table(have, theirs)
    print(text)
    return int(not well)


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
