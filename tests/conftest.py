"What the tests share: the tools' folder on the path, markers, one torch thread"
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: runs in the nightly slice only')
    config.addinivalue_line('markers', 'browser: needs a Chromium')


@pytest.fixture
def watched():
    "The panels' thread has forgotten the panels of other tests, and nothing fails in it during this one"
    from rlnb.panels.feed import WATCHER

    def rest():
        with WATCHER.lock: WATCHER.due.clear()
        while WATCHER.thread: time.sleep(.02)
        errors, WATCHER.errors = WATCHER.errors, []
        return errors
    rest()
    yield WATCHER
    assert not (errors := rest()), errors
