"""Training's integer simulation and the reference engine agree on every logit; benchmarks.contract runs many more."""

import pytest

from benchmarks.contract import differing_logits, subject
from caq.supernet.zoo import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_no_logit_differs(name: str) -> None:
    differing, compared = differing_logits(subject(name, seed=1, samples=1), assignments=3, seed=2)
    assert compared >= 4 * 10
    assert differing == 0


def test_the_comparison_can_fail() -> None:
    s = subject("mlp", seed=1, samples=1)
    s.lowered.codes[0][...] ^= 1
    differing, _ = differing_logits(s, assignments=3, seed=2)
    assert differing > 0
