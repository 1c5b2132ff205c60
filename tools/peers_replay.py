"""SAC, TD3 and DQN in another library and in ours: the sides of `tools/peers.py` that learn from a replay

Settings are those of the same rows of `rlnb bench` (rlnb.train.measure.WORKLOADS). The world keeps the clock: its `step` reads it BURN steps after
the warm-up and ends the run when all steps are done, whatever a library calls a step; imports, warm-up and compiling are over by then. What was
learned is counted in numbers moved: the size of every parameter that an optimiser holds times its Adam steps in that time (ours: the same of our
flat vectors). Two sides that agree in it have networks of the same size, and moved critics, actor and temperature equally often."""
import runpy
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

BURN = 100
NAMES = 'sac-pendulum', 'sac-cheetah', 'td3-cheetah', 'dqn-cartpole-1'
FIXED = dict(hidden=(120, 84))          # the network of CleanRL's dqn.py


def rows(scale):
    "What is measured, by name; made where rlnb can be imported"
    from rlnb.train.measure import WORKLOADS
    out = {}
    for name in NAMES:
        w = WORKLOADS[name]
        for more, change in [('', {}), *[('-120-84', FIXED)]*(w.agent == 'dqn'), *[('-compiled', dict(compile=True))]*(w.agent == 'sac')]:
            settings = (w.settings or {}) | change
            cfg = type(w.cfg).from_dict(settings).to_dict()
            steps = max(1, round(w.steps*scale/w.rows))*w.rows
            out[name + more] = cfg | dict(agent=w.agent, env=w.env, steps=steps, settings=settings, begin=cfg['learning_starts'] + BURN)
    return out


def plays(peer, name, w):
    "Is that a row for this peer?"
    if w['compile'] or peer == 'leanrl': return w['compile'] and peer == 'leanrl'
    return peer == 'cleanrl' if name.endswith('120-84') else (peer, name) != ('cleanrl', 'dqn-cartpole-1')


def total(w): return w['begin'] + w['steps'] + 100


def net(w, i, o):
    from torch import nn
    a, b = w['hidden']
    return nn.Sequential(nn.Linear(i, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, o))


def sizes(w):
    "The world, numbers observed, actions (or numbers in one)"
    import gymnasium as gym
    env = gym.make(w['env'])
    return env, env.observation_space.shape[0], int(env.action_space.n) if hasattr(env.action_space, 'n') else env.action_space.shape[0]


class Enough(BaseException):
    "All steps are done"


class Clock:
    "Counts a world's steps and what every Adam moved, between two of them"
    def __init__(self, w):
        import torch
        self.n, self.first, self.last, self.adams = 0, w['begin'], w['begin'] + w['steps'], []
        world, make = type(sizes(w)[0].unwrapped), torch.optim.Adam.__init__
        step = world.step
        def stepped(env, action):
            if self.n == self.first: self.then = self.read()
            if self.n == self.last: raise Enough
            self.n += 1
            return step(env, action)
        def made(adam, *a, **k):
            make(adam, *a, **k)
            self.adams.append(adam)
        world.step, torch.optim.Adam.__init__ = stepped, made

    def read(self):
        cpu, wall = time.process_time(), time.perf_counter()
        moved = {id(p): (int(s['step']), p.numel()) for adam in self.adams for p, s in adam.state.items()}
        return cpu, wall, moved

    def result(self):
        (cpu, wall, now), (cpu0, wall0, was) = self.read(), self.then
        steps = {k: (n - was.get(k, (0, 0))[0], size) for k, (n, size) in now.items()}
        return dict(steps=self.last - self.first, grads=max(n for n, _ in steps.values()), moved=sum(n*size for n, size in steps.values()),
                    cpu=cpu - cpu0, wall=wall - wall0)


