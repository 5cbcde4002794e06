"""One model at several sparsities: twins that share its weights, each with gates of its own.

A visitor moves a slider and the model is everybody's, so nobody's gates are changed: who wants
others is answered by a twin. Knows no page.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from multimodal.backends import Backend
from multimodal.local import LocalBackend
from multimodal.sparse import counting_flops

NUM_TWINS = 3


class Gates:
    """The twins of a backend, the one used longest ago first.

    Attributes:
        share: what the backend leaves out as it was loaded; None where that cannot be changed.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.share = backend.sparsity if isinstance(backend, LocalBackend) else None
        self._twins: OrderedDict[float, LocalBackend] = OrderedDict()
        self._lock = Lock()

    def at(self, share: float | None) -> Backend:
        """The backend that leaves out this share of the MLPs' neurons; None for as it was loaded."""
        if share is None or share == self.share or not isinstance(self._backend, LocalBackend):
            return self._backend
        with self._lock:
            twin = self._twins.pop(share, None) or self._backend.at_sparsity(share)
            self._twins[share] = twin
            while len(self._twins) > NUM_TWINS:
                self._twins.popitem(last=False)  # ends its engine once nobody is answered by it
        return twin

    def saving(self, share: float) -> float:
        """The share of the MLPs' multiply-adds that the gates spare a token, as the model counts.

        The model itself is asked: an engine runs its copy dense where that is faster here.
        """
        import torch

        backend = self.at(share)
        if not isinstance(backend, LocalBackend):
            return 0.0
        model = backend.model
        with torch.inference_mode(), counting_flops(model) as flops:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
        return flops.skipped_in_decode
