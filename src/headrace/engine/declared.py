"""Serves a model under its declared signature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.engine.inflight import Ticket
from headrace.engine.served import Finish, Intake, ServedModel
from headrace.engine.signature import OutputRule, Signature
from headrace.errors import InvalidRequest
from headrace.types import Tensor


def apply(signature: Signature, served: ServedModel) -> None:
    """Serves the model under this signature from now on; before it is published."""
    loaded = served.loaded
    served.signature = signature
    served.slots = signature.slots
    served.rows_declared = bool(signature.rows)
    served.ragged = signature.ragged
    served.set_checks(signature.checks)
    rules = signature.results
    as_it_is = not served.takes_requests and [rule.index for rule in rules] == list(
        range(len(loaded.outputs))
    )
    if as_it_is and all(rule.reshape is None for rule in rules):
        return  # the results are the outputs
    served.sole_output = None
    served.finish = finishing(rules)


def finishing(rules: Sequence[OutputRule]) -> Finish:
    """Makes the public outputs of a ticket's results; one that the model left out is missing."""

    def finish(ticket: Ticket) -> list[Tensor]:
        arrays = ticket.result or ()
        outputs: list[Tensor] = []
        for rule in rules:
            array: np.ndarray | None = arrays[rule.index] if arrays else None
            if array is None:
                continue
            if rule.reshape is not None:
                array = rule.reshape(array)
            outputs.append(Tensor(rule.spec.name, rule.spec.datatype, array.shape, array))
        return outputs

    return finish


def shaping(signature: Signature, served: ServedModel, then: Intake) -> Intake:
    """The intake that brings arrays into the model's own shape and holds rows to their limit."""
    rows_max = signature.rows_max

    def take(ticket: Ticket) -> None:
        if ticket.rows > rows_max > 0:
            raise InvalidRequest(
                f"inference request batch-size must be <= {rows_max} for '{served.name}'",
                code="batch_too_large",
                model=served.name,
                expected=rows_max,
                got=ticket.rows,
            )
        ticket.arrays = signature.shaped(served.name, ticket.arrays)
        then(ticket)

    return take
