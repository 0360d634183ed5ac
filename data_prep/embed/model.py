"""A ready model as teacher or baseline, through sentence-transformers.

Texts are batched by their length in tokens, longest first (little padding, and the largest batch comes first, so that a
model that does not fit fails at once), and the vectors are returned in the order of the texts. A model's own prompts
are sent unless others are given: our exports carry theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_prep.embed.digest import digest_of, files_digest
from data_prep.embed.embedder import unit_rows
from data_prep.embed.teacher import model_path
from data_prep.errors import UserError
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Role
    from data_prep.embed.teacher import TeacherConfig

_BATCH_TOKENS = {True: 2048, False: 32_768}
"""On a CPU, and not."""
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "passage": ("document", "passage", "corpus")}
"""What sentence-transformers and model authors call the two roles, best first."""


class SentenceTransformersEmbedder:
    """A sentence-transformers model; a `Teacher`. Runs on the GPU where there is one.

    Args:
        config: the settings.
        device: as torch names it; None takes the first GPU, else the CPU.

    Raises:
        UserError: the model cannot be loaded (no such folder or id, no network, a model that needs its own code), or
            has no prompt of the given name.
    """

    may_be_zero = False

    def __init__(self, config: TeacherConfig, *, device: str | None = None) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        model = config.model or ""
        path = model_path(model)
        kwargs = {} if config.dtype == "float32" else {"dtype": getattr(torch, config.dtype)}
        try:
            self._model = SentenceTransformer(path, trust_remote_code=False, device=device, model_kwargs=kwargs)
        except Exception as error:  # the hub client, transformers and torch each raise their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"model {model!r}", f"cannot be loaded ({reason})", "give a model folder or a Hugging Face id"
            ) from error
        if not config.normalise:
            _remove_normalisation(self._model)
        if config.max_tokens is not None:
            self._model.max_seq_length = config.max_tokens
        self.name = model
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self.normalised = config.normalise
        on_cpu = self._model.device.type == "cpu"
        self._batch_size, self._batch_tokens = config.batch_size, config.batch_tokens or _BATCH_TOKENS[on_cpu]
        self._prompts: dict[Role, str] = {
            "query": self._prompt(config.query_prefix, config.query_prompt, "query"),
            "passage": self._prompt(config.passage_prefix, config.passage_prompt, "passage"),
        }
        self.hash = digest_of(
            kind="sentence-transformers",
            files=files_digest(path),
            max_tokens=self._model.max_seq_length,
            normalised=config.normalise,
            dtype=config.dtype,
        )

    def _prompt(self, given: str | None, name: str | None, role: Role) -> str:
        """The text given in the recipe, else the model's prompt of the name given there, else its own for the role."""
        own = {key: text or "" for key, text in self._model.prompts.items()}
        if given is not None:
            return given
        if name is None:
            return next((own[n] for n in _PROMPT_NAMES[role] if own.get(n)), "")
        if name not in own:
            known = ", ".join(repr(n) for n in own) or "none"
            raise UserError(f"{role}_prompt = {name!r}", f"model {self.name!r} has {known}", "name one of them")
        return own[name]

    def prompt(self, role: Role) -> str:
        """What goes before a text in this role."""
        return self._prompts[role]

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """[len(texts), dimension]; rows L2-normalised unless the configuration asks for raw ones."""
        import numpy as np

        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if progress:
            progress.begin("embed", len(texts), "texts")
        encode: Any = self._model.encode_query if role == "query" else self._model.encode_document
        for rows in self._batches(texts, self._prompts[role]):
            vectors[rows] = encode(
                [texts[row] for row in rows],
                prompt=self._prompts[role],
                batch_size=len(rows),
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            if progress:
                progress.advance(len(rows))
        return unit_rows(vectors) if self.normalised else vectors

    def _batches(self, texts: Sequence[str], prompt: str) -> Iterator[list[int]]:
        """Rows of each forward pass, longest texts first."""
        lengths = self._token_counts(texts, prompt)
        order = sorted(range(len(texts)), key=lambda row: (-lengths[row], row))
        start = 0
        while start < len(order):
            fits = max(1, self._batch_tokens // lengths[order[start]])  # all are padded to the first one
            yield order[start : start + min(fits, self._batch_size)]
            start += min(fits, self._batch_size)

    def _token_counts(self, texts: Sequence[str], prompt: str) -> list[int]:
        """Tokens of each text with its prompt, as the model will see it (cut, at least one)."""
        from transformers import PreTrainedTokenizerBase

        most, tokenizer = int(self._model.max_seq_length or 1 << 20), self._model.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase):  # static embeddings have another kind, and do not pad
            return [min(most, 1 + (len(prompt) + len(text)) // 4) for text in texts]
        found: list[int] = []
        for start in range(0, len(texts), 1024):
            sent = [prompt + text for text in texts[start : start + 1024]]
            encoded = tokenizer(sent, truncation=True, max_length=most, verbose=False)["input_ids"]
            found += [max(1, len(ids)) for ids in encoded]
        return found


def _remove_normalisation(model: Any) -> None:
    """Take the normalising layers out, where the model's folder ends in one: raw rows are asked for."""
    for name, module in list(model.named_children()):
        if type(module).__name__ == "Normalize":
            delattr(model, name)
