"""Smaller models: training, distillation and pruning with transformers and torch (`pip install "kaoken[distill]"`).

Everything here works on checkpoints, before baking. `kaoken.compress.gpt2` alone knows GPT-2's names.
"""
