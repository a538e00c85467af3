"""The only room that imports vendors: Kafka, Faust, Redis, ONNX Runtime, Prometheus."""
