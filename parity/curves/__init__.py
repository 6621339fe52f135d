"""Whole trainings on real data: the loss curves of both frameworks beside the reference, and how far apart they are."""

from parity.curves.judge import Judgement, judge
from parity.curves.plot import plot_curves
from parity.curves.setup import MODELS, Training, run_training, set_up

__all__ = ["MODELS", "Judgement", "Training", "judge", "plot_curves", "run_training", "set_up"]
