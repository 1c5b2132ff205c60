"""Columns and pictures of a metrics file: the same numbers whoever kept them, damaged or not; quick for a million rows; valid JSON whatever is refused."""
import errno
import itertools
import json
import time

import numpy as np
import pytest
from disks import Careless, Refusing
from test_io_faults import quick  # noqa: F401

from rlnb.core.errors import DiskError
from rlnb.core.io import from_json, using
from rlnb.core.rows import read_jsonl
from rlnb.runs import curves as page
from rlnb.runs.curves import columns, curves, index, metrics_json

KEYS = ['episode/return', 'episode/return/n', 'learn/pg_loss', 'learn/vf_loss', 'learn/entropy']


def rows(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.random((n, 6))
    for i in range(n):
        r = {'step': 40*(i + 1), 'iter': i + 1}
        if i % 3: r |= {f'episode/{k}': dict(mean=x[i, 0]*500, min=x[i, 1], max=500., n=3) for k in ('length', 'return')}
        yield r | {'learn/pg_loss': x[i, 2] if i % 7 else 'NaN', 'learn/vf_loss': x[i, 3], 'learn/entropy': x[i, 4], 'learn/explained_variance': x[i, 5]}


def write(folder, n: int, seed: int = 0):
    folder.mkdir(exist_ok=True)
    with open(folder/'metrics.jsonl', 'a') as f:
        for r in rows(n, seed): f.write(json.dumps(r, separators=(',', ':')) + '\n')
    return folder/'metrics.jsonl'


def plainly(path) -> dict:
    "The same columns, one row at a time"
    out: dict = {k: [] for k in ('step', *KEYS)}
    for r in read_jsonl(path)[0]:
        e = r.get('episode/return', {})
        for k in out: out[k].append({'episode/return': e.get('mean', np.nan), 'episode/return/n': e.get('n', np.nan)}.get(k, r.get(k, np.nan)))
    return {k: np.array(v, float) for k, v in out.items()}


def agree(path) -> None:
    got, want = columns(path, KEYS)[0], plainly(path)
    for k in want: np.testing.assert_array_equal(got[k], want[k], err_msg=k)


@pytest.fixture
def small(monkeypatch): monkeypatch.setattr(page, '_BLOCK', 3000)


def test_damaged_columns_are_never_shown(quick, small):  # noqa: F811
    "Any bit of the kept columns flipped, or any part of them missing: the numbers stay those of the rows"
    path = write(quick/'r', 60)
    index(path)
    keep, rng = path.with_suffix('.columns'), np.random.default_rng(0)
    good = keep.read_bytes()
    for i in [*range(0, 1500, 3), *rng.integers(0, len(good), 300).tolist()]:
        bad = bytearray(good)
        bad[i] ^= 1 << int(rng.integers(8))
        keep.write_bytes(bad)
        with using(Refusing(0, errno.EROFS, True)): agree(path)
    for i in rng.integers(0, len(good), 60).tolist():
        keep.write_bytes(good[:i])
        with using(Refusing(0, errno.EROFS, True)): agree(path)


@pytest.mark.parametrize('looked', [False, True])
def test_columns_of_a_run_that_went_on_otherwise_are_not_used(looked, quick, small):  # noqa: F811
    path = write(quick/'r', 60)
    index(path)
    data = path.read_bytes()
    path.write_bytes(data[:data.index(b'\n', len(data)//2) + 1])
    if looked: agree(path)
    write(quick/'r', 40, seed=1)
    agree(path)
    index(path)
    agree(path)


def test_a_follower_sees_each_row_once(quick, small):  # noqa: F811
    path, got, at = write(quick/'r', 1), [], 0
    for k in range(30):
        new, at = columns(path, KEYS, at)
        got.append(new)
        write(quick/'r', int(np.random.default_rng(k).integers(0, 40)), seed=k)
    got.append(columns(path, KEYS, at)[0])
    want = plainly(path)
    for k in want: np.testing.assert_array_equal(np.concatenate([g[k] for g in got]), want[k])


def test_metrics_json_is_valid_whatever_the_disk_refuses(quick):  # noqa: F811
    write(quick/'r', 5)
    for n in itertools.count():
        (quick/'r/metrics.json').unlink(missing_ok=True)
        with using(Careless()): metrics_json(quick/'r')
        write(quick/'r', 1, seed=n)
        disk, failed = Refusing(n, errno.ENOSPC, False), False
        with using(disk):
            try: metrics_json(quick/'r')
            except DiskError: failed = True
        got = len(from_json((quick/'r/metrics.json').read_bytes())['rows'])
        assert got == 6 + n or (failed and got == 5 + n)
        if disk.n <= n: break
    assert n >= 5


def spent(f) -> float:
    then = time.process_time()
    f()
    return time.process_time() - then


def million(folder, n: int) -> None:
    "CPU seconds, since the machines that run this are shared; the bars are those of the specification"
    path = write(folder, n)
    first = spent(lambda: index(path))
    again, drawn = spent(lambda: columns(path, KEYS)), spent(lambda: curves(folder))
    print(f'{n:,} rows, {path.stat().st_size/1e6:.0f} MB: kept in {first:.1f} s, then read in {again:.3f} s; pictures in {drawn:.2f} s')
    assert again < 1 and drawn < 2
    got, end = columns(path, KEYS)
    assert len(got['step']) == n and end == path.stat().st_size


def test_fifty_thousand_rows(tmp_path): million(tmp_path/'r', 50_000)


@pytest.mark.slow
def test_a_million_rows(tmp_path): million(tmp_path/'r', 1_000_000)
