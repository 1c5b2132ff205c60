"""PPO in another library and in ours, with the same network, rollout, epochs and minibatches: the sides of `tools/peers.py` that learn on policy

Gradient steps are counted; a first iteration is off the clock."""
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROWS = {'ppo-cartpole-8': dict(env='CartPole-v1', n=8, T=128, mb=256, epochs=4, lr=1e-3, steps=40_960),
        'ppo-cartpole-64': dict(env='CartPole-v1', n=64, T=128, mb=256, epochs=4, lr=1e-3, steps=81_920),
        'ppo-cheetah-4': dict(env='HalfCheetah-v5', n=4, T=512, mb=64, epochs=10, lr=3e-4, steps=8_192)}
SKIP = {('torchrl', 'ppo-cheetah-4'), ('cleanrl', 'ppo-cheetah-4')}      # needs another action distribution; wants HalfCheetah-v4


def rows(scale):
    "What is measured, by name: whole rollouts, two at least"
    return {k: w | dict(steps=max(2, round(w['steps']*scale/(w['n']*w['T'])))*w['n']*w['T']) for k, w in ROWS.items()}


def plays(peer, name, w):
    "Is that a row for this peer?"
    return peer != 'leanrl' and (peer, name) not in SKIP


def net(i, o):
    from torch import nn
    return nn.Sequential(nn.Linear(i, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, o))


def sizes(w):
    "Numbers observed, actions (or numbers in one), and whether they are discrete"
    import gymnasium as gym
    env = gym.make(w['env'])
    discrete = hasattr(env.action_space, 'n')
    return env, env.observation_space.shape[0], int(env.action_space.n) if discrete else env.action_space.shape[0], discrete


def skrl(w):
    import logging

    import gymnasium as gym
    import torch
    from skrl import logger
    from skrl.agents.torch.ppo import PPO
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
    from skrl.trainers.torch import SequentialTrainer
    logger.setLevel(logging.ERROR)
    batch = 'vector_entry_point' if gym.spec(w['env']).vector_entry_point else 'sync'
    env, (_, n_in, n_out, discrete) = wrap_env(gym.make_vec(w['env'], w['n'], batch), verbose=False), sizes(w)
    spaces = dict(observation_space=env.observation_space, action_space=env.action_space, device=env.device)

    class Base(Model):
        def __init__(self, out): Model.__init__(self, **spaces); self.body = net(n_in, out)

    class Policy(CategoricalMixin if discrete else GaussianMixin, Base):
        def __init__(self):
            Base.__init__(self, n_out)
            if discrete: CategoricalMixin.__init__(self)
            else:
                GaussianMixin.__init__(self, clip_actions=False)
                self.log_std = torch.nn.Parameter(torch.zeros(n_out))
        def compute(self, inputs, role): return self.body(inputs['observations']), {} if discrete else dict(log_std=self.log_std)

    class Value(DeterministicMixin, Base):
        def __init__(self): Base.__init__(self, 1); DeterministicMixin.__init__(self)
        def compute(self, inputs, role): return self.body(inputs['observations']), {}

    cfg = dict(discount_factor=.99, gae_lambda=.95, learning_rate=w['lr'], grad_norm_clip=.5, rollouts=w['T'], learning_epochs=w['epochs'],
               ratio_clip=.2, value_clip=0., mini_batches=w['n']*w['T']//w['mb'], entropy_loss_scale=0., value_loss_scale=.5,
               experiment=dict(write_interval=0, checkpoint_interval=0))
    memory = RandomMemory(memory_size=w['T'], num_envs=w['n'], device=env.device)
    agent = PPO(models=dict(policy=Policy(), value=Value()), memory=memory, cfg=cfg, **spaces)
    setting = dict(timesteps=w['steps']//w['n'], headless=True, disable_progressbar=True, close_environment_at_exit=False)
    return SequentialTrainer(cfg=setting, env=env, agents=agent).train


def tianshou(w):
    import gymnasium as gym
    import torch
    from tianshou.algorithm.modelfree.ppo import PPO
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
    one, _, n_out, discrete = sizes(w)
    space, rows = dict(action_space=one.action_space, observation_space=one.observation_space), w['n']*w['T']
    def body(): return Net(state_shape=one.observation_space.shape, hidden_sizes=(64, 64), activation=torch.nn.Tanh)
    if discrete:
        policy = DiscreteActorPolicy(actor=DiscreteActor(preprocess_net=body(), action_shape=n_out, softmax_output=False), **space)
        critic = DiscreteCritic(preprocess_net=body())
    else:
        actor = ContinuousActorProbabilistic(preprocess_net=body(), action_shape=one.action_space.shape, unbounded=True)
        policy = ProbabilisticActorPolicy(actor=actor, dist_fn=lambda p: torch.distributions.Independent(torch.distributions.Normal(*p), 1), **space)
        critic = ContinuousCritic(preprocess_net=body())
    ppo = PPO(policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=w['lr'], eps=1e-5), eps_clip=.2, vf_coef=.5, ent_coef=0., max_grad_norm=.5,
              gae_lambda=.95, gamma=.99)
    worlds = DummyVectorEnv([lambda: gym.make(w['env']) for _ in range(w['n'])])
    return lambda: ppo.run_training(OnPolicyTrainerParams(
        max_epochs=1, epoch_num_steps=w['steps'], collection_step_num_env_steps=rows, batch_size=w['mb'], update_step_num_repetitions=w['epochs'],
        training_collector=Collector(ppo, worlds, VectorReplayBuffer(rows, w['n'])), verbose=False, show_progress=False))


