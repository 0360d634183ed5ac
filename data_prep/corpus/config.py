"""`[corpus]`: which text to read, what to mend, what to leave out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.corpus.language import LanguageConfig
from data_prep.corpus.private import PrivateConfig
from data_prep.corpus.quality import QualityConfig
from data_prep.corpus.signatures import NearConfig

TextUnit = Literal["line", "paragraph", "file"]


class CorpusConfig(Section):
    """`[corpus]`: which text to read and what to leave out."""

    files: list[str] = Field(min_length=1)
    """Files, folders (with their folders) or globs of .jsonl, .txt, .csv or .tsv (each also .gz or .zst) and .parquet,
    or `datasets:NAME[@REVISION][:CONFIG][:SPLIT]` (extra `data`); `{data}` is the data folder of the run."""
    text_field: str = "text"
    """Field or column that holds the text; every row must have it."""
    title_field: str | None = None
    """Field whose text becomes the first line of the document, where a row has one."""
    source_field: str = "source"
    """Field that names where a document is from; without it the file's name does."""
    language_fields: list[str] = Field(default_factory=lambda: ["lang", "language"])
    """Fields that may hold a language label; the first that does is used (see `language.trust_labels`)."""
    document_fields: list[str] = Field(default_factory=lambda: ["document", "doc_id", "group"])
    """Fields that may name the document that a row is a passage or a rendering of. Rows of one document are never
    negatives of each other and fall on the same side of the held-out split. Names hold across files."""
    id_fields: list[str] = Field(default_factory=lambda: ["id", "_id"])
    """Fields that may hold a row's id; ids that stand twice in a file are counted and reported, both rows are kept."""
    txt_unit: TextUnit = "paragraph"
    """What one document is in a .txt file; a paragraph ends at a blank line, as plain-text corpora are usually cut."""
    min_chars: Annotated[int, Field(ge=1)] = 20
    """Documents with fewer characters are dropped: below about four words a text teaches nothing."""
    max_documents_per_file: Annotated[int, Field(ge=1)] | None = None
    """Keep at most this many documents of each file (the first ones); none keeps all. Reading of a file stops at half
    as many again that pass the rules and differ, so a file that mostly repeats earlier files may give fewer."""
    max_line_mb: Annotated[float, Field(gt=0)] = 16.0
    """Longest line (or row, or text file read whole), in MB; what a worker holds in memory is about ten times this."""
    oversize: Literal["refuse", "skip"] = "refuse"
    """A longer line ends the run, or is passed over unread and counted."""
    on_bad_line: Literal["refuse", "skip"] = "refuse"
    """A line that is not UTF-8, holds NUL bytes, is not JSON or lacks its text ends the run, or is passed over, counted
    and shown in the report."""
    part_mb: Annotated[float, Field(gt=0)] = 16.0
    """MB of input (compressed files count four times) that one worker cleans at a time; a crash loses at most that.
    Never changes the result."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of documents that no training stage sees: they are written to `held_out` beside the corpus. Which ones
    depends on the document's name (or text) and the seed alone."""
    private: PrivateConfig = PrivateConfig()
    """`[corpus.private]`."""
    quality: QualityConfig = QualityConfig()
    """`[corpus.quality]`."""
    language: LanguageConfig = LanguageConfig()
    """`[corpus.language]`."""
    near: NearConfig = NearConfig()
    """`[corpus.near]`."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """`[corpus.decontaminate]`."""
