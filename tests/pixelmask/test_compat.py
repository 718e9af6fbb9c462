"""Attributes that are replaced for a while, and what libraries of any age are given."""

import types

import numpy as np
import pytest

from pixelmask.engine.compat import numpy_float, replaced


def test_an_attribute_is_replaced_until_the_end_whatever_ends_it():
    owner = types.SimpleNamespace(here=1)
    with replaced(owner, "here", 2), replaced(owner, "absent", 3):
        assert (owner.here, owner.absent) == (2, 3)
    with pytest.raises(ValueError, match="within"), replaced(owner, "here", 2), replaced(owner, "absent", 3):
        raise ValueError("within")
    assert vars(owner) == {"here": 1}


def test_a_class_gets_back_its_own_attribute_and_not_an_inherited_one():
    class Parent:
        value = 1

    class Child(Parent):
        pass

    with replaced(Child, "value", 2):
        assert (Child.value, Parent.value) == (2, 1)
    assert "value" not in vars(Child) and Child.value == 1


def test_numpy_has_its_old_float_for_a_while():
    had = "float" in vars(np)
    with numpy_float():
        assert vars(np)["float"] is float
    assert ("float" in vars(np)) == had
