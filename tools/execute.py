"Execute notebooks and store the outputs that teach: `python tools/execute.py nbs/00_core/45_returns.ipynb …`"
import argparse
import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def shrink(png: str) -> str:
    "The same picture with a palette of 64 colours and no metadata: a third of the bytes, equal on every run"
    from PIL import Image
    im = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGBA')
    flat = Image.new('RGB', im.size, 'white')
    flat.paste(im, mask=im.getchannel('A'))
    out = io.BytesIO()
    flat.quantize(64, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def clean(nb: nbformat.NotebookNode) -> None:
    "Drop what differs from run to run: counts, timestamps, widget state, warnings, live views"
    nb.metadata = nbformat.from_dict({'kernelspec': nb.metadata.kernelspec}) if 'kernelspec' in nb.metadata else nbformat.from_dict({})
    for c in nb.cells:
        c.metadata = nbformat.from_dict({'tags': c.metadata['tags']}) if c.metadata.get('tags') else nbformat.from_dict({})
        if c.cell_type != 'code':
            continue
        c.execution_count, kept = None, []
        for o in c.outputs:
            if o.output_type == 'stream':      # progress, timings, warnings: values and pictures teach, prints do not
                continue
            if 'execution_count' in o:
                o.execution_count = None
            data = o.get('data', {})
            if 'application/vnd.jupyter.widget-view+json' in data:
                continue
            if 'image/png' in data:
                data['image/png'] = shrink(data['image/png'])
            kept.append(o)
        c.outputs = kept


def execute(path: Path, timeout: int = 300) -> float:
    "Run one notebook in its own folder and write it back; returns the seconds"
    nb, then = nbformat.read(path, 4), time.perf_counter()
    NotebookClient(nb, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}, store_widget_state=False).execute()
    clean(nb)
    nbformat.write(nb, path)
    from nbdev.clean import nbdev_clean
    nbdev_clean(str(path))
    return time.perf_counter() - then


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('notebooks', nargs='+', type=Path)
    os.environ.setdefault('PYTHONHASHSEED', '0')
    os.chdir(ROOT)
    for f in p.parse_args().notebooks:
        print(f'{f}  {execute(f):.1f} s', file=sys.stderr)
