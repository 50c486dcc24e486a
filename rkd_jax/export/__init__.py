"""Networks that run elsewhere: StableHLO, ONNX (int8 too), safetensors and PyTorch's state dicts.

Every file is checked against JAX on real images before it stands under its name, and what the run
measured is measured again on it.
"""
