"""Failed checks of the conformance suite tell what was compared."""

import pytest

pytest.register_assert_rewrite("paxoslease.drivers.conformance")
