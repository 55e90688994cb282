"""caq/LayerBits-v0: choose widths layer by layer under a budget, scored on the real model in integers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from caq.artifact import load
from caq.costs import CostTable, cost_table
from caq.data import Dataset
from caq.data import load as load_data
from caq.engine import Engine
from caq.errors import ConfigError
from caq.graph import Assignment, Graph, LayerWidths
from caq.measure import score
from caq.model import Model
from caq.quant import TOP_WIDTH
from simulators.envs.drawing import Canvas, check_render_mode

#: What `caq train --data digits --model ds_cnn --epochs 4 --threads 1` makes.
DIGITS = Path(__file__).parent.parent / "profiles" / "digits.caq"
FEATURES = (
    "layer",
    "channels",
    "fan_in",
    "macs",
    "positions",
    "grouped",
    "reads_input",
    "cost",
    "cost_of_rest",
    "budget_left",
    "last_weight_width",
    "last_activation_width",
)


class LayerBitsEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.int64]]):
    """Widths of one layer after the other, from the input on, as in HAQ (Wang et al., CVPR 2019, section 3).

    ## Action space
    `MultiDiscrete([W, W])`: for the layer at hand the index of its weights' width and of its activations' width among
    the widths that the model serves, ascending. Layers that read the network's input read it at 8 bits always.

    The budget holds, whatever is asked for: where a pair would leave the layers to come less than their cheapest
    widths take, its wider width goes down, the activations' first, until it does. HAQ lowers widths likewise, but at
    the episode's end. `info` says so.

    ## Observation space
    `Box(0, 1, (12,), float32)`, of the layer at hand:

    | | name | meaning |
    |---|---|---|
    | 0 | layer | its index over the number of layers |
    | 1 | channels | log2 of its output channels, over 16 |
    | 2 | fan_in | log2 of the terms of a sum, over 16 |
    | 3 | macs | its share of the network's multiply-accumulates |
    | 4 | positions | log2 of its output positions, over 16 |
    | 5 | grouped | 1 for a depthwise or grouped convolution |
    | 6 | reads_input | 1 if it reads the network's input |
    | 7 | cost | at 8 bits, of the network's at 8 bits |
    | 8 | cost_of_rest | of the layers after it at their cheapest, likewise |
    | 9 | budget_left | what may be spent on it and the layers after it, likewise |
    | 10 | last_weight_width | of the layer before, over 8; 1 at the first |
    | 11 | last_activation_width | likewise |

    After the last layer it is that of the last layer with the budget that was left over.

    ## Reward
    0, but after the last layer: the accuracy (0..1) of the widths chosen, run in integers on the samples, minus that of
    8 bits everywhere; -1..1. HAQ's is the same times 0.1, in percent.

    ## Start
    The first layer. `reset(options={"budget": b})` sets the episode's budget; else it is the one given, or, if that is
    None, drawn from 0.05..0.6.

    ## End
    `terminated` after the last layer; never `truncated`.

    ## Info
    | key | when | |
    |---|---|---|
    | caq/layer | always | name of the layer at hand |
    | caq/widths | after a step | the pair chosen for the layer before, such as w4a8, lowered if need be |
    | caq/lowered | after a step | whether the budget lowered it |
    | caq/assignment | at the end | what was chosen, `w4a8,...` |
    | caq/accuracy, caq/cost | at the end | measured, 0..1; relative to 8 bits everywhere |

    ## Arguments
    artifact: a `.caq` file or a model; by default a DS-CNN on digits. data: its data set; or its name or file.
    samples: of the training split, which accuracy is measured on; the test split is left for the final word.
    seed_of_samples: which they are. cost: see `caq.costs.table`. budget: 0..1, from the cheapest assignment to 8 bits
    everywhere, as for `caq train --budgets`. Raises ConfigError on a model that does not classify or lacks 8 bits.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 4}  # noqa: RUF012  gymnasium's convention

    def __init__(
        self,
        artifact: str | Path | Model = DIGITS,
        data: str | Path | Dataset = "digits",
        samples: int = 256,
        cost: str = "bit_macs",
        budget: float | None = None,
        seed_of_samples: int = 0,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode, self.metadata)
        model = artifact if isinstance(artifact, Model) else load(artifact)
        if model.task != "classify" or TOP_WIDTH not in model.graph.widths:
            raise ConfigError("LayerBits needs a model that classifies and serves 8 bits")
        if budget is not None and not 0 <= budget <= 1:
            raise ConfigError(f"budget must be 0..1, not {budget}")
        self._engine, self._graph = Engine(model), model.graph
        self._x, self._y = _samples(data, samples, seed_of_samples)
        self._table, self._budget = cost_table(self._graph, cost), budget
        self._cheapest = self._table.layers.min((1, 2))
        self._features = _features(self._graph, self._table, self._cheapest)
        self._measured: dict[Assignment, float] = {}
        self._reference = self._accuracy(self._graph.uniform(TOP_WIDTH))
        self._canvas: Canvas | None = None
        self._chosen: list[LayerWidths] = []
        self._left = 0.0
        widths = len(self._graph.widths)
        self.action_space = spaces.MultiDiscrete([widths, widths])
        self.observation_space = spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        share = (options or {}).get("budget", self._budget)
        if share is None:
            share = float(self.np_random.uniform(0.05, 0.6))
        if not 0 <= share <= 1:
            raise ConfigError(f"options: budget must be 0..1, not {share}")
        self._chosen = []
        self._left = float(share * (self._table.layers[:, -1, -1].sum() - self._cheapest.sum()) + self._cheapest.sum())
        if self.render_mode == "human":
            self.render()
        return self._observation(), {"caq/layer": self._graph.layers[0].name}

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        at, layers = len(self._chosen), self._graph.layers
        if at == len(layers):
            raise gymnasium.error.ResetNeeded("the last layer has its widths; call reset")
        pair, cost, lowered = self._affordable(at, int(action[0]), int(action[1]))
        self._chosen.append(pair)
        self._left -= cost
        following = layers[min(at + 1, len(layers) - 1)].name
        info: dict[str, Any] = {"caq/layer": following, "caq/widths": str(pair), "caq/lowered": lowered}
        terminated = len(self._chosen) == len(layers)
        reward = 0.0
        if terminated:
            assignment = tuple(self._chosen)
            accuracy = self._accuracy(assignment)
            reward = accuracy - self._reference
            info |= {
                "caq/assignment": ",".join(map(str, assignment)),
                "caq/accuracy": accuracy,
                "caq/cost": self._table.of(self._graph, assignment),
            }
        if self.render_mode == "human":
            self.render()
        return self._observation(), reward, terminated, False, info

    def _affordable(self, at: int, weight: int, activation: int) -> tuple[LayerWidths, float, bool]:
        """The pair asked for or the next below it that the budget allows; its cost; whether it was lowered."""
        widths, table = self._graph.widths, self._table.layers[at]
        limit = self._left - self._cheapest[at + 1 :].sum() + 1e-9
        lowered = False
        while table[weight, activation] > limit and (weight, activation) != (0, 0):
            lowered = True
            if activation >= weight and activation > 0:
                activation -= 1
            else:
                weight -= 1
        reads_at = TOP_WIDTH if self._graph.layers[at].reads_input else widths[activation]
        return LayerWidths(widths[weight], reads_at), float(table[weight, activation]), lowered

    def _accuracy(self, assignment: Assignment) -> float:
        """Measured once for each assignment: the engine gives the same answer every time."""
        if assignment not in self._measured:
            plan = self._engine.build(assignment)
            self._measured[assignment] = score(self._engine, plan, self._x, self._y)
        return self._measured[assignment]

    def _observation(self) -> NDArray[np.float32]:
        done = len(self._chosen)
        row = self._features[min(done, len(self._features) - 1)].copy()
        row[FEATURES.index("budget_left")] = self._left
        if done:
            row[-2:] = self._chosen[-1].weight / TOP_WIDTH, self._chosen[-1].activation / TOP_WIDTH
        return row.clip(0, 1)

    def render(self) -> NDArray[np.uint8] | None:
        """The widths so far, (480, 720, 3) uint8 in the mode rgb_array; in the mode human it is shown in a window."""
        if self.render_mode is None:
            gymnasium.logger.warn('render needs a mode: gymnasium.make(..., render_mode="rgb_array")')
            return None
        self._canvas = self._canvas or Canvas(self.render_mode)
        return self._canvas.layers(self._chosen, [layer.name for layer in self._graph.layers], self._left)

    def close(self) -> None:
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None


