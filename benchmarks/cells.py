"""One cell of the benchmark, a shape with a batch size: every side's time beside the bound that its work sets."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from benchmarks.operations import counted
from benchmarks.records import Log
from benchmarks.rounds import Samples, in_rounds, wait
from benchmarks.selection_time import selection_clock
from benchmarks.shapes import Shape
from benchmarks.sides import Answer, Prefill, Step, answer_record
from tokcomp import Pipeline
from tokcomp.measure.flops import FlopCount, count_all
from tokcomp.measure.kv import measured_kv_bytes
from tokcomp.measure.memory import model_bytes, peak_memory
from tokcomp.measure.record import workload_from_record
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import dense_workload
from tokcomp.runner.arguments import cache_in

__all__ = ["Cell"]


class Cell:
    """A model with one prompt; measures sides and writes a row for each.

    Args:
        model, shape, inputs: see :mod:`benchmarks.shapes`.
        log: where rows go.
    """

    def __init__(self, model: Any, shape: Shape, inputs: dict[str, Tensor], log: Log) -> None:
        self.model, self.shape, self.inputs, self.log = model, shape, inputs, log
        self.device = inputs["input_ids"].device
        self.batch, length = inputs["input_ids"].shape
        self.text = length - shape.image_tokens
        self.sizes = ModelShape.from_config(model.config)
        self.about = {
            "shape": shape.name,
            "batch": self.batch,
            "image_tokens": shape.image_tokens,
            "text_tokens": self.text,
            "layers": shape.layers,
        }
        self._dense = dense_workload(
            self.sizes, image_tokens=shape.tile_tokens, text_tokens=self.text, images=shape.tiles
        )
        self._promises: dict[str, dict[str, Any]] = {}

    # -- what the work promises --------------------------------------------------------------------------------------

    def dense_flops(self) -> FlopCount:
        return count_all(self.sizes, [self._dense] * self.batch)

    def promises(self, pipelines: dict[str, Pipeline]) -> dict[str, dict[str, Any]]:
        """What one prefill with each pipeline leaves to do: FLOPs, tokens, bytes of the cache. Warms them up, too."""
        for name, pipeline in pipelines.items():
            if name not in self._promises:
                self._promises[name] = self._promise(pipeline)
        return {name: self._promises[name] for name in pipelines}

    @torch.inference_mode()
    def _promise(self, pipeline: Pipeline) -> dict[str, Any]:
        with pipeline.attach(self.model) as trace:
            output = self.model(**self.inputs, use_cache=True, logits_to_keep=1)
        record = trace.last
        cache = cache_in(output)
        idle = not any((pipeline.vision, pipeline.prefill, pipeline.cache))
        flops = self.dense_flops() if idle else count_all(self.sizes, [
            workload_from_record(record, self.sizes, sample=sample, pipeline=pipeline, text_rows=self.text - self.text // 2)
            for sample in range(self.batch)
        ])  # fmt: skip
        lengths = [max(layer) for layer in record.sequence_tokens]
        return {
            "flops": flops.first_token,
            "promised": self.dense_flops().first_token / flops.first_token,
            "equivalent_tokens": sum(record.equivalent_tokens) / self.batch,
            "kv_bytes": measured_kv_bytes(cache).total,
            "layer_lengths": lengths,
            "tower_share": flops.tower / self.dense_flops().tower,
        }

    # -- prefill -----------------------------------------------------------------------------------------------------

    def prefill(self, pipelines: dict[str, Pipeline], baselines: dict[str, Any] | None = None, *, repeats: int,
                seconds: float, warmup: int = 1, kind: str = "prefill") -> None:  # fmt: skip
        """Time the prefills of the dense model, of every pipeline and of re-created published code in turns; ``kind`` names
        the rows."""
        promises = self.promises(pipelines)
        sides: dict[str, Any] = {"dense": Prefill(self.model, self.inputs)}
        sides |= {name: Prefill(self.model, self.inputs, pipeline) for name, pipeline in pipelines.items()}
        sides |= baselines or {}
        samples = in_rounds(sides, self.device, repeats=repeats, warmup=warmup, seconds=seconds)
        dense = samples["dense"]
        self.log.add(kind=kind, side="dense", **self.about, **dense.record(), flops=self.dense_flops().first_token)
        for name, promise in promises.items():
            self._prefill_row(kind, name, samples[name], dense, promise)
        for name in baselines or {}:
            self.log.add(kind="baseline", side=name, **self.about, **samples[name].record(),
                         ratio=samples[name].ratio(dense).median)  # fmt: skip

    def _prefill_row(self, kind: str, name: str, samples: Samples, dense: Samples, promise: dict[str, Any]) -> None:
        ratio = samples.ratio(dense)
        self.log.add(
            kind=kind, side=name, **self.about, **samples.record(), ratio=ratio.median,
            ratio_low=ratio.low, ratio_high=ratio.high, reached=ratio.median / promise["promised"], **promise,
        )  # fmt: skip

    @torch.inference_mode()
    def attainable(self, pipelines: dict[str, Pipeline], *, repeats: int, seconds: float) -> None:
        """The time that the unmodified parts need for the tokens that each pipeline leaves: every decoder layer at its
        length (the plain decoder is timed at each distinct one) and the tower's time times the share of its FLOPs left.

        Small matrices run below the rate of large ones; so this, not the FLOPs, is what a runner without overhead reaches.
        """
        promises = self.promises(pipelines)
        decoder, width = self.model.model.language_model, self.shape.hidden
        dtype = self.model.dtype
        tower = lambda: self.model.model.get_image_features(pixel_values=self.inputs["pixel_values"])  # noqa: E731
        sides: dict[str, Any] = {"tower": torch.inference_mode()(tower)}
        for length in sorted({int(n) for promise in promises.values() for n in promise["layer_lengths"]}):
            embeds = torch.randn(self.batch, length, width, device=self.device, dtype=dtype)
            sides[str(length)] = torch.inference_mode()(
                lambda embeds=embeds: decoder(inputs_embeds=embeds, use_cache=True)
            )
        samples = in_rounds(sides, self.device, repeats=repeats, seconds=seconds)
        median = {name: found.spread().median for name, found in samples.items()}
        for name, promise in promises.items():
            lengths = promise["layer_lengths"]
            layers = sum(median[str(int(n))] for n in lengths) / len(lengths)
            self.log.add(kind="attainable", side=name, **self.about,
                         ms=1e3 * (layers + median["tower"] * promise["tower_share"]))  # fmt: skip

    @torch.inference_mode()
    def selection(self, pipelines: dict[str, Pipeline], *, repeats: int) -> None:
        """The share of each compressed prefill that goes into selecting."""
        for name, pipeline in pipelines.items():
            side = Prefill(self.model, self.inputs, pipeline)
            shares, spans = [], []
            with side.prepared(), selection_clock(pipeline, self.device) as clock:
                for _ in range(repeats + 1):
                    before = clock.seconds
                    samples = in_rounds({name: side.__call__}, self.device, repeats=1, warmup=0)
                    spans.append(1e3 * (clock.seconds - before))
                    shares.append(spans[-1] / (1e3 * samples[name].device[0]))
            middle = sorted(range(1, repeats + 1), key=shares.__getitem__)[repeats // 2]
            self.log.add(
                kind="selection", side=name, **self.about, share=shares[middle], ms=spans[middle], repeats=repeats
            )

    def operations(self, pipelines: dict[str, Pipeline]) -> None:
        """Operations of a prefill and of a decoding step behind it, of every side; at batch 1 they are what a GPU waits for."""
        for name, pipeline in ({"dense": None} | pipelines).items():
            side = Prefill(self.model, self.inputs, pipeline)
            with side.prepared():
                step = Step(self.model, side())
                step()
                self.log.add(kind="operations", side=name, **self.about, prefill=counted(side.forward),
                             step=counted(step.forward))  # fmt: skip

    def memory(self, pipelines: dict[str, Pipeline], baselines: dict[str, Any] | None = None) -> None:
        """Peak memory of one prefill of each side, on top of the weights."""
        sides: dict[str, Any] = {"dense": Prefill(self.model, self.inputs)}
        sides |= {name: Prefill(self.model, self.inputs, pipeline) for name, pipeline in pipelines.items()}
        sides |= baselines or {}
        for name, side in sides.items():
            release(self.device)
            if isinstance(side, Prefill):
                with side.prepared() as call:
                    peak = peak_memory(call, device=self.device, resident=model_bytes(self.model))
            else:
                peak = peak_memory(side, device=self.device, resident=model_bytes(self.model))
            self.log.add(kind="memory", side=name, **self.about, peak_bytes=peak.peak, increase_bytes=peak.increase)

    # -- answers -----------------------------------------------------------------------------------------------------

    def answers(
        self, pipelines: dict[str, Pipeline], *, new_tokens: int, repeats: int, seconds: float, warmup: int = 1
    ) -> None:
        """Time ``generate()`` of every side in turns: first token, further tokens, end to end."""
        promises = self.promises(pipelines)
        sides: dict[str, Any] = {"dense": Answer(self.model, self.inputs, new_tokens=new_tokens)}
        sides |= {
            name: Answer(self.model, self.inputs, pipeline, new_tokens=new_tokens)
            for name, pipeline in pipelines.items()
        }
        samples = in_rounds(sides, self.device, repeats=repeats, seconds=seconds, warmup=warmup)
        weights = self._decoder_bytes()
        full = self._kv_bytes(self.shape.image_tokens + self.text)
        per_token = self._kv_bytes(1)
        for name, side in sides.items():
            kept = full if name == "dense" else promises[name]["kv_bytes"]
            grown = (
                0
                if name != "dense" and pipelines[name].cache is not None and pipelines[name].cache.acts_in_decoding
                else 1
            )
            middle = per_token * new_tokens / 2
            self.log.add(
                kind="answer", side=name, **self.about, **answer_record(side, samples[name]), kv_bytes=kept,
                decode_promised=(weights + full + middle) / (weights + kept + grown * middle),
            )  # fmt: skip

    def decode_beside_equal_length(
        self, pipelines: dict[str, Pipeline], *, new_tokens: int, repeats: int, seconds: float
    ) -> None:
        """Decoding with a compressed cache, in turns with the plain model on a prompt of text that gives a cache of that
        length: what the runner itself costs per step."""
        for name, pipeline in pipelines.items():
            promise = self.promises({name: pipeline})[name]
            length = round(promise["kv_bytes"] / self._kv_bytes(1))
            ids = torch.randint(4, self.shape.vocab, (self.batch, length), device=self.device)
            plain = Answer(
                self.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, new_tokens=new_tokens
            )
            side = Answer(self.model, self.inputs, pipeline, new_tokens=new_tokens)
            samples = in_rounds({"plain": plain, name: side}, self.device, repeats=repeats, seconds=seconds)
            mine, theirs = answer_record(side, samples[name]), answer_record(plain, samples["plain"])
            self.log.add(kind="decode", side=name, **self.about, cache_length=length, decode_ms=mine["decode_ms"],
                         plain_decode_ms=theirs["decode_ms"], ratio=mine["decode_ms"] / theirs["decode_ms"],
                         new_tokens=new_tokens, repeats=mine["repeats"])  # fmt: skip

    def _decoder_bytes(self) -> int:
        """Weights that a decoding step reads."""
        modules = (self.model.model.language_model.layers, self.model.lm_head)
        return sum(parameter.nbytes for module in modules for parameter in module.parameters())

    def _kv_bytes(self, length: int) -> int:
        sizes = self.sizes
        return 2 * self.batch * length * sizes.layers * sizes.kv_heads * sizes.head_dim * self.model.dtype.itemsize


def release(device: torch.device) -> None:
    """Give memory that nobody holds any more back, so that peaks and later cells start alike."""
    gc.collect()
    wait(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
