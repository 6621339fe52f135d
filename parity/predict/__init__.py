"""Steps of training on machines that nobody has to own: one, sweeps over plans and degrees, and advice."""

from parity.predict.prediction import FrameworkStep, LedgerRow, Prediction, predict
from parity.predict.request import Question, RequestError

__all__ = ["FrameworkStep", "LedgerRow", "Prediction", "Question", "RequestError", "predict"]
