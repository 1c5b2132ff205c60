"""What may happen to a run, row by row of the fault table (`test_fault_NN_…`), and what may be done to it (`test_attack_NN_…`).
`python tools/faults.py` makes the table from these names. Lives are forked, so that SIGKILL is SIGKILL; the folders lie in memory."""
import ast
import ctypes
import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import rough
from disks import Careless, Listing, Noting, Refusing, Window, build, power_cuts

from rlnb.agents.base import agents
from rlnb.core import io
from rlnb.core.errors import BadInput, DiskError, Locked, NoCheckpoint, RlnbError
from rlnb.core.io import Damaged, contained, disk, make_dir, read_json, using, write_json
from rlnb.core.platform import Lock, is_locked
from rlnb.core.rows import Jsonl, read_jsonl
from rlnb.core.text import slug
from rlnb.core.yaml import load_yaml
from rlnb.runs import state as state_page
from rlnb.runs.ckpt import load_state, steps_saved
from rlnb.runs.control import Inbox, send
from rlnb.runs.events import Events, read_events
from rlnb.runs.keep import Keeper, manifest_of_best, resume_point
from rlnb.runs.run import Run, create, find, runs
from rlnb.runs.state import State, read_state
from rlnb.train import worker
from rlnb.train.certify import Fatal, differences
from rlnb.train.experiment import Experiment
from rlnb.train.save import beside
from rlnb.train.session import Life, asked, fit, folder_for
from rlnb.train.track import Rows

posix = pytest.mark.skipif(not hasattr(os, 'fork'), reason='lives are forked')
pytestmark = posix
MEMORY = '/dev/shm' if os.access('/dev/shm', os.W_OK) and shutil.disk_usage('/dev/shm').free > 1 << 30 else None     # a container's has 64 MB
WORDS = dict(n_steps=8, num_envs=4, hidden=[8], checkpoint_every=96, keep=2)
SET = {'ent_coef': .03}


@pytest.fixture
def quick():
    with tempfile.TemporaryDirectory(dir=MEMORY) as d: yield Path(d)


def folder(root, name='run', steps=480, env='rlnb/CartPole-v1', agent='a2c', **more) -> Run:
    return folder_for(asked(agent, env, steps, False, **WORDS | more), root, name)


def child(act, log: Path) -> int:
    "Fork, act, and return the exit code of what acted"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(fd, 1), os.dup2(fd, 2)
            sys.stdout, sys.stderr = (os.fdopen(n, 'w', closefd=False) for n in (1, 2))     # pytest has put others in their place
            code = act() or 0
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> int: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def begun(run: Run, door=None, *more: str, before=None) -> int:
    "Begin a life of a run in a child; its number"
    def act():
        if before: before()
        if door: counted(door)
        if isinstance(door, Fatal): door.arm()
        return worker.main([str(run.path), '--episodes', '0', *more])
    return child(act, run.path/'log.txt')


def counted(door) -> None:
    "Operations of the disk are counted from here on; a beat by the clock must not be one of them"
    disk.now, State.every = door, 1e9


def lived(run: Run, door=None, *more: str, before=None) -> int: return ended(begun(run, door, *more, before=before))


def copy(run: Run, name: str) -> Run:
    shutil.rmtree(run.path.with_name(name), ignore_errors=True)
    return Run(shutil.copytree(run.path, run.path.with_name(name)))


def said(run: Run) -> list[str]:
    "What the last life wrote on standard error, its own lines only"
    return [s for s in (run.path/'log.txt').read_text().splitlines() if s.startswith('rlnb: ')]


def flip(f: Path, at: int = -1, bit: int = 2) -> None:
    b = bytearray(f.read_bytes())
    b[at if at >= 0 else len(b)//2] ^= 1 << bit
    f.write_bytes(bytes(b))


def newest_of(run: Run) -> Path: return run.path/'ckpt'/f'{steps_saved(run.path)[-1]:012d}'


# ---- one story: a run that was killed inside a save, its newest checkpoint damaged, rows behind it, a command waiting
@pytest.fixture(scope='module')
def story():
    with tempfile.TemporaryDirectory(dir=MEMORY) as d:
        for n in range(80, 400):
            half = folder(d, f'half-{n}', eval_every=96, eval_episodes=2)
            assert lived(half, Fatal(n)) == -signal.SIGKILL
            if len(steps_saved(half.path)) >= 3 and any(p.name.startswith('.tmp-') for p in (half.path/'ckpt').iterdir()): break
            shutil.rmtree(half.path)
        flip(newest_of(half)/'arrays.safetensors')
        send(half.path, 'set', changes=SET)
        peace = copy(half, 'peace')
        listing = Listing()
        def listed():
            counted(listing)
            code = worker.main([str(peace.path), '--episodes', '0'])
            disk.now = io.Disk()
            write_json(Path(d)/'ops.json', listing.ops)
            return code
        assert ended(child(listed, peace.path/'log.txt')) == 0
        ops = read_json(Path(d)/'ops.json', 1 << 26)
        assert any(e['kind'] == 'fallback' for e in peace.events) and any(e['kind'] == 'set' for e in peace.events)
        yield SimpleNamespace(half=half, peace=peace, ops=ops)


def part(who: list[str]) -> str:
    "What an operation belongs to"
    for name, mark in (('retention', 'retire'), ('command', 'obey'), ('save', 'save_state'), ('resume', 'begin'), ('end', 'end'), ('resume', 'fit_begins')):
        if mark in who: return name
    return 'training' if 'after_learn' in who else 'resume'


@pytest.fixture(scope='module')
def killed(story):
    "The story told once for every operation of the disk, and the process killed there: (part, name, what differs in the end)"
    found = []
    for n, (name, who) in enumerate(story.ops):
        run = copy(story.half, 'killed')
        first = lived(run, Fatal(n))
        again = lived(run) if first else 0
        found.append((part(who), name, first, again, differences(story.peace, run) if again == 0 else ['it does not go on']))
    counts = {p: sum(f[0] == p for f in found) for p in {f[0] for f in found}}
    print(f'killed at each of {len(found)} operations: {counts}; {sum(not f[4] for f in found)} runs ended in the same bytes')
    return found


def test_fault_02_killed_inside_each_operation_of_a_save(killed):
    mine = [f for f in killed if f[0] == 'save']
    assert len(mine) >= 24 and {'open', 'write', 'fsync_all', 'close', 'replace', 'fsync_dir', 'mkdir'} <= {f[1] for f in mine}
    assert [f for f in mine if f[4]] == [] and all(f[2] == -signal.SIGKILL for f in mine)


def test_fault_03_killed_inside_each_operation_of_a_resume_of_retention_and_of_a_command(killed):
    for p, least in dict(resume=20, retention=8, command=3, training=10, end=8).items():
        mine = [f for f in killed if f[0] == p]
        assert len(mine) >= least, (p, len(mine))
        assert [f for f in mine if f[4]] == []


def refusals(story, every: int, offset: int = 0):
    for n in range(offset, len(story.ops), every):
        for code in (errno.ENOSPC, errno.EIO, errno.EACCES):
            for on in (False, True): yield n, code, on


def test_fault_12_each_operation_refused_once_or_for_good(story):
    "Training goes on over a refusal, or the process ends with 74 and one line; afterwards the run goes on to the same bytes"
    count, codes = 0, {}
    for n, code, on in refusals(story, 11):
        run = copy(story.half, 'refused')
        first = lived(run, Refusing(n, code, on))
        codes[first] = codes.get(first, 0) + 1
        assert first in (0, 74), (n, story.ops[n], errno.errorcode[code], on, (run.path/'log.txt').read_text()[-2000:])
        if first: assert said(run) and lived(run) == 0, (n, story.ops[n], (run.path/'log.txt').read_text()[-2000:])
        if part(story.ops[n][1]) != 'command':          # one that could not be recorded waits: it takes effect later
            assert differences(story.peace, run) == [], (n, story.ops[n], errno.errorcode[code], on)
        count += 1
    print(f'{count} refusals, exit codes {codes}')
    assert count > 60 and codes[0] and codes[74]


def test_fault_13_no_room_for_rows_and_events(story):
    "A torn row is mended, rows wait, and the run goes on"
    rows = [i for i, (name, who) in enumerate(story.ops) if name == 'write' and 'flush' in who]
    for n in rows[2:6]:
        run = copy(story.half, 'refused')
        assert lived(run, Window(n, n + 3, errno.ENOSPC)) == 0
        assert differences(story.peace, run) == []


def test_fault_14_room_again(story):
    "The disk is full for the time of two saves: nobody has to do anything, and events tell of it"
    saves = [i for i, (name, who) in enumerate(story.ops) if name == 'mkdir' and 'save_state' in who and 'after_learn' in who]
    run = copy(story.half, 'refused')
    assert lived(run, Window(saves[0], saves[0] + 6, errno.ENOSPC)) == 0, (run.path/'log.txt').read_text()[-1500:]
    assert set(differences(story.peace, run)) <= {'best'}          # what there was no room for, was not kept
    assert [e for e in run.events if e['kind'] == 'unsaved']


def test_fault_16_a_failed_fsync_is_no_save(story):
    "EIO once at each fsync of a save: it counts as failed, and the next one is made from nothing"
    syncs = [i for i, (name, who) in enumerate(story.ops) if name in ('fsync_all', 'fsync_dir') and 'save_state' in who][:9]
    for n in syncs:
        run = copy(story.half, 'refused')
        assert lived(run, Refusing(n, errno.EIO, False)) in (0, 74)
        assert lived(run) == 0 and differences(story.peace, run) == []


def test_fault_17_a_rename_that_fails(story):
    moves = [i for i, (name, who) in enumerate(story.ops) if name == 'replace' and 'save_state' in who][:2]
    for n in moves:
        run = copy(story.half, 'refused')
        assert lived(run, Refusing(n, errno.EXDEV, False)) == 0 and [e for e in run.events if e['kind'] == 'unsaved' and 'EXDEV' in e['cause']]


def test_fault_18_a_folder_that_can_not_be_written(quick):
    run = folder(quick)
    assert lived(run, Refusing(0, errno.EROFS, True)) == 74 and len(said(run)) == 1 and 'EROFS' in said(run)[0]
    assert run.phase == 'new' and lived(run) == 0


def test_fault_19_no_permission(quick):
    run = folder(quick)
    assert lived(run, Refusing(2, errno.EACCES, True)) == 74 and len(said(run)) == 1 and 'EACCES' in said(run)[0]


# ---- memory and inodes
def test_fault_10_killed_because_memory_ran_out(quick, monkeypatch):
    "The system kills without a word, and counts. A reader says `lost` and why; the next life ends in the same bytes. (Here the count is a file of ours.)"
    peace, run, counts = folder(quick, 'peace', 3_000), folder(quick, 'short', 3_000), quick/'vmstat'
    assert lived(peace) == 0
    monkeypatch.setattr(state_page, '_COUNTS', counts)
    for kills, told in ((0, False), (1, True)):
        counts.write_text('nr_free_pages 99\noom_kill 0\n')
        pid = begun(run, before=lambda: slowly(.2))
        until(lambda: run.phase == 'running' and run.state['step'] > 0 and 'oom' in run.state)
        os.kill(pid, signal.SIGKILL)
        counts.write_text(f'nr_free_pages 0\noom_kill {kills}\n')
        assert ended(pid) == -signal.SIGKILL and run.phase == 'lost'
        assert ('memory ran out' in run.state['error']['cause']) == told and '\n' not in run.state['error']['cause']
    assert lived(run) == 0 and differences(peace, run) == [] and 'error' not in run.state


def slowly(seconds: float) -> None:
    "Each iteration of this life takes that much longer"
    from rlnb.train.trainer import Trainer
    one = Trainer.one_iter
    def waiting(self):
        one(self)
        time.sleep(seconds)
    Trainer.one_iter = waiting


BALLAST, MARGIN = 64, 24        # megabytes: of the state that is no weight, and those that the process may still have


def laden() -> None:
    "The state of this life is large, and learning needs little: sixteen arrays that no update touches go with it"
    from rlnb.train.trainer import Trainer
    plain, load = Trainer.state_dict, [np.full(BALLAST << 14, i, np.float32) for i in range(16)]
    Trainer.state_dict = lambda self, rows=True: plain(self, rows) | dict(load=load)


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='the size of this process is not told')
def test_fault_11_no_memory_for_a_snapshot(quick):
    """The state has 64 MB, the process may have 24 MB more: the copy in memory fails and is done without, checkpoints are streamed, and nothing is
    different in the end. What the allocator holds in reserve differs from machine to machine; here it holds none, so that the limit is the limit"""
    words = dict(checkpoint_every=160, steps=384)
    peace, run = folder(quick, 'peace', **words), folder(quick, 'short', **words)
    code = f'import test_run_faults as t; raise SystemExit(t.short_of_memory({str(run.path)!r}, {str(quick/"seen.json")!r}))'
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = os.environ | dict(PYTHONPATH=path, MALLOC_ARENA_MAX='1', MALLOC_MMAP_THRESHOLD_='131072', MALLOC_TOP_PAD_='131072')
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300)      # afresh: a fork has what its parent let go
    assert r.returncode == 0 and lived(peace, before=laden) == 0, r.stderr[-2000:]
    seen = read_json(quick/'seen.json')
    assert not seen['copy'] and seen['room'] < BALLAST/2 and differences(peace, run) == [], seen
    assert len([e for e in run.events if e['kind'] == 'checkpoint']) >= 3 and not [e for e in run.events if e['kind'] == 'unsaved']


