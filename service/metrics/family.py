"""Tables of metrics: a class whose attributes say kind, name, help and labels, and whose objects have the metrics made.

class Metrics(Families):
    requests = Family(Counter, "ranking_requests", "Requests answered", ("endpoint", "code"))

Metrics(registry).requests.labels("/v1/rank", 200).inc()
"""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

Made = TypeVar("Made", bound=MetricWrapperBase)


class Family(Generic[Made]):
    """A metric by its kind, name, help and labels. One that is labelled by version is also listed in `_of_versions` of
    Metrics, which withdraws it with the version. Label sets that have to be there from 0 are made in its constructor.

     Of a gauge `workers` says how those of several workers are put
    together (prometheus_client's multiprocess_mode). Of a histogram `buckets` are upper bounds."""

    def __init__(
        self,
        kind: type[Made],
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        *,
        workers: str | None = None,
        buckets: Sequence[float] | None = None,
    ) -> None:
        self._kind: Any = kind
        self._description = (name, help_text, tuple(labels))
        self._options: dict[str, Any] = {}
        if workers is not None:
            self._options["multiprocess_mode"] = workers
        if buckets is not None:
            self._options["buckets"] = buckets

    def __set_name__(self, owner: type, attribute: str) -> None:
        self._attribute = attribute

    @overload
    def __get__(self, families: None, owner: type) -> Self: ...

    @overload
    def __get__(self, families: object, owner: type) -> Made: ...

    def __get__(self, families: object | None, owner: type) -> Self | Made:
        """The metric of an object that has made it. The object's own attribute then shadows this one."""
        if families is None:
            return self
        made: Made = vars(families)[self._attribute]
        return made

    def new_metric(self, registry: CollectorRegistry) -> Made:
        """The metric, in a registry."""
        made: Made = self._kind(*self._description, registry=registry, **self._options)
        return made


class Families:
    """The metrics of a table, made in the order of the table."""

    def __init__(self, registry: CollectorRegistry) -> None:
        for attribute, family in vars(type(self)).items():
            if isinstance(family, Family):
                vars(self)[attribute] = family.new_metric(registry)


class Collected(CollectorRegistry):
    """Metrics that are collected already, for what writes a registry out."""

    def __init__(self, families: Iterator[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        return self._families
