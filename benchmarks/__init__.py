"""What things cost and what they gain, as ratios: each module but a few is a command."""

import importlib.util

# gradient_norms_torch has an environment of its own, without TensorFlow.
if importlib.util.find_spec("tensorflow"):
    from trainers import startup

    startup.import_tensorflow()
