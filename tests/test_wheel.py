"The wheel holds what an installed rlnb needs, and works outside the checkout"
import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    d = tmp_path_factory.mktemp('dist')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-q', '-w', d, ROOT], check=True, capture_output=True)
    return next(d.glob('rlnb-*.whl'))


def test_wheel_works_from_another_folder(wheel, tmp_path):
    "Installed beside nothing of the checkout: doctor and a lesson's first lines"
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--no-deps', '-q', '--target', tmp_path / 'site', wheel], check=True, capture_output=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')} | dict(PYTHONPATH=str(tmp_path / 'site'))
    r = subprocess.run([sys.executable, '-c', 'import rlnb, rlnb.all; from rlnb.cli import main; print(rlnb.__file__); main(["doctor"])'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert str(tmp_path / 'site') in r.stdout
    learn = 'from rlnb.panels.lab import copied; print(*(f.name for f in copied("learn")))'
    r = subprocess.run([sys.executable, '-c', learn], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert r.returncode == 0 and '10_quickstart.ipynb' in r.stdout and (tmp_path / 'learn' / '10_quickstart.ipynb').exists(), r.stderr
    script = 'from rlnb.panels import live; print(len((live.files("rlnb")/"panels"/"live.js").read_text()))'
    assert int(subprocess.run([sys.executable, '-c', script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout) > 1000
    subprocess.run([sys.executable, '-c', "import matplotlib.pyplot as plt; plt.style.use('rlnb.plot')"], cwd=tmp_path, env=env, check=True)


def test_wheel_holds_no_more_than_the_package(wheel):
    tops = {n.split('/')[0] for n in zipfile.ZipFile(wheel).namelist()}
    assert tops == {'rlnb', next(t for t in tops if t.endswith('.dist-info'))}
