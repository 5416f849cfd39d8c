"""The paper's recipe as steps of datatrove pipelines, which run them on one machine or many.

datatrove (extra `recipe`) brings the executors, MinHash, and files in between; here
is what it has not. Steps hold strings and numbers only, since executors pickle them;
what a task needs it reads when it runs. Counts are datatrove's statistics.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
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
from gpt3jax.recipe.decontaminate import PAPER, grams_of, pieces, shared
from gpt3jax.recipe.quality import Quality, keeps, train_quality

BATCH = 256
"""Documents that are scored together."""


class ReadCorpus(PipelineStep):
    """Documents of a corpus, as `data prepare --corpus` names it; a task reads its share of parts.

    Each is named by its key there.
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
    """Trains the quality classifier in one task, on a sample of both sides, and saves it."""

    type, name = "quality", "train"

    def __init__(
        self, reference: str, corpus: str, model: str, field: str = "text", most: int = 100_000
    ) -> None:
        """`most` is the number of documents of each side, at most."""
        super().__init__()
        self.reference, self.corpus, self.field, self.most = reference, corpus, field, most
        self.model = model

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the model; it appears whole."""
        good, raw = self._sample(self.reference), self._sample(self.corpus)
        quality = train_quality(good, raw)
        self.stat_update("good", value=len(good))
        self.stat_update("raw", value=len(raw))
        own = Path(f"{self.model}.partial-{os.getpid()}")
        quality.save(own)
        own.replace(self.model)

    def _sample(self, spec: str) -> list[str]:
        """Documents of parts in the order of their hashes, so that all of a corpus takes part."""
        corpus, found = open_corpus(spec, self.field), []
        for part in sorted(corpus.parts, key=lambda part: hash_key(part.key)):
            for item in corpus.read(part):
                if len(found) >= self.most:
                    return found
                if not isinstance(item, Skipped):
                    found.append(item.text)
        return found


class KeepQuality(BaseFilter):
    """Keeps what the classifier and the Pareto rule keep."""

    type, name = "quality", "keep"

    def __init__(self, model: str) -> None:
        super().__init__(batch_size=BATCH)
        self.model = model
        self._quality: Quality | None = None

    def filter(self, doc: Document) -> bool:
        """Whether one document stays."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool]:
        """Which of some documents stay."""
        self._quality = self._quality or Quality.load(Path(self.model))
        scores = self._quality.scores([doc.text for doc in batch])
        for doc, score in zip(batch, scores, strict=True):
            doc.metadata["quality"] = round(float(score), 6)
        return [keeps(float(score), doc.text) for doc, score in zip(batch, scores, strict=True)]


class Words(WordTokenizer):
    """Words by whitespace, in every language: what MinHash makes its shingles of."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """The lines: datatrove wants sentences of every tokenizer, MinHash asks for none."""
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where the words begin and end."""
        return [found.span() for found in re.finditer(r"\S+", text)]


class CountGrams(PipelineStep):
    """Passes documents on, and counts in how many each run of words of the tests is found."""

    type, name = "decontamination", "count"

    def __init__(self, tests: tuple[str, ...], folder: str) -> None:
        """`tests` are tasks as `evaluate` names them; `folder` gets a file from each task."""
        super().__init__()
        self.tests, self.folder = tests, folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Count, and write the counts when the last document has passed."""
        tests, counts = grams_of(load_tasks(self.tests)), Counter()
        if rank == 0:
            self.stat_update("runs of words in tests", value=len(tests))
        for doc in data:
            counts.update({gram for gram, *_ in shared(doc.text, tests)})
            yield doc
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{rank:05d}.json").write_text(json.dumps(counts))


class CutGrams(PipelineStep):
    """Cuts the tests out of documents, by the counts of all tasks."""

    type, name = "decontamination", "cut"

    def __init__(self, tests: tuple[str, ...], folder: str) -> None:
        super().__init__()
        self.tests, self.folder = tests, folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield what is left of each document, pieces named KEY#0, KEY#1, ..."""
        tests, counts = grams_of(load_tasks(self.tests)), self._counts()
        if rank == 0:
            common = sum(count > PAPER.most_documents for count in counts.values())
            self.stat_update("runs found", value=len(counts))
            self.stat_update("runs in too many documents", value=common)
        for doc in data:
            left = pieces(doc.text, tests, counts)
            self.stat_update("documents")
            if left == [doc.text]:
                self.stat_update("untouched")
                yield doc
                continue
            self.stat_update("cut" if left else "dropped")
            self.stat_update("pieces", value=len(left))
            yield from self._pieces(doc, left)

    def _counts(self) -> Counter:
        counts = Counter()
        for file in sorted(Path(self.folder).glob("*.json")):
            try:
                counts.update(serde.build(dict[str, serde.Count], serde.read(file)))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{file} is damaged: {error}. Count again") from error
        return counts

    def _pieces(self, doc: Document, left: list[str]) -> Iterator[Document]:
        for number, text in enumerate(left):
            yield Document(text, f"{doc.id}#{number}", metadata=dict(doc.metadata))


class Publish(PipelineStep):
    """Gives a finished folder its name, in one task, when all others have ended."""

    type, name = "files", "publish"

    def __init__(self, made: str, out: str) -> None:
        super().__init__()
        self.made, self.out = made, out

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Rename it, unless that was done before."""
        if not os.path.lexists(self.out):
            os.rename(self.made, self.out)
