"""A whole model in OpenVINO."""

from collections.abc import Callable, Mapping, Sequence

from search_spaces.choice import choice_named
from workers.backends.onnx.graph import Graph, serialized
from workers.backends.onnx.whole_graph import WholeGraph
from workers.backends.openvino.operators import OUTSIDE, computed_otherwise, layer_of, own_names, peak_bytes
from workers.backends.openvino.session import OpenVinoModule, Session, open_session
from workers.errors import BackendError

#: Number of layers that an error message names; it only counts the others.
_NAMED = 5


class OpenVinoDeployed(WholeGraph[Session]):
    """See ``Deployed``."""

    def working_bytes(self, run: Callable[[], object]) -> int:
        """See ``Deployed.working_bytes``; memory inside OpenVINO's kernels is not visible and not counted.

        OpenVINO tells the shapes of its outputs only for fixed shapes of the inputs, so the map is compiled again.
        """
        with self.model.session.watched() as calls:
            run()
        graph = serialized(self._graph())
        shapes = dict.fromkeys(call.shapes for call in calls)
        return max(peak_bytes(open_session(graph, shapes=each).operators()) for each in shapes)

    def _open(self, graph: Graph) -> Session:
        session = open_session(serialized(graph))
        choices = {layer: choice_named(name) for layer, name in self._prepared.installed.items()}
        wrong = list(dict.fromkeys(computed_otherwise(session.operators(), choices, own_names(graph))))
        if wrong:
            named = ", ".join(f"{layer} ({choices[layer].name})" for layer in wrong[:_NAMED])
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            raise BackendError(
                f"OpenVINO computes layers in another precision than the map says: {named}{more}; leave such choices "
                "out of the job"
            )
        return session

    def _module(self, session: Session, arguments: Sequence[int | str], form: str) -> OpenVinoModule:
        return OpenVinoModule(session, arguments, form)

    def _layers_ms(self, run: Callable[[], object], layers: Sequence[str], passes: int) -> list[dict[str, float]]:
        graph = self._graph()
        session, renamed = open_session(serialized(graph), profiled=True), own_names(graph)
        running = [operator for operator in session.operators() if operator.kind not in OUTSIDE]
        owners = {operator.name: layer_of(operator, layers, renamed) for operator in running}
        usual, self.model.session = self.model.session, session
        try:
            return [self._pass_ms(run, layers, owners) for _ in range(passes)]
        finally:
            self.model.session = usual

    def _pass_ms(
        self, run: Callable[[], object], layers: Sequence[str], owners: Mapping[str, str | None]
    ) -> dict[str, float]:
        """Return layer -> ms in its operators in one pass; ``owners`` are the operators' names and layers."""
        with self.model.session.watched() as calls:
            run()
        found = dict.fromkeys(layers, 0.0)
        for name, elapsed_ms in (timed for call in calls for timed in call.operators_ms.items()):
            owner = owners.get(name)
            if owner is not None:
                found[owner] += elapsed_ms
        return found
