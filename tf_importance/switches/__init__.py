"""When to draw, and from what: decided for each group of examples."""

from tf_importance.switches.base import Always, Never, Setting, Switch
from tf_importance.switches.gain import Gain, warn_unless_followed
from tf_importance.switches.tau import Tau, named

__all__ = ["Always", "Gain", "Never", "Setting", "Switch", "Tau", "named", "warn_unless_followed"]
