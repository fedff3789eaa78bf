"""The training loop of one run, with checkpoints."""

import dataclasses
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from titn_lib.data.batches import training_batch
from titn_lib.data.datasets import DataSplits, add_label_noise, subset
from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images, Preprocessing
from titn_lib.errors import TITNError, TrainingInterrupted
from titn_lib.io import write_atomically
from titn_lib.losses.distillation import TeacherOutput, teacher_forward
from titn_lib.losses.objective import LossAndLogits
from titn_lib.losses.registry import make_objective
from titn_lib.models.base import Classifier
from titn_lib.models.registry import count_macs, count_parameters
from titn_lib.models.weights import save_model
from titn_lib.training.config import Run, require_same_run
from titn_lib.training.cuda_graph import GraphedPredict, graphed_step
from titn_lib.training.distributed import TIME_LIMIT, Deadline, all_reduce_sum, graceful_interrupt, sync_stop
from titn_lib.training.evaluation import add_metrics, evaluate, evaluate_classes, recall
from titn_lib.training.networks import (
    compile_on_gpu,
    compile_teacher,
    layers_below_head,
    make_network,
    prepare_teacher,
    use_normalization,
)
from titn_lib.training.optim import compile_blocks, compiling_failed, learning_rate, make_optimizer, set_learning_rate
from titn_lib.training.records import (
    RECORD,
    WEIGHTS,
    RunResult,
    TrainState,
    hash_files,
    require_same_data,
    require_same_files,
    run_metadata,
    save_record,
)

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 30.0
EPOCH_VAL_IMAGES = 2_000  # validation images to evaluate on after an epoch; after the last one, all of them


