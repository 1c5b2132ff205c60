"Measure the ground floor on this machine and write results/ground_floor.json: `python tools/measure.py`. README prints what stands there"
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
ROOT = Path(__file__).resolve().parent.parent


def best(f, rounds: int = 7, seconds: float = .2) -> float:
    "Seconds of one call: the best of some rounds"
    f()
    n, took = 1, 0.
    while took < seconds / 4:
        n, then = n * 2, time.perf_counter()
        for _ in range(n):
            f()
        took = time.perf_counter() - then
    out = []
    for _ in range(rounds):
        then = time.perf_counter()
        for _ in range(n):
            f()
        out.append((time.perf_counter() - then) / n)
    return min(out)


def pair(ours, theirs) -> tuple[float, float]:
    "Best of interleaved rounds of two functions"
    a, b = zip(*((best(ours, 1, .1), best(theirs, 1, .1)) for _ in range(7)))
    return min(a), min(b)


def import_time(what: str, before: str = '') -> float:
    code = f'import time\n{before}\nthen = time.perf_counter()\nimport {what}\nprint(time.perf_counter() - then)'
    return min(float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) for _ in range(5))


def rows() -> list[dict]:
    import numpy as np
    import torch

    from rlnb.core import heads
    from rlnb.core.nets import Flat, act_fn, mlp
    from rlnb.core.returns import gae
    torch.set_num_threads(1)
    out = []

    def row(what: str, ours: float, unit: str, peer: str = '', theirs: float = 0.) -> None:
        out.append(dict(what=what, ours=ours, unit=unit, peer=peer, theirs=theirs, ratio=theirs / ours if theirs else None))
    row('import rlnb', import_time('rlnb') * 1e3, 'ms')
    row('import rlnb.all, beyond torch', import_time('rlnb.all', 'import torch') * 1e3, 'ms')
    net, rng = mlp((4, 64, 64, 2)), np.random.default_rng(0)
    fast = act_fn(net)
    for n in (8, 64):
        obs = rng.normal(size=(n, 4)).astype(np.float32)
        def plain(obs=obs):
            with torch.no_grad():
                d = torch.distributions.Categorical(logits=net(torch.from_numpy(obs)))
                a = d.sample()
                return a.numpy(), d.log_prob(a).numpy()
        a, b = pair(lambda obs=obs: heads.sample_categorical(fast(obs), rng), plain)
        row(f'draw {n} actions, 4-64-64-2', a * 1e6, 'µs', 'torch modules and torch.distributions', b * 1e6)
    mine, peer = mlp((4, 64, 64, 2)), mlp((4, 64, 64, 2))
    flat, adam = Flat(mine), torch.optim.Adam(peer.parameters())
    for p in peer.parameters():
        p.grad = torch.ones_like(p)
    flat.grad.fill_(1.)
    def ours() -> None:
        flat.clip(.5)
        flat.adam(1e-4)
    def theirs() -> None:
        torch.nn.utils.clip_grad_norm_(peer.parameters(), .5)
        adam.step()
    a, b = pair(ours, theirs)
    row('clip and Adam step, 4-64-64-2', a * 1e6, 'µs', 'torch.optim.Adam and clip_grad_norm', b * 1e6)
    r, v, nv = rng.normal(size=(3, 128, 64)).astype(np.float32)
    done = rng.random((128, 64)) < .05
    discount, lam = np.float32(.99) * ~done, np.float32(.95)
    row('advantages of 128 × 64 steps', best(lambda: gae(r, discount, v, nv, done, lam)) * 1e6, 'µs')
    return out


def main() -> None:
    import numpy
    import torch
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    result = dict(rows=rows(), cpu=f'{platform.machine()}, {os.cpu_count()} cores', python=platform.python_version(),
                  torch=torch.__version__, numpy=numpy.__version__, commit=commit)
    (ROOT / 'results').mkdir(exist_ok=True)
    (ROOT / 'results' / 'ground_floor.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    for r in result['rows']:
        beside = f"{r['theirs']:>10.1f} {r['unit']}  {r['ratio']:.1f}×  {r['peer']}" if r['ratio'] else ''
        print(f"{r['what']:<36}{r['ours']:>10.1f} {r['unit']:<4}{beside}")


if __name__ == '__main__':
    main()
