"The statistics against brute force and against rliable; and what they cost to import"
import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest
from rlnb.core.errors import BadInput
from rlnb.evaluation import rank, stats, student
from rlnb.evaluation import tests as tst

SHAPES = [(2, 1), (3, 1), (5, 3), (10, 6), (7, 11)]


@pytest.fixture(scope='module')
def rliable():
    try: from rliable import metrics
    except ImportError:
        warnings.warn('rliable is not installed: agreement with it was NOT checked (pip install rliable)', stacklevel=1)
        pytest.skip('rliable is not installed: agreement with it was NOT checked')
    return metrics


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('kind', ['normal', 'ties'])
def test_agrees_with_rliable(rliable, shape, kind):
    rng = np.random.default_rng(sum(shape))
    draw = (lambda s: rng.normal(.6, .5, s)) if kind == 'normal' else (lambda s: rng.integers(0, 4, s)/3)
    x, y = draw(shape), draw((shape[0] + 2, shape[1]))
    for ours, theirs in ((stats.mean, rliable.aggregate_mean), (stats.median, rliable.aggregate_median), (stats.iqm, rliable.aggregate_iqm),
                         (stats.optimality_gap, rliable.aggregate_optimality_gap)):
        assert abs(float(ours(x)) - theirs(x)) < 1e-12, ours.__name__
    assert abs(stats.improvement(x, y, reps=10).value - rliable.probability_of_improvement(x, y)) < 1e-12


@pytest.mark.parametrize('shape', SHAPES)
def test_profile_by_counting(shape):
    x = np.random.default_rng(0).integers(0, 5, shape).astype(float)
    taus = [-1, 0, .5, 1, 4, 9]
    assert np.allclose(stats.profile(x, taus), [(x > t).mean() for t in taus])


def test_bootstrap_of_two_values_is_the_binomial():
    "Five runs, each 0 or 1: the resampled mean is binomial, and its percentiles are known"
    x = np.array([[0.], [0.], [1.], [1.], [1.]])
    drawn = np.concatenate([stats.mean(b) for b in stats.resample(x, 40_000, 1)])
    share = [(np.isclose(drawn, k/5)).mean() for k in range(6)]
    exact = [len(list(itertools.combinations(range(5), k)))*.6**k*.4**(5 - k) for k in range(6)]
    assert np.abs(np.array(share) - exact).max() < .01


def test_blocks_give_the_same_whatever_their_size():
    "A large table is drawn in blocks: as many draws as were asked for"
    x = np.random.default_rng(0).normal(size=(40, 300))
    blocks = list(stats.resample(x, 205, 0))
    assert len(blocks) > 1 and sum(map(len, blocks)) == 205


def test_a_stratum_never_leaks():
    x = np.arange(12.).reshape(4, 3)
    for b in stats.resample(x, 50):
        for t in range(3): assert set(b[..., t].ravel()) <= set(x[:, t])


@pytest.mark.parametrize('n,m', [(2, 3), (3, 3), (4, 4), (3, 6)])
def test_permutation_by_brute_force(n, m):
    rng = np.random.default_rng(n*m)
    for _ in range(5):
        a, b = rng.integers(0, 6, n).astype(float), rng.integers(0, 6, m).astype(float)
        pool, d = np.concatenate((a, b)), abs(a.mean() - b.mean())
        hits = [abs(pool[list(c)].mean() - np.delete(pool, c).mean()) >= d - 1e-12 for c in itertools.combinations(range(n + m), n)]
        assert abs(tst.permutation(a, b) - np.mean(hits)) < 1e-12


@pytest.mark.parametrize('scale', [1e-9, 1e9])
def test_scale_changes_no_p_value(scale):
    "A difference that is a tie at one scale is one at every scale"
    a, b = np.array([3., 5., 6., 2., 8.]), np.array([1., 2., 4., 9., 3.])
    for f in (tst.permutation, tst.mann_whitney, lambda a, b: tst.welch(a, b).p): assert abs(f(a*scale, b*scale) - f(a, b)) < 1e-9


def test_paired_by_brute_force():
    rng = np.random.default_rng(3)
    d = rng.integers(-3, 6, 7).astype(float)
    hits = [abs(np.mean(d*s)) >= abs(d.mean()) - 1e-12 for s in itertools.product((1, -1), repeat=7)]
    assert abs(tst.paired(d, 0*d) - np.mean(hits)) < 1e-12


def test_t_far_out_and_close_in():
    from scipy.stats import t as them
    for df in (1, 2.5, 9, 250):
        for x in (0., .3, 5., 60.): assert abs(float(student.t_tail(x, df))/(2*them.sf(x, df)) - 1) < 1e-9
    assert abs(float(student.t_tail(1e-8, 1)) - (1 - 2e-8/np.pi)) < 1e-14       # closer than scipy comes


def test_holm_controls_the_whole_family():
    "Twenty true nulls: at most five per cent of experiments have any false alarm"
    p = np.random.default_rng(0).random((4000, 20))
    assert np.mean([(tst.holm(row) < .05).any() for row in p]) < .06


@pytest.mark.parametrize('n', [(1, 5), (2, 2), (5, 2), (0, 5)])
def test_no_verdict_below_three_seeds(n):
    v = tst.verdict(np.arange(n[0]), np.arange(n[1]))
    assert not v.better and v.missing == (max(0, 3 - n[0]), max(0, 3 - n[1])) and str(v).startswith('No verdict')


def test_verdict_of_identical_perfect_scores():
    "Every seed at the maximum: no difference, no warning, no NaN in words"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        v = tst.verdict([500.]*5, [500.]*5, ('PPO', 'DQN'))
    assert not v.better and 'nan' not in str(v).lower() and 'inf' not in str(v).lower()


@pytest.mark.parametrize('size', [1e-6, 1., 1e9])
def test_verdict_without_any_spread(size):
    "Five seeds at one value, five at another: clear, and nothing overflows"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        v = tst.verdict([size]*5, [0.]*5)
    assert v.better == 'A' and v.p < .01 and 'nan' not in str(v)


def test_ranks_are_permutation_free():
    "The order in which names are given changes no place"
    rng = np.random.default_rng(0)
    runs = {k: rng.normal(m, 1, 6) for k, m in dict(a=0, b=5, c=5.2, d=9).items()}
    places = {p.name: (p.rank, p.last) for p in rank.ranking(runs)}
    again = {p.name: (p.rank, p.last) for p in rank.ranking(dict(reversed(runs.items())))}
    assert places == again == dict(a=(4, 4), b=(2, 3), c=(2, 3), d=(1, 1))


@pytest.mark.parametrize('bad', [dict(a=[1., 2., 3.], b=[1., 2., np.inf]), dict(a=[1., 2., 3.], b=[])])
def test_what_is_missing_is_named(bad):
    with pytest.raises(BadInput, match=r"scores\['b'\]"): rank.ranking(bad)


def test_statistics_load_neither_torch_nor_scipy():
    code = 'import sys, rlnb.evaluation.rank; print(*{"torch", "scipy", "matplotlib", "pandas"} & set(sys.modules))'
    assert not subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
