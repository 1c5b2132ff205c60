"""TensorBoard's mirror: after hundreds of kills every row is there once; every power cut leaves a file that is taken up again; every refusal is one line."""
import errno
import itertools
import json
import math
import os
import shutil

import numpy as np
import pytest
from disks import Careless, Noting, Refusing, build, power_cuts
from test_io_faults import fds, quick  # noqa: F401

from rlnb.core.errors import DiskError
from rlnb.core.io import using
from rlnb.core.rows import Jsonl, read_jsonl
from rlnb.train.mirror import Mirror, Tape, event, export_tb, pack, tags, unpack

pytest.importorskip('tensorboard')


def shown(folder) -> dict:
    "(tag, step) → all values that TensorBoard has there"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    acc, out = EventAccumulator(str(folder), size_guidance=dict(scalars=0, tensors=0), purge_orphaned_data=False).Reload(), {}
    for tag in acc.Tags()['scalars']:
        for e in acc.Scalars(tag): out.setdefault((tag, e.step), []).append(e.value)
    return out


def truth(path) -> dict: return {(k, r['step']): [np.float32(v).item()] for r in read_jsonl(path)[0] for k, v in tags(r).items()}


def same(a: dict, b: dict) -> bool: return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


class Life:
    metrics, episodes, agent, durable = {}, [], None, 0
    def __init__(self, run, durable): self.run, self.durable = run, durable


def row(i: int, salt: float) -> dict:
    return {'step': 64*i, 'iter': i, 'learn/loss': 1/i + salt, 'learn/kl': math.nan if i % 11 == 0 else .01,
            **({'episode/return': dict(mean=i/7, min=0., max=1., n=i)} if i % 3 else {})}


def lives(run, kills: int, rng) -> None:
    "Kill and resume, from an older checkpoint now and then; a resumed life may write other numbers than the one before (a relaxed resume)"
    ckpts = [(0, 0, Mirror().state_dict())]
    for k in range(kills + 1):
        if len(ckpts) > 1 and rng.random() < .15: ckpts.pop()
        first, cut, state = ckpts[-1]
        log, t, m = Jsonl(run/'metrics.jsonl', cut=cut), Life(run, cut), Mirror()
        m.load_state_dict(json.loads(json.dumps(state)))
        m.before_fit(t)
        for i in range(first + 1, first + int(rng.integers(1, 30)) + (50 if k == kills else 0)):
            log.append(row(i, k))
            if rng.random() < .2: m.after_learn(t)         # so that kills fall between a checkpoint and its publication
            if rng.random() < .15:
                ckpts.append((i, log.offset, m.state_dict()))
                t.durable = log.offset
        if k == kills:
            t.durable = log.offset
            m.after_fit(t)
        elif rng.random() < .5 and m.tape.at:           # killed while it wrote: some of the last bytes are not there
            os.truncate(m.tape.path, max(ckpts[-1][2]['at'], m.tape.at - int(rng.integers(0, 400))))
        log.close()
        assert not m.trouble


def test_no_row_is_lost_or_doubled_by_kills(quick):  # noqa: F811
    kills = 0
    for seed in range(6):
        run = quick/str(seed)
        run.mkdir()
        with using(Careless()): lives(run, 60, np.random.default_rng(seed))
        kills += 60
        want = truth(run/'metrics.jsonl')
        got = shown(run/'tb')
        lost, doubled = len(want.keys() - got.keys()), sum(len(v) > 1 for v in got.values())
        assert (lost, doubled) == (0, 0) and same(got, want)
    print(f'{kills} kills, 0 points lost, 0 doubled')


def test_every_power_cut_is_taken_up_again(quick):  # noqa: F811
    "A life that publishes twice; whatever the cut leaves, a life that knows the last checkpoint ends with each row once"
    told, acks = quick/'told', []
    told.mkdir()
    disk = Noting(told)
    with using(disk):
        log, m, ends = Jsonl(told/'metrics.jsonl'), Mirror(), []
        t = Life(told, 0)
        m.before_fit(t)
        for i in range(1, 13):
            ends.append(log.append(row(i, 0)))
            if i % 4 == 0:
                state = m.state_dict()
                acks.append((len(disk.log), log.sync(), state))
                t.durable = log.offset
            m.after_learn(t)
        log.close()
    states = 0
    for k, state in power_cuts(disk.log, 100):
        known = [(cut, s) for at, cut, s in acks if at < k]
        cut, saved = known[-1] if known else (0, Mirror().state_dict())
        with using(Careless()):
            run = build(quick/'dark', state)
            log, m = Jsonl(run/'metrics.jsonl', cut=cut) if (run/'metrics.jsonl').exists() else Jsonl(run/'metrics.jsonl'), Mirror()
            m.load_state_dict(saved)
            m.before_fit(Life(run, cut))
            for i in range(ends.index(cut) + 2 if cut else 1, 13): log.append(row(i, 0))
            m.publish(math.inf)
            log.close()
        assert not m.trouble and [e[10:] for e in unpack(m.tape.path.read_bytes())[1:]] == [event(r['step'], 0., tags(r))[10:] for r in read_jsonl(run/'metrics.jsonl')[0]]
        assert len(read_jsonl(run/'metrics.jsonl')[0]) == 12
        states += 1
    print(f'{states} power-cut states, all taken up again')
    assert states > 300


