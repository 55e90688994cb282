"""PPO (Schulman et al. 2017, arXiv 1707.06347) by stable-baselines3, from a start that imitates pacing.

From random weights it is slow: after 1.5 million steps it returned 179.4 on the validation devices, the best fixed
operating point 178.6 and pacing 186.8. So it is first shown what pacing does in the training devices' days.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.train.sb3 import PPO
from policies.train.vec_env import DaysVecEnv

#: Steps in which only the critic learns: what a random one tells would undo the imitation.
CRITIC_STEPS = 150_000
ACTIVATION = "tanh"
IMITATION_RATE, IMITATION_EPOCHS, IMITATION_BATCH = 2e-3, 36, 4096


@dataclass(frozen=True)
class Arguments:
    """Chosen on validation devices."""

    devices: int = 256  #: that are played side by side
    rate: float = 2e-4  #: of learning, falls to 0 in a line
    batch_size: int = 8192
    epochs: int = 5  #: over the samples of a day of all devices
    gamma: float = 1.0  #: a day ends
    gae_lambda: float = 1.0  #: less leaves the price of charge, hours later, to the critic, which does not know it
    entropy: float = 0.0  #: its weight


class PatientPPO(PPO):
    """Leaves the policy as it is for CRITIC_STEPS."""

    def train(self) -> None:
        for part in (self.policy.mlp_extractor.policy_net, self.policy.action_net):
            part.requires_grad_(self.num_timesteps > CRITIC_STEPS)
        super().train()


ALGORITHM = PatientPPO


def make(env: DaysVecEnv, seed: int, tensorboard: Path | None, arguments: Arguments) -> PatientPPO:
    """A new learner."""
    a = arguments
    return PatientPPO(
        "MlpPolicy",
        env,
        learning_rate=lambda left: a.rate * left,
        n_steps=288,
        batch_size=a.batch_size,
        n_epochs=a.epochs,
        gamma=a.gamma,
        gae_lambda=a.gae_lambda,
        ent_coef=a.entropy,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [128, 128]}},
        tensorboard_log=str(tensorboard) if tensorboard else None,
        seed=seed,
        device="cpu",
    )


def imitate(model: PPO, inputs: NDArray[np.float32], actions: NDArray[np.intp], seed: int) -> float:
    """Makes the policy take the actions (M,) that were taken on inputs (M, 10). The last cross entropy, nats."""
    import torch

    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=IMITATION_RATE)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, IMITATION_EPOCHS)
    x, y = torch.from_numpy(inputs), torch.from_numpy(actions)
    losses: list[float] = []
    for _ in range(IMITATION_EPOCHS):
        losses = []
        for batch in np.array_split(rng.permutation(len(x)), -(-len(x) // IMITATION_BATCH)):
            chosen = torch.from_numpy(batch)
            loss = -model.policy.get_distribution(x[chosen]).log_prob(y[chosen]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        falling.step()
    return float(np.mean(losses))


def layers(model: Any) -> list[Any]:
    """The linear layers from observation to action, in order."""
    import torch

    hidden = [part for part in model.policy.mlp_extractor.policy_net if isinstance(part, torch.nn.Linear)]
    return [*hidden, model.policy.action_net]