class Trainer:
    """Trains one network on one data set, and saves checkpoints, weights and the record in a folder.

    Args:
        run: what to train, and how.
        out: the folder.
        data: the data set of `run`.
        teacher: the teacher of a distillation loss, else None.
        fabric: device, processes and precision.
        initial: a network whose weights are the initial ones.

    Raises:
        TITNError: the teacher or the model doesn't fit the data, or the initial weights don't fit the model.
    """

    def __init__(
        self,
        run: Run,
        out: Path,
        data: DataSplits,
        teacher: nn.Module | None,
        fabric: Fabric,
        initial: Classifier | None = None,
    ):
        data = use_normalization(data, initial)
        self.run, self.recipe, self.out, self.data, self.fabric = run, run.recipe, out, data, fabric
        self.files = hash_files(run)
        self.prepare_data()
        torch.manual_seed(run.seed)
        self.network = make_network(run, data, initial)
        self.teacher = None if teacher is None else prepare_teacher(teacher, data, fabric)
        self.num_images = self.recipe.epochs * self.steps * self.recipe.batch_size
        self.prepare_objective()
        self.graphed = graphed_step(self.objective, self.optimizer, fabric)
        whole = None if self.graphed is None else self.objective
        self.compiled = compile_blocks(self.network, self.num_images, fabric.device, whole)
        if self.teacher is not None and self.compiled:
            compile_teacher(self.teacher, fabric.device)
        self.add_metrics = compile_on_gpu(add_metrics, fabric.device) if self.compiled else add_metrics
        self.ema = None
        if self.recipe.ema_decay:
            self.ema = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema_decay), use_buffers=True
            )
        self.predict = GraphedPredict(self.eval_model(), self.preprocessing, fabric.device)
        self.state = TrainState()
        self.sums = torch.zeros(2, device=fabric.device)  # loss and top-1 of the epoch's steps
        self.one = torch.ones((), device=fabric.device)  # the loss's gradient; PyTorch would make one in every step

    def prepare_data(self) -> None:
        """The splits that the recipe asks for, and this process's share of each batch."""
        data, recipe, processes = self.data, self.recipe, self.fabric.world_size
        train_set = subset(data.train, recipe.train_images, data.name)
        train_set = add_label_noise(train_set, recipe.label_noise, len(data.classes), self.run.seed)
        self.train_set = train_set.to(self.fabric.device)  # bytes: it fits
        self.validation_set = subset(data.validation, recipe.test_images, data.name).to(self.fabric.device)
        self.val_subset = self.validation_set
        if len(self.validation_set) > 2 * EPOCH_VAL_IMAGES:
            self.val_subset = subset(self.validation_set, EPOCH_VAL_IMAGES, data.name)
        self.test_set = subset(data.test, recipe.test_images, data.name)
        self.preprocessing = Preprocessing(self.run.data, data.classes, data.mean, data.std)
        self.steps = len(self.train_set) // recipe.batch_size
        share = recipe.batch_size // processes
        self.share = slice(self.fabric.global_rank * share, (self.fabric.global_rank + 1) * share)

    def prepare_objective(self) -> None:
        """The network with its loss, and the optimizer, set up for the device and all processes."""
        recipe, fabric = self.recipe, self.fabric
        objective = make_objective(
            self.network,
            self.run.loss,
            self.teacher,
            recipe.temperature,
            recipe.feature_weight,
            recipe.label_smoothing,
        )
        if objective.VIEWS > 1 and (recipe.cutmix or recipe.mixup):
            raise TITNError(f"the loss {self.run.loss!r} can't use mixed images: set both cutmix and mixup to 0")
        if recipe.class_weights == "balanced":
            counts = self.train_set.labels.bincount(minlength=len(self.data.classes))
            objective.class_weights = len(self.train_set) / (len(counts) * counts.clamp(min=1))
        self.objective = objective
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        layers = {f"network.{name}": layer for name, layer in layers_below_head(self.network).items()}
        fused = fabric.strategy.precision.precision != "16-mixed"
        self.objective_ddp, self.optimizer = fabric.setup(objective, make_optimizer(objective, recipe, fused, layers))

    def fit(self, deadline: Deadline, progress: bool) -> RunResult:
        """Train to the end, evaluate, and save weights and record.

        Raises:
            TrainingInterrupted: the deadline has passed, or Ctrl-C or SIGTERM. The checkpoint is saved.
        """
        self.resume()
        self.session_start = self.last_checkpoint = time.monotonic()
        self.seconds_before = self.state.seconds
        with graceful_interrupt(deadline) as stop, self.progress_bar(progress) as bar:
            self.show(bar)
            while self.state.epoch < self.recipe.epochs:
                self.train_epoch(stop, bar)
                self.end_epoch()
                self.state.seconds = self.seconds_before + time.monotonic() - self.session_start
                self.show(bar)
            record = self.evaluate_and_save()
            if (reason := sync_stop(self.fabric, stop())) and reason != TIME_LIMIT:
                raise TrainingInterrupted(f"stopped by {reason} when {self.run.model} had just finished, in {self.out}")
        return record

    def train_epoch(self, stop: Callable[[], str], bar: tqdm) -> None:
        """The remaining steps of the current epoch, with a checkpoint every `CHECKPOINT_SECONDS`.

        Args:
            stop: returns the reason to stop, or "".

        Raises:
            TrainingInterrupted: there is a reason to stop. The checkpoint is saved.
        """
        rng = np.random.default_rng([self.run.seed, self.state.epoch, 0])
        order = torch.from_numpy(rng.permutation(len(self.train_set))).to(self.fabric.device)
        self.objective_ddp.train()
        while self.state.step < self.steps:
            began = time.monotonic()
            self.train_step(order)
            self.state.step += 1
            if self.state.step == self.steps and self.fabric.device.type == "cuda":
                torch.cuda.synchronize()  # the time of steps that are still queued on the GPU counts, too
            now = time.monotonic()
            self.state.training_seconds += now - began
            self.state.seconds = self.seconds_before + now - self.session_start
            bar.update(self.recipe.batch_size)
            if reason := sync_stop(self.fabric, stop()):
                self.save_checkpoint()
                raise TrainingInterrupted(
                    f"stopped by {reason} in epoch {self.state.epoch + 1} of {self.recipe.epochs}; "
                    f"run the same command to resume from {self.out / CHECKPOINT}"
                )
            if now - self.last_checkpoint > CHECKPOINT_SECONDS:
                self.save_checkpoint()
                self.last_checkpoint = time.monotonic()

    def train_step(self, order: Tensor) -> None:
        """One optimizer step on one batch, shared by all processes. `order` holds the epoch's image indices."""
        state, recipe = self.state, self.recipe
        rng = np.random.default_rng([self.run.seed, state.epoch, 1 + state.step])
        images, targets = self.batch(order, rng)
        torch.manual_seed(int(rng.integers(2**62)) + self.fabric.global_rank)
        self.objective.progress = (state.epoch + state.step / self.steps) / recipe.epochs
        lr = learning_rate(recipe, state.epoch * self.steps + state.step, self.steps)
        if self.graphed is None:
            self.step(images, targets, lr)
        else:
            self.graphed.run(self.step, images, targets, lr)

    def step(self, images: Images, targets: MixedTargets, lr: float | Tensor) -> None:
        """Forward, backward, optimizer, moving average and running metrics, on a batch.

        On a GPU, a CUDA graph repeats what happens here. So nothing waits for the GPU or depends on a Python value that
        changes between steps. The moving average's `n_averaged` stands still then; it only has to be above 0.
        """
        recipe, teacher_output = self.recipe, None
        if self.teacher is not None:
            with self.fabric.autocast():
                teacher_output = teacher_forward(self.teacher, images)
        loss, logits = self.forward(images, targets, teacher_output)
        self.fabric.backward(loss, self.one)
        if recipe.clip_norm:
            self.fabric.clip_gradients(
                self.objective_ddp, self.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
            )
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self.add_metrics(self.sums, loss.detach(), logits.detach(), targets)

    def forward(self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None) -> LossAndLogits:
        """The objective's output, in the run's precision.

        One process calls it without Fabric's wrapper, which rounds all floating-point arguments, λ among them.
        """
        if self.fabric.world_size > 1:
            return self.objective_ddp(images, targets, teacher_output)
        images, teacher_output = self.fabric.strategy.precision.convert_input((images, teacher_output))
        with self.fabric.autocast():
            return self.objective(images, targets, teacher_output)

    def batch(self, order: Tensor, rng: np.random.Generator) -> tuple[Tensor, MixedTargets]:
        """This process's share of the step's images, augmented and normalized, and their targets."""
        start = self.state.step * self.recipe.batch_size
        chosen = self.train_set[order[start : start + self.recipe.batch_size]]
        recipe, data = self.recipe, self.data
        return training_batch(
            chosen, recipe.augmentation, rng, data.mean, data.std, recipe.cutmix, recipe.mixup,
            self.objective.VIEWS, self.share,
        )  # fmt: skip

    def end_epoch(self) -> None:
        """Evaluate on (a subset of) the validation split, and move on to the next epoch.

        Raises:
            TITNError: the loss isn't finite.
        """
        state = self.state
        loss, top1 = (all_reduce_sum(self.fabric, self.sums) / self.fabric.world_size / self.steps).tolist()
        if not math.isfinite(loss):
            raise TITNError(
                f"training diverged in epoch {state.epoch + 1} (the loss is {loss}): choose a lower lr, a longer "
                "warm-up or clip_norm=1"
            )
        validation = evaluate(
            self.eval_model(), self.val_subset, self.preprocessing, self.fabric, predicted=self.predict
        )
        state.history.append(
            {
                "epoch": state.epoch + 1,
                "lr": self.optimizer.param_groups[0]["lr"],
                "train_loss": loss,
                "train_top1": top1,
                "validation_loss": validation["loss"],
                "validation_top1": validation["top1"],
                "validation_top5": validation["top5"],
            }
        )
        state.epoch, state.step = state.epoch + 1, 0
        self.sums.zero_()

    def evaluate_and_save(self) -> RunResult:
        """Save weights and record of a finished run. Only here is the test split used."""
        network = self.eval_model().eval().requires_grad_(True)  # frozen weights are the network's, too
        (validation, _), (test, confusion) = (
            evaluate_classes(network, part, self.preprocessing, self.fabric, exact=True)
            for part in (self.validation_set, self.test_set)
        )
        metadata = run_metadata(self.fabric.strategy.precision.precision, self.fabric.world_size, self.fabric.device)
        metadata["hardware"]["compiled"] = self.compiled and not compiling_failed()
        metadata["hardware"]["cuda_graph"] = self.graphed is not None and self.graphed.graph is not None
        record = RunResult(
            run=self.run,
            parameters=count_parameters(network),
            macs=count_macs(network),
            history=self.state.history,
            validation=validation,
            test=test,
            seconds=round(self.state.seconds, 1),
            images_per_second=round(self.num_images / max(self.state.training_seconds, 1e-9), 1),
            **metadata,
            data=self.data.fingerprint,
            files=self.files,
            recall=recall(confusion, self.data.classes),
        )
        if self.fabric.is_global_zero:
            save_model(network, self.out / WEIGHTS, self.preprocessing)
            save_record(record, self.out / RECORD)
            (self.out / CHECKPOINT).unlink(missing_ok=True)
        self.fabric.barrier()
        return record

    def eval_model(self) -> Classifier:
        """The network to evaluate and save: the moving average if there is one."""
        return self.network if self.ema is None else cast(Classifier, self.ema.module)

    def progress_bar(self, progress: bool) -> tqdm:
        """A bar that counts images over all epochs."""
        batch = self.recipe.batch_size
        return tqdm(
            total=self.num_images,
            initial=(self.state.epoch * self.steps + self.state.step) * batch,
            unit=" images",
            unit_scale=True,
            desc=f"{self.run.model} ({self.run.loss})" if self.teacher else self.run.model,
            disable=not progress or not self.fabric.is_global_zero,
        )

    def show(self, bar: tqdm) -> None:
        """Write the epoch and the last validation metrics beside the bar."""
        text = f"epoch {min(self.state.epoch + 1, self.recipe.epochs)}/{self.recipe.epochs}"
        if self.state.history:
            last = self.state.history[-1]
            text += f", validation loss {last['validation_loss']:.3f}, top-1 {last['validation_top1']:.1f} %"
            text += f", top-5 {last['validation_top5']:.1f} %"
        bar.set_postfix_str(text)

    def save_checkpoint(self) -> None:
        """Save all that is needed to resume the run, in one file that is written atomically."""
        if not self.fabric.is_global_zero:
            return
        state = {
            "run": json.dumps(dataclasses.asdict(self.run)),
            "data": self.data.fingerprint,
            "files": self.files,
            "objective": self.objective_ddp.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "progress": dataclasses.asdict(self.state),
            "sums": self.sums.cpu(),  # of this process: with several, the metrics of a resumed epoch are approximate
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(self.out / CHECKPOINT, content.getvalue())

    def resume(self) -> None:
        """Load the checkpoint, if there is one.

        Raises:
            TITNError: the checkpoint is damaged, or belongs to another run.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            saved = Run.from_dict(json.loads(state["run"]))
        except Exception as problem:  # torch.load raises many kinds for a damaged file
            raise TITNError(f"the checkpoint {path} is damaged: delete it to start this run afresh") from problem
        if saved.data == self.run.data:  # first: the recipe follows from the number of images
            require_same_data(state.get("data"), self.data.fingerprint, self.out)
        require_same_run(saved, self.run, self.out)
        require_same_files(state.get("files"), self.files, self.run, self.out)
        try:
            self.objective_ddp.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if state["precision"]:
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.state = TrainState(**state["progress"])
            self.sums.copy_(state["sums"])
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise TITNError(
                f"the checkpoint {path} doesn't fit this run (another version of titn_lib, or damaged): delete it to "
                "start afresh"
            ) from problem
