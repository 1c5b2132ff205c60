"""JupyterLab in a real browser: `dev.py lab`'s server opens the quick start, its cells run, the curve is there, and nothing
is asked of any other machine"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A lab on 127.0.0.1 as dev.py starts it, its settings and the notebook in temporary folders; yields (address, folder)"
    home, work = tmp_path_factory.mktemp('home'), tmp_path_factory.mktemp('work')
    shutil.copy(ROOT / 'nbs' / '90_learn' / '10_quickstart.ipynb', work)
    env = os.environ | {f'JUPYTER{k}': str(home / k) for k in ('_CONFIG_DIR', '_DATA_DIR', '_RUNTIME_DIR', 'LAB_SETTINGS_DIR', 'LAB_WORKSPACES_DIR')}
    env |= dict(IPYTHONDIR=str(home / 'ipython'), HOME=str(home))
    argv = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', '--port=0', '--IdentityProvider.token=tests', f'--ServerApp.root_dir={work}',
            '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.expose_app_in_browser=True']
    argv += ['--allow-root'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else []
    with open(home / 'log', 'w') as log:
        p = subprocess.Popen(argv, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=work)
    try:
        end, address = time.monotonic() + 60, ''
        while time.monotonic() < end and not address:
            time.sleep(.3)
            found = list(home.glob('**/jpserver-*.json'))
            if found:
                info = json.loads(found[0].read_text())
                try:
                    urllib.request.urlopen(f"{info['url']}api/status?token=tests", timeout=5)
                    address = info['url']
                except OSError:
                    pass
        assert address, (home / 'log').read_text()[-2000:]
        yield address, work
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        p.wait(20)


@pytest.fixture(scope='module')
def page(lab):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.outside, page.errors = [], []
        page.on('request', lambda r: None if re.match(rf'{re.escape(lab[0])}|data:|blob:|ws://127', r.url) else page.outside.append(r.url))
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        yield page
        browser.close()


READY = 'async () => { const w = jupyterapp.shell.currentWidget; await w.context.ready; await w.context.sessionContext.ready; await w.context.sessionContext.session.kernel.info; return true }'


def test_the_quick_start_runs_in_the_lab(lab, page):
    address, work = lab
    page.goto(f'{address}lab/tree/10_quickstart.ipynb?token=tests&reset')
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=60_000)
    page.evaluate(READY)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function('() => [...document.querySelectorAll(".jp-OutputArea-output")].some(o => o.innerText.includes("result.json"))', timeout=120_000)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000, state='attached')
    assert page.query_selector('.jp-OutputArea-output img')         # the lab draws only the cells that are in sight
    assert not page.query_selector_all('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] .ansi-red-fg')
    result = json.loads(next((work / 'runs').glob('quickstart*/result.json')).read_text())
    assert result['phase'] == 'finished' and result['return']['n'] == 100
    page.screenshot(path=str(work / 'lab.png'))
    assert not page.errors and not page.outside, (page.errors[:3], page.outside[:3])
    page.evaluate('jupyterapp.shell.currentWidget.context.sessionContext.shutdown()')
