"Every preset in the files is an experiment that can be built, and every bar of the learning grid has one"
import json

import learn
import pytest
from rlnb.core.errors import BadInput, MissingExtra
from rlnb.train.experiment import Experiment, build
from rlnb.train.presets import names, preset

WORLDS = ['CartPole-v1', 'Acrobot-v1', 'Pendulum-v1', 'MountainCar-v0', 'MountainCarContinuous-v0', 'LunarLander-v3', 'HalfCheetah-v5',
          'rlnb/MockCache-v0', 'rlnb/Cache-v0']


def experiment(agent, env, **more): return Experiment.from_dict({'agent': agent, 'env': env, **preset(agent, env), **more})


def flat(settings): return {k: v for k, v in settings.items() if k != 'agent_cfg'} | settings.get('agent_cfg', {})


@pytest.mark.parametrize('agent', ['ppo', 'a2c'])
def test_every_world_is_there(agent): assert {env for a, env in names() if a == agent} >= set(WORLDS)


@pytest.mark.parametrize('agent,env', names())
def test_builds(agent, env):
    exp = experiment(agent, env)
    assert Experiment.from_json(exp.to_json()) == exp
    try: t = build(exp)
    except MissingExtra as e: pytest.skip(str(e))
    assert t.env.num_envs == exp.num_envs and t.agent.cfg == exp.agent_cfg and t.horizon == exp.steps
    t.env.close()


@pytest.mark.parametrize('agent,env', names())
def test_says_nothing_twice(agent, env):
    "A preset holds what differs from the defaults, and the length of the run"
    said, plain = flat(preset(agent, env)), Experiment.from_dict({'agent': agent, 'env': env})
    idle = [k for k, v in said.items() if k not in ('steps', 'num_envs') and getattr(plain.agent_cfg, k) == v]
    assert not idle, f'{agent} on {env}: {idle} are the defaults'


@pytest.mark.parametrize('agent,env', [(a, e) for a, e in names() if not e.startswith('rlnb/')])
def test_twins_share(agent, env): assert preset(agent, f'rlnb/{env}') == preset(agent, env)


@pytest.mark.parametrize('planted', [{'gama': .9}, {'lr': 'linaer(1, 0)'}, {'gamma': 1.5}, {'minibatch': 10**6}])
def test_a_wrong_preset_is_refused(planted):
    with pytest.raises(BadInput): experiment('ppo', 'CartPole-v1', agent_cfg=preset('ppo', 'CartPole-v1')['agent_cfg'] | planted)


def test_the_grid_stands_on_presets():
    for c in learn.CELLS:
        assert (c.agent, c.world) in names(), c
        assert c.what in ('final', 'best', 'success') and c.judge in ('mean', 'each', 'most', 'low', 'under') and len(set(c.seeds)) == len(c.seeds)
    for agent, world in {(c.agent, c.world) for c in learn.CELLS}:      # a preset is judged where it says it ends; it may be judged after more steps too
        assert preset(agent, world)['steps'] in {c.steps for c in learn.CELLS if (c.agent, c.world) == (agent, world)}, f'{agent} on {world}'


def test_version_follows_the_preset(monkeypatch):
    c, was = learn.CELLS[0], learn.version(learn.CELLS[0])
    assert was == learn.version(c) != learn.version(learn.CELLS[1])
    learn.version.cache_clear()
    monkeypatch.setattr('rlnb.train.presets.preset', lambda agent, env: {'num_envs': 3})
    assert learn.version(c) != was
    learn.version.cache_clear()


def test_a_cell_may_change_the_preset():
    c = learn.Cell('dqn', 'rlnb/BitFlip-v0', 100, .05, change=(('her', 'off'),))
    plain = preset('dqn', 'rlnb/BitFlip-v0')
    assert learn.settings(c) == plain | dict(agent_cfg=plain['agent_cfg'] | dict(her='off')) and learn.version(c) != learn.version(c._replace(change=()))


