"""One training loop, from a laptop's CPU to many GPUs.

Lightning Fabric carries it: devices, processes (`torchrun`) and mixed precision, while the loop stays here, in sight.
(Hugging Face Accelerate does the same; Fabric needs fewer packages and leaves the data to us.)

A run can be stopped anywhere and started again: every random draw belongs to (seed, epoch, step), so a checkpoint
needs to say only where the run is. Each process prepares the whole batch and trains on its share of it: one process and
many see the same pictures. (Batch normalisation, which teachers have, measures the whole batch on several GPUs; on
several CPU processes it measures each share, so that such a run differs from one on a single process.)
"""

import dataclasses
import io
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from . import kernels
from .augment import augment, mix, normalise
from .classifier import Classifier, Preprocessing, evaluating
from .datasets import DataSplits, ImageSet, load_data, mislabel, subset
from .distillation import MixedLabels, ask_teacher, check_method, freeze
from .errors import Interrupted, TITNError
from .files import claim, make_folder, write_atomically
from .models import count_macs, count_parameters, create_model, load_model, save_model
from .neighbours import OBJECTIVES
from .neighbours.adavit import AdaViT
from .recipes import Recipe, Run
from .records import RECORD, Record, circumstances, load_record, save_record
from .teachers import Teacher

WEIGHTS, CHECKPOINT = "model.safetensors", "checkpoint.pt"
CHECKPOINT_SECONDS = 30.0
GLIMPSE = 2_000  # validation pictures to measure on after an epoch; after the last, all of them
TIME_LIMIT = "the time limit"
WORTH_COMPILING = 100_000  # pictures to learn from: two minutes for the smallest student
COMPILED_NETWORKS = 64  # different ones in a process; PyTorch by itself leaves off after eight, and says little
log = logging.getLogger(__name__)


def train(
    run: Run,
    out: str | Path,
    *,
    teacher_folder: str | Path | None = None,
    start_folder: str | Path | None = None,
    device: str = "auto",
    minutes: float | None = None,
    quiet: bool = False,
) -> Record:
    """Make a run: its weights, its record. What is finished is loaded, what was cut off goes on where it was.

    Args:
        out: the folder for model.safetensors and record.json, and for checkpoint.pt until the run has finished.
        teacher_folder: where the teacher's run is, or will be made; `out`/teacher by default.
        start_folder: the same for the run that makes the first weights; `out`/start by default.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        minutes: stop after so long, with a checkpoint.
        quiet: no progress bar.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or the time limit; the same call goes on from the checkpoint.
        Busy: another process is making a run in `out`.
        TITNError: `out` holds another run, or something in the run doesn't fit; nothing half-written is left behind.
    """
    out = make_folder(out)
    started = time.monotonic()

    def left() -> float | None:
        return None if minutes is None else minutes - (time.monotonic() - started) / 60

    def ready(needed: Run | str | None, folder: Path) -> Classifier | None:
        if isinstance(needed, Run):
            train(needed, folder, device=device, minutes=left(), quiet=quiet)
            return load_model(folder / WEIGHTS)
        return load_model(needed) if needed else None

    with claim(out) if leads() else nullcontext():
        if (out / RECORD).exists():
            record = load_record(out)
            check_same(record.run, run, out)
            return record
        fabric = start_fabric(run.recipe.precision, device)
        with fabric.rank_zero_first():  # one process downloads
            data = load_data(run.data, run.image_size)
        with torch.device("meta"):  # what doesn't fit shows before a teacher is trained
            check_method(create_model(run.model, **{**settings_for(data), **run.model_settings}), run.distillation)
        teacher = ready(run.teacher, Path(teacher_folder or out / "teacher"))
        start = ready(run.start, Path(start_folder or out / "start"))
        try:
            return Training(run, out, data, teacher, fabric, start).finish(left(), quiet)
        except RuntimeError as problem:
            if isinstance(problem, torch.OutOfMemoryError) or "allocate memory" in str(problem):
                raise TITNError(
                    f"a batch of {run.recipe.batch_size} pictures doesn't fit in memory with {run.model}: choose a "
                    "smaller batch_size (--batch-size)"
                ) from problem
            raise


