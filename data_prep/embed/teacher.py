"""Teachers: what turns texts into vectors, for mining and as a baseline.

Invariant: rows of `embed` are float32, L2-normalised unless raw ones are asked for, and do not depend on the order or
batching of the texts (TF-IDF: to the bit; a model: up to its rounding, see embed/part.py); a teacher that was saved and
loaded again gives the same vectors. Nothing is pickled and no code of a model is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from data_prep.config import Section
from data_prep.embed.embedder import ROLES, Teacher
from data_prep.embed.endpoint import EmbeddingEndpointConfig, EndpointEmbedder
from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.progress import Progress

_PACKAGE, _IDENTITY = "package:", "identity.json"


class TeacherConfig(Section):
    """`[mine.teacher]`: the embedder whose neighbours become pairs."""

    kind: Literal["tfidf", "sentence-transformers", "endpoint"] = "tfidf"
    """`tfidf` is fitted on the corpus and needs no model (TF-IDF, then truncated SVD); `sentence-transformers` loads
    `model`; `endpoint` asks an OpenAI-compatible server (`[mine.teacher.endpoint]`)."""
    model: str | None = None
    """A Hugging Face id, a folder, or `package:NAME` for a model carried by an installed Python package."""
    dimension: Annotated[int, Field(ge=2)] = 256
    """TF-IDF only: length of a vector. 256 keeps topics apart and searches fast; `random` gains from 512 and more."""
    reduction: Literal["svd", "random"] = "svd"
    """TF-IDF only: `svd` (latent semantic analysis) finds texts on one topic, also without a common word, and overrates
    short ones; `random` (sparse random projection) keeps the cosines of TF-IDF itself, so neighbours share rare words.
    On Malay news titles, title → article recall@1 at 512 dimensions is 0.42 with `svd`, 0.70 with `random`; cosines of
    `random` are lower, so lower mine.policy.positive_min_score to about 0.35."""
    analyzer: Literal["word", "char_wb"] = "word"
    """TF-IDF only: single words, or character 3- to 5-grams inside words, which forgive spelling (forums, tweets)."""
    max_features: Annotated[int, Field(ge=2)] = 50_000
    """TF-IDF only: the most frequent terms that count."""
    min_documents: Annotated[int, Field(ge=1)] = 2
    """TF-IDF only: a term must occur in this many documents; a word of one document relates nothing."""
    fit_documents: Annotated[int, Field(ge=2)] = 20_000
    """TF-IDF only: fit on at most this many documents, drawn by the seed; the fit costs time, not quality, beyond."""
    batch_tokens: Annotated[int, Field(ge=64)] | None = None
    """sentence-transformers only: as many texts of like length in one forward pass as fit into this many tokens, with
    their padding; so a pass over short texts holds as much as one over long texts. None takes 2,048 on a CPU (more
    falls out of its caches: MiniLM is 1.1 to 1.25 times faster than in batches of 32 texts) and 32,768 on a GPU."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """sentence-transformers only: texts in one forward pass at most."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """sentence-transformers only: numbers of the model. Half precision is faster on a GPU and slower on a CPU."""
    normalise: bool = True
    """Unit vectors, so that nearness is the cosine. `false` keeps lengths (arXiv 2402.03053 mined raw vectors)."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """sentence-transformers only: cut longer texts here; none keeps the model's own limit."""
    query_prefix: str | None = None
    """Put before every query (the instruction that some models were trained with). None sends the model's own `query`
    prompt, as our exports carry it; "" sends none."""
    passage_prefix: str | None = None
    """Put before every passage. None sends the model's own `document` prompt."""
    query_prompt: str | None = None
    """sentence-transformers only: name of the model's prompt for queries, where it has several."""
    passage_prompt: str | None = None
    """sentence-transformers only: name of the model's prompt for passages."""

    endpoint: EmbeddingEndpointConfig | None = None
    """endpoint only: the server and the name of its model."""

    @model_validator(mode="after")
    def _model_fits_kind(self) -> TeacherConfig:
        if self.kind == "sentence-transformers" and not self.model:
            raise ValueError(
                'kind = "sentence-transformers" needs `model`. Fix: give a Hugging Face id, a folder, or package:NAME'
            )
        if (self.kind == "endpoint") != (self.endpoint is not None):
            raise ValueError('kind = "endpoint" and a table `endpoint` need each other. Fix: give both, or neither')
        for role, prefix, name in (
            ("query", self.query_prefix, self.query_prompt),
            ("passage", self.passage_prefix, self.passage_prompt),
        ):
            if prefix is not None and name is not None:
                raise ValueError(f"{role}_prefix (a text) and {role}_prompt (a name) are given. Fix: not both")
        return self