def test_where_a_package_is_missing_the_newest_row_counts(monkeypatch):
    def absent(c): raise MissingExtra('no such package')
    monkeypatch.setattr(learn, 'first_rows', absent)
    learn.version.cache_clear()
    c = learn.Cell('ppo', 'CartPole-v1', 100, 100, seeds=(0, 1))
    assert learn.version(c) == '' and learn.row_of(dict([row(c, 0, 1., 'old'), row(c, 0, 2., 'new')]), c, 0)['final']['mean'] == 2
    assert learn.row_of({}, c, 1) is None
    learn.version.cache_clear()


def row(c, seed, mean, ver):
    part = dict(mean=mean, low=mean, high=mean)
    return (c.agent, c.world, c.steps, seed, ver), dict(agent=c.agent, world=c.world, steps=c.steps, seed=seed, version=ver, final=part, best=part, seconds=1)


@pytest.mark.parametrize('judge,scores,met', [('mean', [90, 110], True), ('mean', [90, 109], False), ('each', [90, 110], False), ('each', [100, 100], True),
                                              ('low', [90, 190], False), ('low', [101, 109], True), ('under', [90, 109], True), ('under', [90, 111], False)])
def test_verdicts(monkeypatch, judge, scores, met):
    c = learn.Cell('ppo', 'CartPole-v1', 100, 100, judge=judge, seeds=(0, 1))
    monkeypatch.setattr(learn, 'CELLS', [c])
    text, well = learn.table(dict(row(c, i, s, learn.version(c)) for i, s in enumerate(scores)))
    assert well is met and ('NOT met' in text) is not met and '2 of 2' in text


def test_other_versions_and_missing_seeds_are_named(monkeypatch, tmp_path):
    c = learn.Cell('ppo', 'CartPole-v1', 100, 100, seeds=(0, 1, 2))
    monkeypatch.setattr(learn, 'CELLS', [c])
    monkeypatch.setattr(learn, 'RESULTS', tmp_path / 'learning.jsonl')
    assert learn.done() == {}
    rows = [row(c, 0, 500., learn.version(c))[1], row(c, 1, 500., 'another')[1]]
    learn.RESULTS.write_text('\n'.join(map(json.dumps, rows)) + '\n', encoding='utf-8')
    text, well = learn.table(learn.done())
    assert 'missing: 1 2' in text and '1 of 3' in text and well


@pytest.mark.parametrize('says,carried', [({}, True), ({'here': '4000 abd'}, False), ({'before': ''}, False), ({'of before': 'other'}, False)],
                         ids=['the same', 'other numbers', 'it fails', 'older still'])
def test_rows_are_carried_only_where_nothing_changed(says, carried, monkeypatch, tmp_path):
    "Two checkouts that compute the same share their rows; one number that differs, or a checkout that says nothing, and they don't"
    c = learn.Cell('dqn', 'CartPole-v1', 50_000, 475)
    rows = [dict(agent='dqn', world='CartPole-v1', steps=50_000, seed=k, version='old', final=dict(mean=500. - k)) for k in range(3)]
    kept = [rows[0] | dict(version='new', final=dict(mean=1.)), rows[1] | dict(world='Acrobot-v1')]
    (path := tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows + kept)) + '\n')
    answers = {'of before': 'old', 'before': '4000 abc', 'here': '4000 abc'} | says
    monkeypatch.setattr(learn, 'version', lambda c: 'new')
    monkeypatch.setattr(learn, 'said', lambda where, code, c: answers['of before' if code != learn.PROOF else 'before' if where == 'DIR' else 'here'])
    before = path.read_text()
    learn.carry(path, [c], 'DIR')
    assert path.read_text().startswith(before)
    new = [json.loads(s) for s in path.read_text()[len(before):].splitlines()]
    assert new == [r | dict(version='new', carried=dict(version='old', steps=4000)) for r in rows[1:]]*carried      # seed 0 has a row of its own


def test_the_proof_sees_a_number_that_differs(tmp_path):
    "The program that both checkouts run, on this one, and on one whose gamma is another"
    c = learn.Cell('dqn', 'CartPole-v1', 50_000, 475)
    same, other = learn.said(str(learn.ROOT), learn.PROOF, c), learn.said(str(learn.ROOT), learn.PROOF, c._replace(change=(('gamma', .98),)))
    assert same and other and same != other and same == learn.said(str(learn.ROOT), learn.PROOF, c)
    assert learn.said(str(learn.ROOT), 'raise SystemExit(1)', c) == ''