def compare(
    run: Run, out: str | Path, *, device: str = "auto", minutes: float | None = None, quiet: bool = False
) -> dict[str, Record]:
    """The teacher, the student alone (on labels only) and the distilled student: three runs below one folder.

    Args and errors as in `train`.
    """
    out = make_folder(out)
    started = time.monotonic()
    parts: dict[str, Run] = {}
    if run.distillation != "none":
        parts["distilled"] = run  # first, with its teacher: what doesn't fit shows at once
    parts["alone"] = dataclasses.replace(run, distillation="none", teacher=None)
    if isinstance(run.teacher, Run):
        parts["teacher"] = run.teacher
    records = {}
    for name, part in parts.items():
        left = None if minutes is None else minutes - (time.monotonic() - started) / 60
        records[name] = train(
            part, out / name, teacher_folder=out / "teacher", device=device, minutes=left, quiet=quiet
        )
    return {name: records[name] for name in ("teacher", "alone", "distilled") if name in records}


def differences(there: Run, wanted: Run) -> list[str]:
    """The settings in which two runs differ."""
    a, b = (json.loads(json.dumps(dataclasses.asdict(run))) for run in (there, wanted))
    names = [name for name in b if name != "recipe" and a[name] != b[name]]
    return names + [name for name, value in b["recipe"].items() if a["recipe"][name] != value]


def check_same(there: Run, wanted: Run, out: Path) -> None:
    """Raises TITNError if the run in a folder isn't the one that is wanted."""
    if names := differences(there, wanted):
        raise TITNError(
            f"{out} holds another run ({', '.join(names)} differ): choose another folder, or delete that one"
        )


# --- the machine


def start_fabric(precision: str, device: str = "auto") -> Fabric:
    """Fabric for this process: alone, or one of those that `torchrun` started.

    Raises:
        TITNError: a GPU was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TITNError("no GPU that PyTorch can use is here: choose --device cpu, or install PyTorch for your GPU")
    kernels.keep_memory()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each precision
    accelerator = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        plugins=[LightningEnvironment()] if world == 1 else None,  # else Fabric asks MPI, which may be there but broken
        precision=choose_precision(accelerator) if precision == "auto" else precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    torch.backends.cudnn.benchmark = True  # of no effect without a GPU: the fastest of its convolutions
    return fabric


def total(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over all processes."""
    return cast(Tensor, fabric.all_reduce(values, reduce_op="sum"))


def leads() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return int(os.environ.get("RANK", 0)) == 0


def choose_precision(accelerator: str) -> str:
    """bfloat16 where the processor has instructions for it; else float16 on a GPU and float32 on a CPU."""
    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-mixed" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "32-true"


