"""What can happen to requests, models and instances. Ids and integers; never a payload.

Events are values: they are handed to :meth:`Scheduler.handle` and not kept by the sender.
All times are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

import msgspec

NEVER_NS = 2**63 - 1
"""A deadline that does not come."""


class QueuedRequest(msgspec.Struct, frozen=True, gc=False):
    """All the core ever knows about a request.

    ``model`` is a small number the engine gave the model. ``rows`` stay together in one
    batch. ``length`` is the size along the axis that is padded (0: nothing is padded).
    Requests meet in a batch only if their ``shape_key`` is equal. ``priority`` 1 is the
    first where the model has levels (see ``priorities``), 0 says nothing. ``tenant`` is a
    number too; 0 is everybody who has none.

    Two times: ``due_ns`` is when the answer is wanted (the SLO, or the caller's timeout), and
    all decisions are made for it; an answer that is late all the same is still given until
    ``deadline_ns``, when nobody waits for it any more. A due time after the deadline means the
    deadline.
    """

    request_id: int
    model: int
    rows: int
    length: int
    shape_key: int
    arrival_ns: int
    deadline_ns: int = NEVER_NS
    priority: int = 0
    tenant: int = 0
    due_ns: int = NEVER_NS
    size_bytes: int = 0


class BatchLimits(msgspec.Struct, frozen=True):
    """How large one execution of a model may grow, and how much may wait for it.

    max_rows             rows in one batch; one request with more rows than this runs alone
    max_padded_tokens    rows x longest, padding included; 0: the model has no length
    batch_overhead_tokens what starting one more batch costs, expressed in tokens: weighs
                         padding against a further execution
    max_queue_size       requests waiting
    max_queue_rows       rows waiting; 0: no bound of its own
    max_queue_tokens     rows x length waiting; 0: no bound of its own
    max_queue_bytes      of inputs waiting; 0: no bound of its own
    max_concurrency      batches of this model running at one time
    priority_levels      a request's priority is 1 to this; below 2: it has no effect
    default_priority     of requests that say none; 0: the last level
    strict_slo           a request that is wanted sooner than it could be answered by an idle
                         machine is refused; False: it runs as if it were wanted at its deadline
    min_share            part of the pool's time, 0 to 1, that the model has before others
                         while it has work
    execution_limit_ns   an execution that takes longer counts as hung; 0: see ``overtime``
    execution_floor_ns   the least that this limit is where it is not given
    """

    max_rows: int = 1
    max_padded_tokens: int = 0
    batch_overhead_tokens: int = 0
    max_queue_size: int = 4096
    max_concurrency: int = 1
    priority_levels: int = 0
    default_priority: int = 0
    max_queue_rows: int = 0
    max_queue_tokens: int = 0
    max_queue_bytes: int = 0
    strict_slo: bool = False
    min_share: float = 0.0
    execution_limit_ns: int = 0
    execution_floor_ns: int = 0


class TenantTerms(msgspec.Struct, frozen=True):
    """What a tenant is entitled to.

    share         its part of the pool's time under contention is this over the sum of the shares
                  of those who have work waiting; above 0
    priority_max  the best level it may ask for: 2 makes a 1 a 2; 0: any
    """

    share: float = 1.0
    priority_max: int = 0


class LearntCost(msgspec.Struct, frozen=True):
    """What was learnt of a model's batches on one kind of instance; see ``latency``.

    points        (units of work, nanoseconds) of a batch, ascending in both: a unit is a row, or
                  a padded token where there is a length. Between two points time is a line
    spread        nearly all batches take at most so many times what the points say
    batches       how many it was learnt from; 0: measured beforehand, or guessed
    """

    points: tuple[tuple[float, float], ...] = ()
    spread: float = 1.0
    batches: int = 0


class RequestsArrived(msgspec.Struct, frozen=True, gc=False):
    """All that arrived within one turn of the event loop, in order of arrival.

    One event rather than many, because what arrives together should be decided together.
    """

    requests: list[QueuedRequest]


class RequestsCancelled(msgspec.Struct, frozen=True):
    """Whoever asked has left. Unknown and finished ids are ignored: it is a race."""

    request_ids: tuple[int, ...]


class BatchCompleted(msgspec.Struct, frozen=True, gc=False):
    """An instance is free again and its batch has results."""

    batch_id: int


class BatchFailed(msgspec.Struct, frozen=True, gc=False):
    """An instance is free again; the batch as a whole failed.

    ``retry_alone``: the fault may be one request's, so each member deserves a run of its
    own. False where that cannot help (the instance died).
    """

    batch_id: int
    retry_alone: bool = True


class BatchAbandoned(msgspec.Struct, frozen=True):
    """A batch runs for too long: its requests fail now.

    Its instance stays busy until the batch is reported as completed or failed.
    """

    batch_id: int


class ModelAdded(msgspec.Struct, frozen=True):
    """Requests for ``model`` will be accepted from now on.

    ``dedicated``: it runs only on instances that name it, because its batches may wait for those
    of other models and must not take the instances that these need. ``costs``: what was learnt
    of its batches before, by kind of instance.
    """

    model: int
    limits: BatchLimits
    dedicated: bool = False
    costs: dict[int, LearntCost] = {}


class LimitsChanged(msgspec.Struct, frozen=True):
    """Something was measured or configured anew."""

    model: int
    limits: BatchLimits


class ModelRemoved(msgspec.Struct, frozen=True):
    """What waits is rejected; what runs may finish."""

    model: int


class InstanceAdded(msgspec.Struct, frozen=True):
    """One more place where a batch can run. ``models``: which ones; () = every model.

    What is learnt of a model's batches is learnt for each ``kind`` of instance.
    """

    instance_id: int
    models: tuple[int, ...] = ()
    kind: int = 0


class TenantsChanged(msgspec.Struct, frozen=True):
    """From now on these tenants have these terms, and every other one those of ``otherwise``.

    Without such an event tenants are not told apart.
    """

    terms: dict[int, TenantTerms]
    otherwise: TenantTerms = TenantTerms()


class InstanceRemoved(msgspec.Struct, frozen=True):
    """No further batch goes there; the one that runs may finish."""

    instance_id: int


class TimerFired(msgspec.Struct, frozen=True):
    """``next_wakeup_ns`` has come."""


Event = (
    RequestsArrived
    | RequestsCancelled
    | BatchCompleted
    | BatchFailed
    | BatchAbandoned
    | ModelAdded
    | LimitsChanged
    | ModelRemoved
    | InstanceAdded
    | InstanceRemoved
    | TenantsChanged
    | TimerFired
)
