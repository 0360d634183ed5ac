"""A policy in sentences, for people: the same table, read aloud."""

from __future__ import annotations

from data_prep.mine.policy import Policy


def sentences(policy: Policy, *, neighbors: int) -> list[str]:
    """What the policy does, a sentence for each decision. `neighbors`: how many nearest are looked at."""
    told = [_positives(policy, neighbors)]
    if not policy.negatives_per_query:
        return [*told, "No negatives are mined."]
    told.append(_window(policy))
    told += _vetoes(policy)
    told.append(_draw(policy))
    if policy.hubness != "none":
        told.append(
            f"Neighbours are ordered after {policy.hubness.replace('_', ' ').replace('csls', 'CSLS')} "
            f"over {policy.hub_neighbors} neighbours."
        )
    if policy.negative_max_uses:
        told.append(f"One text serves at most {policy.negative_max_uses} times as a negative.")
    return told


def _positives(policy: Policy, neighbors: int) -> str:
    bounds = []
    if policy.positive_min_score > -1:
        bounds.append(f"score at least {policy.positive_min_score:g}")
    if policy.positive_max_distance is not None:
        bounds.append(f"are at most {policy.positive_max_distance:g} away")
    if policy.positive_min_percentile:
        bounds.append(f"score above percentile {policy.positive_min_percentile:g}")
    if policy.positive_sampling == "best":
        bounds.append(f"are among the {policy.positive_last_rank or neighbors} nearest")
    others = policy.positives_per_query - policy.keep_self
    drawn = "the best" if policy.positive_sampling == "best" else "drawn evenly"
    itself = " and the text itself" if policy.keep_self else ""
    return f"Positives: up to {others} texts, {drawn}, that {' and '.join(bounds) or 'are there'}{itself}."


def _window(policy: Policy) -> str:
    parts = []
    if policy.negative_ranks:
        parts.append("ranks {} to {}".format(*policy.negative_ranks))
    if policy.negative_percentiles:
        parts.append("percentiles {:g} to {:g} of the query's scores".format(*policy.negative_percentiles))
    if policy.negative_scores:
        parts.append("scores {:g} to {:g}".format(*policy.negative_scores))
    if policy.negative_relative:
        parts.append("{:g} to {:g} of the worst positive's score".format(*policy.negative_relative))
    if policy.negative_distances:
        most = f" and up to {policy.negative_distances[1]:g}" if len(policy.negative_distances) > 1 else ""
        parts.append(f"distances above {policy.negative_distances[0]:g}{most}")
    whose = {"any": "any language", "query": "the query's language", "positive": "the positive's language"}
    return f"Negatives come from {', '.join(parts)}, among texts of {whose[policy.languages]}."


def _vetoes(policy: Policy) -> list[str]:
    told = {
        "same_document": "A text of the query's or a positive's document is no negative.",
        "max_score": f"A negative scores at most {policy.negative_max_score:g}.",
        "ratio": f"A negative scores at most {policy.negative_max_ratio:g} of the worst positive's score.",
        "margin": f"A negative scores at least {policy.negative_margin:g} less than the worst positive.",
        "translation": f"A text in another language is no negative from score {policy.translation_score:g} on.",
        "duplicate": f"A text that scores {policy.duplicate_score:g} or more against a positive is no negative.",
        "near_copy": f"A text that shares {policy.near_copy:g} of its words with the query or a positive is none.",
        "second_teacher": (
            f"Where there is a second teacher, it too scores a negative at most {policy.agreement_ratio:g} of the "
            "worst positive."
        ),
        "cross_encoder": "Where there is a cross-encoder, what it finds relevant is no negative.",
    }
    return [sentence for rule, sentence in told.items() if rule not in policy.without]


def _draw(policy: Policy) -> str:
    how = {
        "uniform": "drawn evenly",
        "hardest": "the hardest first",
        "temperature": f"drawn by score at temperature {policy.temperature:g}",
        "stages": "one from each stage, stored from easy to hard",
    }
    least = f"; a query with fewer than {policy.min_negatives} is dropped" if policy.min_negatives else ""
    return f"Up to {policy.negatives_per_query} negatives a query, {how[policy.sampling]}{least}."
