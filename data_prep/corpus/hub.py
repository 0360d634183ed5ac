"""Data sets that the `datasets` library reads, streamed: `datasets:NAME[@REVISION][:CONFIG][:SPLIT]`.

NAME is an id on the Hugging Face hub or a local folder. An empty CONFIG is the default one, SPLIT is `train` where it
is not given. Each shard of the data set is a piece of its own. Nothing that a data set carries is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

_MOST_PIECES = 256


def _open(name: str) -> IterableDataset:
    """The streamed data set that a name of `corpus.files` stands for."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"corpus.files: {name!r}", "needs the datasets library", "pip install 'rumpun[data]' (or datasets>=5)"
        ) from error
    ident, config, split = (*name.removeprefix("datasets:").split(":"), "", "")[:3]
    if not ident or name.count(":") > 3:
        raise UserError(f"corpus.files: {name!r}", "is no data set", "write datasets:NAME[@REVISION][:CONFIG][:SPLIT]")
    path, _, revision = ident.partition("@")
    if Path(path).expanduser().is_dir():
        path = str(Path(path).expanduser().absolute())
    try:
        return datasets.load_dataset(
            path, config or None, split=split or "train", streaming=True, revision=revision or None
        )
    except Exception as error:  # the library raises many kinds, for names, splits, networks and files alike
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"corpus.files: {name!r}",
            f"cannot be opened ({type(error).__name__}: {told})",
            "check name, config and split, and that the hub can be reached (HF_HUB_OFFLINE unset, HF_TOKEN for private "
            "ones); or download the files and name their folder",
        ) from error


def hub_pieces(name: str) -> list[dict[str, Any]]:
    """The pieces of a data set: its shards, joined where they are more than a few hundred."""
    count = min(_MOST_PIECES, max(1, _open(name).num_shards))
    return [{"path": name, "kind": "hub", "start": i, "stop": count, "stamp": []} for i in range(count)]


def hub_rows(piece: dict[str, Any]) -> Iterator[tuple[Callable[[], str], dict[str, Any]]]:
    """Rows of a piece with what to call them. Raises `UserError` where the data set cannot be read on."""
    data = _open(piece["path"])
    if piece["stop"] > 1:
        data = data.shard(num_shards=piece["stop"], index=piece["start"], contiguous=True)
    number = 0
    try:
        for number, row in enumerate(data, start=1):
            yield partial("{}, piece {}, row {}".format, piece["path"], piece["start"], number), row
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{piece['path']}, piece {piece['start']}, after row {number}",
            f"cannot be read on ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            "check the network, then run the same command again: finished pieces are kept",
        ) from error
