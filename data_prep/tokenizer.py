"""The tokenizer of a run: trained on its corpus, or taken from a base model.

Invariant: an encoded text ends with the end-of-sequence token (last-token pooling reads that position), padding is on
the right with a pad token that exists, and a special token's name inside a text is plain text, never the token.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import disk_errors
from data_prep.progress import Progress
from data_prep.shards import Shards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
_BATCH_DOCUMENTS = 1000


class TokenizerConfig(Section):
    """`[tokenizer]`: train one, or take the base model's."""

    kind: Literal["bpe", "base"] = "bpe"
    """`bpe` trains a byte-level BPE on the corpus; `base` copies the tokenizer that `model` names."""
    vocab_size: Annotated[int, Field(gt=260)] = 16_384
    """Tokens of a trained tokenizer; 256 bytes and 3 special tokens are always in it. 16k suits a small model."""
    min_frequency: Annotated[int, Field(ge=1)] = 2
    """A merge must occur this often in the sample: one occurrence is noise."""
    sample_characters: Annotated[int, Field(ge=1)] = 20_000_000
    """Train on documents up to this many characters, drawn by hash; more text changes a 16k vocabulary little."""
    model_max_length: Annotated[int, Field(ge=8)] = 8192
    """Longest text in tokens that a user of the tokenizer should expect; written to its config."""
    model: str | None = None
    """For `base`: a Hugging Face id or a folder."""

    @model_validator(mode="after")
    def _model_fits_kind(self) -> TokenizerConfig:
        if self.kind == "base" and not self.model:
            raise ValueError('tokenizer.kind = "base" needs tokenizer.model (a Hugging Face id or a folder)')
        return self


def train_tokenizer(
    config: TokenizerConfig, *, documents: Path, out: Path, progress: Progress
) -> dict[str, int | float]:
    """Make the tokenizer folder in `out` (tokenizer.json, tokenizer_config.json).

    Args:
        documents: a shard folder of kind `documents`; only read for `kind = "bpe"`.

    Returns:
        Counts: `vocab_size`; for `bpe` also `sample_documents` and `sample_characters`.

    Raises:
        UserError: no documents, a base tokenizer that cannot be loaded, or one without any end token.
    """
    with progress.work("tokenise"):
        counts: dict[str, int | float] = {}
        if config.kind == "base":
            tokenizer = _base_tokenizer(config)
        else:
            tokenizer, counts = _train_bpe(config, Shards(documents, "documents"), progress)
        with disk_errors(out):
            tokenizer.save_pretrained(str(out))
    return {"vocab_size": len(tokenizer), **counts}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer folder. Raises `UserError` where it holds no tokenizer."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise UserError(str(folder), "holds no tokenizer.json", "build it with `rumpun run`, or check the path")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise UserError(str(folder), f"is not a tokenizer ({_line(error)})", "delete it and run again") from error
    return tokenizer


def _train_bpe(
    config: TokenizerConfig, shards: Shards, progress: Progress
) -> tuple[PreTrainedTokenizerFast, dict[str, int | float]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    sample = _sample(shards, config.sample_characters)
    texts = shards.table().column("text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    # The prefix space gives a word one token whether it opens a query or stands inside a passage.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    progress.begin("train tokenizer", len(sample), "documents")

    def batches() -> Any:
        import pyarrow as pa

        for start in range(0, len(sample), _BATCH_DOCUMENTS):
            rows = sample[start : start + _BATCH_DOCUMENTS]
            yield texts.take(pa.array(rows)).to_pylist()
            progress.advance(len(rows))

    tokenizer.train_from_iterator(batches(), trainer=trainer, length=len(sample))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} {BOS}:1 $B:1 {EOS}:1",
        special_tokens=[(BOS, 1), (EOS, 2)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        truncation_side="right",
        model_max_length=config.model_max_length,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    characters = sum(len(texts[row].as_py()) for row in sample)
    return fast, {"sample_documents": len(sample), "sample_characters": characters}


def _sample(shards: Shards, characters: int) -> list[int]:
    """Rows of the documents with the lowest ids until `characters` are reached: a sample by content, not by place."""
    import numpy as np
    import pyarrow.compute as pc

    if not len(shards):
        raise UserError(str(shards.folder), "holds no document", "give [corpus] some text")
    lengths = np.asarray(pc.utf8_length(shards.table().column("text")))
    order = np.argsort(np.asarray(shards.column("id")), kind="stable")
    enough = int(np.searchsorted(np.cumsum(lengths[order]), characters)) + 1
    rows: list[int] = np.sort(order[:enough]).tolist()
    return rows


def _base_tokenizer(config: TokenizerConfig) -> PreTrainedTokenizerFast:
    from tokenizers import processors
    from transformers import AutoTokenizer

    what = f"tokenizer.model = {config.model!r}"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(config.model, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError … for what a user can mistype
        raise UserError(
            what, f"cannot be loaded ({_line(error)})", "give a folder with tokenizer.json, or a Hugging Face id"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(what, "has no tokenizer.json (a fast tokenizer is needed)", "convert it or take another base")
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token is None:
        raise UserError(what, "has no end-of-sequence token", "take a base whose tokenizer has eos_token or sep_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.split_special_tokens = True
    probe = tokenizer("a")["input_ids"]
    if probe[-1] != tokenizer.eos_token_id:  # Llama and Qwen end a text without it
        has_bos = tokenizer.bos_token_id is not None and probe[0] == tokenizer.bos_token_id
        start = [tokenizer.bos_token] if has_bos else []
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (*start, tokenizer.eos_token)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[*start, "$A", tokenizer.eos_token],
            pair=[*start, "$A", tokenizer.eos_token, *start, "$B", tokenizer.eos_token],
            special_tokens=special,
        )
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def _line(error: Exception) -> str:
    """The first line of a library's message: ours must stay one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
