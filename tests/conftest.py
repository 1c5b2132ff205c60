"What the tests share: the tools' folder on the path, markers, one torch thread"
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: runs in the nightly slice only')
    config.addinivalue_line('markers', 'browser: needs a Chromium')
