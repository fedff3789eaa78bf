"""Every check accepts a right answer in whatever form it comes, and has one sentence for what is no answer at all."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import Any, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor

from titn_lib import course
from titn_lib.course import ex01_patches_and_pixels as ex01
from titn_lib.course import ex02_inner_attention as ex02
from titn_lib.course import ex03_outer_attention as ex03
from titn_lib.course import ex04_titn as ex04
from titn_lib.course import ex05_teacher as ex05
from titn_lib.course import ex07_distillation as ex07
from titn_lib.course import ex08_ablations as ex08
from titn_lib.course import ex09_attention as ex09
from titn_lib.course import ex11_scaling as ex11
from titn_lib.course import ex12_related_attention as ex12
from titn_lib.course import ex13_related_convolutions as ex13
from titn_lib.course import ex14_related_training as ex14
from titn_lib.course import ex15_related_cost as ex15
from titn_lib.course import ex16_claims as ex16
from titn_lib.course.checks import Verdict
from titn_lib.data.mixing import cutmix
from titn_lib.losses.distillation import soft_loss, teacher_forward
from titn_lib.losses.relabeling import relabel


class Elsewhere(Tensor):
    """Stands in for a tensor on a GPU: no operation takes it together with a tensor on the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        tensors = [value for value in args if isinstance(value, Tensor)]
        if not all(isinstance(value, cls) for value in tensors):
            raise RuntimeError("Expected all tensors to be on the same device")
        if function in (Tensor.cpu, Tensor.item, Tensor.tolist):
            return function(args[0].as_subclass(Tensor), *args[1:], **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs)


FORMS = {
    "float64": Tensor.double,
    "NumPy, backwards in memory": lambda got: got.detach().flip(0).numpy()[::-1] if got.ndim else got.numpy(),
    "list": Tensor.tolist,
    "list of tensors": lambda got: list(got) if got.ndim else got[None],
    "sparse": lambda got: got.to_sparse() if got.ndim else got[None].to_sparse(),
    "another device": lambda got: got.as_subclass(Elsewhere),
    "with gradient": lambda got: got.double().requires_grad_(),
}


def isolated(outer, layer):
    return torch.cat([layer(outer[:, :-1])[0], layer(outer[:, -1:])[0]], dim=1)


def tnt_update(inner, outer, norm, linear, last_norm):
    return outer + torch.nn.functional.pad(last_norm(linear(norm(inner.flatten(2)))), (0, 0, 1, 0))


def prepared(teacher, images, labels, rng):
    mixed, (own, pasted, lam) = cutmix(images, labels, rng)
    return mixed, (own, pasted, torch.tensor(lam)), teacher_forward(teacher, mixed).logits


def half_open(images, patches):
    return (torch.arange(images) % 2 == 0).float()[:, None].expand(images, patches).clone()


def painted(image):
    image = image.clone()
    image[:, ::2] = image[:, :, ::2] = 1
    return image


def mirrored():
    image = torch.rand(3, 32, 32)
    image[:, 1::2, 0::2] = image[:, 0::2, 1::2]
    return image


