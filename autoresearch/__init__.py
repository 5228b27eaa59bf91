"""An autonomous ML-research loop whose score, clock and seed `train.py` cannot fake.

Importing this package imports nothing else: the guest process that runs `train.py`
starts from here and every millisecond of it is start-up.
"""

__version__ = "0.1.0"
