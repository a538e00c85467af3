"""streamserve scores Kafka event streams with ONNX models, and moves versions safely over Kafka topics."""

from importlib.metadata import version

__version__ = version("streamserve")
