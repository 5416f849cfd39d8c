"""The steps of the paper's data recipe that datatrove lacks, for datatrove pipelines.

datatrove (extra `recipe`) provides executors for one or many machines, MinHash and
intermediate files. Executors pickle steps, so these have only strings and numbers
and load files when they run. Counts are datatrove's statistics.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.word_tokenizers import WordTokenizer

from gpt3jax import serde
from gpt3jax.data.corpora.documents import Skipped, hash_key
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.errors import ConfigError
from gpt3jax.evals.tasks.files import load_tasks
from gpt3jax.recipe.decontaminate import MOST_DOCUMENTS, find_grams, grams_of, remove_grams
from gpt3jax.recipe.quality import Quality, keeps, train_quality

BATCH = 256
"""Documents per batch of the classifier."""


class ReadCorpus(PipelineStep):
    """Reads a corpus of `data prepare --corpus`; each task reads its share of the parts.

    The ids of documents are their keys in the corpus.
    """

    type, name = "reader", "corpus"

    def __init__(self, spec: str, field: str = "text") -> None:
        super().__init__()
        self.spec, self.field = spec, field

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Yield the documents of every `world_size`-th part."""
        corpus = open_corpus(self.spec, self.field)
        for item in (item for part in corpus.parts[rank::world_size] for item in corpus.read(part)):
            if isinstance(item, Skipped):
                self.stat_update("skipped")
                continue
            self.stat_update("read")
            yield Document(item.text, item.key)


class TrainQuality(PipelineStep):
    """Trains the quality classifier in one task, on samples of both corpora, and saves it."""

    type, name = "quality", "train"

    def __init__(
        self, reference: str, corpus: str, model: str, field: str = "text", most: int = 100_000
    ) -> None:
        """`most` is the maximum number of documents of each corpus."""
        super().__init__()
        self.reference, self.corpus, self.field, self.most = reference, corpus, field, most
        self.model = model

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Train the model, and write it atomically."""
        good, raw = self._sample(self.reference), self._sample(self.corpus)
        quality = train_quality(good, raw)
        self.stat_update("good", value=len(good))
        self.stat_update("raw", value=len(raw))
        partial = Path(f"{self.model}.partial-{os.getpid()}")
        quality.save(partial)
        partial.replace(self.model)

    def _sample(self, spec: str) -> list[str]:
        """The documents of parts in the order of their hashes, which samples the corpus."""
        corpus, texts = open_corpus(spec, self.field), []
        for part in sorted(corpus.parts, key=lambda part: hash_key(part.key)):
            for item in corpus.read(part):
                if len(texts) >= self.most:
                    return texts
                if not isinstance(item, Skipped):
                    texts.append(item.text)
        return texts


class KeepQuality(BaseFilter):
    """Filters documents by the classifier's score and the Pareto rule."""

    type, name = "quality", "keep"

    def __init__(self, model: str) -> None:
        super().__init__(batch_size=BATCH)
        self.model = model
        self._quality: Quality | None = None

    def filter(self, doc: Document) -> bool:
        """Whether to keep a document."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool]:
        """Whether to keep each document of a batch."""
        self._quality = self._quality or Quality.load(Path(self.model))
        scores = self._quality.scores([doc.text for doc in batch])
        for doc, score in zip(batch, scores, strict=True):
            doc.metadata["quality"] = round(float(score), 6)
        return [keeps(float(score), doc.text) for doc, score in zip(batch, scores, strict=True)]


class Words(WordTokenizer):
    """Splits words by whitespace in every language, for the shingles of MinHash."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """The lines of a text; required by datatrove's interface, not used by MinHash."""
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """The start and end of each word."""
        return [match.span() for match in re.finditer(r"\S+", text)]


class CountGrams(PipelineStep):
    """Passes documents on, and counts the documents with each n-gram of the tests."""

    type, name = "decontamination", "count"

    def __init__(self, tests: tuple[str, ...], folder: str) -> None:
        """`tests` are names of tasks for `evaluate`; each pipeline task writes to `folder`."""
        super().__init__()
        self.tests, self.folder = tests, folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Count, and write the counts after the last document."""
        tests, counts = grams_of(load_tasks(self.tests)), Counter()
        if rank == 0:
            self.stat_update("runs of words in tests", value=len(tests))
        for doc in data:
            counts.update({gram for gram, *_ in find_grams(doc.text, tests)})
            yield doc
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{rank:05d}.json").write_text(json.dumps(counts))


class CutGrams(PipelineStep):
    """Removes the tests' n-grams from documents, given the counts of all pipeline tasks."""

    type, name = "decontamination", "cut"

    def __init__(self, tests: tuple[str, ...], folder: str) -> None:
        super().__init__()
        self.tests, self.folder = tests, folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the remainder of each document, as pieces KEY#0, KEY#1, ... if it was cut."""
        tests, counts = grams_of(load_tasks(self.tests)), self._counts()
        if rank == 0:
            common = sum(count > MOST_DOCUMENTS for count in counts.values())
            self.stat_update("runs found", value=len(counts))
            self.stat_update("runs in too many documents", value=common)
        for doc in data:
            pieces = remove_grams(doc.text, tests, counts)
            self.stat_update("documents")
            if pieces == [doc.text]:
                self.stat_update("untouched")
                yield doc
                continue
            self.stat_update("cut" if pieces else "dropped")
            self.stat_update("pieces", value=len(pieces))
            for number, text in enumerate(pieces):
                yield Document(text, f"{doc.id}#{number}", metadata=dict(doc.metadata))

    def _counts(self) -> Counter:
        counts = Counter()
        for file in sorted(Path(self.folder).glob("*.json")):
            try:
                counts.update(serde.build(dict[str, serde.Count], serde.read(file)))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{file} is damaged: {error}. Count again") from error
        return counts


class Publish(PipelineStep):
    """Renames a finished folder to its final name, in one task, after all other stages."""

    type, name = "files", "publish"

    def __init__(self, made: str, out: str) -> None:
        super().__init__()
        self.made, self.out = made, out

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Rename the folder, unless it is already renamed."""
        if not os.path.lexists(self.out):
            os.rename(self.made, self.out)
