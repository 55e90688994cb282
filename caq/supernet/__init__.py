"""Training: from a user's nn.Module to a switchable supernet, and from there to an artifact. Needs torch.

supernet = caq.supernet.convert(model, example, widths=(2, 3, 4, 5, 6, 8))
points = train_gated(supernet, samples, TrainConfig(epochs=30))
caq.artifact.save(finish(supernet, ..., points), "model.caq")
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError:
    from caq.errors import MissingExtraError

    raise MissingExtraError("torch", "train") from None

from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.network import Supernet

__all__ = ["DEFAULT_WIDTHS", "Supernet", "convert"]
