"""`[mine.policy]`: which texts become positives and which become hard negatives, as a table that one can read.

A preset fills the table; every field may be set beside it. Scores are cosines of the teacher, distances are Euclidean,
ranks count from 1 (the nearest other text), percentiles are those of the query's own scores over the whole corpus.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from data_prep.config import Section

Score = Annotated[float, Field(ge=-1, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Preset = Literal["positive-aware", "paper", "easy-to-hard"]
Rule = Literal[
    "same_document",
    "max_score",
    "ratio",
    "margin",
    "translation",
    "duplicate",
    "near_copy",
    "second_teacher",
    "cross_encoder",
]
RULES: tuple[Rule, ...] = get_args(Rule)
"""In the order in which they are applied; that a text is no negative of itself is always on and comes before."""
PaperCorpus = Literal[
    "twitter", "b.cari", "c.cari", "manglish", "facebook", "iium", "hansard", "malay-news", "ada", "ada-forum"
]
PAPER_CUTS: dict[str, tuple[float, float, bool]] = {
    "twitter": (8.0, 15.0, False),
    "b.cari": (8.0, 15.0, False),
    "c.cari": (10.5, 17.6, False),
    "manglish": (10.0, 15.0, False),
    "facebook": (10.0, 15.0, False),
    "iium": (0.45, 0.7, True),
    "hansard": (0.4, 0.7, True),
    "malay-news": (0.6, 0.9, True),
    "ada": (0.45, 0.8, True),
    "ada-forum": (0.45, 0.85, True),
}
"""Corpus → (a positive is at most this far, a negative farther than this, whether its vectors were normalised)."""
_WINDOWS = ("negative_ranks", "negative_percentiles", "negative_scores", "negative_relative", "negative_distances")
_PRESETS: dict[str, dict[str, Any]] = {
    "positive-aware": {"negative_ranks": [10, 50]},
    "easy-to-hard": {"negative_ranks": [10, 400], "negatives_per_query": 6, "sampling": "stages"},
    "paper": {
        "positive_min_score": -1.0, "positives_per_query": 5, "positive_sampling": "uniform", "keep_self": True,
        "views": True, "negatives_per_query": 5, "min_negatives": 1, "without": list(RULES),
    },
}  # fmt: skip


class Policy(Section):
    """`[mine.policy]`: positives, the window that negatives come from, what is never a negative, how many are drawn."""

    preset: Preset = "positive-aware"
    """What fills the fields that are not set. `positive-aware`: near texts that score clearly below the positive
    (NV-Retriever, arXiv 2407.15831), the best of those tried. `easy-to-hard`: a wide window, its negatives stored from
    easy to hard.
    `paper`: arXiv 2402.03053, whose negatives are the farthest texts; to compare with, not to train on."""
    paper_corpus: PaperCorpus | None = None
    """`paper` only: whose distances to take. The first five are for vectors that were not normalised."""

    positive_min_score: Score = 0.6
    """A positive scores at least this. 0.6 suits TF-IDF with 256 dimensions; see audit.json for another teacher."""
    positive_max_distance: Annotated[float, Field(gt=0)] | None = None
    """A positive is at most this far (Euclidean, on the scale of the teacher's vectors); none does not ask."""
    positive_min_percentile: Annotated[float, Field(ge=0, lt=100)] = 0.0
    """A positive scores above this percentile of its query's scores; 0 does not ask."""
    positive_last_rank: Annotated[int, Field(ge=1)] | None = None
    """A positive is among so many nearest; none takes all that are looked at (`mine.neighbors`)."""
    positives_per_query: Annotated[int, Field(ge=1)] = 1
    """At most so many positives; the second is less sure than the first."""
    positive_sampling: Literal["best", "uniform"] = "best"
    """`best` takes the nearest; `uniform` draws among all texts within the bounds, over the whole corpus."""
    keep_self: bool = False
    """The text is a positive of itself, one of `positives_per_query`: of use where texts have several views."""
    views: bool = False
    """Texts that share a `document` are views (renderings) of one text: one vector stands for it, and it gives one row
    for each view, with all views of its positives and negatives. Not for documents that were cut into parts."""
    view_language: str = "en"
    """With `views`: the view in this language is embedded, else the first."""

    languages: Literal["any", "query", "positive"] = "any"
    """Whose language the negatives have; windows are then counted inside it. With `any`, a model can tell negatives by
    their language alone. Texts of unknown or mixed language take any. On real Malay and English text `query` did not
    help (recall@10 -0.004 [-0.017, +0.008])."""
    negative_ranks: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """[first, last]: nearer ones are too often answers as well, farther ones too easy."""
    negative_percentiles: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[low, high] percentiles, 0 to 100: the same hardness in a corpus of any size."""
    negative_scores: Annotated[list[Score], Field(min_length=2, max_length=2)] | None = None
    """[low, high] scores."""
    negative_relative: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[low, high] shares of the worst positive's score."""
    negative_distances: Annotated[list[float], Field(min_length=1, max_length=2)] | None = None
    """[above, at most] Euclidean distances; one number takes everything beyond it."""
    pool: Annotated[int, Field(ge=1)] = 64
    """Candidates drawn from a window without ranks, before the rules; more costs time, fewer leaves less choice."""

    without: list[Rule] = Field(default_factory=list)
    """Rules that are switched off, by name, for comparisons: same_document, max_score, ratio, margin, translation,
    duplicate, near_copy, second_teacher, cross_encoder."""
    negative_max_score: Score = 0.9
    """`max_score`: a negative never scores above this, however near the positive is."""
    negative_max_ratio: Share = 0.95
    """`ratio`: a negative scores at most this share of the worst positive (0.95: what NV-Retriever found best)."""
    negative_margin: Annotated[float, Field(ge=0, le=2)] = 0.0
    """`margin`: a negative scores at least this much below the worst positive."""
    duplicate_score: Score = 0.98
    """`duplicate`: texts that score this or more are copies: no positive (it teaches nothing), no negative of a text
    that is a copy of a positive."""
    near_copy: Share = 0.8
    """`near_copy`: share of words in common (Jaccard) from which a text is a copy of the query or a positive."""
    translation_score: Score = 0.85
    """`translation`: a text in another language that scores this or more is a rendering of the query or a positive."""
    agreement_ratio: Share = 0.95
    """`second_teacher`: its score too must be at most this share of the worst positive's; needs
    `[mine.second_teacher]`."""

    negatives_per_query: Annotated[int, Field(ge=0)] = 4
    """Draw so many of those that pass; 0 mines positives alone."""
    min_negatives: Annotated[int, Field(ge=0)] = 0
    """Drop a query with fewer negatives; 0 keeps it, its batch gives it others."""
    sampling: Literal["uniform", "hardest", "temperature", "stages"] = "uniform"
    """`hardest` takes the best scores; `temperature` draws by exp(score / temperature); `stages` cuts what passes into
    as many equal parts as negatives are wanted and draws one from each, stored from easy to hard."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """`temperature` only: lower is nearer to `hardest`."""
    hubness: Literal["none", "csls", "local_scaling"] = "none"
    """Reorder neighbours so that texts near to everything come later (CSLS, arXiv 1710.04087; local scaling)."""
    hub_neighbors: Annotated[int, Field(ge=1)] = 10
    """Neighbours that tell how crowded the surroundings of a text are."""
    negative_max_uses: Annotated[int, Field(ge=1)] | None = None
    """One text serves at most so often as a negative in the whole run; none does not count."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """What the preset says, under what is given. A window that is given replaces the preset's window."""
        if not isinstance(given, dict):
            return given
        preset = dict(_PRESETS.get(given.get("preset", "positive-aware"), {}))
        chosen = {name: value for name, value in given.items() if not (name in _WINDOWS and value is None)}
        if given.get("preset") == "paper":
            cuts = PAPER_CUTS.get(given.get("paper_corpus") or "malay-news")
            if cuts:
                preset |= {"positive_max_distance": cuts[0], "negative_distances": [cuts[1]]}
        if any(name in chosen for name in _WINDOWS):
            preset = {name: value for name, value in preset.items() if name not in _WINDOWS}
        return {**preset, **{name: value for name, value in chosen.items() if value is not None}}

    @model_validator(mode="after")
    def _fits(self) -> Policy:
        for name in _WINDOWS:
            window = getattr(self, name)
            low = {"negative_ranks": 1, "negative_percentiles": 0, "negative_distances": 0}.get(name)
            if window and (window[0] > window[-1] or (low is not None and window[0] < low)):
                raise ValueError(f"mine.policy.{name} = {window} is no range" + ("" if low is None else f" from {low}"))
        if self.negative_percentiles and 0 < self.negative_percentiles[1] <= 1:
            given, percent = self.negative_percentiles, [100 * share for share in self.negative_percentiles]
            raise ValueError(f"mine.policy.negative_percentiles = {given}: counts from 0 to 100. Fix: write {percent}")
        if self.negative_percentiles and self.negative_percentiles[1] > 100:
            raise ValueError(
                f"mine.policy.negative_percentiles = {self.negative_percentiles} must end at 100 or before"
            )
        if self.negative_distances and (self.negative_scores or self.negative_relative or self.negative_percentiles):
            raise ValueError("mine.policy: give negative_distances or a window of scores, not both")
        if self.min_negatives > self.negatives_per_query:
            raise ValueError(
                f"mine.policy.min_negatives = {self.min_negatives} must be at most "
                f"mine.policy.negatives_per_query = {self.negatives_per_query}"
            )
        if self.paper_corpus and self.preset != "paper":
            raise ValueError(f'mine.policy.paper_corpus = {self.paper_corpus!r} needs mine.policy.preset = "paper"')
        if self.keep_self and self.positives_per_query < 2 and not self.views:
            raise ValueError("mine.policy.keep_self needs positives_per_query of 2 or more: the text is one of them")
        return self

    def on(self, rule: Rule) -> bool:
        """Whether a rule is asked."""
        return rule not in self.without

    @property
    def last_rank(self) -> int:
        """How deep the rank window reaches; 0 without one."""
        return self.negative_ranks[1] if self.negative_ranks else 0
