"""The loss curves of every method are those recorded: a change of shape changes no training."""

import json

import pytest
import yaml

from training_methods.loss_curves import RECORDED, VARIANTS, curves

# Four steps of a float32 model of 16 units: its rounding on other processors stays below this, and the smallest
# change of a loss's scale, sign or mask is far above.
RELATIVE, ABSOLUTE = 2e-3, 2e-4


@pytest.fixture(scope="module")
def found(tmp_path_factory, finished_run):
    recipe = yaml.safe_load((finished_run.parent / "recipe.yaml").read_text())
    with pytest.warns(UserWarning, match="probability leaks there"):  # the squared residual offline says so
        return curves(tmp_path_factory.mktemp("curves") / "run", recipe)


@pytest.mark.parametrize("name", [f"{v}/{m}" for v, (_, methods) in VARIANTS.items() for m in methods])
def test_the_curve_is_the_recorded_one(found, name):
    recorded = json.loads(RECORDED.read_text())[name]
    assert len(found[name]) == len(recorded) == 4
    for step, expected in zip(found[name], recorded, strict=True):
        assert set(step) == set(expected)
        for figure, value in expected.items():
            assert step[figure] == pytest.approx(value, rel=RELATIVE, abs=ABSOLUTE), figure
