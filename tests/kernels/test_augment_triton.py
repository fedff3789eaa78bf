"""Data augmentation in Triton: the images are those of a CPU, bit for bit. Run by Triton's interpreter."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from titn_lib import kernels
from titn_lib.data import autoaugment, batches
from titn_lib.data.batches import IN_KERNELS, operations_on_device, training_batch
from titn_lib.data.images import ImageDataset
from titn_lib.kernels import image_ops

pytest.importorskip("triton", reason="Triton is for Linux")
import offline

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIZES = [(3, 32, 32), (1, 28, 28), (3, 30, 34)]


def make_part(number: int, size: tuple[int, int, int], device: str = "cpu") -> ImageDataset:
    """Noise, dark images, ramps, and images of one value: equalizing and stretching treat them differently."""
    images = torch.randint(0, 256, (number, *size), dtype=torch.uint8)
    images[::3] //= 3
    images[1::7] = (torch.arange(size[2]) * 3 + 40).to(torch.uint8)
    images[2::11] = 77
    return ImageDataset(images, torch.randint(0, 10, (number,))).to(torch.device(device))


def every_operation(size: tuple[int, int], step: int) -> tuple[np.ndarray, np.ndarray]:
    """Each operation with each magnitude and both signs, or every `step`-th of them."""
    pairs = [
        (index, sign * value)
        for index, name in enumerate(autoaugment.OPERATIONS)
        for value in (autoaugment.magnitudes(name, size) if name else [0.0])
        for sign in ((1, -1) if name in (*autoaugment.GEOMETRIC_OPS, *autoaugment.BLEND_OPS) else (1,))
    ]
    operations, values = zip(*pairs[::step], strict=True)
    return np.array(operations), np.array(values)


@offline.INTERPRETED
@pytest.mark.parametrize(("size", "step"), list(zip(SIZES, (1, 17, 11), strict=True)))
def test_every_operation_equals_the_cpus(size, step):
    operations, values = every_operation(size[1:], step)
    images = make_part(len(operations), size).images
    table = operations_on_device(operations, values, size[1:], torch.device("cpu"))
    got = kernels.operate(images, torch.arange(len(images), dtype=torch.int32), *table)
    expected = autoaugment.apply(images, operations, values)
    wrong = [i for i in range(len(images)) if not torch.equal(got[i], expected[i])]
    assert not [(autoaugment.OPERATIONS[operations[i]], values[i]) for i in wrong]


def assert_same_batch(part, seed, monkeypatch, pipeline, cutmix, device="cpu"):
    channels = part.images.shape[1]
    make = partial(training_batch, mean=MEAN[:channels], std=STD[:channels], cutmix=cutmix)
    images, targets = make(part, pipeline, np.random.default_rng(seed), share=slice(1, None))
    if device == "cpu":
        monkeypatch.setattr(kernels, "can_augment", lambda images: True)
    moved = part.to(torch.device(device))
    got, got_targets = make(moved, pipeline, np.random.default_rng(seed), share=slice(1, None))
    monkeypatch.undo()
    assert torch.equal(got.cpu(), images)
    assert torch.equal(got_targets.a.cpu(), targets.a)
    assert torch.equal(got_targets.b.cpu(), targets.b)
    assert got_targets.lam == targets.lam


@offline.INTERPRETED
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_equals_the_cpus(seed, monkeypatch):
    """Crop, flip, AutoAugment, CutMix, normalization; the seeds have another size each."""
    assert_same_batch(make_part(8, SIZES[seed]), seed, monkeypatch, "paper_cifar", cutmix=1.0)


@offline.INTERPRETED
@pytest.mark.parametrize("pipeline", ["shift", "crop_flip"])
def test_other_pipelines_equal_the_cpus(pipeline, monkeypatch):
    assert_same_batch(make_part(8, (3, 32, 32)), 0, monkeypatch, pipeline, cutmix=0.0)


class CountLaunches(TorchDispatchMode):
    """Counts the operations that would be launched on a GPU."""

    def __init__(self):
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "lift_fresh")):
            self.launches.append(name)
        return func(*args, **(kwargs or {}))


def test_a_batch_takes_eight_launches(monkeypatch):
    """On the device "meta", where nothing can wait for a value either. One of them is the only copy to the device."""
    data, counted = make_part(64, (3, 32, 32), "meta"), CountLaunches()
    order = torch.arange(64, device="meta")

    def launch(name, dtype, images, *_):
        counted.launches.append(name)
        return torch.empty(images.shape, dtype=dtype, device="meta")

    for name in ("crop_flip", "operate", "mix_normalize"):
        dtype = torch.float32 if name == "mix_normalize" else torch.uint8
        monkeypatch.setattr(kernels, name, partial(launch, name, dtype))
    monkeypatch.setattr(kernels, "can_augment", lambda images: True)
    for _ in range(2):  # the first time creates what all batches share
        counted.launches.clear()
        with counted:
            part = data[order[16:48]]
            images, targets = training_batch(part, "paper_cifar", np.random.default_rng(0), MEAN, STD, cutmix=1.0)
    batches.policy_on_device.cache_clear()
    assert images.shape == (32, 3, 32, 32)
    assert targets.b.shape == (32,)
    choose = ["index", "index"]
    assert counted.launches == [*choose, "_to_copy", "crop_flip", "operate", "operate", "mix_normalize", "index"]


@offline.COMPILED
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_for_a_gpu(capability, tmp_path):
    """In registers alone. The sums and products that are fused are those of `multiply_add`: eight for each pixel."""
    from offline import compile_for

    from titn_lib.kernels import augment_triton as module

    options = image_ops.launch_options(torch.empty(1024, 3, 32, 32, device="meta"))
    types = {"images_ptr": "*u8", "result_ptr": "*u8", "factors_ptr": "*fp32", "offsets_ptr": "*fp32",
             "fill": "i32", "batch": "i32"}  # fmt: skip
    crop_flip, operate, mix_normalize = (
        compile_for(capability, kernel, {name: types[name] for name in types if name in kernel.arg_names}, options,
                    tmp_path)
        for kernel in (module.crop_flip_kernel, module.operation_kernel, module.mix_normalize_kernel)
    )  # fmt: skip
    assert max(crop_flip.registers, mix_normalize.registers) <= 64
    assert operate.registers <= 128  # four programs of 128 threads on a multiprocessor
    assert crop_flip.stack == operate.stack == mix_normalize.stack == 0
    assert operate.shared <= 2048
    assert operate.ptx.count("fma.rn") == 1024 // 128 * 8


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pipeline", IN_KERNELS)
def test_gpu_batches_are_the_cpus(pipeline, size, monkeypatch):
    assert_same_batch(make_part(256, size), 0, monkeypatch, pipeline, cutmix=1.0, device="cuda")
