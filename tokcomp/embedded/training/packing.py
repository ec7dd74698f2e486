"""Many questions about one scene in one sequence, each blind to the others.

A sequence is ``<s> user :``, the kept visual tokens, then questions with their answers side by
side. Every question sees the beginning and itself, at the positions it would have alone.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokcomp.embedded import vocabulary as v
from tokcomp.embedded.questions import KINDS, Question, ask
from tokcomp.embedded.scenes import PATCHES, Scene

_PREFIX = [v.WORD_IDS[v.BOS], *v.encode("user :")]
_ASSISTANT = v.encode("assistant :")
_UNLABELLED = -100
KIND_NAMES = tuple(KINDS)

_WEIGHTS = {"digit_of_colour": 1.6, "colour_of_digit": 2.0, "count": 0.7, "exists_digit": 1.5, "photo": 0.4}
"""How often kinds are asked in training, next to 1 for all others: kinds that are slow to learn more often."""


class PackedQuestions(NamedTuple):
    """Questions behind the visual tokens, all (b, t).

    ``labels`` hold the next id where an answer is to be predicted, else -100; ``segments`` number
    a row's questions from 1, -1 in padding; ``offsets`` count from each question's first word;
    ``kinds`` index `KIND_NAMES`.
    """

    tokens: Tensor
    labels: Tensor
    segments: Tensor
    offsets: Tensor
    kinds: Tensor


def draw_questions(scene: Scene, rng: np.random.Generator, number: int) -> list[tuple[int, Question]]:
    """Up to ``number`` questions of random kinds, each with its kind's index."""
    weights = np.array([_WEIGHTS.get(name, 1.0) for name in KIND_NAMES])
    drawn = []
    for index in rng.choice(len(KIND_NAMES), number, p=weights / weights.sum()).tolist():
        question = ask(KIND_NAMES[index], scene, rng)
        if question is not None:
            drawn.append((index, question))
    return drawn


def pack(rows: list[list[tuple[int, Question]]]) -> PackedQuestions:
    """Lay out the questions of every scene and pad the rows to one length."""
    fill = (0, _UNLABELLED, -1, 0, 0)
    columns = [_pack_row(row) for row in rows]
    length = max(len(column[0]) for column in columns)
    padded = [
        torch.tensor([column[field] + [value] * (length - len(column[field])) for column in columns])
        for field, value in enumerate(fill)
    ]
    return PackedQuestions(*padded)


def _pack_row(row: list[tuple[int, Question]]) -> tuple[list[int], ...]:
    tokens, labels, segments, offsets, kinds = ([] for _ in range(5))  # type: ignore[var-annotated]
    for number, (index, (text, answer)) in enumerate(row, start=1):
        asked = v.encode(text) + _ASSISTANT
        answered = [*v.encode(answer), v.WORD_IDS[v.EOS]]
        length = len(asked) + len(answered)
        tokens += asked + answered
        # Each position predicts the id that follows it.
        labels += [_UNLABELLED] * (len(asked) - 1) + answered + [_UNLABELLED]
        segments += [number] * length
        offsets += range(length)
        kinds += [index] * length
    return tokens, labels, segments, offsets, kinds


class PackedInput(NamedTuple):
    """What the language model is fed: embeddings (b, t, d), mask (b, 1, t, t), positions (b, t).

    Attributes:
        start: where the questions begin.
    """

    embeddings: Tensor
    mask: Tensor
    positions: Tensor
    start: int


def assemble(
    questions: PackedQuestions, features: Tensor, kept: Tensor, compact: Tensor, embeddings: Tensor
) -> PackedInput:
    """Put kept visual tokens before packed questions.

    Args:
        questions: packed questions of b scenes.
        features: projected visual tokens (b, 144, d).
        kept: indices (b, k) of the tokens to keep, ascending.
        compact: per scene (b,), whether kept tokens close ranks or stay at their old positions.
        embeddings: word embeddings (words, d).
    """
    rows, number = kept.shape
    before = len(_PREFIX)
    visual = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))  # (b, k, d)
    prefix = embeddings[_PREFIX].expand(rows, -1, -1)
    inputs = torch.cat([prefix, visual, F.embedding(questions.tokens, embeddings)], 1)
    closed = compact[:, None]
    image_at = before + torch.where(closed, torch.arange(number), kept)
    questions_at = before + torch.where(closed, number, PATCHES) + questions.offsets
    positions = torch.cat([torch.arange(before).expand(rows, -1), image_at, questions_at], 1)
    start = before + number
    segments = torch.cat([torch.zeros(rows, start, dtype=torch.long), questions.segments], 1)
    same = segments[:, :, None] == segments[:, None, :]
    mask = (same | (segments[:, None, :] == 0)).tril()
    return PackedInput(inputs, mask[:, None], positions, start)


class Answered(NamedTuple):
    """How questions were answered: the loss, and per question whether all of it is right.

    ``right`` and ``kinds`` run row by row in the order of packing.
    """

    loss: Tensor
    right: list[bool]
    kinds: list[int]

    def accuracies(self) -> dict[str, float]:
        """Share of right answers per kind."""
        hits = defaultdict(list)
        for index, hit in zip(self.kinds, self.right, strict=True):
            hits[KIND_NAMES[index]].append(hit)
        return {name: float(np.mean(values)) for name, values in hits.items()}


def mean_accuracies(parts: list[dict[str, float]]) -> dict[str, float]:
    """Average accuracies over batches; a kind counts in the batches that asked it."""
    names = [name for name in KIND_NAMES if any(name in part for part in parts)]
    return {name: float(np.mean([part[name] for part in parts if name in part])) for name in names}


def grade(hidden: Tensor, questions: PackedQuestions, embeddings: Tensor) -> Answered:
    """Compare predictions with the packed answers.

    A question weighs the square root of its answer's length: long answers count more than short
    ones, though not as much as their words.

    Args:
        hidden: final hidden states (b, t, d) at the questions.
        questions: the questions packed there.
        embeddings: word embeddings (words, d), also the output matrix.
    """
    asked = questions.labels != _UNLABELLED
    logits, truth = hidden[asked] @ embeddings.T, questions.labels[asked]
    numbers = torch.arange(len(asked))[:, None] * 1000 + questions.segments
    _, question, length = numbers[asked].unique(return_inverse=True, return_counts=True)
    weight = length[question].float().rsqrt()
    loss = (F.cross_entropy(logits, truth, reduction="none") * weight).sum() / weight.sum()
    wrong = torch.zeros(len(length)).index_add_(0, question, (logits.argmax(-1) != truth).float())
    kinds = torch.zeros(len(length), dtype=torch.long).index_copy_(0, question, questions.kinds[asked])
    return Answered(loss, (wrong == 0).tolist(), kinds.tolist())