def short_of_memory(path: str, seen: str) -> int:
    "A life whose memory may not grow from its fourth iteration on, and which tries to copy its state then"
    from rlnb.train import trainer
    from rlnb.train.save import Checkpoint
    one, copied = trainer.Trainer.one_iter, Checkpoint._copy
    Checkpoint._copy = lambda self, t: None                        # an earlier copy would leave its memory to the next
    trainer.keep_memory = lambda: False
    laden()
    threading.stack_size(1 << 18)
    def less(self):
        one(self)
        if self.iter != 4: return
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages*resource.getpagesize() + (MARGIN << 20), resource.RLIM_INFINITY))
        saver, held = next(c for c in self.cbs.cbs if isinstance(c, Checkpoint)), []
        with suppress(MemoryError):
            while True: held.append(np.empty(1 << 20, np.uint8))
        room = len(held)                                           # megabytes that there really are
        held.clear()
        copied(saver, self)
        write_json(seen, dict(copy=saver.good is not None, room=room))
    trainer.Trainer.one_iter = less
    return worker.main([path, '--episodes', '0'])


def small_disk(at: Path, inodes: int) -> bool:
    "In this process and its children only: a file system in memory that has so many inodes. False where the system does not allow it"
    libc = ctypes.CDLL(None, use_errno=True)
    mine, other, none = 0x00020000, 0x10000000, (1 << 18) | (1 << 14)                # CLONE_NEWNS, CLONE_NEWUSER, MS_PRIVATE | MS_REC
    if libc.unshare(mine if os.geteuid() == 0 else mine | other): return False
    return not libc.mount(b'none', b'/', None, none, None) and not libc.mount(b'tmpfs', str(at).encode(), b'tmpfs', 0, f'nr_inodes={inodes},size=64m'.encode())


def take_inodes(folder_: Path) -> None:
    "Make empty files until the file system has no room for one more"
    for i in range(10**5):
        try: (folder_/f'{i}').touch(exist_ok=False)
        except OSError as e:
            assert e.errno == errno.ENOSPC
            return


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='a mount of its own')
def test_fault_15_no_inode_left(quick):
    "As a full disk: for a while, and the run goes on by itself; for good, and it ends with 74, one line, and goes on when there is room"
    peace = folder(quick, 'peace', 960)
    assert lived(peace) == 0
    def there():
        if not small_disk(make_dir(quick/'few'), 400): return 42
        filled, told = make_dir(quick/'few'/'filled'), {}
        def full(until_: float):
            def before():
                from rlnb.train.trainer import Trainer
                one = Trainer.one_iter
                def filling(self):
                    if self.iter == 6: take_inodes(filled)
                    if self.iter == until_: empty()
                    one(self)
                Trainer.one_iter = filling
            return before
        def empty():
            for f in filled.iterdir(): f.unlink()
        for name, until_ in (('while', 11), ('good', float('inf'))):
            run = folder(quick/'few', name, 960)
            codes = [lived(run, before=full(until_))]
            empty()
            unsaved = [e['cause'] for e in run.events if e['kind'] == 'unsaved']
            if codes[0]: codes.append(lived(run))
            told[name] = dict(codes=codes, unsaved=unsaved, lines=len(said(run)), odd=differences(peace, run), log=(run.path/'log.txt').read_text()[-1500:])
        write_json(quick/'told.json', told)
    code = ended(child(there, quick/'log.txt'))
    if code == 42: pytest.skip('no mount of its own is allowed here')
    assert code == 0, (quick/'log.txt').read_text()
    told = read_json(quick/'told.json')
    assert told['while']['codes'] == [0] and 'ENOSPC' in told['while']['unsaved'][0] and set(told['while']['odd']) <= {'best'}, told['while']
    assert told['good']['codes'] == [74, 0] and told['good']['lines'] == 1 and told['good']['odd'] == [], told['good']


# ---- kills from outside
def until(f, seconds=120.):
    "It comes to pass; the limit is for what never does"
    end = time.monotonic() + seconds
    while not (done := f()) and time.monotonic() < end: time.sleep(.002)
    assert done or f()


