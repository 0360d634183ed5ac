"""Loss and gradients of a global batch from the definitions: float64, one process, one text at a time, plain loops.

Nothing of train/ is used, neither for the texts' vectors (transformers' eager attention, each text alone) nor for the
losses (a loop over queries, positives and passages, with Python sets for what is known).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from invariance.batch import Row, global_batch
from invariance.cases import DIMS, FALSE_NEGATIVE_MARGIN, MARGIN, MAX_TOKENS, PASSAGE_PROMPT, QUERY_PROMPT, TEMPERATURE
from invariance.models import model_folder

Vectors = tuple[list[torch.Tensor], list[list[torch.Tensor]]]
"""A vector for each query, and one for each passage of each query's row."""


class Reference:
    """A model in float64, and the vectors of texts."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        from safetensors.torch import load_file
        from transformers import AutoModel, AutoTokenizer

        self.settings = settings
        home = model_folder(folder, settings["model"])
        bare = {"add_pooling_layer": False} if settings["model"] == "bert" else {}
        self.model = AutoModel.from_pretrained(home, dtype=torch.float64, attn_implementation="eager", **bare)
        use_float64_norms(self.model)
        self.tokenizer = AutoTokenizer.from_pretrained(home)
        self.projection = None
        if settings["projection"] == "on":
            self.projection = load_file(folder / "projection.safetensors")["weight"].double().requires_grad_()

    def vector(self, text: str, prompt: str) -> torch.Tensor:
        """The unit vector of one text."""
        if self.settings["prompts"] == "off":
            prompt = ""
        ids = self.tokenizer(prompt + text)["input_ids"]
        if len(ids) > MAX_TOKENS:
            ids = [*ids[: MAX_TOKENS - 1], ids[-1]]  # a text is cut before its end mark
        more: dict[str, Any] = {}
        if self.settings["model"] == "llama bidirectional":
            more["attention_mask"] = torch.zeros(1, 1, len(ids), len(ids), dtype=torch.float64)
        states = self.model(input_ids=torch.tensor([ids]), use_cache=False, **more).last_hidden_state[0]
        masked = self.settings["prompts"] == "masked"
        first = len(self.tokenizer(prompt)["input_ids"][:-1]) if masked else 0  # the prompt alone has an end mark
        if self.settings["pooling"] == "last":
            pooled = states[-1]
        else:
            by_place = self.settings["pooling"] == "weighted_mean"
            weights = [float(place + 1) if by_place else 1.0 for place in range(len(ids))]
            pooled = sum(weights[i] * states[i] for i in range(first, len(ids))) / sum(weights[first:])
        if self.projection is not None:
            pooled = self.projection @ pooled
        return pooled / pooled.norm()

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients by the names that an encoder module has for its parameters."""
        found = {f"backbone.{name}": p.grad for name, p in self.model.named_parameters()}
        if self.projection is not None:
            found["projection.weight"] = self.projection.grad
        return found


def use_float64_norms(model: Any) -> None:
    """transformers computes RMS norms in float32, whatever the model is in."""

    def exact(module: Any) -> Any:
        return lambda x: module.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + module.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = exact(module)


