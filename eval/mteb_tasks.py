"""Our encoders as models of mteb, and our evaluation sets as tasks of mteb; everything is read from the disk.

Invariant: a set gives the same recall and nDCG here and there: mteb gets our documents (title and text joined), our
relevance (near copies included where the set asks for them) and the mean of its own per-query figures, not rounded to
five digits. Equal scores are the exception: mteb orders them by document id, we by the order of the file.

mteb 2.26 (pip install 'rumpun[mteb]'); its package holds no model and no data of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.files import sha256_file
from data_prep.similarity_sets import load_similarity_set
from eval.relevance import judge
from eval.systems.dense import finite_vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder

_LANGUAGES = {
    "ms": "zsm-Latn",
    "id": "ind-Latn",
    "en": "eng-Latn",
    "th": "tha-Thai",
    "ta": "tam-Taml",
    "zh": "zho-Hans",
}
_UNKNOWN = "und-Latn"
_EXACT = {
    "ndcg_at_{}": "ndcg_cut_{}",
    "map_at_{}": "map_cut_{}",
    "recall_at_{}": "recall_{}",
    "precision_at_{}": "P_{}",
    "hit_rate_at_{}": "success_{}",
}
"""mteb's name of a mean → the evaluator's name of the same figure of one query."""


def need_mteb() -> None:
    """Raise `UserError` where mteb is not installed."""
    import importlib.util

    if importlib.util.find_spec("mteb") is None:
        raise UserError("mteb", "is not installed", "pip install 'rumpun[mteb]' (or mteb>=2.26)")


class MtebModel:
    """Any embedder behind mteb's encoder protocol.

    Documents are embedded as passages; everything else (queries, and both sides of symmetric tasks) as queries, which
    is how this project embeds sentence pairs.

    Args:
        embedder: unit rows.
        name: what results call it, as `organisation/model`; one without `/` gets `rumpun/` before it.
        revision: of its weights, such as a tag; None where nobody told.
    """

    def __init__(self, embedder: Embedder, *, name: str, revision: str | None = None) -> None:
        need_mteb()
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.embedder, self.name = embedder, name
        self._meta = ModelMeta.create_empty(
            {
                "name": name if "/" in name else f"rumpun/{name}",
                "revision": revision,
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": ["text"],
            }
        )

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's record of the model."""
        return self._meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Unit rows [texts, dimension] of batches with a column `text`. Raises `UserError` where one is not finite."""
        texts = [text for batch in inputs for text in batch["text"]]
        role: Literal["query", "passage"] = (
            "passage" if prompt_type is not None and _is_document(prompt_type) else "query"
        )
        return finite_vectors(self.embedder, texts, role=role, name=self.name)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all pairs, a tensor [n, m]; rows are units."""
        import torch

        return torch.atleast_2d(torch.as_tensor(embeddings1)) @ torch.atleast_2d(torch.as_tensor(embeddings2)).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of rows with the same number, a tensor [n]."""
        import torch

        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


def _is_document(prompt_type: Any) -> bool:
    return str(getattr(prompt_type, "value", prompt_type)) in ("document", "passage")


def _metadata(
    name: str, kind: Literal["Retrieval", "STS"], *, files: Sequence[Path], language: str | None, score: str, about: str
) -> Any:
    from mteb import TaskMetadata

    content = "-".join(sha256_file(file)[:12] for file in files)
    return TaskMetadata(
        name=name,
        description=about,
        type=kind,
        category="t2t",
        dataset={"path": f"rumpun/{name}", "revision": content},
        eval_splits=["test"],
        eval_langs=[_LANGUAGES.get(language or "", _UNKNOWN)],
        main_score=score,
    )


def retrieval_task(folder: Path) -> Any:
    """An evaluation set in BEIR layout as a retrieval task; its main score is nDCG@10.

    Raises `UserError` where mteb is missing or the set is broken (see `load_set`).
    """
    need_mteb()
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    judged = judge(load_set(folder))
    task = judged.task
    relevant = {
        task.query_ids[row]: {task.document_ids[document]: 1 for document in sorted(answers)}
        for row, answers in zip(judged.rows["all"], judged.relevant["all"], strict=True)
    }

    def load_data(self: Any, num_proc: int | None = None, **_: Any) -> None:
        rows = judged.rows["all"]
        split = {
            "corpus": Dataset.from_dict({"id": task.document_ids, "text": task.documents}),
            "queries": Dataset.from_dict(
                {"id": [task.query_ids[row] for row in rows], "text": [task.queries[row] for row in rows]}
            ),
            "relevant_docs": relevant,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

    def exact_scores(
        self: Any, scores: Mapping[str, Mapping[str, float]], qrels: Any, results: Any, **_: Any
    ) -> dict[str, float]:
        if set(scores) != set(relevant):
            raise RuntimeError(f"{task.name}: {len(scores)} queries were scored, not {len(relevant)}")
        return {
            theirs.format(k): sum(query[own.format(k)] for query in scores.values()) / len(scores)
            for k in self.k_values
            for theirs, own in _EXACT.items()
        }

    about = task.facts.about or f"{len(relevant)} queries over {len(task.documents)} documents"
    # the class is made, not written: mteb keeps what a task is in the class, and only some installations have mteb
    made = type(
        "BeirTask",
        (AbsTaskRetrieval,),
        {
            "metadata": _metadata(
                task.name, "Retrieval", files=_files(folder), language=task.facts.language, score="ndcg_at_10",
                about=about,
            ),
            "load_data": load_data,
            "task_specific_scores": exact_scores,
        },
    )  # fmt: skip
    return made()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.startswith(("corpus.", "queries.", "qrels.")))


def similarity_task(path: Path) -> Any:
    """A file of sentence pairs as an STS task; its main score is Spearman's correlation of the cosines.

    Raises `UserError` where mteb is missing or the file is broken (see `load_similarity_set`).
    """
    need_mteb()
    from datasets import Dataset
    from mteb.abstasks.sts import AbsTaskSTS

    pairs = load_similarity_set(path)

    def load_data(self: Any, num_proc: int | None = None, **_: Any) -> None:
        self.dataset = {
            "default": {
                "test": Dataset.from_dict({"sentence1": pairs.first, "sentence2": pairs.second, "score": pairs.scores})
            }
        }
        self.data_loaded = True

    about = f"{len(pairs.scores)} pairs of sentences"
    made = type(
        "PairsTask",
        (AbsTaskSTS,),
        {
            "metadata": _metadata(
                pairs.name, "STS", files=[path], language=None, score="cosine_spearman", about=about
            ),
            "min_score": min(pairs.scores),
            "max_score": max(pairs.scores),
            "load_data": load_data,
        },
    )  # fmt: skip
    return made()


def official_task(name: str) -> Any:
    """A task of mteb by its name, fetched from the Hub (or found among what was fetched before).

    Raises `UserError` where the name is unknown, the task is not about text alone, or its data cannot be had.
    """
    need_mteb()
    import mteb

    try:
        task: Any = mteb.get_task(name)
    except KeyError as error:
        near = str(error.args[0]).partition("Did you mean: ")[2].strip("'?")
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(f"--task {name}", "is no task of mteb", f"{hint}see mteb.get_tasks()") from error
    if list(task.metadata.modalities) != ["text"]:
        raise UserError(f"--task {name}", f"is about {', '.join(task.metadata.modalities)}", "name a task about text")
    try:
        task.load_data()
    except Exception as error:  # whatever a loader of somebody else's raises, the data is not here
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"--task {name}: its data {task.metadata.dataset['path']}",
            f"cannot be fetched from the Hub ({said})",
            "run it where the network allows, or use --sets with folders of your own",
        ) from error
    return task


def run_task(model: MtebModel, task: Any, *, out: Path | None = None) -> dict[str, Any]:
    """Run one task.

    Args:
        out: folder for mteb's own result file, `TASK.json`; None writes none.

    Returns:
        task, type, main (the name of the main score) and metrics: every figure of the only split and subset, or only
        the main score's mean where there are several.
    """
    import mteb

    from data_prep.files import disk_errors

    result = mteb.evaluate(
        model, task, cache=None, co2_tracker=False, encode_kwargs={"batch_size": 1024, "show_progress_bar": False}
    ).task_results[0]
    if out is not None:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            result.to_disk(out / f"{task.metadata.name}.json")
    parts = [scores for split in result.scores.values() for scores in split]
    main = str(task.metadata.main_score)
    metrics = {main: float(result.get_score())}
    if len(parts) == 1:
        metrics = {name: float(v) for name, v in parts[0].items() if isinstance(v, int | float)}
    return {"task": task.metadata.name, "type": task.metadata.type, "main": main, "metrics": metrics}


SHOWN = ("recall_at_1", "recall_at_10", "ndcg_at_10", "cosine_spearman")


def markdown_table(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table in Markdown, for a model card: a row a task, the main score and the usual figures."""
    columns = [c for c in SHOWN if any(c in r["metrics"] for r in results)]
    lines = [
        "| " + " | ".join(["task", "type", "main score", *columns]) + " |",
        "|" + "---|" * (3 + len(columns)),
    ]
    for result in results:
        figures = [f"{result['metrics'][c]:.4f}" if c in result["metrics"] else "" for c in columns]
        main = f"{result['main']} {result['metrics'][result['main']]:.4f}"
        lines.append("| " + " | ".join([result["task"], result["type"], main, *figures]) + " |")
    return f"Results of {name} with mteb.\n\n" + "\n".join(lines) + "\n"
