"Name, version and address come from settings.ini; what each install group needs stands here, with lower bounds only."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

core = ['torch>=2.6', 'numpy>=1.26', 'gymnasium>=1.1', 'ipywidgets>=7.7', 'matplotlib>=3.7', 'safetensors>=0.4', 'pyyaml>=6.0',
        'psutil>=5.9', 'fastcore>=1.7']
extras = {
    'lab': ['jupyterlab>=4.2', 'papermill>=2.6', 'optuna>=4.0', 'optuna-dashboard>=0.16', 'tensorboard>=2.16', 'ipykernel>=6.29',
            'anywidget>=0.9'],
    'mujoco': ['gymnasium[mujoco]>=1.1', 'mujoco>=3.3.7'],
    'robotics': ['gymnasium-robotics>=1.4.2', 'mujoco>=3.3.7,<3.12'],   # robotics 1.4.2 breaks on mujoco 3.12
    'box2d': ['gymnasium[box2d]>=1.1'],
    'atari': ['ale-py>=0.11', 'opencv-python-headless>=4.10'],
    'marl': ['pettingzoo>=1.25'],
    'envpool': ['envpool>=1.0'],
    'tracking': ['wandb>=0.19', 'mlflow-skinny>=3.5', 'sqlalchemy>=2.0', 'alembic>=1.13'],
    'ray': ['ray[tune]>=2.40'],
    'cloud': ['boto3>=1.35'],
    'video': ['imageio>=2.34', 'imageio-ffmpeg>=0.5'],
    'peers': ['stable-baselines3>=2.6'],
    'docs': ['sphinx>=8.0', 'myst-nb>=1.2', 'furo>=2024.8.6'],
    # the tools alone have upper bounds: nbdev 2.4.14 breaks on execnb 0.2 and fastcore 2
    'dev': ['nbdev>=2.4.14,<3', 'execnb<0.2', 'fastcore<2', 'pytest>=8.0', 'hypothesis>=6.100', 'ruff>=0.9', 'mypy>=1.14', 'types-PyYAML',
            'types-psutil', 'playwright>=1.49', 'scipy>=1.11', 'nbconvert>=7.16', 'nbclient>=0.10', 'build>=1.2', 'pytest-cov>=5'],
}
extras['all'] = sorted({p for k in ('lab', 'mujoco', 'box2d', 'atari', 'marl', 'tracking', 'video') for p in extras[k]})


class Build(build_py):
    "The tutorials go into the wheel as data: `rlnb lab` opens them"
    def run(self):
        super().run()
        if not self.editable_mode:
            out = Path(self.build_lib)/'rlnb'/'learn'
            out.mkdir(parents=True, exist_ok=True)
            for f in sorted(Path('nbs/90_learn').glob('*.ipynb')): (out/f.name).write_bytes(f.read_bytes())


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0', license_files=['LICENSE'],
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires='>=' + cfg['min_python'], install_requires=core, extras_require=extras,
    cmdclass=dict(build_py=Build),
    packages=find_packages(include=['rlnb', 'rlnb.*']), include_package_data=False,
    package_data={'rlnb': ['*.mplstyle', 'py.typed', 'presets/*.yaml', 'panels/*.js']}, zip_safe=False,
    entry_points={'console_scripts': ['rlnb=rlnb.cli:main'], 'nbdev': ['rlnb=rlnb._modidx:d']},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Intended Audience :: Developers',
                 'Operating System :: OS Independent', 'Framework :: Jupyter', 'Topic :: Scientific/Engineering :: Artificial Intelligence',
                 *(f'Programming Language :: Python :: 3.{v}' for v in (10, 11, 12, 13))],
)