# A right answer to each exercise whose answer is made of tensors.
RIGHT: dict[Callable, Any] = {
    ex01.check_cut: ex01.cut,
    ex01.check_join: ex01.join,
    ex01.check_symmetric: mirrored(),
    ex02.check_one_head: ex02.one_head,
    ex02.check_all_heads: ex02.all_heads,
    ex03.check_projection: ex03.add_update,
    ex03.check_heads: ex03.heads,
    ex04.check_projection: tnt_update,
    ex04.check_isolated: isolated,
    ex05.check_calibration: ex05.calibration_error,
    ex07.check_soft_loss: soft_loss,
    ex07.check_wrong_student: lambda student, teacher, T: soft_loss(student.detach(), teacher, T),
    ex07.check_prepare: prepared,
    ex08.check_gap: ex08.gap,
    ex08.check_report: lambda change, base: change.max() - base.min(),
    ex09.check_rollout: ex09.rollout,
    ex11.check_rate: lambda *arguments: torch.tensor(ex11.rate(*arguments)),
    ex12.check_carry: ex12.carry,
    ex12.check_feature_map: lambda x: x,
    ex13.check_dilated: ex13.dilated,
    ex13.check_unseen: painted,
    ex14.check_relabel: relabel,
    ex14.check_stranger: lambda teacher: torch.cat([teacher, torch.zeros(6, 5)], dim=-1),
    ex15.check_straight_through: lambda soft: soft + ((4 * soft).round() / 4 - soft).detach(),
    ex15.check_idle: half_open,
    ex16.check_honest: lambda validation, test: test[torch.arange(len(test)), validation.argmax(dim=1)],
    ex16.check_leak: lambda image_of: image_of.argsort().reshape(-1, 2).unbind(1),
}
NUMBERS = ("NumPy, backwards in memory", "list")
REFUSED = {
    (ex07.check_prepare, "with gradient"): "carry a gradient",
    (ex15.check_straight_through, "sparse"): "but the gradient is off",  # none reaches the zeros
    **{(ex07.check_soft_loss, form): "the value is right, but no gradient" for form in NUMBERS},
    **{(ex07.check_wrong_student, form): "gradient" for form in NUMBERS},
    **{(ex15.check_straight_through, form): "no gradient gets through" for form in NUMBERS},
}


def name_of(check: Callable) -> str:
    return f"{check.__module__.split('.')[-1][:4]}-{check.__name__}"


def in_form(form: Callable, answer: Any) -> Any:
    """The answer, with all tensors that it is, returns or holds in another form."""
    if isinstance(answer, Tensor):
        return form(answer)
    if isinstance(answer, tuple):
        return tuple(in_form(form, part) for part in answer)
    return lambda *arguments: in_form(form, answer(*arguments))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", RIGHT, ids=name_of)
def test_right_in_any_form(check, form, expect):
    expect(REFUSED.get((check, form), "✓"), check, in_form(FORMS[form], RIGHT[check]), slow=True)


MODULES = [
    importlib.import_module(f"{course.__name__}.{found.name}") for found in pkgutil.iter_modules(course.__path__)
]
CHECKS = [check for module in MODULES for name, check in vars(module).items() if name.startswith("check_")]
NO_ANSWERS = {
    "dots": ...,
    "None": None,
    "word": "b?",
    "truth value": True,
    "complex number": 1 + 2j,
    "empty list": [],
    "ragged list": [[1], [2, 3]],
    "dict": {"a": 1},
    "nan": math.nan,
    "huge number": 10**400,
    "empty tensor": torch.empty(0),
    "wrong shape": torch.zeros(7, 1, 7),
    "complex tensor": torch.ones(3, dtype=torch.complex64),
    "sparse tensor": torch.eye(3).to_sparse(),
    "without values": torch.ones(3, device="meta"),
    "array of objects": np.array([None, {}]),
}


class Silent(Exception):
    """Raised without a word."""


def fails(*arguments):
    raise Silent


def fails_at_length(*arguments):
    raise ValueError("first\nsecond")


def spoils(*arguments):
    """Overwrite every tensor that comes in, and return the first."""
    for value in arguments:
        if isinstance(value, Tensor):
            value.zero_()
    return arguments[0]


FAULTY = {
    "raises": fails,
    "raises at length": fails_at_length,
    "takes nothing": lambda: 1,
    "spoils its arguments": spoils,
    "endless": lambda *a: FAULTY["endless"](*a),
}


def is_function(parameter: inspect.Parameter) -> bool:
    return get_origin(parameter.annotation) is Callable or parameter.annotation is Callable


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_what_is_no_answer_gets_a_sentence(check, unchecked):
    parameters = inspect.signature(check).parameters.values()
    wrong = [(name, value, lambda *_, value=value: value) for name, value in NO_ANSWERS.items()]
    wrong += [(name, function, function) for name, function in FAULTY.items()]
    for name, value, function in [*wrong, ("not called", ..., 3)]:
        if name in FAULTY and not any(map(is_function, parameters)):
            continue
        verdict = check(*(function if is_function(one) else value for one in parameters))
        assert isinstance(verdict, Verdict), name
        assert not verdict.right, name
        assert verdict.message.count("\n") == 0, name
