"""The training loop, for one or several processes on CPU or GPU.

All randomness is a function of seed, step and rank, and all other state is in the checkpoint: a run that is killed at
any time and resumed has exactly the same losses as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cris_edge.errors import CrisEdgeError, OptionError
from training.build import build_model, build_optimizer, check_device, wrap
from training.checkpoint import save_model
from training.config import RunConfig
from training.data.loader import Batch, Examples, Order, batches
from training.data.samples import open_source
from training.data.transforms import Transform
from training.distributed import Processes
from training.ema import Ema
from training.losses import Criterion
from training.metrics_writer import Meter, MetricsWriter
from training.model import CRIS
from training.schedule import Schedule
from training.scoring import TorchPredictor, score
from training.state import LAST, State, find_checkpoint, restore, save_state

logger = logging.getLogger("cris_edge.training")

BEST = "best.pt"
"""The weights with the best validation score so far, without the state to resume from."""


class DivergedError(CrisEdgeError):
    """The loss or a gradient is not finite."""


class StoppedError(CrisEdgeError):
    """The run was interrupted and has saved a checkpoint."""


class Trainer:
    """Trains a run; every process of the run has one.

    Args:
        config: The run.
        output: Folder for checkpoints, metrics and the configuration; created once all inputs are checked.
        processes: This process and the others.
        resume: ``auto`` continues from a checkpoint in ``output`` if there is one, ``never`` raises an error in that
            case, anything else is the path of a checkpoint.

    Raises:
        OptionError: The configuration does not fit the processes, the device or the folder.
        CheckpointError: Initial weights or the checkpoint to resume from do not fit.
        DataError: The data cannot be read.
    """

    def __init__(self, config: RunConfig, output: Path, processes: Processes, *, resume: str = "never") -> None:
        check_device(config, processes)
        self.config, self.output, self.processes = config, output, processes
        checkpoint = find_checkpoint(output, resume)
        if not config.data.train:
            raise OptionError("--train is missing; pass a JSON Lines file, or scenes:SPLIT:LENGTH:SEED.")
        self.source = open_source(config.data.train, by_image=config.data.sentences_per_image > 1)
        if config.data.negatives and not self.source.negatives:
            raise OptionError(
                f"--negatives is {config.data.negatives:g}, but {config.data.train} does not say what its images lack; "
                'add "categories" to its lines (docs/presence.md), or leave --negatives out.'
            )
        self.val = open_source(config.data.val, by_image=True) if config.data.val else None
        self.schedule = Schedule(config, len(self.source))
        torch.manual_seed(config.loop.seed)
        self.model = build_model(config, processes)
        self.ema = Ema(self.model, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
        self.criterion = Criterion(config, self.model, processes.device)
        self.optimizer = build_optimizer(config, self.model, self.criterion.adapter)
        self.scaler = torch.amp.GradScaler(enabled=config.loop.precision == "float16")
        self.network = wrap(config, self.model, self.criterion.adapter, processes)
        self._trainable = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.state = State()
        if checkpoint is not None:
            restore(checkpoint, self)
        self.writer = MetricsWriter(output, config, self.state.step) if processes.first else None
        self._stop = False

    def fit(self) -> dict[str, Any]:
        """Train until the last step and return the last metrics.

        Raises:
            DivergedError: The loss or the gradient is not finite.
            StoppedError: The process was interrupted or terminated; a checkpoint has been saved.
            DataError: A sample cannot be read.
        """
        loop, total, state = self.config.loop, self.schedule.steps, self.state
        record: dict[str, Any] = {}
        quiet = None if self.processes.first else True
        with (
            tqdm(total=total, initial=state.step, desc=self.config.name, disable=quiet, unit="step") as bar,
            contextlib.closing(self._batches()) as stream,
            self._signals(),
        ):
            meter = Meter(self.processes.world, max(1, self.config.data.workers))
            while state.step < total:
                with meter.waiting():
                    micro = [next(stream) for _ in range(loop.accumulation)]
                meter.count(micro)
                loss, norm = self.train_step(micro)
                state.step += 1
                state.losses.append(loss)
                state.norms.append(norm)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                stopping = self._stop  # read once: a signal after this line waits for the next step, which saves
                last = state.step == total or stopping
                if state.step % loop.log_every == 0 or last:
                    record = self._record(meter)
                if self.val is not None and (state.step % loop.validate_every == 0 or state.step == total):
                    record = {**record, **self._validate()}
                    meter.restart()
                if state.step % loop.checkpoint_every == 0 or last:
                    self.save()
                if stopping and state.step < total:
                    raise StoppedError(f"Stopped at step {state.step} of {total}; continue with --resume auto.")
        if self.writer is not None:
            self.writer.finish()
        return record

    def save(self) -> None:
        """Save the checkpoint to resume from; its ``state_dict`` holds the (averaged) weights."""
        if self.processes.first:
            save_state(self.output / LAST, self)
            self.state.good = self.output / LAST
        self.processes.barrier()

    @property
    def recorded(self) -> dict[str, Any]:
        """Metadata of every checkpoint."""
        config = self.config
        return {"recipe": config.name, "mask_target": config.data.mask_target, "step": self.state.step}

    @property
    def averaged(self) -> CRIS:
        """The network to validate and save: the averaged one where the run has an average."""
        return self.ema.model if self.ema is not None else self.model

    def train_step(self, micro: list[Batch]) -> tuple[float, float]:
        """Take an optimizer step; return the mean loss over all processes and the norm of the gradient.

        Raises:
            DivergedError: The loss or the gradient is not finite.
        """
        config, device = self.config, self.processes.device
        torch.manual_seed(_mix(config.loop.seed, self.state.step, self.processes.rank))  # dropout
        self._train_mode()
        self.schedule.apply(self.optimizer, self.state.step)
        self.optimizer.zero_grad(set_to_none=True)
        memory_format = torch.channels_last if config.loop.channels_last else torch.contiguous_format
        total = torch.zeros((), device=device)
        for number, loaded in enumerate(micro):
            batch = loaded.to(device, memory_format)
            with self._synchronize(number == len(micro) - 1):
                with self._autocast():
                    outputs = self.network(batch.image, batch.tokens)
                loss = self.criterion(outputs, batch, self._autocast) / len(micro)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise self._diverged("loss", value, [batch])
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        limit = config.optimizer.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._trainable, limit, foreach=True)
        # Occasional overflows are expected in float16: the scaler skips such a step.
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise self._diverged("norm of the gradient", float(norm), micro)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        return float(self.processes.mean(total)), float(norm)

    def _diverged(self, what: str, value: float, micro: list[Batch]) -> DivergedError:
        names = [name for batch in micro for name in batch.ids]
        shown = ", ".join(names[:64]) + (f" and {len(names) - 64} more" if len(names) > 64 else "")
        good = self.state.good
        where = f"Continue from {good}, the last good checkpoint," if good else "No checkpoint was saved; start again"
        return DivergedError(
            f"The {what} is {value} at step {self.state.step + 1}, with the samples {shown}. {where} with a lower "
            "--learning-rate, --clip-norm 1 or --precision float32."
        )

    def _train_mode(self) -> None:
        if prefix := self.config.optimizer.train_only:  # statistics and dropout of what is frozen stay as they are
            self.model.eval()
            for name, module in self.model.named_modules():
                module.training = name == "" or name.startswith(prefix)
        else:
            self.model.train()
        if self.config.loop.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        name = self.config.loop.precision
        if name == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.processes.device.type, dtype=getattr(torch, name))

    def _synchronize(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        # All-reduce the gradients only once per step, with the last micro-batch.
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _batches(self) -> Generator[Batch, None, None]:
        data, loop = self.config.data, self.config.loop
        transform = Transform(
            self.config.architecture.word_len,
            data.sentences_per_image,
            data.flip,
            data.jitter,
            data.mask_target,
            data.negatives,
        )
        order = Order(
            length=len(self.source),
            batch_size=loop.batch_size,
            steps=self.schedule.steps,
            seed=loop.seed,
            size_at=self.schedule.size_at,
            accumulation=loop.accumulation,
            rank=self.processes.rank,
            world=self.processes.world,
        )
        examples = Examples(self.source, transform, loop.seed)
        pin = self.processes.device.type == "cuda"
        return batches(examples, order, self.state.step, workers=data.workers, prefetch=data.prefetch, pin_memory=pin)

    def _record(self, meter: Meter) -> dict[str, Any]:
        state = self.state
        record = {
            "step": state.step,
            "epoch": round(state.step * self.config.loop.batch_size / len(self.source), 4),
            "size": self.schedule.size_at(state.step - 1),
            "loss": sum(state.losses) / len(state.losses),
            "grad_norm": sum(state.norms) / len(state.norms),
            "learning_rate": self.optimizer.param_groups[-1]["lr"],
            **meter.read(),
        }
        state.losses, state.norms = [], []
        if self.writer is not None:
            self.writer.write(record)
            logger.info(
                "step %d/%d: loss %.4f; images/s: %.1f trained, %.1f loaded",
                *(state.step, self.schedule.steps, record["loss"]),
                *(record["images_per_second"], record["loader_images_per_second"]),
            )
        return record

    def _validate(self) -> dict[str, Any]:
        """Score the validation data, a share per process, and save the best weights."""
        assert self.val is not None
        start, state = time.perf_counter(), self.state
        size = self.schedule.size_at(state.step - 1)
        predictor = TorchPredictor(self.averaged, self.processes.device, autocast=self._autocast, input_size=size)
        shard = (self.processes.rank, self.processes.world)
        # The head may still be untrained: it is measured by its AUROC, and empties no mask.
        report = score(predictor, self.val, threshold=self.config.loop.threshold, min_presence=0.0, shard=shard)
        report.cases = self.processes.gather(report.cases)
        scores = report.scores.to_dict()
        seconds = round(time.perf_counter() - start, 1)
        generalized = {"generalized": report.generalized} if report.generalized else {}
        result = {"step": state.step, "size": size, "val": {**scores, **generalized}, "val_seconds": seconds}
        if self.writer is not None:
            self.writer.write(result)
            logger.info("step %d: validation mIoU %.2f at %d pixels", state.step, scores["mIoU"], size)
        if size != state.best[0] or scores["mIoU"] > state.best[1]:  # scores at different sizes are not comparable
            state.best = (size, scores["mIoU"])
            if self.processes.first:
                data = {"dataset": self.val.name, "split": self.val.split}
                save_model(self.output / BEST, self.averaged, **self.recorded, metrics={**data, **scores})
        return result

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop after the current step on a signal; not with several processes, which would stop at different steps."""
        if self.processes.world > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, _: object) -> None:
            self._stop = True
            signal.signal(number, before[signal.Signals(number)])  # a second signal stops at once

        try:
            for number in before:
                signal.signal(number, stop)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _mix(seed: int, step: int, rank: int) -> int:
    """Return a different seed for each step and process."""
    return (seed * 1_000_003 + step) * 65_537 + rank


__all__ = ["BEST", "LAST", "DivergedError", "StoppedError", "Trainer"]