def test_fault_01_killed_at_any_time(quick):
    "The long way is tests/test_kills.py and tools/kills.py; here one run is killed at every tenth of its life"
    peace = folder(quick, 'peace', 3_000)
    then = time.monotonic()
    assert lived(peace, before=lambda: slowly(.003)) == 0
    span, kills = time.monotonic() - then, 0
    for n in range(9):                                # the span was longer than a life is now? Then sooner
        run = folder(quick, f'killed-{n}', 3_000)
        while True:
            pid = begun(run, before=lambda: slowly(.003))
            time.sleep(span*(.3 + .1*(kills % 10))*.7**n)
            if os.waitpid(pid, os.WNOHANG)[0]: break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
            assert kills < 99 and run.phase in ('new', 'lost', 'finished')
        lived(run)
        assert differences(peace, run) == []
        if kills: return
    raise AssertionError('no life was long enough to be killed')


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_fault_05_a_polite_signal_at_any_moment(sent, quick):
    "In a rollout, an update, a save, a look: saved, 75, and the same bytes in the end"
    peace = folder(quick, 'peace', 3_000, eval_every=256, eval_episodes=2)
    assert lived(peace) == 0
    run, codes = folder(quick, 'asked', 3_000, eval_every=256, eval_episodes=2), []
    for k in range(60):
        pid = begun(run, before=lambda: slowly(.004))
        until(lambda: run.phase in ('running', 'finished'))
        time.sleep(.013*k % .1)
        with suppress(ProcessLookupError): os.kill(pid, sent)
        codes.append(ended(pid))
        if codes[-1] == -sent and run.phase == 'finished': codes[-1] = 0        # all was done, and the process was just about to leave
        if codes[-1] == 0: break
    assert set(codes[:-1]) <= {75} and codes[-1] == 0 and len(codes) > 2, codes
    assert differences(peace, run) == []


def test_fault_06_a_second_signal_is_an_order(quick):
    run = folder(quick, steps=10**6, env='rough:Stuck', agent='a2c')
    pid = begun(run, None, '--allow-import', 'rough')
    until(lambda: run.phase == 'running')
    for _ in range(2):
        time.sleep(.5)                                # two of a kind at once would be one
        os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 128 + signal.SIGTERM and run.phase == 'lost' and not is_locked(run.path/'LOCK')


def test_fault_07_a_process_that_sleeps_is_not_dead(quick):
    run = folder(quick, steps=10**9)
    pid = begun(run)
    until(lambda: run.phase == 'running')
    os.kill(pid, signal.SIGSTOP)
    time.sleep(.3)
    asleep = run.phase
    os.kill(pid, signal.SIGCONT)
    step = run.state['step']
    until(lambda: run.state['step'] > step)
    os.kill(pid, signal.SIGTERM)
    assert (asleep, ended(pid)) == ('running', 75)


def test_fault_08_the_terminal_closes(quick):
    "A worker has a session of its own: a hang-up of the group that started it does not reach it"
    run = folder(quick, steps=10**9)
    code = f'''import signal, sys, time
from pathlib import Path
from rlnb.core.platform import popen_detached
signal.signal(signal.SIGHUP, signal.SIG_DFL)       # whoever runs these tests may have it ignored: the worker would inherit that, and prove nothing
p = popen_detached([sys.executable, '-m', 'rlnb.train.worker', {str(run.path)!r}], {str(run.path/"log.txt")!r})
print(p.pid, flush=True)
time.sleep(60)'''
    terminal = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    pid = int(terminal.stdout.readline())
    until(lambda: run.phase == 'running')
    os.killpg(terminal.pid, signal.SIGHUP)
    assert terminal.wait(20) == -signal.SIGHUP
    step = run.state['step']
    until(lambda: run.state['step'] > step)
    run.stop()
    run.wait(120)
    assert run.phase == 'stopped' and pid


# ---- the power goes
def saves(root, ack):
    "Rows, events and checkpoints as a run writes them, the old ones let go"
    make_dir(root/'ckpt')
    events, rows, keeper = Events(root), Rows(root/'metrics.jsonl', cut=0), Keeper(root, keep=2)
    for v in range(1, 5):
        rows.append({'step': v, 'pad': 'x'*(30*v)})
        state = dict(step=v, w=np.full(9*v, v, np.float32), offset=rows.offset)
        keeper.save(state, step=v, kind='regular', **beside(SimpleNamespace(rows=rows), events))
        ack(v)
        events.add('checkpoint', v, sync=False)
        if v == 2: keeper.name_best(2, 1.)
    for log in (events, rows): log.close()


def found(root, acked) -> bool:
    "The newest that was acknowledged, or a later one, is there, whole, with its rows; and the run goes on from it"
    try:
        if not acked and not (root/'ckpt').is_dir(): return True
        point = resume_point(root)
        if point is None: return not acked
        state = load_state(point[0])
        v = int(point[0].name)
        if v < max(acked, default=0) or state['step'] != v or state['w'].tolist() != [v]*9*v: return False
        rows = Rows(root/'metrics.jsonl', cut=state['offset'], sha256=point[1]['metrics']['sha256'])
        rows.close()
        Events(root).close()
        best = manifest_of_best(root)
        return [r['step'] for r in read_jsonl(root/'metrics.jsonl')[0]] == list(range(1, v + 1)) and (best is None or best['step'] == 2)
    except (RlnbError, KeyError): return False


def told(where: Path, skip: int = -1):
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    noting, acks, k = Noting(where, skip), [], iter(range(10**6))
    with using(noting), mock.patch('secrets.token_hex', lambda n: f'{next(k):0{2*n}x}'), mock.patch('rlnb.runs.events.now', lambda: 'now'):
        saves(where, lambda v: acks.append((len(noting.log), v)))
    return noting, acks


def losses(tmp: Path, most: int, skip: int = -1, stop: bool = False) -> tuple[int, int, int]:
    "(states, different states, states in which an acknowledged checkpoint was lost)"
    noting, acks = told(tmp/'told', skip)
    states, bad, seen = 0, 0, {}
    for k, state in power_cuts(noting.log, most):
        acked = [v for at, v in acks if at <= k]
        key = (len(acked), tuple(sorted((n, b) for n, b in state.items())).__hash__())
        if key not in seen:
            with using(Careless()): seen[key] = found(build(tmp/'dark', dict(sorted(state.items()))), acked)
        states, bad = states + 1, bad + (not seen[key])
        if bad and stop: break
    return states, len(seen), bad


def test_fault_09_no_power_cut_loses_an_acknowledged_checkpoint(quick):
    states, different, bad = losses(quick, 800)
    print(f'{states} power-cut states ({different} different), {bad} lost')
    assert bad == 0 and states >= 10_000


def test_each_sync_that_is_left_out_is_noticed(quick):
    "…or is one of those that promise nothing by themselves: events that are told without waiting, best.json, what is being deleted"
    syncs = told(quick/'told')[0].syncs
    unseen = [i for i in range(syncs) if not losses(quick, 12, skip=i, stop=True)[2]]
    print(f'{syncs} syncs left out one by one, {syncs - len(unseen)} noticed')
    assert syncs - len(unseen) >= .6*syncs