def reference(folder: Path, settings: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """`loss`, and the gradient of every parameter."""
    batch = global_batch(int(settings["negatives"]))
    model = Reference(folder, settings)
    vectors = (
        [model.vector(row.query, QUERY_PROMPT) for row in batch],
        [[model.vector(p.text, PASSAGE_PROMPT) for p in row.passages] for row in batch],
    )
    loss = loss_of(settings, batch, vectors)
    loss.backward()
    return {"loss": loss.detach(), **model.gradients()}


def loss_of(settings: Mapping[str, str], batch: list[Row], vectors: Vectors) -> torch.Tensor:
    """The loss that a case trains on."""
    definition = {"margin": margin, "triplet": triplet, "CoSENT": cosent}.get(settings["loss"])
    losses = []
    whole = len(vectors[0][0])
    for d in [whole, *DIMS] if settings["matryoshka"] == "on" else [whole]:
        short = (
            [F.normalize(q[:d], dim=0) for q in vectors[0]],
            [[F.normalize(p[:d], dim=0) for p in row] for row in vectors[1]],
        )
        losses.append(definition(batch, *short) if definition else info_nce(settings["loss"], batch, *short))
    return sum(losses) / len(losses)


def info_nce(
    kind: str, batch: list[Row], queries: list[torch.Tensor], passages: list[list[torch.Tensor]]
) -> torch.Tensor:
    """The mean over queries of the mean over their positives of -log(e^s⁺ / (e^s⁺ + Σ e^s))."""
    extra = kind == "InfoNCE query and passage negatives"
    of_queries = []
    for i, row in enumerate(batch):
        of_positives = []
        for j in range(len(row.positives)):
            positive = passages[i][j]
            own = queries[i] @ positive
            ceiling = own.item() + FALSE_NEGATIVE_MARGIN if kind == "InfoNCE false-negative margin" else 9.0
            negatives = []
            for k, other in enumerate(batch):
                for n, text in enumerate(other.passages):
                    if (k, n) == (i, j) or text.text in row.known_texts or text.document in row.known_documents:
                        continue
                    if (cosine := queries[i] @ passages[k][n]) <= ceiling:
                        negatives.append(cosine)
                    if extra:
                        negatives.append(positive @ passages[k][n])
                if extra and k != i and not _related(row, other):
                    negatives.append(queries[i] @ queries[k])
            loss = _softmax_loss(own, negatives)
            if kind == "InfoNCE symmetric":
                back = []
                for k, other in enumerate(batch):
                    text = row.positives[j]
                    theirs = text.text in other.known_texts or text.document in other.known_documents
                    if k != i and other.query not in row.known_texts and not theirs:
                        back.append(queries[k] @ positive)
                loss = 0.5 * (loss + _softmax_loss(own, back))
            of_positives.append(loss)
        of_queries.append(sum(of_positives) / len(of_positives))
    return sum(of_queries) / len(of_queries)


def _related(one: Row, two: Row) -> bool:
    return bool(one.known_texts & two.known_texts or one.known_documents & two.known_documents)


def _softmax_loss(own: torch.Tensor, negatives: list[torch.Tensor]) -> torch.Tensor:
    scores = torch.stack([own, *negatives]) / TEMPERATURE
    return torch.logsumexp(scores, 0) - scores[0]


def margin(batch: list[Row], queries: list[torch.Tensor], passages: list[list[torch.Tensor]]) -> torch.Tensor:
    """The mean over all (query, own passage) pairs of d²/2 or max(0, margin - d)²/2."""
    losses = []
    for i, row in enumerate(batch):
        for j, vector in enumerate(passages[i]):
            d = 1 - queries[i] @ vector
            losses.append(d**2 / 2 if j < len(row.positives) else torch.clamp(MARGIN - d, min=0) ** 2 / 2)
    return sum(losses) / len(losses)


def triplet(batch: list[Row], queries: list[torch.Tensor], passages: list[list[torch.Tensor]]) -> torch.Tensor:
    """The mean over queries with stored negatives of the mean hinge over positives x negatives."""
    of_queries = []
    for i, row in enumerate(batch):
        if row.negatives:
            near = [1 - queries[i] @ v for v in passages[i][: len(row.positives)]]
            far = [1 - queries[i] @ v for v in passages[i][len(row.positives) :]]
            hinges = [torch.clamp(a - b + MARGIN, min=0) for a in near for b in far]
            of_queries.append(sum(hinges) / len(hinges))
    return sum(of_queries) / len(of_queries)


def cosent(batch: list[Row], queries: list[torch.Tensor], passages: list[list[torch.Tensor]]) -> torch.Tensor:
    """log(1 + Σ exp((cos of the lower - cos of the higher) / temperature)) over couples with unequal scores."""
    scored = [
        (text.score, queries[i] @ passages[i][j])
        for i, row in enumerate(batch)
        for j, text in enumerate(row.passages)
        if text.score is not None
    ]
    total = 1.0
    for low_score, low in scored:
        for high_score, high in scored:
            if low_score < high_score:
                total = total + torch.exp((low - high) / TEMPERATURE)
    return torch.log(total)