def torchrl(w):
    import torch
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, ReplayBuffer
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
    from torchrl.envs import GymEnv, SerialEnv
    from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE
    _, n_in, n_out, _ = sizes(w)
    def single(): return GymEnv(w['env'], device='cpu')
    body = TensorDictModule(net(n_in, n_out), in_keys=['observation'], out_keys=['logits'])
    actor = ProbabilisticActor(body, in_keys=['logits'], distribution_class=OneHotCategorical, return_log_prob=True, spec=single().action_spec)
    critic, rows = ValueOperator(net(n_in, 1), in_keys=['observation']), w['n']*w['T']
    advantage = GAE(gamma=.99, lmbda=.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, clip_epsilon=.2, entropy_bonus=False, critic_coeff=.5, loss_critic_type='l2', normalize_advantage=True)
    adam = torch.optim.Adam(loss.parameters(), lr=w['lr'], eps=1e-5, fused=True)
    memory = ReplayBuffer(storage=LazyTensorStorage(rows), sampler=SamplerWithoutReplacement(), batch_size=w['mb'])

    def run():
        for data in Collector(SerialEnv(w['n'], single), actor, frames_per_batch=rows, total_frames=w['steps'], trust_policy=True):
            with torch.no_grad(): data = advantage(data)
            memory.empty()
            memory.extend(data.reshape(-1))
            for _ in range(w['epochs']*(rows//w['mb'])):
                part = loss(memory.sample())
                (part['loss_objective'] + part['loss_critic']).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), .5)
                adam.step()
                adam.zero_grad()
    return run


def sb3(w):
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    model = PPO('MlpPolicy', make_vec_env(w['env'], w['n'], seed=0), learning_rate=w['lr'], n_steps=w['T'], batch_size=w['mb'], n_epochs=w['epochs'],
                device='cpu', policy_kwargs=dict(net_arch=[64, 64]))
    return lambda: model.learn(w['steps'])


def ours(w):
    "Our side, through the front door and with its default callbacks"
    from rlnb.train.session import train
    from rlnb.train.measure import Stopwatch
    rows = w['n']*w['T']
    cfg, watch = dict(lr=w['lr'], n_steps=w['T'], minibatch=w['mb'], epochs=w['epochs']), Stopwatch(w['steps']//rows)
    with tempfile.TemporaryDirectory() as d:
        train('ppo', w['env'], w['steps'] + rows, d, episodes=1, cbs=[watch], num_envs=w['n'], presets=False, **cfg)
    return {k: watch.found[k] for k in ('steps', 'grads', 'cpu', 'wall')} | dict(version=metadata.version('rlnb'))


def one(peer, w, name):
    "One side in this process: steps, gradient steps, seconds"
    if peer == 'rlnb': return ours(w)
    import torch
    grads, step = [0], torch.optim.Adam.step
    def counted(self, *a, **k):
        grads[0] += 1
        return step(self, *a, **k)
    torch.optim.Adam.step = counted
    globals()[peer](w | dict(steps=w['n']*w['T']))()
    run, grads[0] = globals()[peer](w), 0
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return dict(steps=w['steps'], grads=grads[0], cpu=cpu, wall=wall, version=metadata.version(name))


def cleanrl(w, path, env):
    "CleanRL's script as it is, at two lengths: the difference is measured, so that imports drop out"
    rows = w['n']*w['T']
    flags = ['--env-id', w['env'], '--no-cuda', '--num-envs', w['n'], '--num-steps', w['T'], '--update-epochs', w['epochs'],
             '--num-minibatches', rows//w['mb'], '--learning-rate', w['lr'], '--ent-coef', 0., '--no-clip-vloss', '--no-anneal-lr']

    def run(steps):
        code = ('import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=-3, stderr=-3); '
                'u = resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime)')
        with tempfile.TemporaryDirectory() as d:
            then = time.perf_counter()
            command = [sys.executable, '-c', code, sys.executable, Path(path, 'cleanrl/ppo.py'), '--total-timesteps', steps, *flags]
            said = subprocess.run([*map(str, command)], cwd=d, env=env, capture_output=True, text=True, check=True).stdout
            return float(said), time.perf_counter() - then
    short = rows*max(1, w['steps']//rows//4)
    (a, x), (b, y) = run(short), run(w['steps'])
    n = w['steps'] - short
    return dict(steps=n, grads=n//rows*w['epochs']*(rows//w['mb']), cpu=b - a, wall=y - x, version='')
