"""The wire of POST /v1/rank, stated once: parsing, the paths of faults and OpenAPI are read from these classes.

Requests are closed: an unknown key is refused. Answers are open and may gain keys. service/rank/answer.py writes them,
and service/rank/scored_request.py their head, which the impression log has too. Of a field `expected` says in a
refusal what it must be, and `empty` that a list has no entry. The value of a field that `is_told` stands in the
refusal, as it is no feature's.

Shapes: N candidates, K of them answered, O outputs.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from service.base.record import MAX_REQUEST_ID

# Of a batch.
MAX_REQUESTS = 50
_TOLD = {"is_told": True}
_EMPTY = {"empty": "no candidates: at least one is needed"}

Text = Annotated[str, Meta(extra=_TOLD)]
Flag = Annotated[bool, Meta(extra=_TOLD)]
# One that is not all blank, of printable ASCII. Python's `$` would let a line break follow.
RequestId = Annotated[
    str,
    Meta(
        pattern=r"^ *[!-~][ -~]*\Z",
        max_length=MAX_REQUEST_ID,
        extra={
            "expected": f"a string of 1 to {MAX_REQUEST_ID} printable ASCII characters, not all blank",
            **_TOLD,
        },
    ),
]
Value = Annotated[
    Any,
    Meta(
        description="as the model's schema says: an id, a list of ids, a number, or null where it is missing. An int64 "
        "id may be a string of its digits"
    ),
]


class Options(Struct, forbid_unknown_fields=True, kw_only=True):
    """Keys of a request besides its user and its candidates."""

    request_id: Annotated[RequestId | None, Meta(description="echoed, generated where it is left out")] = None
    model: Annotated[Text | None, Meta(description="may be left out where one model is served")] = None
    version: Annotated[
        Annotated[str | int, Meta(extra={"expected": "a string", **_TOLD})] | None,
        Meta(description="a loaded version or a label. What is served where it is left out"),
    ] = None
    value_model: Annotated[Text | None, Meta(description="`default` where it is left out")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=1, extra={"expected": "an integer of at least 1", **_TOLD})] | None,
        Meta(description="more than there are candidates means all"),
    ] = None
    policy: Annotated[
        Text | None,
        Meta(description="`default` where it is left out and the model has it, otherwise descending score"),
    ] = None
    explain: Annotated[Flag | None, Meta(description="true adds `explain` to the answer and costs a little more")] = (
        False
    )
    strict: Annotated[
        Flag | None,
        Meta(
            description="true refuses a request that leaves out a feature which no catalogue has for it. Null says "
            "that a value is missing"
        ),
    ] = False

    @property
    def version_name(self) -> str | None:
        """The version or label that is requested."""
        return None if self.version is None else str(self.version)


class CandidateColumns(Struct, forbid_unknown_fields=True):
    """Candidates as columns: the cheaper shape."""

    id: Annotated[list[str], Meta(min_length=1, extra={"expected": "a list of strings", **_EMPTY})]
    features: (
        Annotated[
            dict[str, Annotated[list[Value], Meta(extra={"expected": "a list of values"})]],
            Meta(extra={"expected": "an object of columns"}),
        ]
        | UnsetType
    ) = UNSET


class CandidateRow(Struct, forbid_unknown_fields=True, gc=False):
    """A candidate as a row."""

    id: str
    features: Annotated[dict[str, Value], Meta(extra={"expected": "an object of features"})] | UnsetType = UNSET


class RankRequest(Options):
    """A scoring request."""

    user: Annotated[
        dict[str, Value],
        Meta(
            description="user and context features, one value each",
            extra={"expected": "an object of user and context features"},
        ),
    ]
    candidates: Annotated[
        CandidateColumns | Annotated[list[CandidateRow], Meta(min_length=1, extra=_EMPTY)],
        Meta(
            description="a feature that is null or left out is the catalogue's where the model has one. `features` may "
            "be left out where the catalogue knows the candidate",
            extra={"expected": "an object of columns or a list of rows"},
        ),
    ]


class BatchRequest(Struct, forbid_unknown_fields=True):
    """Scoring requests of several users, each a RankRequest."""

    requests: Annotated[
        list[Raw],
        Meta(
            min_length=1,
            extra={"expected": "a list of requests", "empty": "no requests: at least one is needed"},
            extra_json_schema={"maxItems": MAX_REQUESTS},
        ),
    ]


class RankedColumns(Struct):
    """Ranked candidates as columns: K ids, scores, and answers by output."""

    id: list[str]
    score: list[float]
    tasks: Annotated[
        dict[str, list[float]], Meta(description="by output: a task, or task.class of a task with classes")
    ]


class RankedRow(Struct):
    """A ranked candidate as a row."""

    id: str
    score: float
    tasks: dict[str, float]


class ExpertLevel(Struct):
    """Weights of a fusion level: [candidates][units][experts]."""

    units: list[str]
    experts: list[str]
    weights: list[list[list[float]]]


Counts = dict[str, Annotated[int, Meta(ge=1)]]


class InputCounts(Struct):
    """Counts by feature, of those that have any. They are values missing, ids that are not in their vocabulary, lists
    longer than their max_length, and values that the state store gave in place of the request."""

    missing: Counts
    unknown: Counts
    cut: Counts
    state: Annotated[Counts, Meta(description="where the model has state of users")] | UnsetType = UNSET


class ExplainedOrder(Struct):
    """Stages of a policy, in the order of the answer."""

    places: Annotated[
        dict[str, list[int]],
        Meta(
            description="by stage, from `score` to `select`, the place of each candidate after it, from 0, among all "
            "that were not dropped by then"
        ),
    ]
    moved_by: Annotated[list[list[str]], Meta(description="for each candidate the stages that changed its place")]


class Explained(Struct):
    """Parts of the scores, in the order of the answer, in any shape."""

    contributions: Annotated[
        dict[str, list[float]],
        Meta(
            description="by output that the value model reads, what it adds to each candidate's score. Of a "
            "weighted_sum: weight x answer. Of a weighted_product: exponent x log of the floored answer, which add up "
            "to the logarithm of the score. Of an expression: the Shapley value. These add up to the score less that "
            "of the tasks' mean answers at export"
        ),
    ]
    expert_weights: Annotated[
        list[ExpertLevel] | None,
        Meta(description="weight of each expert in each fused unit by level, null where the network mixes no experts"),
    ]
    inputs: InputCounts
    policy: Annotated[ExplainedOrder, Meta(description="where a policy made the order")] | UnsetType = UNSET


class RankAnswer(Struct):
    """The answer to a scoring request."""

    request_id: str
    model: str
    model_version: str
    value_model: str
    value_model_version: str
    candidates: Annotated[
        RankedColumns | list[RankedRow],
        Meta(
            description="in descending score, ties by request order, or a policy's order. In the shape of the question"
        ),
    ]
    policy: Annotated[str, Meta(description="what made the order, where a policy did")] | UnsetType = UNSET
    policy_version: str | UnsetType = UNSET
    dropped: (
        Annotated[
            dict[str, list[str]],
            Meta(description="of a policy, ids by the stage that dropped them", examples=[{"seen": ["v7"]}]),
        ]
        | UnsetType
    ) = UNSET
    explain: Annotated[Explained, Meta(description="where the request asks for it")] | UnsetType = UNSET
    calibration: (
        Annotated[str, Meta(description="generation of a calibration that was fitted after the export", examples=["2"])]
        | UnsetType
    ) = UNSET
    experiments: (
        Annotated[
            dict[str, str],
            Meta(
                description="by experiment that the user is in, the arm, that of the holdout too",
                examples=[{"bold_likes": "treatment"}],
            ),
        ]
        | UnsetType
    ) = UNSET


class ProblemFault(Struct):
    """A fault of a request."""

    path: Annotated[str, Meta(examples=["candidates.features.duration_ms[3]"])]
    message: str


class Problem(Struct):
    """A refusal, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[ProblemFault] | UnsetType = UNSET
    retry_after: (
        Annotated[int, Meta(ge=0, description="seconds after which to try again, as Retry-After has them")] | UnsetType
    ) = UNSET
