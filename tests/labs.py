"JupyterLab on 127.0.0.1 as dev.py starts it, in temporary folders, and a browser that remembers what it was asked to load from elsewhere"
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
READY = 'async () => { const w = jupyterapp.shell.currentWidget; await w.context.ready; await w.context.sessionContext.ready; await w.context.sessionContext.session.kernel.info; return true }'
QUIET = {'@jupyterlab/apputils-extension:notification': dict(fetchNews='false')}


@contextmanager
def lab(work: Path, home: Path):
    "A server on a folder; yields its address"
    home.mkdir(parents=True, exist_ok=True)
    env = os.environ | {f'JUPYTER{k}': str(home / k) for k in ('_CONFIG_DIR', '_DATA_DIR', '_RUNTIME_DIR', 'LAB_SETTINGS_DIR', 'LAB_WORKSPACES_DIR')}
    env |= dict(IPYTHONDIR=str(home / 'ipython'), HOME=str(home))
    env.pop('MPLBACKEND', None)
    for name, said in QUIET.items():
        folder = home / 'LAB_SETTINGS_DIR' / name.split(':')[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{name.split(":")[1]}.jupyterlab-settings').write_text(json.dumps(said))
    argv = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', '--port=0', '--IdentityProvider.token=tests', f'--ServerApp.root_dir={work}',
            '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.expose_app_in_browser=True']
    argv += ['--allow-root'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else []
    with open(home / 'log', 'w') as log:
        p = subprocess.Popen(argv, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=work)
    try:
        end, address = time.monotonic() + 240, ''
        while time.monotonic() < end and not address:
            time.sleep(.3)
            for f in home.glob('**/jpserver-*.json'):
                info = json.loads(f.read_text())
                try:
                    urllib.request.urlopen(f"{info['url']}api/status?token=tests", timeout=5)
                    address = info['url']
                except OSError:
                    pass
        assert address, (home / 'log').read_text()[-2000:]
        yield address
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        p.wait(20)


@contextmanager
def browser(address: str, width: int = 1280, height: int = 900):
    "A page; `outside` has what was asked of other machines, `errors` what scripts said"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = chromium.new_page(viewport=dict(width=width, height=height))
        page.outside, page.errors = [], []
        page.on('request', lambda r: None if re.match(rf'{re.escape(address)}|data:|blob:|ws://127', r.url) else page.outside.append(r.url))
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        yield page
        chromium.close()


def begin(page, address: str, notebook: str) -> None:
    "Open a notebook and wait until its kernel has answered"
    page.goto(f'{address}lab/tree/{notebook}?token=tests&reset')
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=60_000)
    page.evaluate(READY)


def run_all(page) -> None:
    "Begin to; a cell may last"
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")


# ---- the live chart
def drawn(page):
    "What the chart says of itself, once it is painted"
    return page.evaluate('() => new Promise(f => requestAnimationFrame(() => requestAnimationFrame(() => f({...document.querySelector(".rlnb-live").dataset}))))')


def span(page):
    "The part of the axis in sight"
    return [float(v) for v in drawn(page)['range'].split(',')]


def tip(page): return page.locator('.rlnb-tip').inner_text()


def at(page, share, down=.5):
    "A place in the plot, as a share of its width"
    b = page.locator('.rlnb-live > svg').bounding_box()
    return b['x'] + 52 + share * (680 - 64), b['y'] + down * b['height']
