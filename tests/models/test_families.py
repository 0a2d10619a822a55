"""What holds for every family of backbones, found by walking the package: its recipe schema, its suite, its imports."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import ssl3d.models
from ssl3d import schema
from ssl3d.models.backbone import Backbone, MaskableBackbone, TokenBackbone
from ssl3d.models.nnunet import NNUNetBackbone

ABSTRACT = (Backbone, MaskableBackbone, TokenBackbone, NNUNetBackbone)
# The least a recipe would say to get a network that is made in milliseconds.
SMALL = {
    "ResEncUNet": {"size": "S"},
    "PlainConvUNet": {"size": "S"},
    "ResNet": {"depth": 10, "width": 0.125},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "UNet3D": {"width": 2},
    "STUNet": {"size": "tiny", "strides": [[1, 2, 2]] * 5},
    "Primus": {"size": "tiny", "input_size": [16, 32, 16]},
    "PrimusV2": {"size": "tiny", "input_size": [16, 32, 16]},
}


def families():
    modules = [importlib.import_module(f"ssl3d.models.{m.name}") for m in pkgutil.iter_modules(ssl3d.models.__path__)]
    found = {
        cls
        for module in modules
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Backbone) and cls not in ABSTRACT
    }
    return sorted(found, key=lambda cls: cls.__name__)


FAMILIES = families()


def test_all_families_are_found():
    assert len(FAMILIES) >= 11


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_recipe_can_name_it_and_repeat_it(cls):
    node = {"_target_": f"{cls.__module__}.{cls.__name__}", **SMALL.get(cls.__name__, {"size": "tiny"})}
    completed, faults = schema.check_value(node, Backbone, "model")
    assert not faults
    backbone = schema.build(completed)
    spec = backbone.spec()
    again, faults = schema.check_value({"_target_": spec.target, **spec.kwargs}, Backbone, "model")
    assert not faults
    assert again == completed, "the spec holds every argument, as the completed recipe does"
    assert schema.build(again).spec() == spec


@pytest.mark.parametrize("cls", FAMILIES)
def test_every_argument_is_typed_has_a_default_and_is_explained(cls):
    for name, (annotation, default) in schema.parameters(cls).items():
        assert annotation is not inspect.Parameter.empty, name
        assert default is not inspect.Parameter.empty, name
        documented = any(f"`{name}`" in (c.__doc__ or "") for c in cls.__mro__) or name in ("in_channels",)
        assert documented, f"{cls.__name__}: the docstring does not say what {name} is"


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_wrong_word_is_a_fault_of_its_key(cls):
    node = {"_target_": f"{cls.__module__}.{cls.__name__}", "in_chanels": 2}
    _, faults = schema.check_value(node, Backbone, "model")
    assert faults == ["unknown key 'model.in_chanels'; did you mean 'in_channels'?"]


def test_every_family_has_a_conformance_suite():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for cls in FAMILIES:
        assert f"return {cls.__name__}(" in text, f"{cls.__name__} has no subclass of BackboneTests"


def test_the_interface_imports_no_network_library():
    """MONAI and timm take seconds to import: only the families that need them do."""
    folder = Path(ssl3d.models.__path__[0])
    for name in ("__init__", "backbone", "init"):
        assert not re.search(r"^\s*(import|from) (monai|timm|dynamic_)", (folder / f"{name}.py").read_text(), re.M)
