"""How to use a published model, as code that runs: with sentence-transformers, and with transformers alone."""

from __future__ import annotations

import json

from train.hub.facts import ModelShape

_POOLING = {
    "mean": "vectors = (states * mask).sum(1) / mask.sum(1)",
    "cls": "vectors = states[:, 0]",
    "lasttoken": "vectors = states[torch.arange(len(states)), tokens.attention_mask.sum(1) - 1]",
    "weightedmean": (
        "weights = mask * torch.arange(1, states.shape[1] + 1).view(1, -1, 1)\n"
        "    vectors = (states * weights).sum(1) / weights.sum(1)"
    ),
}
_TEXTS = ("macam mana nak mohon bantuan banjir?", "Permohonan bantuan banjir boleh dibuat di pejabat daerah.")


def with_sentence_transformers(name: str, shape: ModelShape) -> str:
    """Code that scores a passage for a query."""
    query, passage = (json.dumps(t, ensure_ascii=False) for t in _TEXTS)
    return f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer({json.dumps(name)})
queries = model.encode([{query}], prompt_name="query")
passages = model.encode([{passage}], prompt_name="document")
print(model.similarity(queries, passages))
"""


def with_transformers(name: str, shape: ModelShape) -> str | None:
    """The same without sentence-transformers; None where it would take more than a few lines."""
    if shape.pooling not in _POOLING or not shape.prompt_in_pooling:
        return None
    query, passage = (json.dumps(t, ensure_ascii=False) for t in _TEXTS)
    cut = f", max_length={shape.max_tokens}" if shape.max_tokens else ""
    name_, project, load = json.dumps(name), "", ""
    if shape.projection:
        file = json.dumps(f"{shape.projection}/model.safetensors")
        load = f'dense = load_file(cached_file({name_}, {file}))["linear.weight"].float()\n'
        project = "\n    vectors = vectors @ dense.T"
    imports = "from safetensors.torch import load_file\n" if shape.projection else ""
    names = "AutoModel, AutoTokenizer"
    cached = "from transformers.utils import cached_file\n" if shape.projection else ""
    back = "torch.nn.functional.normalize(vectors, dim=1)" if shape.normalised else "vectors"
    return f"""import torch
{imports}from transformers import {names}
{cached}
tokenizer = AutoTokenizer.from_pretrained({name_}, padding_side="right")
model = AutoModel.from_pretrained({name_}).eval()
{load}

def embed(texts, prompt):
    tokens = tokenizer([prompt + t for t in texts], padding=True, truncation=True{cut}, return_tensors="pt")
    states = model(**tokens).last_hidden_state.float()
    mask = tokens.attention_mask.unsqueeze(-1)
    {_POOLING[shape.pooling]}{project}
    return {back}


with torch.no_grad():
    queries = embed([{query}], {json.dumps(shape.query_prompt, ensure_ascii=False)})
    passages = embed([{passage}], {json.dumps(shape.passage_prompt, ensure_ascii=False)})
print(queries @ passages.T)
"""
