"""int8: post-training quantization, selection of the layers that stay in float, and quantization-aware fine-tuning."""