def test_a_refused_operation_is_one_line_and_training_goes_on(quick, capsys):  # noqa: F811
    for n in itertools.count():
        shutil.rmtree(quick/'r', ignore_errors=True)
        (quick/'r').mkdir()
        log, t, m, held = Jsonl(quick/'r/metrics.jsonl'), Life(quick/'r', 0), Mirror(), fds()
        disk = Refusing(n, errno.ENOSPC, True)
        for i in range(1, 9):
            t.durable = log.append(row(i, 0))
            with using(disk):
                if i == 1: m.before_fit(t)
                m.after_learn(t)
        with using(disk): m.after_fit(t)
        log.close()
        assert fds() == held - 1
        said = [s for s in capsys.readouterr().out.splitlines() if s]
        if disk.n <= n: break
        assert len(said) == 1 and 'ENOSPC' in said[0] and 'export_tb' in said[0]
        assert same(shown(export_tb(quick/'r')), truth(quick/'r/metrics.jsonl'))
    assert n > 8


def test_a_run_without_a_checkpoint_is_published_at_its_end(quick):  # noqa: F811
    (quick/'r').mkdir()
    log, t, m = Jsonl(quick/'r/metrics.jsonl'), Life(quick/'r', None), Mirror()
    m.before_fit(t)
    for i in range(1, 5):
        log.append(row(i, 0))
        m.after_learn(t)
    assert not (quick/'r/tb').exists()
    m.after_fit(t)
    log.close()
    assert same(shown(quick/'r/tb'), truth(quick/'r/metrics.jsonl'))


@pytest.mark.parametrize('junk', [b'', b'x', b'\0'*200, pack([b'\x1a\x0dbrain.Event:2']), pack([event(1, 0., {'a': 1.})]), bytes(range(256))*2, b'\xff'*40], ids=range(7))
def test_a_foreign_event_file_is_written_anew(junk, quick):  # noqa: F811
    (quick/'r/tb').mkdir(parents=True)
    (quick/'r/tb/events.out.tfevents.rlnb').write_bytes(junk)
    with Jsonl(quick/'r/metrics.jsonl') as log:
        for i in range(1, 5): log.append(row(i, 0))
    assert same(shown(export_tb(quick/'r')), truth(quick/'r/metrics.jsonl'))


def test_strange_rows(quick):  # noqa: F811
    (quick/'r').mkdir()
    strange = [b'{"step":1,"a":1e300,"b":true,"c":"text","d":null,"e":[1],"f":{"mean":"NaN","min":-1e300}}', b'[1]', b'nonsense', b'{"a":1}', b'{"step":"2","a":1}',
               b'{"step":70000000000,"a":0.1}', b'{"step":3,"' + 'ü'.encode()*100 + b'":2}', b'{"step":4}', b'{"step":5,"a":2']
    (quick/'r/metrics.jsonl').write_bytes(b'\n'.join(strange))
    got = shown(export_tb(quick/'r'))
    assert got[('a', 1)] == [math.inf] and math.isnan(got[('f', 1)][0]) and got[('f/min', 1)] == [-math.inf] and got[('b', 1)] == [1.]
    assert got[('a', 70000000000)] == [np.float32(.1).item()] and got[('ü'*100, 3)] == [2.]
    assert len(got) == 6


def test_it_needs_no_tensorboard_and_no_torch_to_write(quick):  # noqa: F811
    import subprocess
    import sys
    (quick/'r').mkdir()
    with Jsonl(quick/'r/metrics.jsonl') as log: log.append(row(1, 0))
    code = f'import sys; sys.modules["tensorboard"] = None\nfrom rlnb.train.mirror import export_tb\nexport_tb({str(quick/"r")!r})'
    subprocess.run([sys.executable, '-c', code], check=True)
    assert same(shown(quick/'r/tb'), truth(quick/'r/metrics.jsonl'))
    with pytest.raises(DiskError), using(Refusing(0, 28, True)): Tape(quick/'r')._append(b'x')
