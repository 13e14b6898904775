"""Client of the ranking service: rankings within a deadline, and events in the background. README.md shows it."""

from feedrank.async_client import AsyncClient
from feedrank.client import Client
from feedrank.counts import Counts
from feedrank.wire import Event, Ranking, RankRequest, RefusedError, UnavailableError

__all__ = ["AsyncClient", "Client", "Counts", "Event", "RankRequest", "Ranking", "RefusedError", "UnavailableError"]
