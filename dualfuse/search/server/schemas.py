"""The requests and answers of the API, with their limits and examples; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(max_length=4096)]
Id = Annotated[str, StringConstraints(max_length=64)]
Where = dict[str, Any]  # of JSON; dualfuse.search.stores.filters checks it
WHERE = (
    'a filter by fields: {"folder": "2024"}, {"folder": ["2024", "2025"]}, {"price": {"$gte": 10, "$lt": 20}}, '
    '{"name": {"$prefix": "IMG"}}; also $ne, $nin, $and, $or and $not. GET /v1/fields lists the fields.'
)


class Request(BaseModel):
    """A request body; unknown fields are refused, because a misspelt one would be ignored in silence."""

    model_config = ConfigDict(extra="forbid")


class Part(Request):
    """One part of a query: a text, or an image by its id in the collection or as base64; and its weight."""

    text: Text = ""
    id: Id = ""
    image: str = Field(default="", description="an image file in base64, or as data URL")
    weight: float = Field(default=1.0, ge=0, le=100)


class SearchRequest(Request):
    """A search by text, image, or both."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "a red bicycle", "top": 20, "rerank": 16},
                {"text": "a red bicycle", "not": [{"text": "a child"}], "where": {"folder": ["2024", "2025"]}},
                {"id": "4f1c2b7a90d3e856", "text": "in blue", "weights": {"text": 0.5}},
            ]
        },
    )
    text: Text = Field("", description="words that describe the image")
    id: Id = Field("", description="id of an image of the collection: more like this")
    image: str = Field("", description="an image file in base64, or as data URL")
    weights: dict[Literal["text", "id", "image"], Annotated[float, Field(ge=0, le=100)]] = Field(
        default_factory=dict, description="weights of the parts in the query embedding; each is 1 by default"
    )
    without: list[Part | Text] = Field(
        default_factory=list,
        alias="not",
        max_length=16,
        description="texts or images that the hits should not resemble",
    )
    where: Where = Field(default_factory=dict, description=WHERE)
    top: int = Field(20, ge=1, le=1000, description="number of hits")
    cursor: str = Field("", max_length=200, description="`cursor` of the answer before, for the hits that follow")
    rerank: int | None = Field(None, ge=0, le=256, description="candidates that fusion re-ranks; 0: none")
    min_probability: float = Field(
        0.0, ge=0, le=1, description="omit hits with a smaller match probability; re-ranks the hits of the page"
    )
    collapse: bool = Field(False, description="fold near copies: only the best hit of each group stays")


class CollectionImage(BaseModel):
    """An image of the collection."""

    id: str
    name: str = Field(description="path below the collection, or key of the sample")
    revision: str = Field("", description="changes with the file; with ?v=REVISION an image is cached for good")
    size: int | None = Field(None, description="bytes")
    time: float | None = Field(None, description="seconds since 1970 of the last change")
    caption: str = ""
    fields: dict[str, Any] = Field(default_factory=dict, description="the fields that the owner of the images keeps")


class Hit(CollectionImage):
    """An image that a search returned."""

    score: float = Field(description="what hits are ordered by")
    cosine: float
    match: float | None = Field(None, description="match logit; null if the hit was not re-ranked")
    probability: float | None = Field(None, description="of showing what the text describes; null if unknown")
    rank_before: int | None = Field(None, description="rank by the cosine alone, of a re-ranked hit")
    group: int | None = Field(None, description="hits with an equal number are near copies of each other")
    copies: int = Field(0, description="near copies that `collapse` folded into this hit")
    folded: list[Hit] = Field(default_factory=list, description="these near copies, best first")


class Timing(BaseModel):
    """Milliseconds per stage."""

    embed_ms: float
    search_ms: float
    rerank_ms: float
    total_ms: float


class IndexInfo(BaseModel):
    """The version of the index that answered."""

    count: int
    version: str


class SearchAnswer(BaseModel):
    """Hits, best first."""

    hits: list[Hit]
    cursor: str = Field(description="continues after the last hit; empty: there are no more")
    reranked: int = Field(description="hits that fusion re-ranked")
    budget_exceeded: bool = Field(description="whether re-ranking stopped early, at the time budget")
    omitted: int = Field(0, description="hits below `min_probability`")
    truncated: bool = Field(description="whether the text was cut to the length that the model reads")
    exact: bool = Field(description="whether no nearer image can be missing")
    timing: Timing
    index: IndexInfo
    model: str


