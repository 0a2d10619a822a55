"""What holds for every family of backbones, found by walking the package: its recipe schema, its suite, its imports."""

import inspect
import re
from pathlib import Path

import pytest

import ssl3d.models
from ssl3d import schema
from ssl3d.models.backbone import Backbone
from ssl3d.testing.matrix import SMALL_MODELS, backbone_classes

FAMILIES = backbone_classes()


def test_all_families_are_found():
    assert len(FAMILIES) >= 11


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_recipe_can_name_it_and_repeat_it(cls):
    node = {"_target_": f"{cls.__module__}.{cls.__name__}", **SMALL_MODELS.get(cls.__name__, {"size": "tiny"})}
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
