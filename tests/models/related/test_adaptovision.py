"""AdaptoVision against its equations, place by place, and against its published size."""

import numpy as np
import pytest
import torch

from titn_lib import TITNError, count_macs, count_parameters, create_model
from titn_lib.models.related.adaptovision import AdaptoVisionConfig

from . import contract


def test_published_size():
    """About 6.6 M parameters, by the replication's account of the paper (arXiv 2504.12652)."""
    model = create_model("adaptovision")
    assert count_parameters(model) == pytest.approx(6.6e6, rel=0.02)
    assert count_macs(model) == pytest.approx(327e6, rel=0.01)


def test_size_for_a_laptop():
    model = create_model("adaptovision_nano")
    assert count_parameters(model) == 654_543
    assert count_macs(model) == pytest.approx(56.2e6, rel=0.01)


def test_a_unit_has_the_parameters_of_its_equation():
    """Four 1×1 and two 3×3 convolutions of C×C, one depthwise 3×3, and six normalizations: 22 C² + 9 C + 12 C."""
    unit = create_model("adaptovision_nano", width=5).start[2]
    assert count_parameters(unit) == 22 * 25 + 9 * 5 + 12 * 5


# --- the reference: loops over places, in float64, from the equations alone


def convolve(weight, maps, depthwise=False):
    """A convolution with zeros around, "channel row column"."""
    out, _, side, _ = weight.shape
    around = np.pad(maps, [(0, 0), (side // 2, side // 2), (side // 2, side // 2)])
    result = np.zeros((out, *maps.shape[1:]))
    for row in range(maps.shape[1]):
        for column in range(maps.shape[2]):
            window = around[:, row : row + side, column : column + side]
            for channel in range(out):
                seen = window[channel : channel + 1] if depthwise else window
                result[channel, row, column] = (weight[channel] * seen).sum()
    return result


def norm(weights, name, maps):
    """Batch normalization in evaluation: with the means and variances that training has left."""
    mean, variance, scale, shift = (
        weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (maps - mean) / np.sqrt(variance + 1e-5) * scale + shift


def step(weights, name, maps):
    maps = norm(weights, f"{name}.1", convolve(weights[f"{name}.0.weight"], maps))
    return np.where(maps > 0, maps, np.exp(np.minimum(maps, 0)) - 1)


def unit(weights, name, maps):
    new = maps
    for place in range(7):  # W₁ W₂ W_a D W_b W₃ W₄
        if place == 3:
            new = convolve(weights[f"{name}.3.weight"], new, depthwise=True)
        else:
            new = step(weights, f"{name}.{place}", new)
    return maps + new


def pool(maps, side, function):
    """The maximum or the mean of every square of `side` by `side` positions."""
    result = np.zeros((len(maps), maps.shape[1] // side, maps.shape[2] // side))
    for channel, y, x in np.ndindex(result.shape):
        result[channel, y, x] = function(maps[channel, y * side : (y + 1) * side, x * side : (x + 1) * side])
    return result


def reference(weights, image, units):
    maps = step(weights, "start.1", step(weights, "start.0", image))
    for place in range(units):
        maps = unit(weights, f"start.{2 + place}", maps)
    done = [maps]
    for stage in range(3):
        name, last = f"stages.{stage}", done[-1]
        maps = step(weights, f"{name}.near", pool(last, 2, np.max))
        mean = np.array([one.mean() for one in last])
        everywhere = weights[f"{name}.everywhere.weight"][:, :, 0, 0] @ mean + weights[f"{name}.everywhere.bias"]
        maps = maps + everywhere[:, None, None]
        for place in range(units):
            maps = unit(weights, f"{name}.units.{place}", maps)
        for back in range(min(2, len(done))):
            smaller = pool(done[-1 - back], 2 ** (back + 1), np.mean)
            projected = convolve(weights[f"{name}.skips.{back}.1.weight"], smaller)
            maps = maps + weights[f"{name}.alphas"][back] * norm(weights, f"{name}.skips.{back}.2", projected)
        done.append(maps)
    mean = np.array([one.mean() for one in done[-1]])
    return weights["head.1.weight"][:, :, 0, 0] @ mean + weights["head.1.bias"]


@pytest.mark.parametrize(("size", "units"), [((16, 16), 1), ((11, 18), 2)])
def test_logits_equal_the_equations(size, units):
    settings = {"width": 2, "widest": 6, "units": units, "num_classes": 3, "in_channels": 2, "image_size": size}
    model = create_model("adaptovision_nano", **settings).double()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():  # no zeros and ones that hide a mistake
            value.normal_(std=0.6)
    images = torch.randn(2, 2, *size, dtype=torch.float64)
    logits = model.eval()(images)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for image, ours in zip(images, logits, strict=True):
        theirs = torch.from_numpy(reference(weights, image.numpy(), units))
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_widths():
    assert AdaptoVisionConfig(width=3, widest=20).widths == [3, 6, 12, 20]
    model = create_model("adaptovision_nano", width=3, widest=20)
    assert [len(stage.alphas) for stage in model.stages] == [1, 2, 2]  # the second stage has one before it


def test_invalid_settings():
    with pytest.raises(TITNError, match=r"can't take 7×32: choose an image_size of 8 or more"):
        create_model("adaptovision_nano", image_size=(7, 32))
    assert create_model("adaptovision_nano", image_size=(8, 8)).train()(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_shapes_gradients_and_files(tmp_path):
    contract.check_shapes("adaptovision_nano")
    contract.check_gradients("adaptovision_nano")
    contract.check_file("adaptovision_nano", tmp_path)


def test_learns():
    contract.check_learns("adaptovision_nano", bound=0.3, steps=12)
