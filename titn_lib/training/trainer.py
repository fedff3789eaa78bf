"""The training loop of one run, with checkpoints."""

import dataclasses
import io
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from titn_lib.data.datasets import DataSplits, add_label_noise, subset
from titn_lib.data.mixing import MixedTargets, mix_batch
from titn_lib.data.transforms import Preprocessing, augment, normalize
from titn_lib.errors import Interrupted, TITNError
from titn_lib.io import write_atomically
from titn_lib.losses.distillation import freeze, teacher_forward
from titn_lib.losses.registry import make_objective
from titn_lib.models.base import Classifier
from titn_lib.models.registry import count_macs, count_parameters, create_model
from titn_lib.models.teachers import Teacher
from titn_lib.models.weights import save_model
from titn_lib.training.config import Run, require_same_run
from titn_lib.training.distributed import TIME_LIMIT, Deadline, all_reduce_sum, graceful_interrupt
from titn_lib.training.evaluation import evaluate
from titn_lib.training.optim import compile_blocks, learning_rate, make_optimizer
from titn_lib.training.records import RECORD, RunResult, run_metadata, save_record

WEIGHTS, CHECKPOINT = "model.safetensors", "checkpoint.pt"
CHECKPOINT_SECONDS = 30.0
EPOCH_VAL_IMAGES = 2_000  # validation images to measure on after an epoch; after the last, all of them


@dataclass
class TrainState:
    """Where a run is: so many epochs done, so many steps of the next, and what has been measured."""

    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    training_seconds: float = 0.0