def skrl(w):
    "Its Gaussian is clipped, not squashed: less work than ours"
    import logging

    import torch
    from skrl import logger
    from skrl.agents.torch.dqn import DQN
    from skrl.agents.torch.sac import SAC
    from skrl.agents.torch.td3 import TD3
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from skrl.resources.noises.torch import GaussianNoise
    from skrl.trainers.torch import SequentialTrainer
    logger.setLevel(logging.ERROR)
    world, n_in, n_out = sizes(w)
    env = wrap_env(world, verbose=False)
    spaces = dict(observation_space=env.observation_space, action_space=env.action_space, device=env.device)

    class Base(Model):
        def __init__(self, i, o): Model.__init__(self, **spaces); self.body = net(w, i, o)

    class Gauss(GaussianMixin, Base):
        def __init__(self): Base.__init__(self, n_in, 2*n_out); GaussianMixin.__init__(self, clip_actions=True)
        def compute(self, inputs, role):
            mean, log_std = self.body(inputs['observations']).chunk(2, -1)
            return mean, dict(log_std=log_std)

    class Mu(DeterministicMixin, Base):
        def __init__(self): Base.__init__(self, n_in, n_out); DeterministicMixin.__init__(self)
        def compute(self, inputs, role): return self.body(inputs['observations']).tanh(), {}

    class Q(DeterministicMixin, Base):
        def __init__(self, i, o): Base.__init__(self, i, o); DeterministicMixin.__init__(self)
        def compute(self, inputs, role):
            x = inputs['observations']
            return self.body(x if w['agent'] == 'dqn' else torch.cat([x, inputs['taken_actions']], 1)), {}

    cfg = dict(discount_factor=w['gamma'], learning_rate=w['lr'], batch_size=w['batch_size'], random_timesteps=w['learning_starts'],
               learning_starts=w['learning_starts'], experiment=dict(write_interval=0, checkpoint_interval=0))
    if w['agent'] == 'dqn':
        cfg |= dict(update_interval=w['train_every'], target_update_interval=w['target_every'], polyak=w['tau'],
                    exploration_scheduler=lambda t, n: w['eps_end'])
        kind, models = DQN, {k: Q(n_in, n_out) for k in ('q_network', 'target_q_network')}
    else:
        models = {k: Q(n_in + n_out, 1) for k in ('critic_1', 'critic_2', 'target_critic_1', 'target_critic_2')}
        cfg |= dict(polyak=w['tau'])
    if w['agent'] == 'sac': kind, models, cfg = SAC, models | dict(policy=Gauss()), cfg | dict(initial_entropy_value=w['alpha'])
    if w['agent'] == 'td3':
        def noise(std): return dict(mean=0., std=std)
        cfg |= dict(exploration_noise=GaussianNoise, exploration_noise_kwargs=noise(w['noise']), policy_delay=w['actor_every'],
                    smooth_regularization_noise=GaussianNoise, smooth_regularization_noise_kwargs=noise(w['target_noise']),
                    smooth_regularization_clip=w['noise_clip'])
        kind, models = TD3, models | dict(policy=Mu(), target_policy=Mu())
    agent = kind(models=models, memory=RandomMemory(memory_size=w['buffer_size'], num_envs=1, device=env.device), cfg=cfg, **spaces)
    setting = dict(timesteps=total(w), headless=True, disable_progressbar=True, close_environment_at_exit=False)
    return SequentialTrainer(cfg=setting, env=env, agents=agent).train


def tianshou(w):
    import gymnasium as gym
    import numpy as np
    import torch
    from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
    from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
    from tianshou.algorithm.modelfree.sac import SAC, AutoAlpha, SACPolicy
    from tianshou.algorithm.modelfree.td3 import TD3
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.exploration import GaussianNoise
    from tianshou.trainer import OffPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorDeterministic, ContinuousActorProbabilistic, ContinuousCritic
    one, _, n_out = sizes(w)
    space = dict(action_space=one.action_space, observation_space=one.observation_space)
    shape, adam = one.action_space.shape, AdamOptimizerFactory(lr=w['lr'])
    def body(**kw): return Net(state_shape=one.observation_space.shape, hidden_sizes=tuple(w['hidden']), activation=torch.nn.ReLU, **kw)
    if w['agent'] == 'dqn':
        policy = DiscreteQLearningPolicy(model=body(action_shape=n_out), eps_training=w['eps_end'], **space)
        algo = DQN(policy=policy, optim=adam, gamma=w['gamma'], is_double=False, huber_loss_delta=1., target_update_freq=w['target_every'])
    else:
        q = {k: ContinuousCritic(preprocess_net=body(action_shape=shape, concat=True)) for k in ('critic', 'critic2')}
        both = dict(policy_optim=adam, critic_optim=adam, critic2_optim=adam, tau=w['tau'], gamma=w['gamma'], **q)
    if w['agent'] == 'sac':
        actor = ContinuousActorProbabilistic(preprocess_net=body(), action_shape=shape, unbounded=True, conditioned_sigma=True)
        algo = SAC(policy=SACPolicy(actor=actor, **space), alpha=AutoAlpha(-float(np.prod(shape)), 0., adam), **both)
    if w['agent'] == 'td3':
        actor = ContinuousActorDeterministic(preprocess_net=body(), action_shape=shape)
        policy = ContinuousDeterministicPolicy(actor=actor, exploration_noise=GaussianNoise(sigma=w['noise']), **space)
        algo = TD3(policy=policy, policy_noise=w['target_noise'], noise_clip=w['noise_clip'], update_actor_freq=w['actor_every'], **both)
    memory = Collector(algo, DummyVectorEnv([lambda: gym.make(w['env'])]), VectorReplayBuffer(w['buffer_size'], 1), exploration_noise=True)

    def run():
        memory.reset()
        memory.collect(n_step=w['learning_starts'], random=True)
        algo.run_training(OffPolicyTrainerParams(
            max_epochs=1, epoch_num_steps=total(w), collection_step_num_env_steps=w['train_every'], batch_size=w['batch_size'],
            update_step_num_gradient_steps_per_sample=w['updates']/w['train_every'], training_collector=memory, verbose=False, show_progress=False))
    return run


