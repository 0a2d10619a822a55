"""Conformance suites that ship: a new store, backbone or task inherits its suite and is tested.

    from ssl3d.testing.backbone import BackboneTests

    class TestMine(BackboneTests):
        def make(self, in_channels=1):
            return Mine(in_channels=in_channels)

Needs pytest (`pip install 'ssl3d[test]'`).
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("backbone", "matrix", "store", "task")))
