"""RULER's tasks as prompts of exact length (Hsieh et al. 2024, arXiv 2404.06654)."""