def fit_teacher(
    config: TeacherConfig, texts: Sequence[str], *, out: Path, seed: int, progress: Progress, log: Path | None = None
) -> Teacher:
    """Fit (TF-IDF) or load (sentence-transformers) the teacher and save it to the folder `out`.

    Args:
        texts: the corpus; only `fit_documents` of them are used, and none by a ready model.
        log: of an endpoint, folder of its request log (see `load_teacher`).

    Raises:
        UserError: `dimension` not below the vocabulary or the documents, or a model that cannot be loaded.
    """
    out.mkdir(parents=True, exist_ok=True)
    if config.kind == "tfidf":
        from data_prep.embed.tfidf import fit

        fit(config, texts, out=out, seed=seed, progress=progress)
    write_json(out / "teacher.json", config.model_dump())
    (out / _IDENTITY).unlink(missing_ok=True)  # of the teacher that was here before
    teacher = load_teacher(out, log=log)
    prompts = {role: teacher.prompt(role) for role in ROLES}
    told = {"kind": config.kind, "name": teacher.name, "hash": teacher.hash, "dimension": teacher.dimension}
    write_json(out / _IDENTITY, told | {"normalised": teacher.normalised, "prompts": prompts})
    return teacher


def identity(folder: Path) -> dict[str, Any]:
    """What a saved teacher is, without loading it: `kind, name, hash, dimension, normalised, prompts` (by role)."""
    told: dict[str, Any] = read_json(folder / _IDENTITY)
    return told


def load_teacher(folder: Path, *, device: str | None = None, log: Path | None = None) -> Teacher:
    """Load a teacher that `fit_teacher` saved.

    Args:
        device: of a model, as torch names it; None takes the first GPU, else the CPU.
        log: of an endpoint, folder of its request log: a killed run asks nothing twice. None keeps none.

    Raises:
        UserError: the folder holds no teacher.
    """
    path = folder / "teacher.json"
    try:
        config = TeacherConfig.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(
            str(path), f"is no teacher of this rumpun ({error.error_count()} fields)", "mine again"
        ) from error
    if config.kind == "tfidf":
        from data_prep.embed.tfidf import load

        return load(config, folder)
    if config.kind == "endpoint":
        assert config.endpoint is not None  # the configuration saw to it
        known = identity(folder)["dimension"] if (folder / _IDENTITY).exists() else None
        return EndpointEmbedder(
            config.endpoint,
            query_prefix=config.query_prefix or "",
            passage_prefix=config.passage_prefix or "",
            normalise=config.normalise,
            log=log,
            dimension=known,
        )
    from data_prep.embed.model import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(config, device=device)


def model_path(name: str) -> str:
    """What `sentence-transformers` is to load: `package:NAME` becomes the model folder inside that package.

    The package is looked up but not imported.

    Raises:
        UserError: the package is not installed, or carries no folder with a modules.json; a path that is no folder.
    """
    if not name.startswith(_PACKAGE):
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise UserError(f"model {name!r}", "no such folder", "give a model folder or a Hugging Face id")
        return str(Path(name).expanduser()) if name.startswith("~") else name
    import importlib.util

    package = name.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        pip_name = package.replace("_", "-") or "NAME"
        raise UserError(f"model {name!r}", f"no Python package {package!r} is installed", f"pip install {pip_name}")
    for root in spec.submodule_search_locations:
        found = sorted(Path(root).rglob("modules.json"), key=lambda path: (len(path.parts), str(path)))
        if found:
            return str(found[0].parent)
    raise UserError(
        f"model {name!r}", "the package carries no sentence-transformers model (no modules.json)", "name another"
    )
