"""The offline teacher: TF-IDF with sublinear counts, reduced to vectors of a fixed length.

The reduction is a truncated SVD (latent semantic analysis) or a sparse random projection: each term adds its weight,
with random signs, to a few random places, which keeps inner products in expectation (Achlioptas 2003,
doi:10.1016/S0022-0000(03)00025-4). It needs no model and no network.

On disk: `vocabulary.json` (terms in column order) and `tfidf.safetensors`: `idf` [terms] float32 and either
`components` [dimension, terms] float32 or `places` [terms, 4] int32 with `signs` [terms, 4] int8. The fitted teacher is
always the one read back from these files, so a reloaded one cannot differ. The number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.embed.digest import digest_of
from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json, sha256_file, write_json
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Role
    from data_prep.embed.teacher import TeacherConfig

_BATCH = 2048
_PLACES = 4
"""Places that a term adds to: four come near a dense Gaussian projection, and stay sparse."""


def _vectorizer(config: TeacherConfig, **more: Any) -> Any:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer=config.analyzer,
        ngram_range=(1, 1) if config.analyzer == "word" else (3, 5),
        sublinear_tf=True,
        dtype=np.float32,
        **more,
    )


def fit(config: TeacherConfig, texts: Sequence[str], *, out: Path, seed: int, progress: Progress) -> None:
    """Fit on a sample of the texts and write the files.

    Raises:
        UserError: no term is shared by enough documents, or `dimension` is too large for the SVD.
    """
    import numpy as np
    from safetensors.numpy import save_file

    if len(texts) > config.fit_documents:
        rows = np.sort(np.random.default_rng(seed).choice(len(texts), config.fit_documents, replace=False))
        texts = [texts[row] for row in rows]
    progress.begin("fit teacher", len(texts), "documents")
    vectorizer = _vectorizer(config, max_features=config.max_features, min_df=config.min_documents)
    try:
        matrix = vectorizer.fit_transform([(config.passage_prefix or "") + text for text in texts])
    except ValueError as error:  # scikit-learn: no term survives min_df, or the texts hold none
        raise UserError(
            f"TF-IDF on {len(texts)} documents",
            f"finds no term that {config.min_documents} documents share",
            "give more text or lower the teacher's min_documents",
        ) from error
    tensors: dict[str, NDArray[Any]] = {"idf": np.ascontiguousarray(vectorizer.idf_, dtype=np.float32)}
    if config.reduction == "svd":
        tensors["components"] = _svd(matrix, config.dimension, seed)
    else:
        generator, shape = np.random.default_rng(seed), (matrix.shape[1], _PLACES)
        tensors["places"] = generator.integers(0, config.dimension, shape, dtype=np.int32)
        tensors["signs"] = generator.choice(np.array([-1, 1], dtype=np.int8), shape)
    progress.advance(len(texts))
    write_json(out / "vocabulary.json", vectorizer.get_feature_names_out().tolist())
    with disk_errors(out / "tfidf.safetensors"):
        save_file(tensors, out / "tfidf.safetensors")


def _svd(matrix: Any, dimension: int, seed: int) -> NDArray[np.float32]:
    """The leading right singular vectors [dimension, terms]."""
    import numpy as np
    from sklearn.decomposition import TruncatedSVD
    from threadpoolctl import threadpool_limits

    most = min(matrix.shape) - 1
    if dimension > most:
        raise UserError(
            f"dimension = {dimension}",
            f"must be at most {most}: the teacher sees {matrix.shape[0]} documents and {matrix.shape[1]} terms",
            "lower the teacher's dimension or give more text",
        )
    # LAPACK's threads share a sum out differently, and so round it differently: one thread gives the same teacher
    # everywhere. Embedding calls no BLAS (the term matrix is sparse).
    with threadpool_limits(1):
        svd = TruncatedSVD(dimension, algorithm="randomized", n_iter=4, random_state=seed % 2**32).fit(matrix)
    return np.ascontiguousarray(svd.components_, dtype=np.float32)


def load(config: TeacherConfig, folder: Path) -> TfidfEmbedder:
    """Read a saved teacher. Raises `UserError` where a file is missing or the two do not fit together."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from scipy.sparse import csr_array

    terms = read_json(folder / "vocabulary.json")
    path = folder / "tfidf.safetensors"
    projection: Any
    try:
        tensors = load_file(path)
        idf = tensors["idf"]
        if config.reduction == "svd":
            projection = np.ascontiguousarray(tensors["components"].T)
        else:
            places, signs = tensors["places"], tensors["signs"].astype(np.float32)
            starts = np.arange(len(places) + 1) * places.shape[1]
            shape = (len(places), config.dimension)
            projection = csr_array((signs.ravel(), places.ravel(), starts), shape=shape)
            projection.sum_duplicates()
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(str(path), f"is missing or damaged ({error})", "delete the stage and run again") from error
    if not (len(terms) == len(idf) == projection.shape[0]):
        raise UserError(
            str(folder), "its vocabulary and its vectors differ in length", "delete the stage and run again"
        )
    digest = digest_of(
        kind="tfidf",
        analyzer=config.analyzer,
        reduction=config.reduction,
        normalised=config.normalise,
        files={name: sha256_file(folder / name) for name in ("vocabulary.json", path.name)},
    )
    return TfidfEmbedder(config, terms, idf, projection, digest=digest)


class TfidfEmbedder:
    """The fitted teacher; a `Teacher`."""

    may_be_zero = True

    def __init__(
        self, config: TeacherConfig, terms: list[str], idf: NDArray[np.float32], projection: Any, *, digest: str
    ) -> None:
        self.name, self.hash = f"tfidf-{config.reduction}", digest
        self.normalised = config.normalise
        self.dimension = int(projection.shape[1])
        self._prefix: dict[Role, str] = {"query": config.query_prefix or "", "passage": config.passage_prefix or ""}
        self._vectorizer = _vectorizer(config, vocabulary=terms)
        self._vectorizer.idf_ = idf
        self._projection = projection  # [terms, dimension], dense or sparse

    def prompt(self, role: Role) -> str:
        """What goes before a text in this role."""
        return self._prefix[role]

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """[len(texts), dimension], rows L2-normalised unless the configuration asks for raw ones.

        A text without a known term is a zero row.
        """
        import numpy as np
        from scipy.sparse import issparse

        from data_prep.embed.embedder import unit_rows

        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if progress:
            progress.begin("embed", len(texts), "texts")
        for start in range(0, len(texts), _BATCH):
            batch = [self._prefix[role] + text for text in texts[start : start + _BATCH]]
            reduced = self._vectorizer.transform(batch) @ self._projection
            dense = reduced.toarray() if issparse(reduced) else reduced
            vectors[start : start + len(batch)] = unit_rows(dense) if self.normalised else dense
            if progress:
                progress.advance(len(batch))
        return vectors
