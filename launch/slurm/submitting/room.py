"""Whether the disk has room for what training will write, estimated from shapes alone.

Training counts exactly before its first step (train/history/forecast.py); here a job that would end there is not
queued. A quota cannot be seen.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from train.history.forecast import bytes_of_checkpoint, bytes_of_model

if TYPE_CHECKING:
    from launch.recipe import Recipe

_GIB = 1 << 30


def parameters_of(recipe: Recipe) -> int | None:
    """About how many parameters the cut base has; None where its shape is not known without looking for it.

    Embeddings (twice where they are not tied), and in each layer attention with grouped keys and values and three
    matrices of the feed-forward part; norms are left out.
    """
    from launch.needs import KNOWN_BASES

    base, layers = recipe.base, recipe.truncate.layers
    if base.random:
        made = base.random
        hidden, deep, vocabulary = made.hidden, made.layers, recipe.tokenizer.vocab_size
        wide, heads, shared, tied = made.feed_forward, made.heads, made.key_value_heads, made.tie_embeddings
    elif shape := KNOWN_BASES.get(base.model or ""):
        hidden, deep, vocabulary = shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]
        wide, heads, shared = shape["intermediate_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
        tied = False
    else:
        return None
    kept = min(layers, deep) if isinstance(layers, int) else len(layers)
    attention = 2 * hidden * hidden + 2 * hidden * hidden * shared // heads
    return int((1 if tied else 2) * vocabulary * hidden + kept * (attention + 3 * hidden * wide))


def check_room(recipe: Recipe, run: Path) -> None:
    """Raise `UserError` where the disk of a run folder has no room for the checkpoints and models of both phases.

    What the run has written already counts as room: it is part of what is needed.
    """
    parameters = parameters_of(recipe)
    if parameters is None:
        return
    place = run
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise UserError(f"run folder {run}", "cannot be written to", "choose a folder of your own with --runs DIR")
    # pretrained, finetuned, cut and exported weights; checkpoints of one phase at a time and one being written
    needed = (recipe.checkpoint.keep + 1) * bytes_of_checkpoint(parameters) + 4 * bytes_of_model(parameters)
    there = sum(file.stat().st_size for file in run.glob("history/*/checkpoints/*/*") if file.is_file())
    free = shutil.disk_usage(place).free + there
    if needed > free:
        raise UserError(
            f"{place}: {free / _GIB:,.1f} GiB free",
            f"the run needs about {needed / _GIB:,.1f} GiB for {recipe.checkpoint.keep} checkpoints and its models",
            "free space, put runs elsewhere with --runs DIR, or lower checkpoint.keep",
        )
