"""CoSENT: pairs that a teacher scored higher get the higher cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.errors import UserError
from train.objectives.pair_cosine import pair_cosine
from train.objectives.share import Share, at_least_fp32, check_positive

if TYPE_CHECKING:
    import torch

    from train.relations import Relations


def cosent(
    queries: torch.Tensor,
    passages: torch.Tensor,
    relations: Relations,
    *,
    temperature: float,
    share: Share = (0, 1),
) -> torch.Tensor:
    """A share of log(1 + Σ e^((cos_low - cos_high) / temperature)) over couples of pairs with score_low < score_high.

    A pair is (query of its row, passage); all that have a score are coupled over the whole global batch (Su, 2022,
    https://kexue.fm/archives/8847; Huang et al., 2024, doi 10.1109/TASLP.2024.3402087).

    The N² couples are never made. Sorted by score, the couples of one `high` are a prefix, so the sum is
    Σ_high e^(-cos_high / temperature) · Σ_prefix e^(cos_low / temperature): one cumulative log-sum-exp, exact.

    Args:
        queries: [B, D] unit rows. passages: [C, D] unit rows. relations: the tables of the global batch.
        temperature: divides the cosines; 0.05 is the authors'.
        share: (part, parts). A logarithm of one sum has no parts that could be computed apart, and N log N is cheap, so
            each share is the whole divided by `parts`.

    Returns:
        A scalar. Raises `UserError` for a temperature ≤ 0 and for a batch without scores.
    """
    import torch

    check_positive("temperature", temperature, "set it to a value such as 0.05")
    queries, passages = at_least_fp32(queries), at_least_fp32(passages)
    scored = (~relations.scores.isnan()).nonzero()[:, 0]
    if not len(scored):
        raise UserError(
            f"a global batch of {len(passages)} passages without a teacher score",
            "CoSENT learns the order of the scores",
            "mine with a teacher, which stores its scores, or take the loss 'info_nce'",
        )
    score, order = relations.scores[scored].sort()
    scored = scored[order]
    cosine = pair_cosine(queries, passages, relations.passage_query[scored], scored).double() / temperature
    lower = torch.searchsorted(score, score)  # how many scores are below this one: equal ones make no couple
    high = (lower > 0).nonzero()[:, 0]
    prefix = cosine.logcumsumexp(dim=0)
    couples = prefix[lower[high] - 1] - cosine[high]
    total = torch.cat([couples, couples.new_zeros(1)]).logsumexp(dim=0)
    # no couple at all leaves log(1 + 0), which must still have a (zero) gradient on every rank
    return ((total + 0 * cosine.sum()) / share[1]).to(queries.dtype)