def _features(graph: Graph, table: CostTable, cheapest: NDArray[np.float64]) -> NDArray[np.float32]:
    """(L, F): what does not depend on the choices, and the widths before the first layer."""
    macs = sum(layer.macs for layer in graph.layers)
    rows = []
    for i, layer in enumerate(graph.layers):
        height, width, _ = graph.shapes[layer.op + 1]
        rows.append(
            (
                i / len(graph.layers),
                math.log2(layer.channels) / 16,
                math.log2(layer.fan_in) / 16,
                layer.macs / macs,
                math.log2(height * width) / 16,
                float(graph.ops[layer.op].groups > 1),
                float(layer.reads_input),
                table.layers[i, -1, -1],
                cheapest[i + 1 :].sum(),
                0.0,
                1.0,
                1.0,
            )
        )
    return np.array(rows, np.float32)


def _samples(data: str | Path | Dataset, samples: int, seed: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Samples (N, ...) and labels (N,) of the training split, stratified by class."""
    found = data if isinstance(data, Dataset) else load_data(data)
    if not 0 < samples < len(found.y_train):
        raise ConfigError(f"samples must be from 1 to {len(found.y_train) - 1}, not {samples}")
    rows = found.split_validation(samples / len(found.y_train), seed)[1]
    return found.x_train[rows], found.y_train[rows]