def torchrl(w):
    "Loss modules with one fused Adam, TD3's with two"
    import warnings

    import torch
    from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
    from torchrl.collectors import Collector
    from torchrl.data import Composite, LazyTensorStorage, ReplayBuffer
    from torchrl.envs import DoubleToFloat, GymEnv, TransformedEnv
    from torchrl.modules import MLP, AdditiveGaussianModule, EGreedyModule, ProbabilisticActor, QValueActor, TanhModule, TanhNormal, ValueOperator
    from torchrl.objectives import DQNLoss, HardUpdate, SACLoss, SoftUpdate, TD3Loss
    warnings.filterwarnings('ignore')
    _, n_in, n_out = sizes(w)
    env = GymEnv(w['env'], device='cpu')
    if 'Cheetah' in w['env']: env = TransformedEnv(env, DoubleToFloat())
    spec, seen = env.action_spec, ['observation']
    def adam(ps): return torch.optim.Adam(ps, lr=w['lr'], fused=True)
    def mlp(i, o): return MLP(in_features=i, out_features=o, num_cells=w['hidden'], activation_class=torch.nn.ReLU)
    q = ValueOperator(mlp(n_in + n_out, 1), in_keys=['observation', 'action'])
    if w['agent'] == 'dqn':
        greedy = QValueActor(mlp(n_in, n_out), in_keys=seen, spec=Composite(action=spec))
        actor = TensorDictSequential(greedy, EGreedyModule(spec=greedy.spec, annealing_num_steps=1, eps_init=w['eps_end'], eps_end=w['eps_end']))
        loss = DQNLoss(greedy, loss_function='smooth_l1', delay_value=True)
        slow = HardUpdate(loss, value_network_update_interval=w['target_every'])
    elif w['agent'] == 'sac':
        body = TensorDictModule(torch.nn.Sequential(mlp(n_in, 2*n_out), NormalParamExtractor()), in_keys=seen, out_keys=['loc', 'scale'])
        actor = ProbabilisticActor(body, in_keys=['loc', 'scale'], distribution_class=TanhNormal, spec=spec, return_log_prob=False,
                                   distribution_kwargs=dict(low=spec.space.low, high=spec.space.high))
        loss = SACLoss(actor, q, num_qvalue_nets=2, loss_function='l2', alpha_init=w['alpha'], action_spec=spec)
        slow = SoftUpdate(loss, tau=w['tau'])
    else:
        body = TensorDictModule(mlp(n_in, n_out), in_keys=seen, out_keys=['u'])
        mu = TensorDictSequential(body, TanhModule(in_keys=['u'], out_keys=['action'], spec=spec))
        actor = TensorDictSequential(mu, AdditiveGaussianModule(spec=spec, sigma_init=1, sigma_end=1, mean=0, std=w['noise']))
        loss = TD3Loss(mu, q, num_qvalue_nets=2, loss_function='l2', delay_actor=True, delay_qvalue=True, action_spec=spec,
                       policy_noise=w['target_noise'], noise_clip=w['noise_clip'])
        slow = SoftUpdate(loss, tau=w['tau'])
        opt_pi, opt_q = (adam(x.flatten_keys().values()) for x in (loss.actor_network_params, loss.qvalue_network_params))
    loss.make_value_estimator(gamma=w['gamma'])
    if w['agent'] != 'td3': opt = adam(loss.parameters())

    def moved(optimiser, value):
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
    def update(batch):
        part = loss(batch)
        moved(opt, part['loss'] if w['agent'] == 'dqn' else part['loss_actor'] + part['loss_qvalue'] + part['loss_alpha'])
        slow.step()
    def delayed(batch, k):
        moved(opt_q, loss.value_loss(batch)[0])
        if k % w['actor_every']: return
        moved(opt_pi, loss.actor_loss(batch)[0])
        slow.step()
    memory = ReplayBuffer(storage=LazyTensorStorage(w['buffer_size']), batch_size=w['batch_size'])

    def run():
        frames = k = 0
        for data in Collector(env, actor, frames_per_batch=w['train_every'], total_frames=total(w), init_random_frames=w['learning_starts'],
                              trust_policy=True):
            memory.extend(data.reshape(-1))
            frames += data.numel()
            if frames <= w['learning_starts']: continue
            k += 1
            if w['agent'] == 'td3': delayed(memory.sample(), k)
            else: update(memory.sample())
    return run


