"""Many questions about one scene in one sequence of fixed length, each blind to the others.

A sequence is ``<s> user :``, the 144 visual tokens, then questions with their answers side by side. Every question sees the
beginning and itself, at the positions that it would have alone. Lengths never change, so that an accelerator always runs
the same shapes; dropped visual tokens stay in place and nobody sees them.
"""

from __future__ import annotations

import random
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokcomp.embedded.hard import vocabulary as v
from tokcomp.embedded.hard.questions import ALL_KINDS, Facts
from tokcomp.embedded.questions import Question
from tokcomp.embedded.scenes import PATCHES

QUESTION_TOKENS = 253  # with 147 before them, 400 in all
MOST_QUESTIONS = 32  # of one scene
_PREFIX = v.ids((v.BOS, "user", ":"))
BEFORE = len(_PREFIX) + PATCHES
_ASSISTANT = v.ids(("assistant", ":"))
KIND_NAMES = tuple(ALL_KINDS)


class PackedQuestions(NamedTuple):
    """Questions behind the visual tokens, (b, 253) each but the last.

    ``labels`` hold the next id where an answer is to be predicted, else -1, and ``weights`` what that prediction weighs;
    ``segments`` number a row's questions from 1, 0 in padding; ``offsets`` count from each question's first word;
    ``kinds`` (b, 32) index `KIND_NAMES` by question, -1 where there is none; ``ends`` (b, 32) are the places in the whole
    sequence of the last token before each question's answer.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    segments: Tensor
    offsets: Tensor
    kinds: Tensor
    ends: Tensor


def encode(question: Question) -> tuple[list[int], list[int]]:
    """Ids of a question up to the colon before its answer, and of the answer with its end."""
    asked = v.ids(question.text.split()) + _ASSISTANT
    return asked, [*v.ids(question.answer.split()), v.WORD_IDS[v.EOS]]


def draw_questions(facts: Facts, rng: random.Random, shares: list[float]) -> list[tuple[int, Question]]:
    """Questions of kinds drawn by ``shares`` (one per name of `KIND_NAMES`) until a row is full."""
    drawn: list[tuple[int, Question]] = []
    room = QUESTION_TOKENS
    for index in rng.choices(range(len(KIND_NAMES)), shares, k=2 * MOST_QUESTIONS):
        question = ALL_KINDS[KIND_NAMES[index]](facts, rng)
        if question is None:
            continue
        room -= question.text.count(" ") + question.answer.count(" ") + 5
        if room < 0 or len(drawn) == MOST_QUESTIONS - 1:
            break
        drawn.append((index, question))
    return drawn


def pack(rows: list[list[tuple[int, Question]]]) -> PackedQuestions:
    """Lay out the questions of every scene."""
    shape = (len(rows), QUESTION_TOKENS)
    tokens, labels = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    weights, segments, offsets = np.zeros(shape, np.float32), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    kinds = np.full((len(rows), MOST_QUESTIONS), -1, np.int64)
    ends = np.zeros((len(rows), MOST_QUESTIONS), np.int64)
    for place, row in enumerate(rows):
        start = 0
        for number, (kind, question) in enumerate(row, start=1):
            asked, answered = encode(question)
            end = start + len(asked) + len(answered)
            tokens[place, start:end] = asked + answered
            # Each position predicts the id that follows it.
            labels[place, start + len(asked) - 1 : end - 1] = answered
            weights[place, start + len(asked) - 1 : end - 1] = len(answered) ** -0.5
            segments[place, start:end] = number
            offsets[place, start:end] = range(end - start)
            kinds[place, number] = kind
            ends[place, number] = BEFORE + start + len(asked) - 1
            start = end
    return PackedQuestions(*(torch.from_numpy(a) for a in (tokens, labels, weights, segments, offsets, kinds, ends)))


class PackedInput(NamedTuple):
    """What the language model is fed: embeddings (b, 400, d), additive mask (b, 1, 400, 400), positions (b, 400)."""

    embeddings: Tensor
    mask: Tensor
    positions: Tensor


@cache
def _prefix_ids(device: torch.device) -> Tensor:
    # Cached, as a constant made anew would have the device wait.
    return torch.tensor(_PREFIX, device=device)


def assemble(
    questions: PackedQuestions, features: Tensor, alive: Tensor, compact: Tensor, embeddings: Tensor, dtype: torch.dtype
) -> PackedInput:
    """Put visual tokens before packed questions.

    Args:
        questions: packed questions of b scenes.
        features: projected visual tokens (b, 144, d).
        alive: which of them the scene's questions see (b, 144).
        compact: per scene (b,), whether those close ranks or stay at their old positions.
        embeddings: word embeddings (words, d).
        dtype: of the mask.
    """
    rows, device = len(features), features.device
    prefix = embeddings[_prefix_ids(device)].expand(rows, -1, -1)
    inputs = torch.cat([prefix, features, F.embedding(questions.tokens, embeddings)], 1)
    before, closed = len(_PREFIX), compact[:, None]
    image_at = before + torch.where(closed, alive.cumsum(1) - 1, torch.arange(PATCHES, device=device))
    number = torch.where(closed, alive.sum(1, keepdim=True), PATCHES)
    positions = torch.cat(
        [torch.arange(before, device=device).expand(rows, -1), image_at, before + number + questions.offsets], 1
    )
    shared = torch.zeros(rows, BEFORE, dtype=torch.long, device=device)
    # Padding is its own segment, so that no row of the mask is empty.
    own = torch.where(questions.segments > 0, questions.segments, MOST_QUESTIONS)
    segments = torch.cat([shared, own], 1)
    visible = torch.ones(rows, segments.shape[1], dtype=torch.bool, device=device)
    visible[:, before:BEFORE] = alive
    seen = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    seen = (seen & visible[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
    return PackedInput(inputs, mask[:, None], positions)


class Answered(NamedTuple):
    """The loss, and per kind how many questions were asked and how many were answered right, (kinds,) each."""

    loss: Tensor
    asked: Tensor
    right: Tensor

    def accuracies(self) -> dict[str, Tensor]:
        """Share of right answers per kind, NaN where none was asked."""
        return dict(zip(KIND_NAMES, self.right / self.asked, strict=True))


def grade(hidden: Tensor, questions: PackedQuestions, embeddings: Tensor) -> Answered:
    """Compare predictions with the packed answers; nothing here waits for the device.

    Args:
        hidden: final hidden states (b, 253, d) at the questions.
        questions: the questions packed there.
        embeddings: word embeddings (words, d), also the output matrix.
    """
    logits = (hidden @ embeddings.T.to(hidden.dtype)).float()
    asked = questions.labels >= 0
    truth = questions.labels.clamp(min=0)
    losses = F.cross_entropy(logits.transpose(1, 2), truth, reduction="none")
    loss = (losses * questions.weights).sum() / questions.weights.sum()
    wrong = ((logits.argmax(-1) != truth) & asked).float()
    per_question = torch.zeros(questions.kinds.shape, device=hidden.device).scatter_add_(1, questions.segments, wrong)
    # One slot more for places without a question.
    kinds = torch.where(questions.kinds < 0, len(KIND_NAMES), questions.kinds).flatten()
    counts = torch.zeros(2, len(KIND_NAMES) + 1, device=hidden.device)
    counts[0].index_add_(0, kinds, torch.ones_like(kinds, dtype=torch.float32))
    counts[1].index_add_(0, kinds, (per_question == 0).float().flatten())
    return Answered(loss, counts[0, :-1], counts[1, :-1])


def facts_of(digit: NDArray[np.int64], colour: NDArray[np.int64]) -> list[Facts]:
    """Facts of every scene from (b, 9) digits and colours."""
    return [Facts(*pair) for pair in zip(digit.tolist(), colour.tolist(), strict=True)]
