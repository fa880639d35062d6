"""Files of others: HYDRA's own, RobustBench's, state dicts, ONNX. Read without running anything, and written."""