# ---- damage
def hurt(f: Path, other: Path, n: int, seed: int):
    "Damage a file in every way that we thought of: yields what was done"
    rng, good = random.Random(seed), f.read_bytes()
    for k in sorted({rng.randrange(len(good)) for _ in range(n//4)} | {0, len(good) - 1}):
        f.write_bytes(good[:k])
        yield f'cut at {k}'
    for _ in range(n):
        i, bit = rng.randrange(len(good)), rng.randrange(8)
        f.write_bytes(good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1:])
        yield f'bit {bit} of byte {i}'
    for k in range(0, len(good), max(64, len(good)//40)):
        hole = good[:k] + b'\0'*len(good[k:k + 64]) + good[k + 64:]
        if hole != good:
            f.write_bytes(hole)
            yield f'zeros at {k}'
    if other.read_bytes() != good:
        f.write_bytes(other.read_bytes())
        yield 'of another run'
    f.unlink()
    yield 'missing'
    f.mkdir()
    yield 'a folder'
    f.rmdir()
    os.mkfifo(f)
    yield 'a pipe'
    f.unlink()
    os.symlink(other, f)
    yield 'a link'
    f.unlink()
    f.write_bytes(good)


def outcome(path: Path) -> str:
    "What a life would do: go on, fall back, or refuse in one line"
    life = None
    try:
        life = Life(Run(path), told=len)
        return 'fell back' if life.damaged else 'unnoticed'
    except RlnbError as e:
        assert '\n' not in str(e) and len(str(e)) < 400 and e.code in (64, 65)
        return 'refused'
    finally:
        if life: life.events.close()


@pytest.fixture(scope='module')
def whole():
    "Two runs that are stopped in the middle"
    with tempfile.TemporaryDirectory(dir=MEMORY) as d:
        made = []
        for seed in (0, 1):
            run = folder(d, f'whole-{seed}', 700, seed=seed, eval_every=96, eval_episodes=2)
            assert lived(run) == 0
            made.append(run)
        yield made


def test_fault_20_the_newest_checkpoint_cut_short(whole):
    run = copy(whole[0], 'hurt')
    for f in sorted(newest_of(run).iterdir()):
        good = f.read_bytes()
        for k in range(0, len(good), len(good)//40 + 1):
            f.write_bytes(good[:k])
            assert outcome(run.path) == 'fell back', (f.name, k)
        f.write_bytes(good)
    flip(newest_of(run)/'state.json')
    step = int(newest_of(run).name)
    with mock.patch('builtins.print') as shown: fit(run, 1000, 0)
    assert any(f'checkpoint {step} is damaged' in str(c.args) and 'going on from the one before' in str(c.args) for c in shown.call_args_list)
    assert [e for e in run.events if e['kind'] == 'fallback'] and list((run.path/'quarantine').iterdir())


def test_fault_21_every_damage_is_noticed(whole):
    "Checkpoint, manifest, rows, events, configuration: fallen back from or refused, never trained on"
    run, counts = copy(whole[0], 'hurt'), {}
    other = whole[1].path
    facts = read_json(newest_of(run)/'manifest.json')
    state, inner = (run.path/'state.json').read_bytes(), newest_of(run)
    lines = (run.path/'events.jsonl').read_bytes().splitlines(keepends=True)
    (run.path/'events.jsonl').write_bytes(b''.join(lines[:facts['events']['n']]))          # what this checkpoint was written beside
    assert facts['metrics']['offset'] == (run.path/'metrics.jsonl').stat().st_size
    assert outcome(run.path) == 'unnoticed'
    with using(Careless()):
        for i, f in enumerate([*sorted(inner.iterdir()), *(run.path/n for n in ('metrics.jsonl', 'events.jsonl', 'config.json', 'probe.json'))]):
            events = (run.path/'events.jsonl').read_bytes()
            twin = other/f.relative_to(run.path) if (other/f.relative_to(run.path)).exists() else other/'config.json'
            for what in hurt(f, twin, 240, i):
                got = outcome(run.path)
                counts[got] = counts.get(got, 0) + 1
                assert got != 'unnoticed', f'{f.name}: {what}'
                (run.path/'state.json').write_bytes(state)
                if f.name != 'events.jsonl': (run.path/'events.jsonl').write_bytes(events)
    print(f'{sum(counts.values())} damages: {counts}')
    assert sum(counts.values()) >= 2_000 and outcome(run.path) == 'unnoticed'


def test_fault_21_best_json_is_never_believed_when_damaged(whole):
    run, n = copy(whole[0], 'hurt'), 0
    f = run.path/'ckpt'/'best.json'
    was = manifest_of_best(run.path)
    for what in hurt(f, whole[1].path/'ckpt'/'best.json', 300, 0):
        if what == 'of another run': continue                      # a good pointer, and to a step that may be here
        got, n = manifest_of_best(run.path), n + 1
        assert got in (None, was), what
        if what.startswith('zeros'): Keeper(run.path, 2).retire()     # a save is not hindered by it
    assert n > 300


def test_fault_22_all_checkpoints_are_bad(whole):
    run = copy(whole[0], 'hurt')
    for s in steps_saved(run.path): flip(run.path/'ckpt'/f'{s:012d}'/'arrays.safetensors')
    before = {f: f.read_bytes() for f in sorted(run.path.rglob('*')) if f.is_file() and f not in (run.path/'log.txt', run.path/'state.json')}
    assert lived(run, None, '--steps', '2000') == 65 and len(said(run)) == 1 and 'none of its' in said(run)[0]
    assert before == {f: f.read_bytes() for f in before} and {f for f in run.path.rglob('*') if f.is_file()} - set(before) <= {run.path/'log.txt', run.path/'state.json', run.path/'LOCK'}


STRANGE = [b'', b'{}', b'[]', b'null', b'{"files":{},"sha256":""}', b'{"a":1,"a":2}', b'{"a":'*9999, b' '*(1 << 20) + b'{}', b'\xff\xfe', b'{"step": 1e999}']


@pytest.mark.parametrize('text', STRANGE, ids=range(len(STRANGE)))
def test_fault_23_a_strange_manifest(text, whole):
    run = copy(whole[0], 'hurt')
    (newest_of(run)/'manifest.json').write_bytes(text)
    assert outcome(run.path) == 'fell back'


def test_fault_24_files_of_two_checkpoints_mixed(whole):
    run = copy(whole[0], 'hurt')
    a, b = (run.path/'ckpt'/f'{s:012d}' for s in steps_saved(run.path)[-2:])
    for name in ('state.json', 'arrays.safetensors', 'manifest.json'):
        good = (b/name).read_bytes()
        (b/name).write_bytes((a/name).read_bytes())
        assert outcome(run.path) == 'fell back', name
        (b/name).write_bytes(good)
    shutil.rmtree(b)
    shutil.copytree(newest_of(whole[1]), b)                        # whole, and of another run: the rows beside it are not its rows
    assert outcome(run.path) == 'fell back'


def test_fault_25_what_is_not_ours_stays(quick):
    run = folder(quick, steps=700)
    assert lived(run, Fatal(120)) == -9
    for name in ('notes', '.tmp-mine', 'best run!', '.tmp-000000000096-0123abcd'): (run.path/'ckpt'/name).mkdir()
    (run.path/'ckpt'/'notes'/'a.txt').write_text('mine')
    (run.path/'.tmp-state.json-0123abcd').write_text('old')
    os.utime(run.path/'.tmp-state.json-0123abcd', (1, 1))
    assert lived(run) == 0
    left = {p.name for p in (run.path/'ckpt').iterdir()}
    assert {'notes', '.tmp-mine', 'best run!'} <= left and '.tmp-000000000096-0123abcd' not in left and not (run.path/'.tmp-state.json-0123abcd').exists()


def test_fault_26_rows_torn_filled_foreign(quick):
    "Behind the checkpoint: cut away, and kept beside; before it: the checkpoint is not used, and the line says which bytes"
    peace = folder(quick, 'peace', 700)
    assert lived(peace) == 0
    for k, tail in enumerate((b'{"step": 99', b'\0'*500, b'{"step":1}\r\n', b'not a row\n', b'{"step": 1}\n'*3)):
        run = folder(quick, f'r{k}', 700)
        assert lived(run, Fatal(150)) == -9
        with open(run.path/'metrics.jsonl', 'ab') as f: f.write(tail)
        assert lived(run) == 0 and differences(peace, run) == []
        assert (run.path/'metrics.jsonl.tail').read_bytes().endswith(tail)
    flip(peace.path/'metrics.jsonl', 30)
    assert lived(peace, None, '--steps', '2000') == 65 and 'metrics.jsonl' in said(peace)[0]


def test_fault_28_a_configuration_that_was_edited(whole):
    run = copy(whole[0], 'hurt')
    for name, key in (('config.json', '"lr": '), ('probe.json', '"tier": "exact"')):
        text = (run.path/name).read_text()
        assert key in text
        (run.path/name).write_text(text.replace('"lr": 0.0007', '"lr": 0.07').replace('"tier": "exact"', '"tier": "boundary"'))
        assert lived(run, None, '--steps', '2000') == 65 and name in said(run)[-1] and 'not what the run began with' in said(run)[-1]
        (run.path/name).write_text(text)
    assert lived(run, None, '--steps', '2000') == 0


def test_fault_29_another_version_is_told(whole):
    run = copy(whole[0], 'hurt')
    words = []
    with mock.patch('rlnb.train.found.fingerprint', lambda **k: {**run.probe['fingerprint'], 'torch': '9.9'}):
        fit(run, 1000, 0, told=words.append)
    assert any('since the last life' in w and 'torch' in w for w in words)


def test_fault_30_a_folder_of_a_later_version(whole):
    run = copy(whole[0], 'hurt')
    write_json(run.path/'config.json', {**read_json(run.path/'config.json'), 'schema': 2})
    assert worker.main([str(run.path)]) == 64


def test_fault_32_a_world_that_gives_nonsense(quick):
    run = folder(quick, env='rough:Nonsense')
    assert lived(run, None, '--allow-import', 'rough') == 70
    assert len(said(run)) == 1 and 'world' in said(run)[0] and run.phase == 'failed'


def test_fault_33_a_world_that_raises(quick):
    run = folder(quick, env='rough:Blabs')
    assert lived(run, None, '--allow-import', 'rough') == 70
    assert run.phase == 'failed' and 'RuntimeError' in run.state['error']['cause'] and 'in step' in (run.path/'error.txt').read_text()
    assert run.state['error']['checkpoint'] and (run.at()/'manifest.json').exists()


# ---- two writers
def test_fault_44_of_two_that_start_one_wins(quick):
    assert races(quick, 30) == 30


@pytest.mark.slow
def test_fault_44_a_thousand_races(quick):
    "`tools/races.py` does the same in slices, and writes the figure down"
    won = races(quick, 1_000)
    print(f'{won} of 1000 races had one winner')
    assert won == 1_000


def test_fault_44_of_four_that_reach_for_the_lock_one_has_it(quick): assert lock_races(quick, 100) == 100


def lock_races(root: Path, n: int, of: int = 4) -> int:
    "Processes that reach for one lock in the same instant; in how many races exactly one of them had it"
    good = 0
    for i in range(n):
        (told, tell), (gate, opened), at = os.pipe(), os.pipe(), time.monotonic() + .01
        path = make_dir(root/f'lock-{i}')/'LOCK'
        def reach(path=path, tell=tell, gate=gate, opened=opened, at=at):
            os.close(opened)
            while time.monotonic() < at: pass
            try: mine = Lock(path)
            except Locked: mine = None
            os.write(tell, b'1' if mine else b'0')
            os.read(gate, 1)                       # whoever has it keeps it until all have tried
        pids = [child(reach, root/'log') for _ in range(of)]
        answers = b''.join(os.read(told, 1) for _ in pids)
        for fd in (opened, told, tell, gate): os.close(fd)
        good += (answers.count(b'1'), [ended(p) for p in pids]) == (1, [0]*of)
        shutil.rmtree(path.parent)
    return good


def worker_races(root: Path, n: int) -> int:
    "Two workers as people start them, interpreter and all; the winner is asked to stop when the other one has been sent away"
    good = 0
    for i in range(n):
        run = folder(root, f'worker-{i}', 10**6, env='rough:Slow')
        words = [sys.executable, '-m', 'rlnb.train.worker', str(run.path), '--allow-import', 'rough', '--episodes', '0']
        with open(run.path/'log.txt', 'w') as log: both = [subprocess.Popen(words, stdout=log, stderr=log) for _ in range(2)]
        until(lambda both=both: any(p.poll() is not None for p in both))
        until(lambda run=run: run.phase == 'running')
        for p in both: p.terminate()
        codes = sorted(p.wait(60) for p in both)
        good += codes == [73, 75] and [e['kind'] for e in run.events].count('start') == 1 and 'is being written by pid' in said(run)[0]
        shutil.rmtree(run.path)
    return good


def races(root: Path, n: int) -> int:
    "Races of two workers for one run; in how many of them one trained and the other was sent away with 73"
    good = 0
    for i in range(n):
        run = folder(root, f'race-{i}', 96, checkpoint_every=32)
        at = time.monotonic() + .02
        gate = root/f'go-{i}'
        def wait(at=at):
            while time.monotonic() < at: pass
        def stay(gate=gate):
            "The winner trains until the other has come and gone"
            wait()
            from rlnb.train.trainer import Trainer
            real = Trainer.fit
            def slow(self, steps):
                until(gate.exists)
                return real(self, steps)
            Trainer.fit = slow
        pids, gone = [begun(run, before=stay) for _ in range(2)], {}
        def first(pids=pids, gone=gone):
            gone.update((p, status) for p, status in (os.waitpid(p, os.WNOHANG) for p in pids) if p)
            return gone
        until(first)
        gate.touch()
        codes = sorted(os.waitstatus_to_exitcode(gone[p]) if p in gone else ended(p) for p in pids)
        kinds = [e['kind'] for e in run.events]
        good += codes == [0, 73] and kinds.count('start') == 1 and kinds.count('resume') == 0 and 'is being written by pid' in said(run)[0]
        shutil.rmtree(run.path)
    return good


@pytest.mark.parametrize('text', ['', '{"pid": 1}', '\0'*99, 'pid 1 on mars'])
def test_fault_45_what_a_stale_lock_says_does_not_matter(text, quick):
    run = folder(quick, steps=96)
    (run.path/'LOCK').write_text(text)
    (run.path/'holder.json').write_text(text)
    assert lived(run) == 0


def test_fault_44_a_writer_whose_lock_was_taken_writes_no_more(quick):
    "Somebody deletes LOCK and starts a second one: the first one is fenced off at its next save"
    run = folder(quick, steps=10**9)
    pid = begun(run)
    until(lambda: run.phase == 'running')
    (run.path/'LOCK').unlink()
    (run.path/'holder.json').unlink()
    assert ended(pid) == 73 and 'being written' in said(run)[-1]


def test_fault_46_the_clock_jumps(quick):
    "Days forward, years back: rows and checkpoints are the same, nothing times out"
    peace, run = folder(quick, 'peace', 700), folder(quick, 'jumps', 700)
    assert lived(peace) == 0
    def jumpy():
        real, n = time.time, [0]
        def jump():
            n[0] += 1
            return real() + (86400*n[0] if n[0] % 2 else -3*365*86400)
        time.time = jump
    assert lived(run, Fatal(150), before=jumpy) == -9
    assert lived(run, before=jumpy) == 0 and differences(peace, run) == []


def test_fault_60_a_reader_beside_a_writer(quick):
    "State, rows, events, checkpoints read all the time while the run is written, killed and cut: never half of anything"
    run, seen = folder(quick, steps=2_000), 0
    for k in range(4):
        pid = begun(run, Fatal(90 + 60*k) if k < 3 else None, before=lambda: slowly(.02))
        while not os.waitpid(pid, os.WNOHANG)[0]:
            steps = [r['step'] for r in run.metrics()]
            assert steps == sorted(set(steps)) and run.phase in ('new', 'starting', 'running', 'stopping', 'finished', 'lost', 'stopped')
            repr(run), run.checkpoints(), run.events
            seen += 1
    assert run.phase == 'finished' and seen > 4


def test_fault_62_the_folder_is_copied_to_another_place(quick):
    peace, run = folder(quick, 'peace', 700), folder(quick, 'gone', 700)
    assert lived(peace) == 0 and lived(run, Fatal(150)) == -9
    moved = Run(shutil.copytree(run.path, quick/'elsewhere'/'x'))
    shutil.rmtree(run.path)
    assert lived(moved) == 0 and differences(peace, moved) == []


def test_fault_63_a_deadline_that_is_near(quick, monkeypatch):
    run = folder(quick, steps=10**9)
    monkeypatch.setenv('RLNB_DEADLINE', str(time.time() + 9))
    then = time.monotonic()
    assert lived(run) == 75 and time.monotonic() - then < 9 and run.result['why'] == 'deadline' and resume_point(run.path)


def test_fault_64_moved_zipped_linked(quick):
    "Empty folders do not survive every archive; a link to the folder is the folder"
    peace, run = folder(quick, 'peace', 700), folder(quick, 'gone', 700)
    assert lived(peace) == 0 and lived(run, Fatal(150)) == -9
    shutil.make_archive(str(quick/'packed'), 'zip', run.path)
    shutil.rmtree(run.path)
    (quick/'out').mkdir()
    shutil.unpack_archive(str(quick/'packed.zip'), quick/'out')
    shutil.rmtree(quick/'out'/'control', ignore_errors=True)
    os.symlink(quick/'out', quick/'link')
    assert lived(Run(quick/'link')) == 0 and differences(peace, Run(quick/'out')) == []
    early = folder(quick, 'early', 96)
    for name in ('ckpt', 'control'): (early.path/name).rmdir()
    assert lived(early) == 0


def test_fault_65_many_rows(quick):
    run = create(quick, 'long', {})
    line = '{"step":%d,"iter":%d,"episode/return":{"mean":1.5,"min":0,"max":3,"n":2}}\n'
    (run.path/'metrics.jsonl').write_text(''.join(line % (i, i) for i in range(200_000)))
    steps, _ = run.metrics('episode/return')
    assert len(steps) == 200_000
    read, at = read_jsonl(run.path/'metrics.jsonl', size=1 << 16)
    assert 0 < len(read) < 2_000 and at < 1 << 17


NAMES = ['Ünïcode ☃ 🚀', '\u202egnp.exe', 'a\nb', 'a\0b', '-rf', '..', '../../etc', '~', '$(id)', 'con', 'x'*500, '日'*86, '', ' ', '.hidden', 'C:\\x', '<img src=x onerror=alert(1)>', '%2e%2e%2f', 'a/b']


def test_fault_66_any_name(quick):
    for name in NAMES:
        run = folder(quick, name, 32)
        assert (run.path.parent == quick and slug(name)[:8] in run.path.name and run.config['name'] == name) or not name
        assert '<img' not in run._repr_html_() and '\n' not in run.name
    assert len(runs(quick)) == len(NAMES) and {p.parent for p in quick.iterdir()} == {quick}


def test_fault_67_few_descriptors_no_home_odd_locale(quick):
    run = folder(quick, steps=300)
    env = {k: v for k, v in os.environ.items() if k not in ('HOME', 'LANG', 'TERM')} | dict(LC_ALL='C', TZ='Mars/Olympus', TMPDIR=str(quick/'none'))
    r = subprocess.run([sys.executable, '-m', 'rlnb.train.worker', str(run.path), '--episodes', '2'], env=env, capture_output=True, text=True, timeout=120,
                       preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    assert r.returncode == 0, r.stderr[-500:]


@pytest.fixture
def plugin(quick, monkeypatch):
    "An installed package that declares an agent, and whose module leaves a trace and then fails"
    site = make_dir(quick/'site')
    info = make_dir(site/'badplug-1.2.dist-info')
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: badplug\nVersion: 1.2\n')
    (info/'entry_points.txt').write_text('[rlnb.agent]\nplanted = badplug:Agent\n')
    (site/'badplug.py').write_text(f'open({str(quick/"canary")!r}, "w").close()\nimport torch_of_another_year\n')
    monkeypatch.syspath_prepend(str(site))
    yield quick/'canary'
    sys.modules.pop('badplug', None)


def test_attack_33_a_plugin_is_loaded_only_when_it_is_named(plugin, quick, monkeypatch):
    assert 'planted' in agents and agents.meta('planted') == dict(package='badplug', version='1.2')
    assert lived(folder(quick, steps=64)) == 0 and not plugin.exists()
    monkeypatch.setenv('RLNB_NO_PLUGINS', '1')
    assert 'planted' not in agents


def test_fault_69_a_plugin_that_does_not_load(plugin, quick):
    "Whoever asks for it gets one line that names it; nobody else notices"
    with pytest.raises(BadInput) as e: folder(quick, 'bad', agent='planted')
    assert 'badplug 1.2 is broken' in str(e.value) and 'torch_of_another_year' in str(e.value) and len(str(e.value).splitlines()) == 1
    assert plugin.exists() and not (quick/'bad').exists() and lived(folder(quick, steps=64)) == 0


def test_fault_04_killed_faster_than_the_interval(quick):
    "Its first checkpoint comes after three seconds of a life, not after the minute that lies between two later ones: a run that is killed all the time gets on"
    run, last = folder(quick, steps=10**9, checkpoint_every=0), 0
    for _ in range(2):
        pid = begun(run)
        until(lambda last=last: (resume_point(run.path) or (0, {'step': 0}))[1]['step'] > last, 45)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        last = resume_point(run.path)[1]['step']


# ---- attacks
PICKLES = r'pickle|cloudpickle|joblib|dill|marshal|shelve'


def test_attack_01_no_code_path_unpickles_a_file():
    "No call that loads a pickle anywhere in the package, numpy's and torch's among them"
    bad = []
    for f in (Path(__file__).parent.parent/'rlnb').rglob('*.py'):
        for n in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if isinstance(n, ast.Call):
                who = ast.unparse(n.func)
                if who.split('.')[0] in PICKLES.split('|') or who in ('torch.load', 'torch.jit.load', 'np.load', 'numpy.load', 'pd.read_pickle'): bad.append((f.name, who))
                bad += [(f.name, ast.unparse(k)) for k in n.keywords if k.arg in ('allow_pickle', 'weights_only') and ast.unparse(k.value) != ('False' if k.arg == 'allow_pickle' else 'True')]
            if isinstance(n, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in n.names] + [getattr(n, 'module', '') or '']
                bad += [(f.name, x) for x in names if x.split('.')[0] in PICKLES.split('|')]
    assert bad == []


class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('name', ['arrays.safetensors', 'state.json', 'manifest.json'])
def test_attack_01_a_pickle_in_the_place_of_a_file(name, whole, tmp_path):
    "Resealed, as a stranger would: it is refused, and what it would have done is not done"
    import hashlib
    import pickle

    import torch
    canary = tmp_path/'canary'
    for data in (pickle.dumps(Bomb(canary)), _torch_bytes(torch, Bomb(canary))):
        run = copy(whole[0], 'hurt')
        at = newest_of(run)
        (at/name).write_bytes(data)
        if name != 'manifest.json':
            m = read_json(at/'manifest.json')
            m['files'][name] = dict(size=len(data), sha256=hashlib.sha256(data).hexdigest())
            text = io.to_json({**m, 'sha256': '0'*64}, pretty=True) + '\n'
            (at/'manifest.json').write_text(text.replace('0'*64, hashlib.sha256(text.encode()).hexdigest()))
        code = lived(run, None, '--steps', '2000')
        assert code in (65, 70, 0) and not canary.exists()
        if code: assert len(said(run)) == 1
        else: assert [e for e in run.events if e['kind'] == 'fallback']


def _torch_bytes(torch, x) -> bytes:
    import io as stdio
    b = stdio.BytesIO()
    torch.save(x, b)
    return b.getvalue()


def test_attack_05_headers_that_promise_too_much(whole):
    "A sealed checkpoint whose arrays claim terabytes: refused before anything is allocated"
    import hashlib
    huge = json.dumps({'a': dict(dtype='F32', shape=[10**6, 10**6], data_offsets=[0, 4*10**12])}).encode()
    for data in (len(huge).to_bytes(8, 'little') + huge, (1 << 40).to_bytes(8, 'little') + b'{}', b'\xff'*64):
        run = copy(whole[0], 'hurt')
        at = newest_of(run)
        (at/'arrays.safetensors').write_bytes(data)
        m = read_json(at/'manifest.json')
        m['files']['arrays.safetensors'] = dict(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        text = io.to_json({**m, 'sha256': '0'*64}, pretty=True) + '\n'
        (at/'manifest.json').write_text(text.replace('0'*64, hashlib.sha256(text.encode()).hexdigest()))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(RlnbError): load_state(at)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize('name', ['..', '../x', '/etc/passwd', '%2e%2e/x', 'runs-evil/../../x', 'a\\..\\b', 'C:\\x', 'a\0b', '~root', 'link/x'])
def test_attack_08_names_that_lead_out(name, quick):
    root = make_dir(quick/'runs')
    (quick/'x').mkdir()
    write_json(quick/'x'/'config.json', dict(schema=1))
    os.symlink(quick, root/'link')
    with pytest.raises(BadInput): find(name, root)
    made = create(root, name, {})
    assert made.path.parent == root and made.path.resolve().is_relative_to(root.resolve())
    if name != '%2e%2e/x' and name != '~root':
        with pytest.raises(BadInput): contained(root, name)


def test_attack_09_a_manifest_that_lists_a_file_outside(whole):
    import hashlib
    for name in ('../../config.json', '/etc/passwd', 'a/b', '.x'):
        run = copy(whole[0], 'hurt')
        at = newest_of(run)
        m = read_json(at/'manifest.json')
        m['files'][name] = m['files']['state.json']
        text = io.to_json({**m, 'sha256': '0'*64}, pretty=True) + '\n'
        (at/'manifest.json').write_text(text.replace('0'*64, hashlib.sha256(text.encode()).hexdigest()))
        assert outcome(run.path) == 'fell back', name
    run = copy(whole[0], 'hurt')
    at = newest_of(run)
    shutil.move(at/'state.json', run.path/'aside')
    os.symlink(run.path/'aside', at/'state.json')                   # the right bytes, through a link
    assert outcome(run.path) == 'fell back'


YAML = ['!!python/object/apply:os.system ["touch canary"]', 'a: &a [*a]', 'a: *b', '\n'.join(f'a{i}: &a{i} [{", ".join([f"*a{i-1}"]*9) if i else "x"}]' for i in range(9)),
        '['*500, 'a: 1\na: 2', 'a: {b: 1, b: 2}', '\t- x', 'a: ' + 'x'*(1 << 21)]


@pytest.mark.parametrize('text', YAML, ids=range(len(YAML)))
def test_attack_11_yaml(text, tmp_path):
    with pytest.raises(RlnbError) as e: load_yaml(text, 'exp.yaml')
    assert '\n' not in str(e.value) and not (tmp_path/'canary').exists()


def test_attack_12_yaml_means_what_it_says():
    got = load_yaml('lr: 1e-3\nseed: 10\nflag: no\nat: 12:30:45', 'x')
    assert got['lr'] == 1e-3 and got['flag'] in ('no', False) and got['at'] == '12:30:45' and got['seed'] == 10
    with pytest.raises(BadInput, match='010'): load_yaml('seed: 010', 'x')


SETTINGS = [dict(steps=0), dict(steps=-5), dict(steps=2.5), dict(steps='many'), dict(num_envs=10**9), dict(lr=1e99), dict(lr='nan'), dict(lr=float('inf')), dict(seed=-1), dict(sed=1),
            dict(gamma=2), dict(hidden='big'), dict(keep=1), dict(adapt='magic'), dict(patience=3), dict(lr='eval(1)'), dict(lr='__import__("os").system("touch canary")'), dict(num_threads=0)]


@pytest.mark.parametrize('said', SETTINGS, ids=map(str, SETTINGS))
def test_attack_13_settings(said, quick):
    with pytest.raises(BadInput) as e: folder_for(asked('a2c', 'rlnb/CartPole-v1', **dict(steps=100, presets=False) | said), quick)
    assert next(iter(said)) in str(e.value) and '\n' not in str(e.value) and not list(quick.iterdir())


def test_attack_14_nothing_is_interpolated(monkeypatch):
    monkeypatch.setenv('AWS_SECRET', rough.SECRET)
    for text in ('${env:AWS_SECRET}', '${oc.env:AWS_SECRET}', '{{ AWS_SECRET }}', '$AWS_SECRET'):
        e = Experiment.from_dict(dict(agent='a2c', env='rlnb/CartPole-v1', group=text))
        assert e.group == text and rough.SECRET not in json.dumps(e.to_dict())


MARKUP = ['<img src=x onerror=alert(1)>', '"><script>alert(1)</script>', "javascript:alert(1)", '<svg onload=alert(1)>', '</textarea><b>', '\x1b[31mred', '{{7*7}}', '\\href{javascript:alert(1)}{x}', '&lt;b&gt;']


@pytest.mark.parametrize('text', MARKUP)
def test_attack_18_markup_in_names_errors_and_rows(text, quick):
    run = create(quick, text, dict(experiment=dict(agent=text, env=text, seed=text)))
    with Jsonl(run.path/'metrics.jsonl') as log: log.append({'step': 1, 'episode/return': dict(mean=1., min=0, max=1, n=2), text: 1.})
    State(run.path).phase('failed', error=dict(cause=text))
    html, plain_ = run._repr_html_(), repr(run)
    for bad in ('<img', '<script', '<svg onload', '</textarea', '\x1b'): assert bad not in html.replace('<svg class', '').replace('<svg xmlns', '') and bad not in plain_.replace('<img', '').replace('<script', '').replace('<svg onload', '').replace('</textarea', '')
    with pytest.raises(BadInput) as e: find(text, quick)
    assert '\n' not in str(e.value) and '\x1b' not in str(e.value)


COMMANDS = {'a': b'', 'b-set': b'', 'b-pause': b'\0'*9, 'c': b'{"what": ["stop"]}', 'd': b'{"what": {"a": 1}}', 'e': b'{"what": "set"}', 'f': b'{"what": "set", "changes": 5}', 'g': b'{"what": "set", "changes": [["lr", 1]]}',
            'h': b'{"what": "set", "changes": {"lr": {"a": 1}}}', 'i': b'{"what": "set", "changes": {"__class__": 1}}', 'j': b'{"what": "set", "changes": {"lr": "eval(1)"}}', 'k': b'{"what": "exec", "argv": ["rm", "-rf"]}',
            'l': b'[' * 9999, 'm': b'{"what": "set", "changes": {"lr": 1e-3}, "nonce": "' + b'x'*99999 + b'"}', 'n': b'{"what": "set", "changes": {"lr": NaN}}', 'o': b'null', 'p': b'\xff\xfe', 'q': b'{"what": "set", "changes": {"lr": 1e99}}',
            'r': b'{"what": "set", "changes": {"ent_coef": 0.02}, "nonce": ["x"]}', 's': b'{"what": "set", "changes": {"n_steps": 1}}'}


def test_attack_20_commands_of_a_stranger(quick):
    "Whatever lies in control/: the run goes on, does what is allowed, tells of the rest once"
    run = folder(quick, steps=2_000)
    for name, data in COMMANDS.items(): (run.path/'control'/f'{name}.cmd').write_bytes(data)
    (run.path/'control'/'folder.cmd').mkdir()
    os.mkfifo(run.path/'control'/'pipe.cmd')
    os.symlink('/etc/passwd', run.path/'control'/'link.cmd')
    assert lived(run) == 0, (run.path/'log.txt').read_text()[-2000:]
    told_ = [e for e in run.events if e['kind'] == 'refused']
    assert 12 <= len(told_) <= len(COMMANDS) + 4 and all('\n' not in e['cause'] for e in told_)
    assert [e['changes'] for e in run.events if e['kind'] == 'set'] == [{'ent_coef': .02}]
    assert {p.name for p in (run.path/'control').iterdir()} <= {'folder.cmd'}


def test_attack_20_a_command_is_seen_in_time(quick):
    "`look` is asked all through a rollout; that must not keep `set` from being heard"
    run = folder(quick, steps=10**9, n_steps=512, num_envs=8)
    pid = begun(run)
    until(lambda: run.phase == 'running' and run.state['step'] > 0)
    send(run.path, 'set', changes=SET)
    try: until(lambda: any(e['kind'] == 'set' for e in run.events), 45)
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)


def test_attack_20_send_knows_its_words(quick):
    run = create(quick, 'x', {})
    for word in ('exec', '../stop', '', 'stop; rm -rf /', None):
        with pytest.raises(BadInput): send(run.path, word)
    assert Inbox(run.path).poll() == []


@pytest.mark.parametrize('argv', [['-rf'], ['--config=/etc/passwd', 'x'], ['$(touch canary)'], ['x; touch canary'], ['--allow-import'], ['--steps', '1e3', 'x'], ['--help-me']])
def test_attack_21_words_are_words(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pid = child(lambda: worker.main(argv), tmp_path/'log')
    assert ended(pid) in (2, 64, 99) and not (tmp_path/'canary').exists()


def test_attack_23_nobody_listens(quick):
    "A run opens no socket"
    run = folder(quick, steps=10**9)
    pid = begun(run)
    until(lambda: run.phase == 'running')
    if os.path.isdir(f'/proc/{pid}/fd'):
        open_ = [os.readlink(f'/proc/{pid}/fd/{f}') for f in os.listdir(f'/proc/{pid}/fd')]
        mine = {os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}')}
        assert not [x for x in open_ if x.startswith('socket:') and x not in mine]
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    assert socket


def test_attack_30_a_secret_is_nowhere(quick, monkeypatch):
    "An exception that spells out a password: not in the state, the events, the log, the traceback, the checkpoints, the holder"
    monkeypatch.setenv('WANDB_API_KEY', rough.SECRET)
    run = folder(quick, env='rough:Blabs')
    assert lived(run, None, '--allow-import', 'rough') == 70
    hits = [f.relative_to(run.path) for f in run.path.rglob('*') if f.is_file() and rough.SECRET.encode() in f.read_bytes()]
    assert hits == [] and '***' in run.state['error']['cause'] and 'onerror' in run.state['error']['cause']
    assert '<img' not in run._repr_html_() and '\x1b' not in repr(run)


def test_attack_31_what_is_written_about_the_machine(quick, monkeypatch):
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', rough.SECRET)
    monkeypatch.setattr(sys, 'argv', ['x', '--token', rough.SECRET, f'--db=postgres://u:{rough.SECRET}@h/d'])
    run = folder(quick, steps=10**9)
    pid = begun(run)
    until(lambda: (run.path/'holder.json').exists() and run.phase == 'running')
    hits = [f.name for f in run.path.rglob('*') if f.is_file() and rough.SECRET.encode() in f.read_bytes()]
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    assert hits == [] and str(Path.home()) not in (run.path/'config.json').read_text()


def test_attack_32_files_are_for_their_owner(whole):
    for f in whole[0].path.rglob('*'):
        if f.name != 'log.txt': assert stat.S_IMODE(f.stat().st_mode) & 0o077 == 0, f


@pytest.mark.parametrize('env', ['os:system', 'rough:Slow', 'antigravity:X-v0', 'rough:Env-v0', 'a.b.c:D'])
def test_attack_34_a_world_of_a_stranger_is_not_imported(env, quick):
    run = folder(quick, env=env)
    before = set(sys.modules)
    with pytest.raises(BadInput, match='allow'): fit(run, None, 0)
    assert not {m for m in set(sys.modules) - before if m.split('.')[0] == 'antigravity'}


def test_attack_35_no_callable_comes_from_text():
    for said_ in (dict(agent='os.system'), dict(agent='__import__'), dict(agent_cfg={'_target_': 'os.system'}), dict(agent_cfg=dict(lr='lambda p: 1')), dict(agent_cfg=dict(activation='os.system'))):
        with pytest.raises(RlnbError): Experiment.from_dict(dict(env='rlnb/CartPole-v1', agent='a2c') | said_)


def test_attack_36_nothing_listens_for_objects():
    bad = []
    for f in (Path(__file__).parent.parent/'rlnb').rglob('*.py'):
        src = f.read_text(encoding='utf-8')
        bad += [(f.name, w) for w in ('multiprocessing.connection', 'BaseManager', 'Listener(', 'socketserver', 'broadcast_object_list', 'all_gather_object') if w in src]
    assert bad == []


def test_attack_38_rows_and_events_of_a_stranger(quick):
    run = create(quick, 'x', dict(experiment=dict(steps=5)))
    rows = [b'{"step":1,"a":1}', b'{"a":2}', b'{"step":"<b>","a":3}', b'[1]', b'{"step":2,"a":{"b":1}}', b'{"step":3,"a":NaN}', b'{"step":4,"a":"NaN"}', b'x'*(1 << 20),
            b'{"step":5,' + b','.join(b'"k%d":1' % i for i in range(9000)) + b'}', b'\x00\x1b[31m', b'{"step":6,"a":1}', b'{"a":' * 5000]
    (run.path/'metrics.jsonl').write_bytes(b'\n'.join(rows) + b'\n')
    steps, values = run.metrics('a')
    assert len(steps) == len(values) and 6 in steps and all(isinstance(s, int) for s in steps)
    repr(run), run._repr_html_()
    for text in (b'{"n":0}\n', b'[]\n', b'x'*(1 << 20) + b'\n', b'{"n":0,"hash":[]}\n', b'\xff\n', b'{"a":'*9999 + b'\n'):
        (run.path/'events.jsonl').write_bytes(text)
        with pytest.raises(Damaged): read_events(run.path)


HOSTILE = [b'{"phase":"running","pid":"x"}', b'{"phase":"running","pid":null}', b'{"phase":["running"]}', b'[]', b'', b'{"phase":"running","pid":1e999}', b'{"phase":"finished"}',
           b'{"phase":"running","pid":-1,"start":5,"boot":[]}', b'{"phase":"failed","error":7,"step":"x"}', b'{"phase":"finished","step":{"a":1}}', b'\xff', b'{"a":'*9999]


@pytest.mark.parametrize('text', HOSTILE, ids=range(len(HOSTILE)))
def test_attack_38_a_state_of_a_stranger(text, quick):
    "No reader falls over it, and no process is killed by it"
    run = create(quick, 'x', dict(experiment=dict(steps=5)))
    for name in ('state.json', 'holder.json', 'ckpt/best.json', 'probe.json'): (run.path/name).write_bytes(text)
    assert read_state(run.path)['phase'] in ('lost', 'finished', 'failed', 'stopped')
    repr(run), run._repr_html_(), run.checkpoints(), runs(quick)
    assert run.kill() is False


def test_attack_40_a_terminal_is_not_steered(quick):
    run = create(quick, 'x', dict(experiment=dict(env='\x1b]0;title\x07\x1b[2J', agent='a\rb', seed='\u202e')))
    (run.path/'log.txt').write_bytes(b'\x1b[31mred\x1b]8;;http://x\x07link\rover\n')
    assert not set('\x1b\r\x07\u202e') & set(repr(run) + run.log())


def test_faults_are_told_in_one_line():
    for e in (BadInput('a', 'b\nc'), NoCheckpoint('x\ny'), DiskError('a\rb'), Locked('\x1b[31m')): assert len(str(e).splitlines()) <= 1 and '\x1b' not in str(e)


# ---- found by these tests, and mended
def test_killed_while_it_ends_because_it_has_enough(quick):
    "Killed behind the last checkpoint of a run that ended before its steps did: the next life ends it, and trains no further"
    peace, listing = folder(quick, 'peace', 10**5, max_episodes=20), Listing()
    def listed():
        counted(listing)
        code = worker.main([str(peace.path), '--episodes', '0'])
        disk.now = io.Disk()
        write_json(quick/'ops.json', [who for _, who in listing.ops])
        return code
    assert ended(child(listed, peace.path/'log.txt')) == 0 and peace.result['steps'] < 10**5
    ending = [n for n, who in enumerate(read_json(quick/'ops.json', 1 << 26)) if 'end' in who]
    assert len(ending) > 15
    for n in ending:
        run = folder(quick, 'run', 10**5, max_episodes=20)
        assert lived(run, Fatal(n)) == -9 and lived(run) == 0 and differences(peace, run) == []
        assert (run.result['why'], run.result['steps']) == (peace.result['why'], peace.result['steps'])
        shutil.rmtree(run.path)


def test_a_change_that_a_rule_moved(quick):
    "`set` gives lr a value, then the KL rule moves it: a later life has the value that held, not the one that was asked for"
    words = dict(agent='ppo', steps=3_000, minibatch=16, adapt='kl', n_steps=16, checkpoint_every=256, keep=9)
    def sent(): rough.set_at('300')
    peace = folder(quick, 'peace', **words)
    listing = Listing()
    def listed():
        sent()
        counted(listing)
        code = worker.main([str(peace.path), '--episodes', '0'])
        disk.now = io.Disk()
        write_json(quick/'count.json', len(listing.ops))
        return code
    assert ended(child(listed, peace.path/'log.txt')) == 0 and len({r['learn/lr'] for r in peace.metrics()}) > 3
    count = read_json(quick/'count.json')
    for n in range(count//3, 9*count//10, count//12):
        run = folder(quick, f'run-{n}', **words)
        assert lived(run, Fatal(n), before=sent) == -9 and lived(run, before=sent) == 0 and differences(peace, run) == []


def test_an_event_whose_sync_failed_breaks_no_chain(quick):
    events = Events(quick)
    events.add('start', 0)
    with using(Refusing(1, errno.ENOSPC, False)), pytest.raises(DiskError): events.add('set', 1)
    events.log._failed = False
    events.add('stop', 2)
    events.close()
    assert [e['kind'] for e in read_events(quick)] == ['start', 'set', 'stop']


def test_rows_go_on_after_a_failed_sync(quick):
    "What was written since the last good sync is written anew, not taken for good"
    rows = Rows(quick/'m.jsonl')
    rows.append({'step': 1})
    rows.sync()
    rows.append({'step': 2})
    with using(Refusing(0, errno.EIO, False)), pytest.raises(DiskError): rows.sync()
    rows.append({'step': 3})
    noting = []
    class Writes(io.Disk):
        def write(self, fd, data): noting.append(bytes(data)), super().write(fd, data)
    with using(Writes()): rows.sync()
    rows.close()
    assert b''.join(noting).count(b'\n') == 2 and [r['step'] for r in read_jsonl(quick/'m.jsonl')[0]] == [1, 2, 3]
    assert rows.sha256 == io.digest(quick/'m.jsonl')[0].hexdigest()


def test_the_best_is_named_by_the_next_life(quick):
    "Killed between the checkpoint of the best look and its naming"
    run = folder(quick, 'run', 700, eval_every=96, eval_episodes=2)
    assert lived(run) == 0
    best = manifest_of_best(run.path)
    if best['step'] != steps_saved(run.path)[-1]: (run.path/'ckpt'/'best.json').unlink()
    else: pytest.skip('the last one is the best')
    assert lived(run, None, '--steps', '800') == 0 and manifest_of_best(run.path)['step'] >= best['step']


def test_a_command_is_heard_though_the_folder_was_just_looked_at(quick):
    "`look` is asked before each step of the worlds; `after_learn` has a clock of its own"
    run = folder(quick)
    from rlnb.train.steer import Control
    events = Events(run.path)
    control = Control(Inbox(run.path), events, SimpleNamespace(), SimpleNamespace(cost=0., ask=lambda kind: asked_.append(kind)))
    asked_: list[str] = []
    send(run.path, 'checkpoint')
    assert not control.look()
    control.after_learn(SimpleNamespace(step=0))
    events.close()
    assert asked_ == ['command']


def test_episodes_are_not_told_twice_after_a_stop():
    "A callback ends training when an iteration is done; the same trainer goes on: its next row has only its own episodes"
    from rlnb.agents.a2c import A2C
    from rlnb.envs.classic import CartPole
    from rlnb.train.callback import Callback, CancelFit
    from rlnb.train.trainer import Trainer
    class Rows(Callback):
        def __init__(self, at): self.at, self.rows = at, []
        def after_learn(self, t):
            self.rows.append([dict(e) for e in t.episodes])
            if t.iter == self.at: raise CancelFit('enough for now')
    def rows(at):
        env = CartPole(4, max_steps=9)
        t = Trainer(A2C(env.obs_space, env.act_space, A2C.config(n_steps=16), seed=0), env, [Rows(at)], seed=0)
        while t.step < 640: t.fit(640)
        return t.cbs.cbs[0].rows
    assert rows(3) == rows(0) and all(rows(0))
