"""Why headrace answers otherwise than Triton, where it does, on purpose."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """``case`` and ``where`` are searched (regular expressions) in what differs."""

    case: str
    where: str
    reason: str


_CALLERS_FAULT = "the caller's mistake: Triton answers 500 (or INTERNAL), which asks to retry"
_SAYS_MORE = "the same, in other words: it says what was expected and what came"

REASONS: tuple[Reason, ...] = (
    Reason(
        r"^GET /v2/health|/ready$",
        r"^body",
        "KServe's and OIP's JSON body; Triton's is empty, and its clients read the status alone",
    ),
    Reason(r"/ready$|/stats$", r"^status", "404 for what is not there, as KServe and OIP have it"),
    Reason(r"/stats$", r"error", "one text for an unknown model on every route"),
    Reason(r"^GET /v2$|ServerMetadata", r"name$", "another server"),
    Reason(
        r"^GET /v2$|ServerMetadata",
        r"extensions",
        "no cuda_shared_memory, because there is none here",
    ),
    Reason(
        r"config$|^ModelConfig", r"max_inflight_requests", "a field that is younger than 2.51.0"
    ),
    Reason(r"repository/index", r"reason", "KServe's form always has the field"),
    Reason(r"models/pipeline/infer", r"parameters", "Triton shows how it runs an ensemble inside"),
    Reason(
        r"OUTPUT0.*OUTPUT0|outputs",
        r"status|body",
        "an output that is asked for twice is refused over HTTP as over gRPC; Triton's HTTP "
        "answers it once",
    ),
    Reason(
        r"models/repeat/generate \{",
        r"status",
        "Triton has sent 200 already when the second answer comes",
    ),
    Reason(r"generate_stream", r"body", "the order of keys in an object"),
    Reason(
        r"trace_level.*NONSENSE",
        r"status|body",
        "Triton answers with the settings unchanged, as if it had understood",
    ),
    Reason(
        r"models/\w+/infer|/logging|shared|load$|RepositoryModelLoad",
        r"^status",
        _CALLERS_FAULT,
    ),
    Reason(r"repository/models/nobody/unload", r"body", "KServe's body; Triton's is empty"),
    Reason(r"nowhere|^GET /v2/models/add_sub/infer", r"error", "and what would have been right"),
    Reason(r"empty last one", r"model_version", "the last answer says what the others say"),
    Reason(
        r"^GET /metrics",
        r"nv_cache",
        "there at 0 before the first look-up, so that rate() sees it; Triton has them once a cache "
        "is configured",
    ),
    Reason(r"^GET /metrics", r"nv_inference_compute_duration", "an old name, for old boards"),
    Reason(r"^GET /metrics", r"nv_model_load", "younger than 2.51.0"),
    Reason(r"/infer|/logging|shared|ModelInfer", r"error|message", _SAYS_MORE),
)
