"""Trains a policy on days of simulated devices, and writes a network that runs on a device.

    python -m policies.train ppo --out camera-ppo.npz --checkpoint ppo.zip --tensorboard runs
    python -m policies.train price --out camera-price.npz --train-devices 2048 --checkpoint price.checkpoint
    python -m policies.train habits --out camera-habits.npz --train-devices 2048

PPO, DQN and `price` go on from the checkpoint if it is there; `habits` counts what pacing goes by. At the end the
policy is played on held-out devices, beside the fixed operating points.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from caq.errors import CaqError
from policies.seen import PointPolicy


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m policies.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("algorithm", choices=("ppo", "dqn", "price", "habits"))
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz")
    parser.add_argument("--steps", type=int, default=900_000, help="of ppo and dqn, of all devices together")
    parser.add_argument("--rounds", type=int, default=2, help="of price")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-devices", type=int, default=1024, help="devices whose days are drawn")
    parser.add_argument("--evaluate-every", type=int, default=73_728, metavar="STEPS")
    parser.add_argument("--held-out", type=int, default=256, help="devices of the final evaluation")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE")
    parser.add_argument("--tensorboard", type=Path, metavar="FOLDER")
    args = parser.parse_args(arguments)
    for name in ("steps", "rounds", "train_devices", "evaluate_every", "held_out"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    try:
        return _train(args)
    except CaqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace) -> int:
    from policies.evaluate import fixed, of_policy, play, starts
    from policies.train.days import lives_of

    train = {"habits": _habits, "price": _price}.get(args.algorithm, _learn)
    policy, curve = train(args)
    before, held_out = lives_of("held_out", args.held_out)
    charge = starts(held_out, seed=0)
    played = play(held_out, charge, of_policy(policy, before))
    result = {
        "file": str(args.out),
        "validation": curve,
        "held_out": {"devices": args.held_out, args.algorithm: round(float(played.returns.mean()), 2)}
        | {
            name: round(float(play(held_out, charge, fixed(i)).returns.mean()), 2)
            for i, name in enumerate(held_out.costs.names)
        },
    }
    print(json.dumps(result))
    return 0


def _habits(args: argparse.Namespace) -> tuple[PointPolicy, list[tuple[int, float]]]:
    from policies.pacing import PacingPolicy
    from policies.points import PointTable
    from policies.train.days import days_of
    from policies.train.habits import habits_of

    scenario = days_of("train", args.train_devices)
    habits = habits_of(scenario)
    habits.write(args.out)
    return PacingPolicy(PointTable.of(scenario.costs, scenario.device.memory_bytes), habits), []


def _price(args: argparse.Namespace) -> tuple[PointPolicy, list[tuple[int, float]]]:
    from policies.price import PricePolicy
    from policies.train import price

    model, curve = price.train(price.Run(args.rounds, args.seed, args.train_devices, args.checkpoint))
    model.save(args.out)
    return PricePolicy(model), curve


def _learn(args: argparse.Namespace) -> tuple[PointPolicy, list[tuple[int, float]]]:
    from policies.learned import LearnedPolicy
    from policies.train import dqn, learn, ppo

    algorithm = {"ppo": ppo, "dqn": dqn}[args.algorithm]
    run = learn.Run(args.steps, args.seed, args.train_devices, args.evaluate_every, args.checkpoint, args.tensorboard)
    network, curve = learn.train(algorithm, run)
    network.save(args.out)
    return LearnedPolicy(network), curve


if __name__ == "__main__":
    sys.exit(main())
