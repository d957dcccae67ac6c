"""Whose turn it is among tenants: by what each has been served, over its share.

Law: while two tenants have work waiting, what they are served (in time of instances) is in the
proportion of their shares, give or take a batch; a tenant that had nothing waiting gains no
credit for it, and loses nothing. Nobody waits while an instance is free that could run it.

This is start-time fair queueing (P. Goyal, H. Vin, H. Cheng 1996): every tenant has a virtual
time, which its batches move forward by their cost over its share, and the one that is furthest
behind goes first. Whoever comes back begins where the one being served is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush, heapreplace

from headrace.core.events import QueuedRequest, TenantsChanged, TenantTerms
from headrace.core.queueing import ModelQueue

_FORGOTTEN_MIN = 256
"""Virtual times kept before those that say nothing any more are first cleared out."""


class Fairness:
    """The virtual times of all tenants of a pool: one for all its models."""

    __slots__ = ("_forget_at", "_now", "_otherwise", "_terms", "_times", "enabled")

    def __init__(self) -> None:
        self.enabled = False
        """Whether there are terms. Without them tenants are not told apart."""
        self._terms: dict[int, TenantTerms] = {}
        self._otherwise = TenantTerms()
        self._times: dict[int, float] = {}
        self._now = 0.0  # the virtual time of the one that was served last
        self._forget_at = _FORGOTTEN_MIN

    def change(self, event: TenantsChanged) -> None:
        """From now on these are the terms.

        Raises:
            ValueError: a share is not above 0.
        """
        for terms in (event.otherwise, *event.terms.values()):
            if not terms.share > 0.0:
                raise ValueError(f"a tenant's share must be above 0, not {terms.share}")
        self.enabled = True
        self._terms, self._otherwise = dict(event.terms), event.otherwise

    def terms_of(self, tenant: int) -> TenantTerms:
        """Its own, or those of everybody else."""
        return self._terms.get(tenant, self._otherwise)

    def time_of(self, tenant: int) -> float:
        """Its virtual time, in nanoseconds of an instance over its share."""
        return self._times.get(tenant, self._now)

    def begins(self, tenant: int) -> None:
        """It had nothing waiting and now it has."""
        if self._times.get(tenant, 0.0) <= self._now:
            self._times[tenant] = self._now
            if len(self._times) > self._forget_at:
                # Times in the past are as good as unknown. The next sweep waits until there are
                # twice as many again, so that sweeping costs a constant for each tenant.
                self._times = {t: time for t, time in self._times.items() if time >= self._now}
                self._forget_at = max(_FORGOTTEN_MIN, 2 * len(self._times))

    def served(self, tenant: int, cost_ns: float) -> None:
        """Work of it, so dear, was handed to an instance."""
        self._times[tenant] = self.time_of(tenant) + cost_ns / self.terms_of(tenant).share

    def turn_of(self, tenant: int) -> None:
        """It was the furthest behind, and leads a batch."""
        self._now = max(self._now, self.time_of(tenant))


class FairQueue:
    """A :class:`ModelQueue` for each tenant that has somebody, seen as one, in order of turns."""

    __slots__ = ("_entered", "_fairness", "_lanes", "_shares", "_tenant_of", "_turns", "unit_ns")

    def __init__(self, fairness: Fairness) -> None:
        self._fairness = fairness
        self._lanes: dict[int, ModelQueue] = {}
        self._tenant_of: dict[int, int] = {}
        # A heap of (virtual time, tenant). Times only grow, so an entry is never too late.
        # One for each tenant in _entered, some of whom may have left meanwhile.
        self._turns: list[tuple[float, int]] = []
        self._entered: set[int] = set()
        self._shares = 0.0  # of those in _lanes
        self.unit_ns = 1.0
        """What a row (or a token) costs, about; only its proportion to the real cost counts."""

    def __len__(self) -> int:
        return len(self._tenant_of)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self.window(len(self)))

    def append(self, request: QueuedRequest) -> None:
        """Adds where its due time puts it in its tenant's own lane."""
        tenant = request.tenant
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = self._lanes[tenant] = ModelQueue()
            self._shares += self._fairness.terms_of(tenant).share
            self._fairness.begins(tenant)
            if tenant not in self._entered:
                self._entered.add(tenant)
                heappush(self._turns, (self._fairness.time_of(tenant), tenant))
        lane.append(request)
        self._tenant_of[request.request_id] = tenant

    def head(self) -> QueuedRequest | None:
        """The first of the tenant that is furthest behind, or None."""
        tenant = self._first_turn()
        return None if tenant is None else self._lanes[tenant].head()

    def oldest_arrival_ns(self) -> int | None:
        """When the oldest came, which need not be the next to run."""
        arrivals = [lane.oldest_arrival_ns() for lane in self._lanes.values()]
        return min([arrival for arrival in arrivals if arrival is not None], default=None)

    def take_front(self, max_rows: int) -> list[QueuedRequest]:
        """As :meth:`ModelQueue.take_front`, one tenant after another as their turns come."""
        taken: list[QueuedRequest] = []
        rows = 0
        for request in self.window(max_rows):
            rows += request.rows
            if taken and (request.shape_key != taken[0].shape_key or rows > max_rows):
                break
            taken.append(request)
        self.remove([request.request_id for request in taken])
        return taken

    def window(self, count: int) -> list[QueuedRequest]:
        """The ``count`` first, as if each were served alone, without removing them."""
        found: list[QueuedRequest] = []
        going: list[tuple[float, int, Iterator[QueuedRequest], QueuedRequest]] = []
        looked_at: list[tuple[float, int]] = []
        while len(found) < count:
            if self._first_turn() is not None and (not going or self._turns[0] < going[0][:2]):
                looked_at.append(heappop(self._turns))
                time, tenant = looked_at[-1]
                lane = iter(self._lanes[tenant])
                request = next(lane)
            elif going:
                time, tenant, lane, request = heappop(going)
            else:
                break
            found.append(request)
            following = next(lane, None)
            if following is not None:
                share = self._fairness.terms_of(tenant).share
                time += self.unit_ns * request.rows * max(1, request.length) / share
                heappush(going, (time, tenant, lane, following))
        for turn in looked_at:
            heappush(self._turns, turn)
        return found

    def remove(self, request_ids: Iterable[int]) -> None:
        """Removes these, wherever they stand. Each must be in the queue."""
        of_tenant: dict[int, list[int]] = {}
        for request_id in request_ids:
            of_tenant.setdefault(self._tenant_of.pop(request_id), []).append(request_id)
        for tenant, gone in of_tenant.items():
            lane = self._lanes[tenant]
            lane.remove(gone)
            if not lane:
                del self._lanes[tenant]
                self._shares -= self._fairness.terms_of(tenant).share

    def ahead_of(self, request: QueuedRequest) -> float:
        """How many requests would be served before it, about, if it were added now."""
        lane = self._lanes.get(request.tenant)
        share = self._fairness.terms_of(request.tenant).share
        if lane is None:
            turns = self._shares / share
        else:
            turns = (lane.ahead_of(request) + 1.0) * self._shares / share - 1.0
        return min(float(len(self)), turns)

    def within_share(self, request: QueuedRequest) -> bool:
        """Whether its tenant has no more waiting, with it, than its part of the queue."""
        lane = self._lanes.get(request.tenant)
        if lane is None:
            return True
        share = self._fairness.terms_of(request.tenant).share
        return len(lane) * self._shares <= len(self) * share

    def fattest(self, request: QueuedRequest) -> QueuedRequest | None:
        """The last of the tenant that has most waiting over its share, if more than the
        request's own tenant would have with it."""
        terms_of = self._fairness.terms_of
        own = self._lanes.get(request.tenant)
        most = (1 + len(own or ())) / terms_of(request.tenant).share
        found: ModelQueue | None = None
        for tenant, lane in self._lanes.items():
            weight = len(lane) / terms_of(tenant).share
            if weight > most:
                most, found = weight, lane
        return found.tail() if found is not None else None

    def _first_turn(self) -> int | None:
        """The tenant furthest behind; entries of those that left or moved on are mended."""
        turns, lanes, time_of = self._turns, self._lanes, self._fairness.time_of
        while turns:
            time, tenant = turns[0]
            now = time_of(tenant)
            if tenant not in lanes:
                heappop(turns)
                self._entered.discard(tenant)
            elif now > time:
                heapreplace(turns, (now, tenant))
            else:
                return tenant
        return None