def sb3(w):
    import numpy as np
    import stable_baselines3
    from rlnb.train.experiment import find_agent
    from rlnb.train.measure import sb3_settings
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    settings = sb3_settings(find_agent(w['agent']).config.from_dict(w['settings']))
    if w['agent'] == 'td3': settings |= dict(action_noise=NormalActionNoise(np.zeros(sizes(w)[2]), w['noise']))
    model = getattr(stable_baselines3, w['agent'].upper())('MlpPolicy', make_vec_env(w['env'], 1, seed=0), device='cpu', **settings)
    return lambda: model.learn(total(w))


def cleanrl(w, script='cleanrl/{}.py', more=()):
    "A script as it is, in this process"
    name = dict(sac='sac_continuous_action', td3='td3_continuous_action', dqn='dqn')[w['agent']]
    flags = ['--env-id', w['env'], '--no-cuda', '--total-timesteps', total(w), '--batch-size', w['batch_size'], '--buffer-size', w['buffer_size'],
             '--learning-starts', w['learning_starts'], '--gamma', w['gamma'], '--tau', w['tau'], *more]
    if w['agent'] == 'dqn': flags += ['--train-frequency', w['train_every'], '--target-network-frequency', w['target_every']*w['train_every'],
                                      '--exploration-fraction', w['eps_fraction']]
    flags += ['--policy-lr', w['lr'], '--q-lr', w['lr'], '--policy-frequency', 1] if w['agent'] == 'sac' else ['--learning-rate', w['lr']]
    file = Path(w['path'], script.format(name))

    def run():
        sys.argv = [str(x) for x in (file, *flags)]
        runpy.run_path(str(file), run_name='__main__')
    return run


def leanrl(w):
    "The same scripts, compiled; nothing is logged"
    from types import SimpleNamespace
    sys.modules['wandb'] = SimpleNamespace(init=lambda **k: None, log=lambda *a, **k: None)
    return cleanrl(w, 'leanrl/{}_torchcompile.py', ('--compile',))


def ours(w):
    "Our side, through the front door and with its default callbacks"
    from rlnb.train.measure import Stopwatch
    from rlnb.train.session import train

    class Moves(Stopwatch):
        def parts(self, t): return {k: float(o.step)*o.vec.numel() for k, o in t.agent.opts.items()}
    rows = w['train_every']
    watch = Moves(w['steps']//rows, w['begin']//rows)
    with tempfile.TemporaryDirectory() as d:
        train(w['agent'], w['env'], w['begin'] + w['steps'] + rows, d, episodes=1, cbs=[watch], num_envs=1, presets=False, **w['settings'])
    moved = int(sum(watch.found['parts'].values()))
    return {k: watch.found[k] for k in ('steps', 'grads', 'cpu', 'wall')} | dict(moved=moved, version=metadata.version('rlnb'))


def one(peer, w, name):
    "One side in this process: steps, gradient steps, numbers moved, seconds"
    if peer == 'rlnb': return ours(w)
    if peer in ('cleanrl', 'leanrl'): w = w | dict(env=w['env'].replace('HalfCheetah-v5', 'HalfCheetah-v4'))      # all that their Gymnasium has
    clock = Clock(w)
    try: globals()[peer](w)()
    except Enough: pass
    return clock.result() | dict(version=metadata.version(name) if name else '')
