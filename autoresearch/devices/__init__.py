"""Which GPUs there are, what they can do, and their health."""
