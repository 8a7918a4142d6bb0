"""Int8: post-training quantization, the layers that must stay in float, and quantization-aware fine-tuning."""