class BrowseRequest(Request):
    """Images without a query, newest first."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"where": {"folder": "2024"}, "top": 20}]}
    )
    where: Where = Field(default_factory=dict, description=WHERE)
    top: int = Field(20, ge=1, le=1000, description="number of images")
    cursor: str = Field("", max_length=200, description="`cursor` of the answer before, for the images that follow")


class BrowseAnswer(BaseModel):
    """Images, newest first."""

    hits: list[CollectionImage]
    cursor: str = Field(description="continues after the last image; empty: there are no more")
    total: int = Field(description="images that pass the filter")
    index: IndexInfo


class PairRequest(Request):
    """An image and a text."""

    text: Text
    id: Id = ""
    image: str = ""


class MatchRequest(Request):
    """Pairs of image and text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"pairs": [{"id": "4f1c2b7a90d3e856", "text": "a red bicycle"}]}]},
    )
    pairs: list[PairRequest] = Field(min_length=1, max_length=256)


class PairScore(BaseModel):
    """Scores of a pair."""

    cosine: float
    match: float | None
    probability: float | None


class MatchAnswer(BaseModel):
    """One score per pair, in the order of the request."""

    pairs: list[PairScore]
    model: str


class ExplainRequest(PairRequest):
    """An image and a text."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"id": "4f1c2b7a90d3e856", "text": "a red bicycle"}]}
    )
    format: Literal["json", "png"] = "json"
    deletions: bool = Field(True, description="also return the probability without each word")


class WordMap(BaseModel):
    """How much a word draws on each patch, and the probability of the text without it."""

    word: str
    map: list[list[float]] = Field(description="rows of patches, 0 (coldest) to 1 (hottest)")
    probability_without: float | None = None


class ExplainAnswer(BaseModel):
    """Maps of words over patches; the first stands for the whole text."""

    answer: str
    probability: float | None
    words: list[WordMap]
    model: str


class EmbedRequest(Request):
    """Texts or images."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"texts": ["a red bicycle"]}]})
    texts: list[Text] = Field(default_factory=list, max_length=256)
    images: list[str] = Field(default_factory=list, max_length=64, description="image files in base64 or data URLs")
    ids: list[Id] = Field(default_factory=list, max_length=256, description="images of the collection")
    dtype: Literal["float32", "int8", "bits"] = "float32"


class EmbedAnswer(BaseModel):
    """One embedding per input: texts, then images, then ids.

    float32: D numbers. int8: D integers round(127 x / max |x|), with their factor in ``scales``. bits: the D signs (1:
    positive) in bytes of eight, most significant bit first, as integers from 0 to 255.
    """

    embeddings: list[list[float] | list[int]]
    scales: list[float] = Field(default_factory=list, description="int8: factor from integers to numbers")
    dimensions: int
    model: str


class OpenAIEmbedding(BaseModel):
    """One embedding: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddingAnswer(BaseModel):
    """The answer of the OpenAI embeddings API."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIEmbeddingRequest(BaseModel):
    """The request of the OpenAI embeddings API; a data URL of an image is embedded as an image."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["a red bicycle"], "model": "dualfuse"}]})
    input: str | list[str]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


class PredictRequest(Request):
    """What the head of the model answers for an image, a text or both."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"id": "4f1c2b7a90d3e856", "text": "what colour is it?"}]}
    )
    text: Text = ""
    id: Id = ""
    image: str = ""
    classes: list[Text] = Field(default_factory=list, max_length=1000, description="zero-shot classes")
    top: int = Field(5, ge=1, le=100)


class Answer(BaseModel):
    """An answer of the head of a model."""

    answer: str
    probability: float


class PredictAnswer(BaseModel):
    """Answers, best first; or the match of image and text, of a model that was trained on pairs."""

    answers: list[Answer]
    match: float | None
    cosine: float | None
    truncated: bool = Field(description="whether the text was cut to the length that the model reads")
    model: str


class Info(BaseModel):
    """What a service serves."""

    model: str
    can_match: bool = Field(description="whether the model has a fusion encoder: rerank, match logits, explain")
    calibrated: bool = Field(description="whether probabilities are calibrated, also those of hits without re-ranking")
    rerank: int = Field(description="candidates that fusion re-ranks if a search does not say")
    index: IndexInfo
    limits: dict[str, float]


class FieldInfo(BaseModel):
    """A field that `where` can name."""

    model_config = ConfigDict(extra="allow")
    name: str
    count: int = Field(description="images that have it")
    type: Literal["number", "text"]
    min: float | None = None
    max: float | None = None
    choices: list[dict[str, Any]] = Field(default_factory=list, description="the most frequent values, with counts")
    complete: bool = Field(True, description="whether `choices` has all values")


class Fields(BaseModel):
    """The fields of the collection."""

    fields: list[FieldInfo]


class JobState(BaseModel):
    """A refresh of the index."""

    id: str
    status: Literal["running", "done", "failed"]
    message: str
    started: float = Field(description="seconds since 1970")
    ended: float | None
    embedded: int = Field(description="images that were new or changed")
    skipped: int = Field(description="images that could not be read")
    version: str = Field(description="the version of the index that the refresh made")


class Problem(BaseModel):
    """An error: what to change in the request."""

    class Detail(BaseModel):
        """Message, kind, and the field concerned."""

        message: str
        type: str
        param: str | None
        code: str | None

    error: Detail