@contextmanager
def stop_requests(minutes: float | None) -> Iterator[Callable[[], str]]:
    """Collects Ctrl-C, SIGTERM and the time limit, so that training can end between two steps.

    Yields a function that says why to stop, or "". A second Ctrl-C interrupts at once.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    asked = []

    def note(number: int, _: object) -> None:
        asked.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: signals go elsewhere
            continue
    try:
        yield lambda: asked[0] if asked else (TIME_LIMIT if time.monotonic() > deadline else "")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- one run


@dataclass
class Place:
    """Where a run is: so many epochs done, so many steps of the next, and what has been measured."""

    epoch: int = 0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    training_seconds: float = 0.0


class Training:
    """A run under way.

    Raises:
        TITNError: the batch, the teacher or the model doesn't fit the data, or the first weights don't fit the model.
    """

    def __init__(
        self,
        run: Run,
        out: Path,
        data: DataSplits,
        teacher: Classifier | None,
        fabric: Fabric,
        start: Classifier | None = None,
    ):
        self.run, self.recipe, self.out, self.data, self.fabric = run, run.recipe, out, data, fabric
        recipe, processes = self.recipe, fabric.world_size
        train_set = mislabel(
            subset(data.train, recipe.train_images, data.name), recipe.label_noise, len(data.classes), run.seed
        )
        self.train_set = train_set.to(fabric.device)  # bytes: it fits
        self.validation_set = subset(data.validation, recipe.test_images, data.name)
        many = len(self.validation_set) > 2 * GLIMPSE
        self.glimpse = subset(self.validation_set, GLIMPSE, data.name) if many else self.validation_set
        self.test_set = subset(data.test, recipe.test_images, data.name)
        if recipe.batch_size > len(self.train_set):
            raise TITNError(
                f"a batch of {recipe.batch_size} is more than the {len(self.train_set)} training pictures of "
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
        fits = settings_for(data)
        torch.manual_seed(run.seed)
        self.network = create_model(run.model, **{**fits, **run.model_settings})
        if start is not None:
            continue_from(self.network, start)
        self.teacher = self.admit(teacher, fits)
        self.compiled = compile_blocks(self.network, recipe.epochs * self.steps * recipe.batch_size, fabric.device)
        self.goal = objective = OBJECTIVES[run.objective](
            self.network,
            run.distillation,
            self.teacher,
            recipe.temperature,
            recipe.feature_weight,
            recipe.label_smoothing,
        )
        if objective.VIEWS > 1 and (recipe.cutmix or recipe.mixup):
            raise TITNError(f"{run.objective!r} can't learn from mixed pictures: leave cutmix and mixup out")
        if processes > 1 and fabric.device.type == "cuda":
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        self.objective, self.optimizer = fabric.setup(
            objective, make_optimizer(objective, recipe, fused=fabric.strategy.precision.precision != "16-mixed")
        )
        self.ema = None
        if recipe.ema_decay:
            self.ema = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True
            )
        self.place, self.sums = Place(), torch.zeros(2, device=fabric.device)

    def admit(self, teacher: Classifier | None, fits: dict[str, Any]) -> Teacher | None:
        """The teacher, frozen and on the device, if it can teach on these pictures."""
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
                f"the teacher learned {about.data}, with other classes or another normalisation than {self.data.name}: "
                f"train a teacher on {self.data.name}"
            )
        self.fabric.to_device(teacher)
        return freeze(teacher)

    def finish(self, minutes: float | None, quiet: bool) -> Record:
        """Train to the end, measure, and leave weights and record behind."""
        self.resume()
        saved = sitting = time.monotonic()
        seconds_before = self.place.seconds
        batch = self.recipe.batch_size
        bar = tqdm(
            total=self.recipe.epochs * self.steps * batch,
            initial=(self.place.epoch * self.steps + self.place.step) * batch,
            unit=" images",
            unit_scale=True,
            desc=f"{self.run.model} ({self.run.distillation})" if self.teacher else self.run.model,
            disable=quiet or not self.fabric.is_global_zero,
        )
        with stop_requests(minutes) as stop, bar:
            self.show(bar)
            while self.place.epoch < self.recipe.epochs:
                draws = np.random.default_rng([self.run.seed, self.place.epoch, 0])
                order = torch.from_numpy(draws.permutation(len(self.train_set))).to(self.fabric.device)
                self.objective.train()
                while self.place.step < self.steps:
                    began = time.monotonic()
                    self.train_step(order)
                    self.place.step += 1
                    if self.place.step == self.steps and self.fabric.device.type == "cuda":
                        torch.cuda.synchronize()  # steps that a GPU still has before it belong to the time, too
                    now = time.monotonic()
                    self.place.training_seconds += now - began
                    self.place.seconds = seconds_before + now - sitting
                    bar.update(batch)
                    if reason := self.agree(stop()):
                        self.save_checkpoint()
                        raise Interrupted(
                            f"stopped by {reason} in epoch {self.place.epoch + 1} of {self.recipe.epochs}; "
                            f"the same command goes on from {self.out / CHECKPOINT}"
                        )
                    if now - saved > CHECKPOINT_SECONDS:
                        self.save_checkpoint()
                        saved = time.monotonic()
                self.end_epoch()
                self.place.seconds = seconds_before + time.monotonic() - sitting
                self.show(bar)
            record = self.conclude()
            if (reason := self.agree(stop())) and reason != TIME_LIMIT:
                raise Interrupted(f"stopped by {reason} when {self.run.model} had just finished, in {self.out}")
        return record

    def train_step(self, order: Tensor) -> None:
        """One step of the optimizer, on one batch over all processes. `order`: the epoch's pictures, by number."""
        place, recipe = self.place, self.recipe
        rng = np.random.default_rng([self.run.seed, place.epoch, 1 + place.step])
        images, labels = self.batch(order, rng)
        torch.manual_seed(int(rng.integers(2**62)) + self.fabric.global_rank)
        answer = None
        if self.teacher is not None:
            with self.fabric.autocast():
                answer = ask_teacher(self.teacher, images)
        self.goal.progress = (place.epoch + place.step / self.steps) / recipe.epochs
        loss, logits = self.objective(images, labels, answer)
        self.fabric.backward(loss)
        if recipe.clip_norm:
            self.fabric.clip_gradients(
                self.objective, self.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
            )
        lr = learning_rate(recipe, place.epoch * self.steps + place.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        right = (logits.argmax(dim=-1) == labels.greater).float().mean()
        self.sums += torch.stack([loss.detach(), 100 * right])

    def batch(self, order: Tensor, rng: np.random.Generator) -> tuple[Tensor, MixedLabels]:
        """This process's share of the step's pictures, augmented and normalised, and their labels."""
        start = self.place.step * self.recipe.batch_size
        chosen = self.train_set[order[start : start + self.recipe.batch_size]]
        labels = MixedLabels(chosen.labels, chosen.labels)
        views = [augment(chosen.images, self.recipe.augmentation, rng) for _ in range(self.goal.VIEWS)]
        if self.recipe.cutmix or self.recipe.mixup:
            views[0], labels = mix(views[0], chosen.labels, rng, self.recipe.cutmix, self.recipe.mixup)
        images = torch.cat([view[self.share] for view in views])
        first, second = (part[self.share].repeat(len(views)) for part in labels[:2])
        return normalise(images, self.data.mean, self.data.std), MixedLabels(first, second, labels.weight)

    def end_epoch(self) -> None:
        """Measure on some of the validation split and step over to the next epoch."""
        place = self.place
        loss, top1 = (total(self.fabric, self.sums) / self.fabric.world_size / self.steps).tolist()
        if not math.isfinite(loss):
            raise TITNError(
                f"training diverged in epoch {place.epoch + 1} (the loss is {loss}): choose a lower lr, a longer "
                "warm-up or clip_norm=1"
            )
        measured = evaluate(self.trained(), self.glimpse, self.preprocessing, self.fabric)
        place.curve.append(
            {
                "epoch": place.epoch + 1,
                "lr": self.optimizer.param_groups[0]["lr"],
                "train_loss": loss,
                "train_top1": top1,
                "validation_loss": measured["loss"],
                "validation_top1": measured["top1"],
                "validation_top5": measured["top5"],
            }
        )
        place.epoch, place.step = place.epoch + 1, 0
        self.sums.zero_()

    def conclude(self) -> Record:
        """Weights and record of a run that has come to its end; the only place where the test split is read."""
        network = self.trained().eval()
        validation, test = (
            evaluate(network, part, self.preprocessing, self.fabric, exact=True)
            for part in (self.validation_set, self.test_set)
        )
        learned = self.recipe.epochs * self.steps * self.recipe.batch_size
        about = circumstances(self.fabric.strategy.precision.precision, self.fabric.world_size, self.fabric.device)
        about["hardware"]["compiled"] = self.compiled
        record = Record(
            run=self.run,
            parameters=count_parameters(network),
            macs=count_macs(network),
            curve=self.place.curve,
            validation=validation,
            test=test,
            seconds=round(self.place.seconds, 1),
            images_per_second=round(learned / max(self.place.training_seconds, 1e-9), 1),
            **about,
        )
        if self.fabric.is_global_zero:
            save_model(network, self.out / WEIGHTS, self.preprocessing)
            save_record(record, self.out / RECORD)
            (self.out / CHECKPOINT).unlink(missing_ok=True)
        self.fabric.barrier()
        return record

    def trained(self) -> Classifier:
        """The network to measure and keep: the moving average where there is one."""
        return self.network if self.ema is None else cast(Classifier, self.ema.module)

    def agree(self, reason: str) -> str:
        """If one process must stop, all do."""
        if self.fabric.world_size == 1:
            return reason
        flag = torch.tensor(float(bool(reason)), device=self.fabric.device)
        return (reason or "another process") if total(self.fabric, flag) > 0 else ""

    def show(self, bar: tqdm) -> None:
        text = f"epoch {min(self.place.epoch + 1, self.recipe.epochs)}/{self.recipe.epochs}"
        if self.place.curve:
            last = self.place.curve[-1]
            text += f", validation loss {last['validation_loss']:.3f}, top-1 {last['validation_top1']:.1f} %"
            text += f", top-5 {last['validation_top5']:.1f} %"
        bar.set_postfix_str(text)

    def save_checkpoint(self) -> None:
        """Everything the run needs to go on as if it had never stopped, in one file, whole or not at all."""
        if not self.fabric.is_global_zero:
            return
        state = {
            "run": json.dumps(dataclasses.asdict(self.run)),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "place": dataclasses.asdict(self.place),
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
        check_same(there, self.run, self.out)
        try:
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if state["precision"]:
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.place = Place(**state["place"])
            self.sums = state["sums"].to(self.fabric.device)
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise TITNError(
                f"the checkpoint {path} doesn't fit this run (another version of titn_lib, or damaged): delete it to "
                "start afresh"
            ) from problem


def settings_for(data: DataSplits) -> dict[str, Any]:
    """What a network must be made for, to learn from this data set."""
    return {"num_classes": len(data.classes), "in_channels": data.in_channels, "image_size": data.image_size}


def continue_from(network: Classifier, start: Classifier) -> None:
    """Give a network the weights of another. What only the new one has (gates, say) stays as it was made.

    Raises:
        TITNError: the other one has weights that the network hasn't, or of another size.
    """
    here, there = network.state_dict(), start.state_dict()
    wrong = [name for name, weight in there.items() if name not in here or here[name].shape != weight.shape]
    if wrong:
        raise TITNError(
            f"the first weights, of {start.config.name}, don't fit {network.config.name} ({wrong[0]} differs): start "
            "from the same model, for the same pictures and classes"
        )
    network.load_state_dict(there, strict=False)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """A linear warm-up, then half a cosine from `lr` down to `min_lr` at the last step."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    last = max(recipe.epochs * steps_per_epoch - 1, warmup + 1)
    along = (step - warmup) / (last - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * min(along, 1.0))) / 2


def compile_blocks(network: nn.Module, pictures: int, device: torch.device) -> bool:
    """Let torch.compile fuse what lies between matrix products, if the run is long enough to pay for it.

    One block is compiled and the code serves all: that takes some fifteen seconds, the whole network several times as
    long, and is as fast. Without a compiler (or for a teacher, whose convolutions have nothing to fuse) all stays as
    it is.
    """
    blocks = getattr(network, "blocks", None)
    if blocks is None or pictures < WORTH_COMPILING:
        return False
    if device.type == "cpu" and not kernels.find_compiler():
        log.warning("training runs without torch.compile, a little slower: there is no C++ compiler (g++ or clang++)")
        return False
    torch._dynamo.config.recompile_limit = COMPILED_NETWORKS
    for block in blocks:
        block.compile(dynamic=False)
    return True


def make_optimizer(module: nn.Module, recipe: Recipe, fused: bool = True) -> torch.optim.Optimizer:
    """SGD decays all weights, as published; AdamW decays matrices and not biases, token tables and norms (but TNT's
    norms over all pixels of a patch, whose weights are matrices).

    Args:
        fused: one kernel for all weights (PyTorch's can't work with float16's gradient scaling and clipping).
    """
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            [p for _, p in parameters], lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, fused=fused
        )
    decayed = [p for name, p in parameters if p.ndim > 1 and name.endswith("weight")]
    others = [p for name, p in parameters if p.ndim <= 1 or not name.endswith("weight")]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)


@torch.no_grad()
def predict(
    network: nn.Module, images: Tensor, preprocessing: Preprocessing | None, batch_size: int | None = None
) -> Float[Tensor, "picture classes"]:
    """Logits of "picture channel height width" bytes, in evaluation mode, on the network's device. (The mode is the
    network's: no other thread should use it meanwhile.)

    Args:
        batch_size: pictures at a time; by default 500 of 32×32, and as many fewer as they are larger.

    Raises:
        TITNError: the pictures are no batch of bytes, or of another size or number of channels than the network takes;
            or `preprocessing` is None, as that of a model that was never saved with any.
    """
    if preprocessing is None:
        raise TITNError(
            "predict must know how pictures were normalised: pass a Preprocessing (a model that was loaded has the one "
            "that was saved with it)"
        )
    mean, std = preprocessing.mean, preprocessing.std
    if images.dtype != torch.uint8:
        raise TITNError(
            f"predict takes pictures as bytes (0 to 255, uint8) and got {images.dtype}: datasets.read_picture reads "
            "files so; pass pictures that are normalised to the model itself"
        )
    if images.ndim != 4 or images.shape[1] != len(mean):
        raise TITNError(
            f"predict takes pictures × {len(mean)} channels × height × width and got "
            f"{'×'.join(map(str, images.shape))}: a single picture becomes a batch with images[None]"
        )
    first = next(network.parameters())
    batch_size = batch_size or max(1, min(500, 500 * 32 * 32 // images.shape[-2:].numel()))
    with evaluating(network):
        parts = [
            network(normalise(part.to(first.device), mean, std).to(first.dtype)).float()
            for part in images.split(batch_size)
        ]
    return torch.cat(parts)


def evaluate(
    network: nn.Module, part: ImageSet, preprocessing: Preprocessing, fabric: Fabric | None = None, exact: bool = False
) -> dict[str, float]:
    """Loss, top-1 and top-5 (per cent) on a split, and its number of pictures; of an AdaViT also macs, the mean of
    what its open gates compute for a picture.

    Args:
        fabric: share the work with the other processes, in its precision.
        exact: in float32 whatever Fabric's precision, so that the figure can be measured again anywhere.
    """
    rank, processes = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    mine, saved = part[rank::processes], list[Tensor]()
    gates: AbstractContextManager = nullcontext()
    if isinstance(network, AdaViT):
        gates = network.register_forward_hook(lambda model, *_: saved.append(model.saved(model.last).sum()))
    convolutions = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact)
    eager = torch.compiler.set_stance("force_eager")  # batches of another size: not worth compiling again
    with gates, convolutions, eager, fabric.autocast() if fabric and not exact else nullcontext():
        logits = predict(network, mine.images, preprocessing)
    labels = mine.labels.to(logits.device)
    ranked = logits.topk(min(5, logits.shape[1]), dim=-1).indices == labels[:, None]
    counts = [ranked[:, 0].sum(), ranked.sum(), sum(saved, labels.new_zeros(()))]
    sums = torch.stack([F.cross_entropy(logits, labels, reduction="sum"), *counts])
    if fabric:
        sums = total(fabric, sums)
    loss, top1, top5, left_out = (sums / len(part)).tolist()
    measured = {"loss": loss, "top1": 100 * top1, "top5": 100 * top5, "pictures": len(part)}
    if isinstance(network, AdaViT):
        measured["macs"] = round(count_macs(network) - left_out)
    return measured
