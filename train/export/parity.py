"""Exported = trained: the published folder, as others load it, against the training model on a probe set.

Every other way to load it is compared: sentence-transformers, plain transformers with pooling by hand, and ONNX Runtime
where there is an ONNX file. Texts are encoded in batches and some alone: a batch without padding has no mask, and takes
another path through attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from train.encoder import load_encoder
from train.export.onnx_file import PLACE
from train.export.weights import Dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROBES = (
    "Macam mana nak mohon bantuan banjir?",
    "How do I renew my road tax online?",
    "Permohonan hendaklah dikemukakan sebelum 31 Mac.",
    "今天天气很好",
    "வணக்கம், எப்படி இருக்கிறீர்கள்?",
    "best giler nasi lemak kat situ 😋",
    "1234567890 !!! ???",
    "a",
    ".",
    "สวัสดี อากาศดีมาก",
    "السلام عليكم ورحمة الله",
    "Kerajaan negeri akan menyalurkan bantuan kepada mangsa banjir di semua daerah yang terjejas. " * 60,
)
"""Fixed texts: several scripts, hardly any text, and one that is longer than most models take."""

MIN_COSINE: dict[Dtype, float] = {"bf16": 0.999, "fp16": 0.9999}
"""Least cosine with the fp32 vectors that half precision must reach. Measured with MiniLM (6 layers) on `PROBES`:
0.99990 in bf16 (8 bits) and 0.999998 in fp16 (11 bits); the limits leave a deeper model ten times as much room, and
more, of 1 - cosine."""

Encode = Callable[[Sequence[str], str], "NDArray[np.float32]"]
"""(texts, `query` or `document`) → unit vectors."""
_ALONE = 4


def parity(model: Path, exported: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Compare the training model (fp32) with the exported folder, offline, on the CPU or GPU that torch finds.

    Returns:
        `max_abs_difference` over all components, queries and passages, with `texts` and `dimension`; and `against`, by
        way of loading, `max_abs_difference` and `min_cosine`.
    """
    ours = load_encoder(model)
    reference: dict[str, NDArray[np.float32]] = {
        "query": ours.embed(texts, role="query"),
        "document": ours.embed(texts, role="passage"),
    }
    against: dict[str, dict[str, float]] = {}
    ways = {"sentence-transformers": _sentence_transformers, "transformers": _transformers}
    ways |= {"onnx": _onnx} if (exported / PLACE).is_file() else {}
    for name, make in ways.items():
        against[name] = _compare(make(exported), texts, reference)
    return {
        "max_abs_difference": max(found["max_abs_difference"] for found in against.values()),
        "texts": len(texts),
        "dimension": ours.dimension,
        "against": against,
    }


def check(found: dict[str, Any], *, dtype: Dtype, tolerance: float, min_cosine: float | None) -> None:
    """Raise `UserError` where a way of loading differs by more than its type explains."""
    for name, numbers in found["against"].items():
        fix = "report this with the recipe; loosen the limit only if you know why they differ"
        if dtype == "fp32" and not numbers["max_abs_difference"] < tolerance:
            raise UserError(
                f"export: largest difference in {name} {numbers['max_abs_difference']:.2e}",
                f"must be below export.tolerance = {tolerance:.0e}, or the published model is not the trained one",
                fix,
            )
        if min_cosine is not None and not numbers["min_cosine"] >= min_cosine:
            raise UserError(
                f"export: least cosine in {name} {numbers['min_cosine']:.6f}",
                f"must be at least {min_cosine} in {dtype}, or the published model is not the trained one",
                fix if dtype != "bf16" else "export as fp16 or fp32, which keep more digits",
            )


def _compare(encode: Encode, texts: Sequence[str], reference: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    import numpy as np

    worst, least = 0.0, 1.0
    for role, ours in reference.items():
        theirs = encode(texts, role)
        alone = np.concatenate([encode([text], role) for text in texts[:_ALONE]])
        for a, b in ((ours, theirs), (ours[:_ALONE], alone)):
            a64, b64 = a.astype(np.float64), b.astype(np.float64)
            # NaN must not pass for small: max() would drop it
            worst = float(np.max([worst, np.abs(a64 - b64).max()]))
            lengths = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
            least = float(np.min([least, ((a64 * b64).sum(1) / lengths).min()]))
    return {"max_abs_difference": worst, "min_cosine": least}


def _sentence_transformers(folder: Path) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False, local_files_only=True)

    def encode(texts: Sequence[str], role: str) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = model.encode(
            list(texts), prompt_name=role, batch_size=16, show_progress_bar=False
        )
        return vectors

    return encode


def _transformers(folder: Path) -> Encode:
    from train.export.plain import plain_model, plain_vectors

    forward = plain_model(folder)
    return lambda texts, role: plain_vectors(folder, forward, texts, role=role)  # type: ignore[arg-type]


def _onnx(folder: Path) -> Encode:
    from train.export.onnx_file import onnx_model
    from train.export.plain import plain_vectors

    forward = onnx_model(folder)
    return lambda texts, role: plain_vectors(folder, forward, texts, role=role)  # type: ignore[arg-type]
