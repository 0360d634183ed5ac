"""What a cut costs, measured before it is paid for: retrieval with the base's states after every layer.

Invariant: the vector of a text at depth N is what the first N layers of the base would give as an untrained model: the
mean over its tokens of the state after layer N, passed through the base's final norm, at unit length. So the probe at
depth N and the cut to N layers are the same numbers, and one pass over the base measures all cuts.

The sample comes from the recipe's training pairs: nothing has been trained on them yet, and no evaluation text decides
how deep the model is.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.files import write_json
from train.backbone import base_reference, read_model_config
from train.probe_sample import Sample, draw_sample

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from data_prep.progress import Progress
    from train.encoder import EncoderConfig

K = 10
LEVEL = 0.95
SAMPLES = 1000
CONVENTION = (
    "mean over the tokens of the state after each layer, through the base's final norm, before any training; "
    "0 layers are the embeddings alone"
)


class ProbeConfig(Section):
    """[truncate.probe]: measure every depth of the base on a sample of the training pairs (stage `probe`)."""

    queries: Annotated[int, Field(ge=2)] = 200
    """Queries asked at every depth; 200 give intervals of about ±0.07."""
    passages: Annotated[int, Field(ge=2)] = 1000
    """Passages among which the positives must be found; more are harder, and cost time in proportion."""
    source: Literal["pairs", "mine", "synth"] | None = None
    """Which pairs are asked; unset: the first that the recipe has of pairs, synth, mine: labelled, then cheapest."""
    layers: Annotated[int, Field(gt=0)] | None = None
    """Measure only the first so many layers, and read no others; unset: the whole base."""
    budget_tokens: Annotated[int, Field(gt=0)] = 8192
    """Tokens in one forward pass; bounds memory, changes nothing else."""


def probe(
    config: ProbeConfig,
    encoder: EncoderConfig,
    *,
    base: Path,
    tokenizer: Path,
    pairs: Path,
    source: str,
    cut: Sequence[int] | None,
    out: Path,
    seed: int,
    progress: Progress,
) -> dict[str, int | float]:
    """Write `out/probe.json`.

    Args:
        encoder: its prompts, `max_tokens` and `bidirectional` count; the pooling is always the mean.
        base: the base stage's folder. pairs: a shard folder of kind `pairs`, named `source` in the record.
        cut: layer numbers of a cut that is no prefix of the base; it is measured on its own.

    Returns:
        Counts: layers, queries, passages, best_layers, enough_layers (the fewest whose loss to the best is within the
        interval), recall_all (with all measured layers).

    Raises:
        UserError: more layers than the base has, an unreadable base, or too few pairs.
    """
    import torch
    from transformers import AutoTokenizer

    from data_prep.shards import Shards
    from train.truncate import base_depth, kept_layers, read_layers

    name, revision = base_reference(base)
    shape = read_model_config(name, revision)
    deep = base_depth(shape, name=name)
    depth = min(config.layers or deep, deep)
    list_cut = kept_layers(cut, deep) if cut else None
    sample = draw_sample(Shards(pairs, "pairs"), queries=config.queries, passages=config.passages, seed=seed)
    reader = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    texts = [encoder.query_prompt + q for q in sample.queries] + [encoder.passage_prompt + p for p in sample.passages]
    tokens = reader(texts, truncation=True, max_length=encoder.max_tokens)["input_ids"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # bf16 halves a large base; CPUs are slower in it
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    progress.begin("probe", len(tokens) * (2 if list_cut else 1), "texts")

    def measure(kept: Sequence[int]) -> tuple[list[NDArray[np.float64]], list[float], list[int]]:
        model = read_layers(name, revision, shape, kept, head=False, dtype=dtype).to(device)
        vectors, turns = states_by_depth(
            model, tokens, bidirectional=encoder.bidirectional, budget_tokens=config.budget_tokens, progress=progress
        )
        recalls = [recall_per_query(v[: len(sample.queries)], v[len(sample.queries) :], sample) for v in vectors]
        return recalls, turns, parameters_by_depth(model)

    with progress.work("encode"):
        recalls, turns, sizes = measure(range(depth))
        chosen = measure(list_cut) if list_cut else None
    with progress.work("score"):
        record = {
            "base_layers": deep, "queries": len(sample.queries), "passages": len(sample.passages), "source": source,
            "metric": f"recall@{K}", "level": LEVEL, "samples": SAMPLES, "convention": CONVENTION,
            **_summary([*recalls, *(chosen[0][-1:] if chosen else [])], depth=depth, seed=seed),
        }  # fmt: skip
    for row, turn, size in zip(record["rows"], [None, *turns], sizes, strict=True):
        row |= {"turn": turn, "parameters": size}
    if list_cut and chosen:
        record["cut"] |= {"layers": list_cut, "parameters": chosen[2][-1]}
    write_json(out / "probe.json", record)
    return {
        "layers": depth,
        "queries": len(sample.queries),
        "passages": len(sample.passages),
        "best_layers": record["best_layers"],
        "enough_layers": record["enough_layers"],
        "recall_all": record["rows"][-1]["recall"]["mean"],
    }


def states_by_depth(
    model: Any,
    tokens: Sequence[Sequence[int]],
    *,
    bidirectional: bool,
    budget_tokens: int,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], list[float]]:
    """Unit vectors of n texts at every depth, in one pass: packed, or text by text where packing does not hold.

    Args:
        model: a base model of L layers without output head. tokens: the n token sequences.

    Returns:
        [L + 1, n, H] fp32 (4 (L + 1) n H bytes), and for each layer its turn: the mean over tokens of 1 - cosine(state
        before, state after), the block influence of Men et al. 2024 (arXiv 2403.03853). A layer with a small turn
        changes little and is the first that a list cut can do without.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    from train.attention_layout import attention_layout, token_states
    from train.packing import pack, token_chunks

    if bidirectional:
        model.config.is_causal = False
    layout = attention_layout(model, "packed")
    lengths = [len(t) for t in tokens]
    # what cannot be packed goes alone: padding would be pooled
    chunks = token_chunks(lengths, budget_tokens) if layout == "packed" else [[i] for i in range(len(tokens))]
    layers, norm = layer_stack(model), final_norm(model)
    device = next(model.parameters()).device
    vectors = np.zeros((len(layers) + 1, len(tokens), model.config.hidden_size), dtype=np.float32)
    turns = torch.zeros(len(layers), dtype=torch.float64)
    rows: list[int] = []
    owner = torch.zeros(0)

    def keep(depth: int, states: torch.Tensor) -> None:
        normed = norm(states)[0].float()
        sums = normed.new_zeros(len(rows), normed.shape[1]).index_add(0, owner, normed)
        vectors[depth, rows] = F.normalize(sums, dim=-1).cpu().numpy()

    def hook(number: int) -> Any:
        def after(_: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            states = output[0] if isinstance(output, tuple) else output
            if number == 0:
                keep(0, before)
            keep(number + 1, states)
            turns[number] += float((1 - F.cosine_similarity(before.float(), states.float(), dim=-1)).sum())

        return after

    handles = [layer.register_forward_hook(hook(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            for rows in chunks:
                packed = pack([tokens[r] for r in rows], device=device)
                owner = torch.repeat_interleave(
                    torch.arange(len(rows), device=device), torch.tensor([lengths[r] for r in rows], device=device)
                )
                token_states(model, packed, layout)
                if progress is not None:
                    progress.advance(len(rows))
    finally:
        for handle in handles:
            handle.remove()
    return vectors, (turns / sum(lengths)).tolist()


def layer_stack(model: Any) -> Any:
    """The module list that holds the layers of a base model."""
    import torch

    deep = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == deep)


def final_norm(model: Any) -> Any:
    """The norm after the last layer; the identity where an architecture has none (BERT has its norms inside)."""
    import torch

    named = (m for name, m in model.named_children() if "norm" in name or name == "ln_f")
    return next(named, torch.nn.Identity())


def parameters_by_depth(model: Any) -> list[int]:
    """Parameters of the embedding model (no output head) with the first 0, 1, … L layers."""
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layer_stack(model)]
    rest = sum(p.numel() for p in model.parameters()) - sum(sizes)
    return [rest + sum(sizes[:depth]) for depth in range(len(sizes) + 1)]


def recall_per_query(
    queries: NDArray[np.float32], passages: NDArray[np.float32], sample: Sample
) -> NDArray[np.float64]:
    """The part of each query's positives among its first `K` passages by cosine: [Q]; ties go to the lower index.

    Args:
        queries: [Q, H] unit rows. passages: [P, H] unit rows.
    """
    import numpy as np

    scores = queries @ passages.T
    for row, hidden in enumerate(sample.hidden):
        scores[row, hidden] = -np.inf
    first = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    found = [
        len(set(top) & set(right)) / len(right) for top, right in zip(first.tolist(), sample.relevant, strict=True)
    ]
    return np.array(found, dtype=np.float64)


def _summary(recalls: Sequence[NDArray[np.float64]], *, depth: int, seed: int) -> dict[str, Any]:
    """Means with paired bootstrap intervals over queries: depths 0 … `depth`, and a `cut` where one more is given."""
    import numpy as np

    values = np.stack(recalls)
    count = values.shape[1]
    drawn = np.random.default_rng([seed, zlib.crc32(b"bootstrap")]).integers(0, count, (SAMPLES, count))
    means, resampled = values.mean(axis=1), np.stack([v[drawn].mean(axis=1) for v in values])

    def figure(mean: float, samples: NDArray[np.float64]) -> dict[str, float]:
        low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return {"mean": round(mean, 6), "low": round(float(low), 6), "high": round(float(high), 6)}

    rows = [
        {
            "layers": i,
            "recall": figure(float(means[i]), resampled[i]),
            "against_all": figure(float(means[i] - means[depth]), resampled[i] - resampled[depth]),
        }
        for i in range(len(values))
    ]
    best = 1 + int(means[1 : depth + 1].argmax())
    low = (1 - LEVEL) / 2
    enough = next(i for i in range(1, best + 1) if np.quantile(resampled[best] - resampled[i], low) <= 0)
    summary: dict[str, Any] = {"rows": rows[: depth + 1], "best_layers": best, "enough_layers": enough}
    return summary | ({"cut": rows[depth + 1]} if len(rows) > depth + 1 else {})


def probe_lines(record: Mapping[str, Any], *, kept: int | Sequence[int]) -> list[str]:
    """The record as a table of text; the row of the recipe's cut is marked.

    Args:
        record: probe.json. kept: `truncate.layers`.
    """
    lines = [
        f"{record['metric']}: {record['queries']:,} queries, {record['passages']:,} passages ({record['source']})",
        f"{'layers':>8} {'parameters':>13}   {record['metric']:<24} {'against all layers':<26} turn",
    ]
    depth = kept if isinstance(kept, int) else len(kept) if list(kept) == list(range(len(kept))) else None
    for row in record["rows"]:
        mark = "  <- truncate.layers" if row["layers"] == depth else ""
        lines.append(_line(str(row["layers"]), row) + mark)
    if cut := record.get("cut"):
        lines.append(_line(",".join(map(str, cut["layers"])), cut) + "  <- truncate.layers")
    return [*lines, verdict(record), f"({record['convention']})"]


def verdict(record: Mapping[str, Any]) -> str:
    """One sentence: which depth is best, and which is the first that is not clearly worse."""
    best, enough = record["best_layers"], record["enough_layers"]
    text = f"Best with {best} layer{'s' if best != 1 else ''}"
    if enough < best:
        text += f"; from {enough} on, the loss to that is within the {100 * record['level']:.0f} % interval"
    return text + "."


def _line(label: str, row: Mapping[str, Any]) -> str:
    recall, against = row["recall"], row["against_all"]
    spread = f"{recall['mean']:.3f} [{recall['low']:.3f}, {recall['high']:.3f}]"
    loss = f"{against['mean']:+.3f} [{against['low']:+.3f}, {against['high']:+.3f}]"
    turn = "" if row.get("turn") is None else f"{row['turn']:.3f}"
    return f"{label:>8} {row['parameters']:>13,}   {spread:<24} {loss:<26} {turn}".rstrip()
