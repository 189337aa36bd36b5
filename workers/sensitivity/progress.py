"""How far an estimate of sensitivities is."""

import math

from workers.progress import Report, Stage, Step


class LayerCount:
    """Counts the layers that are done, over as many batches as the estimate will need."""

    def __init__(self, report: Report, layers: int, *, samples: int, most_batches: int) -> None:
        """Report the start.

        Args:
            report: gets every layer on every batch.
            layers: number of layers.
            samples: number of samples that the estimate needs.
            most_batches: number of batches there are.
        """
        self._report, self._layers, self._samples, self._most_batches = report, layers, samples, most_batches
        self._batches, self._total = 0, layers
        self._seen: set[str] = set()
        report(Step(stage=Stage.SENSITIVITIES, total=layers))

    def begin_batch(self, samples: int) -> None:
        """Begin with a batch of so many samples; the others are taken to be as large."""
        needed = math.ceil(self._samples / max(1, samples))
        self._total = self._layers * max(self._batches + 1, min(needed, self._most_batches))

    def done(self, layer: str) -> None:
        """Count ``layer`` as done on this batch, however often it is called."""
        self._seen.add(layer)
        done = self._batches * self._layers + len(self._seen)
        self._report(Step(stage=Stage.SENSITIVITIES, done=done, total=self._total))

    def end_batch(self) -> None:
        """End the batch; layers that it did not run count as done."""
        self._batches += 1
        self._seen.clear()
