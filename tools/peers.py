"""Speed beside other libraries and on a busy machine → results/peers.json:
`python tools/peers.py --skrl DIR --tianshou DIR --torchrl DIR --cleanrl DIR --leanrl DIR --sb3 DIR [--only sac pendulum]`

Each DIR holds one peer, by `pip install --target DIR --no-deps …`, and comes first on the path of its process. Those of CleanRL and LeanRL hold their
scripts and the Gymnasium they want too (DIR/cleanrl/ppo.py; DIR/leanrl/…, and TorchRL). What is not named is left out. With `--only`, rows whose
names hold every word are measured, and take the place of what is there. The work is that of `rlnb bench`; peers_ppo.py and peers_replay.py have the
sides. What was learned is counted on both, and a difference voids the row. One thread each, fresh processes, in turns, and ratios inside a round."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import peers_ppo
import peers_replay

ROOT = Path(__file__).resolve().parents[1]
PEERS = dict(skrl='skrl', tianshou='tianshou', torchrl='torchrl', cleanrl='', leanrl='', sb3='stable-baselines3')
KINDS = dict(ppo=peers_ppo, replay=peers_replay)


def rows(only, scale):
    "What is measured, by name"
    return {name: w | dict(kind=k) for k, m in KINDS.items() for name, w in m.rows(scale).items() if all(x in name for x in only)}


def environment(path, threads):
    "One thread, or what a process has by default"
    env = {k: v for k, v in os.environ.items() if not k.endswith('_NUM_THREADS')}
    if threads: env |= {k: str(threads) for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}
    return env | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(path or ''), str(ROOT), os.environ.get('PYTHONPATH', '')])))


def one(peer, w):
    "A side in this process"
    if w['threads']:
        import torch
        torch.set_num_threads(w['threads'])
    return KINDS[w['kind']].one(peer, w, PEERS.get(peer, ''))


def measured(peer, w, path='', threads=1, pin=None):
    "A side in a process of its own"
    if (peer, w['kind']) == ('cleanrl', 'ppo'): return peers_ppo.cleanrl(w, path, environment(path, 1))
    with tempfile.TemporaryDirectory() as d:
        command = [sys.executable, str(Path(__file__).resolve()), '--one', peer, json.dumps(w | dict(threads=threads, path=path))]
        fix = pin and (lambda: os.sched_setaffinity(0, pin))
        p = subprocess.run(command, capture_output=True, text=True, cwd=d, env=environment(path, threads), preexec_fn=fix)
    if p.returncode: raise RuntimeError(p.stderr[-800:])
    return json.loads(p.stdout.strip().splitlines()[-1])


def alike(a, b):
    "Did both learn as much in a step? A reset row of ours is none, so a little may differ"
    return all(abs(a[k]/a['steps'] - b[k]/b['steps']) < .03*a[k]/a['steps'] for k in ('grads', 'moved') if k in a)


def compare(name, w, paths, rounds, say):
    "Ours beside each peer: ratios of steps per CPU second, one row a peer"
    found, out = {k: [] for k in ('rlnb', *paths) if k == 'rlnb' or KINDS[w['kind']].plays(k, name, w)}, []
    for r in range(rounds if len(found) > 1 else 0):
        for k in list(found)[::-1] if r % 2 else list(found):
            try: found[k].append(measured(k, w, paths.get(k, '')))
            except (RuntimeError, subprocess.CalledProcessError) as e:
                say(f'{name} {k}: no result: {str(e).strip().splitlines()[-1]}')
                found.pop(k)
            else: say(f'round {r + 1}  {name:<24}{k:<10}{found[k][-1]["steps"]/found[k][-1]["cpu"]:>10,.0f} steps/CPU-s')
    ours = found.pop('rlnb')
    for k, xs in found.items():
        ratios = sorted((a['steps']/a['cpu'])/(b['steps']/b['cpu']) for a, b in zip(ours, xs))
        same = alike(ours[0], xs[0])
        sps, peer_sps = (median(x['steps']/x['cpu'] for x in side) for side in (ours, xs))
        out.append(dict(row=name, peer=k, version=xs[0]['version'], sps=sps, peer_sps=peer_sps, ratio=median(ratios) if same else None,
                        low=ratios[0], high=ratios[-1], grads=ours[0]['grads'], peer_grads=xs[0]['grads'],
                        **({'moved': ours[0]['moved'], 'peer_moved': xs[0]['moved']} if 'moved' in xs[0] else {}),
                        void='' if same else 'what was learned differs'))
    return out


def busy(rounds, say, paths):
    "What default settings cost while every core is taken: beside one thread pinned to one core, in wall time"
    w = rows(['ppo-cartpole-8'], 1.)['ppo-cartpole-8']
    part = dict(default=dict(steps=20_480), pinned=dict(steps=20_480), sb3=dict(steps=2_048))     # theirs crawls
    cores = sorted(os.sched_getaffinity(0))
    code = f'import os\nwhile os.getppid() == {os.getpid()}: pass'
    spin = [subprocess.Popen([sys.executable, '-c', code], preexec_fn=lambda c=c: os.sched_setaffinity(0, {c})) for c in cores]
    try:
        pairs = []
        for r in range(rounds):
            kinds = [('default', 'rlnb', 0, None), ('pinned', 'rlnb', 1, {cores[r % len(cores)]}), *[('sb3', 'sb3', 0, None)]*('sb3' in paths)]
            turn = kinds if r % 2 else kinds[::-1]
            pairs.append({k: measured(who, w | part[k], paths.get(who, ''), threads, pin) for k, who, threads, pin in turn})
            say(f'round {r + 1}  busy  ' + '  '.join(f'{k} {x["steps"]/x["wall"]:,.0f} steps/s' for k, x in sorted(pairs[-1].items())))
    finally:
        for p in spin:
            p.kill()
            p.wait()
    def of(a, b, clock): return median(x[a][clock]/x[b][clock] for x in pairs)
    return dict(row='ppo-cartpole-8', cores=len(cores), slower_wall=of('default', 'pinned', 'wall'), slower_cpu=of('default', 'pinned', 'cpu'),
                sps=median(x['default']['steps']/x['default']['wall'] for x in pairs),
                sb3_default_sps=median(x['sb3']['steps']/x['sb3']['wall'] for x in pairs) if 'sb3' in paths else None)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k in PEERS: p.add_argument(f'--{k}', metavar='DIR', help='where it is installed')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--scale', type=float, default=1., help='part of the usual length')
    p.add_argument('--only', nargs='*', default=[], metavar='WORD', help='rows whose names hold every word, and no busy machine')
    p.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one: return print(json.dumps(one(a.one[0], json.loads(a.one[1]))))
    sys.path.insert(0, str(ROOT))
    from rlnb.core.io import write_json
    from rlnb.train.bench import commit, hardware
    paths, file = {k: str(Path(v).absolute()) for k in PEERS if (v := getattr(a, k))}, ROOT / 'results' / 'peers.json'
    have = json.loads(file.read_text(encoding='utf-8')) if file.exists() else dict(rows=[], busy=None)
    kept = {(r['row'], r['peer']): r for r in have['rows']}
    def say(line): print(line, flush=True)
    def write(busy):
        write_json(file, dict(rows=list(kept.values()), busy=busy, hardware=hardware()))
    for name, w in rows(a.only, a.scale).items():
        for r in compare(name, w, paths, a.rounds, say):
            kept[name, r['peer']] = r | dict(rounds=a.rounds, commit=commit())
            ratio = f'{r["ratio"]:.2f} [{r["low"]:.2f}, {r["high"]:.2f}]' if r['ratio'] else r['void']
            say(f'{name:<24}{r["peer"]:<10}{r["sps"]:>10,.0f}{r["peer_sps"]:>10,.0f}  {ratio}')
        write(have['busy'])
    if a.only: return
    b = busy(a.rounds, say, paths)
    write(b)
    say(f'busy: default settings take {b["slower_wall"]:.2f} times the time of a pinned thread ({b["slower_cpu"]:.2f} in CPU seconds)')


if __name__ == '__main__':
    main()
