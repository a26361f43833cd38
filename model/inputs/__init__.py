"""Text and images -> `Prompt`: tokenizer, image processor and chat template."""