class Trainer:
    """A run under way.

    Raises:
        TITNError: the batch, the teacher or the model doesn't fit the data, or the initial weights don't fit the model.
    """

    def __init__(
        self,
        run: Run,
        out: Path,
        data: DataSplits,
        teacher: Classifier | None,
        fabric: Fabric,
        initial: Classifier | None = None,
    ):
        self.run, self.recipe, self.out, self.data, self.fabric = run, run.recipe, out, data, fabric
        recipe, processes = self.recipe, fabric.world_size
        train_set = add_label_noise(
            subset(data.train, recipe.train_images, data.name), recipe.label_noise, len(data.classes), run.seed
        )
        self.train_set = train_set.to(fabric.device)  # bytes: it fits
        self.validation_set = subset(data.validation, recipe.test_images, data.name)
        many = len(self.validation_set) > 2 * EPOCH_VAL_IMAGES
        self.val_subset = subset(self.validation_set, EPOCH_VAL_IMAGES, data.name) if many else self.validation_set
        self.test_set = subset(data.test, recipe.test_images, data.name)
        if recipe.batch_size > len(self.train_set):
            raise TITNError(
                f"a batch of {recipe.batch_size} is more than the {len(self.train_set)} training images of "
                f"{data.name}: choose a smaller batch_size (--batch-size)"
            )
        if recipe.batch_size % processes:
            raise TITNError(
                f"a batch of {recipe.batch_size} can't be shared by {processes} processes: choose a batch_size that "
                f"{processes} divides"
            )
        self.steps = len(self.train_set) // recipe.batch_size
        share = recipe.batch_size // processes
        self.share = slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)

        self.preprocessing = Preprocessing(run.data, data.classes, data.mean, data.std)
        fits = data_kwargs(data)
        torch.manual_seed(run.seed)
        self.network = create_model(run.model, **{**fits, **run.model_settings})
        if initial is not None:
            load_initial_weights(self.network, initial)
        self.teacher = self.prepare_teacher(teacher, fits)
        self.compiled = compile_blocks(self.network, recipe.epochs * self.steps * recipe.batch_size, fabric.device)
        self.objective = objective = make_objective(
            self.network,
            run.loss,
            self.teacher,
            recipe.temperature,
            recipe.feature_weight,
            recipe.label_smoothing,
        )
        if objective.VIEWS > 1 and (recipe.cutmix or recipe.mixup):
            raise TITNError(f"{run.loss!r} can't learn from mixed images: leave cutmix and mixup out")
        if processes > 1 and fabric.device.type == "cuda":
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        self.objective_ddp, self.optimizer = fabric.setup(
            objective, make_optimizer(objective, recipe, fused=fabric.strategy.precision.precision != "16-mixed")
        )
        self.ema = None
        if recipe.ema_decay:
            self.ema = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True
            )
        self.state, self.sums = TrainState(), torch.zeros(2, device=fabric.device)

    def prepare_teacher(self, teacher: Classifier | None, fits: dict[str, Any]) -> Teacher | None:
        """The teacher, frozen and on the device, if it can teach on these images."""
        if teacher is None:
            return None
        if not isinstance(teacher, Teacher):
            raise TITNError(f"{teacher.config.name} is a student, not a teacher: choose a teacher, or its weights")
        for name, value in fits.items():
            if getattr(teacher.config, name) != value:
                raise TITNError(
                    f"the teacher was made for {name}={getattr(teacher.config, name)}, and {self.data.name} needs "
                    f"{name}={value}: train a teacher on {self.data.name}"
                )
        about = teacher.preprocessing
        if about and (about.classes, about.mean, about.std) != (self.data.classes, self.data.mean, self.data.std):
            raise TITNError(
                f"the teacher learned {about.data}, with other classes or another normalization than {self.data.name}: "
                f"train a teacher on {self.data.name}"
            )
        self.fabric.to_device(teacher)
        return freeze(teacher)

    def fit(self, deadline: Deadline, progress: bool) -> RunResult:
        """Train to the end, measure, and leave weights and record behind."""
        self.resume()
        saved = session_start = time.monotonic()
        seconds_before = self.state.seconds
        batch = self.recipe.batch_size
        bar = tqdm(
            total=self.recipe.epochs * self.steps * batch,
            initial=(self.state.epoch * self.steps + self.state.step) * batch,
            unit=" images",
            unit_scale=True,
            desc=f"{self.run.model} ({self.run.loss})" if self.teacher else self.run.model,
            disable=not progress or not self.fabric.is_global_zero,
        )
        with graceful_interrupt(deadline) as stop, bar:
            self.show(bar)
            while self.state.epoch < self.recipe.epochs:
                draws = np.random.default_rng([self.run.seed, self.state.epoch, 0])
                order = torch.from_numpy(draws.permutation(len(self.train_set))).to(self.fabric.device)
                self.objective_ddp.train()
                while self.state.step < self.steps:
                    began = time.monotonic()
                    self.train_step(order)
                    self.state.step += 1
                    if self.state.step == self.steps and self.fabric.device.type == "cuda":
                        torch.cuda.synchronize()  # steps that a GPU still has before it belong to the time, too
                    now = time.monotonic()
                    self.state.training_seconds += now - began
                    self.state.seconds = seconds_before + now - session_start
                    bar.update(batch)
                    if reason := self.sync_stop(stop()):
                        self.save_checkpoint()
                        raise Interrupted(
                            f"stopped by {reason} in epoch {self.state.epoch + 1} of {self.recipe.epochs}; "
                            f"the same command goes on from {self.out / CHECKPOINT}"
                        )
                    if now - saved > CHECKPOINT_SECONDS:
                        self.save_checkpoint()
                        saved = time.monotonic()
                self.end_epoch()
                self.state.seconds = seconds_before + time.monotonic() - session_start
                self.show(bar)
            record = self.evaluate_and_save()
            if (reason := self.sync_stop(stop())) and reason != TIME_LIMIT:
                raise Interrupted(f"stopped by {reason} when {self.run.model} had just finished, in {self.out}")
        return record

    def train_step(self, order: Tensor) -> None:
        """One step of the optimizer, on one batch over all processes. `order`: the epoch's images, by number."""
        state, recipe = self.state, self.recipe
        rng = np.random.default_rng([self.run.seed, state.epoch, 1 + state.step])
        images, targets = self.batch(order, rng)
        torch.manual_seed(int(rng.integers(2**62)) + self.fabric.global_rank)
        teacher_output = None
        if self.teacher is not None:
            with self.fabric.autocast():
                teacher_output = teacher_forward(self.teacher, images)
        self.objective.progress = (state.epoch + state.step / self.steps) / recipe.epochs
        loss, logits = self.objective_ddp(images, targets, teacher_output)
        self.fabric.backward(loss)
        if recipe.clip_norm:
            self.fabric.clip_gradients(
                self.objective_ddp, self.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
            )
        lr = learning_rate(recipe, state.epoch * self.steps + state.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        right = (logits.argmax(dim=-1) == targets.dominant).float().mean()
        self.sums += torch.stack([loss.detach(), 100 * right])

    def batch(self, order: Tensor, rng: np.random.Generator) -> tuple[Tensor, MixedTargets]:
        """This process's share of the step's images, augmented and normalized, and their labels."""
        start = self.state.step * self.recipe.batch_size
        chosen = self.train_set[order[start : start + self.recipe.batch_size]]
        targets = MixedTargets(chosen.labels, chosen.labels)
        views = [augment(chosen.images, self.recipe.augmentation, rng) for _ in range(self.objective.VIEWS)]
        if self.recipe.cutmix or self.recipe.mixup:
            views[0], targets = mix_batch(views[0], chosen.labels, rng, self.recipe.cutmix, self.recipe.mixup)
        images = torch.cat([view[self.share] for view in views])
        first, second = (part[self.share].repeat(len(views)) for part in targets[:2])
        return normalize(images, self.data.mean, self.data.std), MixedTargets(first, second, targets.lam)

    def end_epoch(self) -> None:
        """Measure on some of the validation split and step over to the next epoch."""
        state = self.state
        loss, top1 = (all_reduce_sum(self.fabric, self.sums) / self.fabric.world_size / self.steps).tolist()
        if not math.isfinite(loss):
            raise TITNError(
                f"training diverged in epoch {state.epoch + 1} (the loss is {loss}): choose a lower lr, a longer "
                "warm-up or clip_norm=1"
            )
        measured = evaluate(self.eval_model(), self.val_subset, self.preprocessing, self.fabric)
        state.history.append(
            {
                "epoch": state.epoch + 1,
                "lr": self.optimizer.param_groups[0]["lr"],
                "train_loss": loss,
                "train_top1": top1,
                "validation_loss": measured["loss"],
                "validation_top1": measured["top1"],
                "validation_top5": measured["top5"],
            }
        )
        state.epoch, state.step = state.epoch + 1, 0
        self.sums.zero_()

    def evaluate_and_save(self) -> RunResult:
        """Weights and record of a run that has come to its end; the only place where the test split is read."""
        network = self.eval_model().eval()
        validation, test = (
            evaluate(network, part, self.preprocessing, self.fabric, exact=True)
            for part in (self.validation_set, self.test_set)
        )
        learned = self.recipe.epochs * self.steps * self.recipe.batch_size
        about = run_metadata(self.fabric.strategy.precision.precision, self.fabric.world_size, self.fabric.device)
        about["hardware"]["compiled"] = self.compiled
        record = RunResult(
            run=self.run,
            parameters=count_parameters(network),
            macs=count_macs(network),
            history=self.state.history,
            validation=validation,
            test=test,
            seconds=round(self.state.seconds, 1),
            images_per_second=round(learned / max(self.state.training_seconds, 1e-9), 1),
            **about,
        )
        if self.fabric.is_global_zero:
            save_model(network, self.out / WEIGHTS, self.preprocessing)
            save_record(record, self.out / RECORD)
            (self.out / CHECKPOINT).unlink(missing_ok=True)
        self.fabric.barrier()
        return record

    def eval_model(self) -> Classifier:
        """The network to measure and keep: the moving average where there is one."""
        return self.network if self.ema is None else cast(Classifier, self.ema.module)

    def sync_stop(self, reason: str) -> str:
        """If one process must stop, all do."""
        if self.fabric.world_size == 1:
            return reason
        flag = torch.tensor(float(bool(reason)), device=self.fabric.device)
        return (reason or "another process") if all_reduce_sum(self.fabric, flag) > 0 else ""

    def show(self, bar: tqdm) -> None:
        text = f"epoch {min(self.state.epoch + 1, self.recipe.epochs)}/{self.recipe.epochs}"
        if self.state.history:
            last = self.state.history[-1]
            text += f", validation loss {last['validation_loss']:.3f}, top-1 {last['validation_top1']:.1f} %"
            text += f", top-5 {last['validation_top5']:.1f} %"
        bar.set_postfix_str(text)

    def save_checkpoint(self) -> None:
        """Everything the run needs to go on as if it had never stopped, in one file, whole or not at all."""
        if not self.fabric.is_global_zero:
            return
        state = {
            "run": json.dumps(dataclasses.asdict(self.run)),
            "objective": self.objective_ddp.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "progress": dataclasses.asdict(self.state),
            "sums": self.sums.cpu(),  # this process's: after a stop of several, the epoch's training figures are rough
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(self.out / CHECKPOINT, content.getvalue())

    def resume(self) -> None:
        """Go back to where the checkpoint is, if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            there = Run.from_dict(json.loads(state["run"]))
        except Exception as problem:  # torch.load raises many kinds for a damaged file
            raise TITNError(f"the checkpoint {path} is damaged: delete it to start this run afresh") from problem
        require_same_run(there, self.run, self.out)
        try:
            self.objective_ddp.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if state["precision"]:
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.state = TrainState(**state["progress"])
            self.sums = state["sums"].to(self.fabric.device)
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise TITNError(
                f"the checkpoint {path} doesn't fit this run (another version of titn_lib, or damaged): delete it to "
                "start afresh"
            ) from problem


def data_kwargs(data: DataSplits) -> dict[str, Any]:
    """What a network must be made for, to learn from this data set."""
    return {"num_classes": len(data.classes), "in_channels": data.in_channels, "image_size": data.image_size}


def load_initial_weights(network: Classifier, start: Classifier) -> None:
    """Give a network the weights of another. What only the new one has (gates, say) stays as it was made.

    Raises:
        TITNError: the other one has weights that the network hasn't, or of another size.
    """
    here, there = network.state_dict(), start.state_dict()
    wrong = [name for name, weight in there.items() if name not in here or here[name].shape != weight.shape]
    if wrong:
        raise TITNError(
            f"the initial weights, of {start.config.name}, don't fit {network.config.name} ({wrong[0]} differs): start "
            "from the same model, for the same images and classes"
        )
    network.load_state_dict(there, strict=False)
